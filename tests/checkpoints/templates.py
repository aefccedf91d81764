"""Chat templates found in checkpoints."""

from __future__ import annotations

from tests.checkpoints.published import VISION_TEMPLATE

TRIMMING = VISION_TEMPLATE.replace("part['text']", "part['text'] | trim").replace(
    "{{ message['content'] }}", "{{ message['content'] | trim }}"
)
PARTS_ONLY = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
OTHER_SYSTEM = VISION_TEMPLATE.replace("You are a helpful assistant.", "Look closely.")
RAISING = "{{ raise_exception('this template is retired') }}"
NO_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{{ raise_exception('System role not supported') }}{%- endif -%}" + VISION_TEMPLATE
)
SYNTAX_ERROR = VISION_TEMPLATE.replace("{%- endfor -%}", "{%- endfro -%}", 1)
REASONING = VISION_TEMPLATE.replace(
    "part['text']", "part['text'].split('</think>')[-1].lstrip('\\n')"
)
BY_KEY = VISION_TEMPLATE.replace("part['type'] == 'image' or ", "")
MARKED = VISION_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{ message['content'] }}"
    "{%- endgeneration -%}{%- else -%}{{ message['content'] }}{%- endif -%}",
)
