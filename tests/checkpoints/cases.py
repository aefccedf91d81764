"""Kinds of checkpoint folders, and the expected outcome for each.

Every case changes a copy of the published layout (`tests.checkpoints.published`) around the tiny
random model. The tests load it, compare the result with transformers itself, and write the outcomes
into the table of docs/models.md (`tests.checkpoints.table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.checkpoints import changes as c
from tests.checkpoints import templates as t
from tests.checkpoints.published import TEXT_TEMPLATE, VISION_TEMPLATE


@dataclass(frozen=True)
class Case:
    """One kind of folder.

    Attributes:
        group: heading in the table.
        name: row in the table.
        change: the change to a copy of the published layout; `model` is the tiny model's own
            folder, as transformers 5 writes it. May return another folder to load.
        loads: whether it should load; otherwise it is refused with one sentence.
        settings: settings of `load_model`.
        template: the chat template that transformers has to be given, if by itself it uses none or
            a wrong one.
        parts_only: whether transformers has to be given text as parts.
        cut: the words after which the table omits the rest, a library's own text.
    """

    group: str
    name: str
    change: c.Change
    loads: bool = True
    settings: Mapping[str, int] = field(default_factory=dict)
    template: str | None = None
    parts_only: bool = False
    cut: str = ""


LAYOUTS, TEMPLATES = "Layouts", "Chat templates"
TOKENS, SIZES, WINDOWS = "Tokenizers", "Image sizes", "Sliding windows"
EXPORTS, INCOMPLETE, OTHERS = "Trainers' exports", "Incomplete or damaged", "Other models"
QUANTISED = "Quantised"

CASES: tuple[Case, ...] = (
    Case(LAYOUTS, "as published (flat config, shards, `chat_template.json`)", c.nothing),
    Case(LAYOUTS, "the same as a snapshot of the hub's cache (links)", c.hub_cache),
    Case(LAYOUTS, "head tied to the embeddings, as the 3B", c.tied),
    Case(LAYOUTS, "tied, the head stored as well", c.tied_and_stored),
    Case(LAYOUTS, "tied by the config, with a head of its own in the files", c.tied_with_own_head),
    Case(LAYOUTS, "tied by `text_config` alone (4.52 to 4.57)", c.tied_in_the_text_config),
    Case(LAYOUTS, "saved by transformers 4.52 to 4.57 (nested config)", c.saved_by_4_57),
    Case(LAYOUTS, "saved by transformers 5 (`processor_config.json` alone)", c.today),
    Case(
        LAYOUTS,
        "tensors named as in memory (`model.language_model.`, `model.visual.`)",
        c.memory_names,
    ),
    Case(LAYOUTS, "saved from the base class (`language_model.`), tied", c.base_class),
    Case(LAYOUTS, "one `model.safetensors`", c.one_file),
    Case(LAYOUTS, "`vocab.json` and `merges.txt`, no `tokenizer.json`", c.vocabulary_files),
    Case(
        LAYOUTS,
        "`tokenizer.json`, no `vocab.json` and `merges.txt`",
        c.without_files("vocab.json", "merges.txt"),
    ),
    Case(LAYOUTS, "weight files that name no format", c.no_metadata),
    Case(LAYOUTS, "float16 weights (`torch_dtype`)", c.half_precision),
    Case(LAYOUTS, "`dtype` in place of `torch_dtype`", c.config(torch_dtype=..., dtype="bfloat16")),
    Case(LAYOUTS, "no number type in the config", c.config(torch_dtype=...)),
    Case(LAYOUTS, "YaRN in `rope_scaling`", c.yarn),
    Case(LAYOUTS, "a whole `model.safetensors` beside the index of other files", c.stale_index),
    Case(LAYOUTS, "a whole `model.safetensors` beside whole shards", c.single_beside_shards),
    Case(LAYOUTS, "another `.safetensors` file beside the shards", c.stray_file),
    Case(LAYOUTS, "tensors that no Qwen2.5-VL has (a value head)", c.more_tensors),
    Case(
        TEMPLATES,
        "text-and-tools template in the tokenizer alone",
        c.in_the_tokenizer(TEXT_TEMPLATE),
        template=VISION_TEMPLATE,
    ),
    Case(
        TEMPLATES,
        "text-and-tools template as `chat_template.jinja`",
        c.jinja_alone(TEXT_TEMPLATE),
        template=VISION_TEMPLATE,
    ),
    Case(TEMPLATES, "no template at all", c.no_template, template=VISION_TEMPLATE),
    Case(TEMPLATES, "`chat_template.jinja`", c.jinja_alone(t.OTHER_SYSTEM)),
    Case(TEMPLATES, "in `processor_config.json`", c.in_the_processor_config),
    Case(TEMPLATES, "`chat_template.json` beside another `chat_template.jinja`", c.in_all_places),
    Case(TEMPLATES, "in the tokenizer", c.in_the_tokenizer(t.OTHER_SYSTEM)),
    Case(
        TEMPLATES,
        "named templates in the tokenizer, by their `default`",
        c.in_the_tokenizer(c.NAMED),
        template=VISION_TEMPLATE,
    ),
    Case(
        TEMPLATES,
        "named templates in the tokenizer, none of them `default`",
        c.in_the_tokenizer(c.NAMED[:1]),
        template=VISION_TEMPLATE,
    ),
    Case(
        TEMPLATES,
        "named templates in `chat_template.json`",
        c.json_template({"default": t.OTHER_SYSTEM, "rag": "x"}),
        template=t.OTHER_SYSTEM,
    ),
    Case(TEMPLATES, "`additional_chat_templates/` beside `chat_template.jinja`", c.additional),
    Case(TEMPLATES, "one that trims what is said", c.json_template(t.TRIMMING)),
    Case(TEMPLATES, "one that cuts off reasoning", c.json_template(t.REASONING)),
    Case(TEMPLATES, "one that takes parts alone", c.json_template(t.PARTS_ONLY), parts_only=True),
    Case(TEMPLATES, "one that looks for the key `image`", c.json_template(t.BY_KEY)),
    Case(TEMPLATES, "one that marks answers, for TRL (`generation`)", c.json_template(t.MARKED)),
    Case(TEMPLATES, "one that refuses system messages", c.json_template(t.NO_SYSTEM)),
    Case(TEMPLATES, "one that always raises", c.json_template(t.RAISING), False),
    Case(TEMPLATES, "a syntax error", c.json_template(t.SYNTAX_ERROR), False, cut="line 17"),
    Case(TEMPLATES, "a number in its place", c.json_template(7), False),
    Case(TOKENS, "special tokens added", c.added("<|point|>", "<|click|>")),
    Case(TOKENS, "plain tokens added (`add_tokens`)", c.added("starfish", "[Q]", special=False)),
    Case(TOKENS, "a special token that takes spaces with it", c.added("<|box|>", lstrip=True)),
    Case(TOKENS, "vision tokens that are not called special", c.vision_tokens_not_special),
    Case(TOKENS, "one that begins every text with a token of its own", c.begins_with_a_token),
    Case(TOKENS, "truncation and padding saved in `tokenizer.json`", c.truncating),
    Case(TOKENS, "from a text model, without `<|image_pad|>`", c.text_tokenizer, False),
    Case(TOKENS, "`image_token_id` of another tokenizer", c.other_image_token, False),
    Case(TOKENS, "a damaged `tokenizer.json`", c.damaged_tokenizer, False, cut="incomplete:"),
    Case(
        SIZES,
        "`size` in today's names",
        c.images(
            min_pixels=..., max_pixels=..., size={"shortest_edge": 3136, "longest_edge": 50176}
        ),
    ),
    Case(
        SIZES,
        "`min_pixels` and `max_pixels` inside `size`, and beside it",
        c.images(size={"min_pixels": 3136, "max_pixels": 50176}, min_pixels=3136, max_pixels=50176),
    ),
    Case(
        SIZES,
        "`min_pixels` and `max_pixels` inside `size` alone",
        c.images(min_pixels=..., max_pixels=..., size={"min_pixels": 3136, "max_pixels": 50176}),
    ),
    Case(
        SIZES,
        "`size` and other bounds beside it",
        c.images(size={"shortest_edge": 3136, "longest_edge": 12845056}, max_pixels=50176),
    ),
    Case(SIZES, "no bounds", c.images(min_pixels=..., max_pixels=...)),
    Case(
        SIZES,
        "`size` without `shortest_edge`",
        c.images(min_pixels=..., max_pixels=..., size={"longest_edge": 50176}),
        False,
    ),
    Case(
        SIZES,
        "the same, with `min_pixels` given to `load_model`",
        c.images(min_pixels=..., max_pixels=..., size={"longest_edge": 50176}),
        settings={"min_pixels": 3136},
    ),
    Case(
        SIZES,
        "`size` as `height` and `width`",
        c.images(min_pixels=..., max_pixels=..., size={"height": 224, "width": 224}),
        False,
    ),
    Case(SIZES, "patches of another model", c.images(patch_size=16), False),
    Case(
        WINDOWS,
        "`use_sliding_window`, shorter than the prompt, in half of the layers",
        c.config(use_sliding_window=True, sliding_window=24, max_window_layers=2),
    ),
    Case(
        WINDOWS,
        "`use_sliding_window`, in every layer",
        c.config(use_sliding_window=True, sliding_window=24, max_window_layers=0),
    ),
    Case(
        WINDOWS,
        "`use_sliding_window` after the last layer",
        c.config(use_sliding_window=True, sliding_window=24, max_window_layers=28),
    ),
    Case(
        EXPORTS, "a run's folder: checkpoints and optimiser files beside the model", c.a_run_folder
    ),
    Case(EXPORTS, "the folder above `checkpoint-500`", c.parent_of_checkpoints, False),
    Case(EXPORTS, "an adapter (LoRA)", c.adapter_alone, False),
    Case(EXPORTS, "an adapter with a `config.json`", c.adapter_with_config, False),
    Case(EXPORTS, "an adapter beside a whole model", c.adapter_beside, False),
    Case(EXPORTS, "LoRA layers in the weights, not merged", c.unmerged, False),
    Case(EXPORTS, "PEFT's prefix (`base_model.model.`)", c.prefixed("base_model.model."), False),
    Case(EXPORTS, "DistributedDataParallel's prefix (`module.`)", c.prefixed("module."), False),
    Case(EXPORTS, "torch.compile's prefix (`_orig_mod.`)", c.prefixed("_orig_mod."), False),
    Case(EXPORTS, "another wrapper's prefix (`policy.`)", c.prefixed("policy."), False),
    Case(EXPORTS, "the text model's alone (no `visual.`)", c.without("visual."), False),
    Case(EXPORTS, "no head, and not tied", c.without("lm_head."), False),
    Case(EXPORTS, "embeddings resized after the config was saved", c.resized, False),
    Case(EXPORTS, "DeepSpeed ZeRO-3, weights not gathered", c.not_gathered, False),
    Case(EXPORTS, "DeepSpeed's parts", c.only("zero_to_fp32.py", "latest"), False),
    Case(EXPORTS, "FSDP's parts", c.only("__0_0.distcp", ".metadata"), False),
    Case(EXPORTS, "`pytorch_model.bin`", c.only("pytorch_model.bin"), False),
    Case(EXPORTS, "`consolidated.00.pth`", c.only("consolidated.00.pth"), False),
    Case(EXPORTS, "GGUF", c.only("model-q4_k_m.gguf"), False),
    Case(EXPORTS, "weights that are not numbers", c.not_a_number, False),
    Case(INCOMPLETE, "a shard is missing", c.half_downloaded, False),
    Case(INCOMPLETE, "the index is missing", c.no_index, False),
    Case(INCOMPLETE, "the index belongs to other files", c.index_of_another, False),
    Case(INCOMPLETE, "a shard is cut off", c.cut_off, False),
    Case(INCOMPLETE, "a shard is a pointer of Git LFS", c.lfs, False),
    Case(INCOMPLETE, "a shard is empty", c.empty, False),
    Case(INCOMPLETE, "`tokenizer.json` is a pointer of Git LFS", c.lfs_tokenizer, False),
    Case(
        INCOMPLETE, "a part as `model.safetensors` beside whole shards", c.part_beside_shards, False
    ),
    Case(INCOMPLETE, "weights of another name", c.other_name, False),
    Case(INCOMPLETE, "a layer is missing", c.without("model.layers.3."), False),
    Case(INCOMPLETE, "no weights", c.only(), False),
    Case(
        INCOMPLETE,
        "no `config.json`",
        c.without_files("config.json"),
        False,
    ),
    Case(
        INCOMPLETE,
        "the model's folder in the hub's cache, not a snapshot",
        c.parent_in_the_cache,
        False,
    ),
    Case(
        OTHERS, "config of a larger model", c.config(hidden_size=128, num_attention_heads=8), False
    ),
    Case(OTHERS, "config of a shorter model", c.config(num_hidden_layers=3), False),
    Case(OTHERS, "config with other inner sizes", c.another_shape, False),
    Case(
        OTHERS,
        "Qwen2-VL",
        c.another_model("qwen2_vl"),
        False,
    ),
    Case(
        OTHERS,
        "Qwen3-VL",
        c.another_model("qwen3_vl"),
        False,
    ),
    Case(
        OTHERS,
        "Qwen2.5, a text model",
        c.another_model("qwen2"),
        False,
    ),
    Case(
        OTHERS,
        "the text part of Qwen2.5-VL",
        c.another_model("qwen2_5_vl_text"),
        False,
    ),
    Case(
        OTHERS,
        "a model with code of its own",
        c.another_model("own_vl", auto_map={"AutoConfig": "own.Config"}),
        False,
    ),
    Case(QUANTISED, "FP8 in blocks, on a CPU", c.fp8),
    Case(QUANTISED, "8-bit floats without `quantization_config`", c.bytes_for_weights, False),
    Case(QUANTISED, "`quantization_config` left over from a QLoRA training", c.leftover, False),
    Case(QUANTISED, "ModelOpt", c.quantised(quant_method="modelopt"), False, cut="known:"),
    Case(QUANTISED, "no method named", c.quantised(bits=4), False, cut="known:"),
    *(
        Case(QUANTISED, f"`{form}`, its library not installed", c.quantised(**about), False)
        for form, about in (
            ("aqlm", {"quant_method": "aqlm"}),
            ("auto-round", {"quant_method": "auto-round"}),
            ("awq", {"quant_method": "awq", "bits": 4}),
            ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
            ("bitsandbytes (old)", {"load_in_8bit": True}),
            ("compressed-tensors", {"quant_method": "compressed-tensors"}),
            ("eetq", {"quant_method": "eetq"}),
            ("fbgemm_fp8", {"quant_method": "fbgemm_fp8"}),
            ("fp_quant", {"quant_method": "fp_quant"}),
            ("gptq", {"quant_method": "gptq", "bits": 4}),
            ("higgs", {"quant_method": "higgs"}),
            ("hqq", {"quant_method": "hqq"}),
            ("quanto", {"quant_method": "quanto"}),
            ("quark", {"quant_method": "quark"}),
            ("spqr", {"quant_method": "spqr"}),
            ("torchao", {"quant_method": "torchao"}),
            ("vptq", {"quant_method": "vptq"}),
        )
    ),
)
