"""SinkScope: where a vision-language model looks for each token that it generates.

The names below are the public API. Each is imported when it is first used, so `import sinkscope`
itself loads nothing else.

    import sinkscope

    handle = sinkscope.load_model("demo")
    image = sinkscope.open_image("photo.jpg")
    trace = sinkscope.generate(handle, handle.prepare([image], "Describe the image."))
    pixels = sinkscope.overlay(image, sinkscope.patch_map(trace, token=2))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinkscope.attention_extractor import (
        Comparison,
        GenerationTrace,
        PromptTrace,
        compare,
        forecast,
        generate,
        generate_stash,
        prompt_rows,
    )
    from sinkscope.attention_processor import (
        PatchMap,
        patch_map,
        sink_mask,
        sink_score,
    )
    from sinkscope.config import GenerationSettings, ModelSettings, VARSettings
    from sinkscope.experiments.region import region_test
    from sinkscope.experiments.run import run_experiment
    from sinkscope.jobs.job import Job, Stopped
    from sinkscope.methods.explain import explain, explain_map
    from sinkscope.models.images import open_image
    from sinkscope.models.loading import ModelHandle, load_model
    from sinkscope.models.profiles import SinkProfile, read_profile
    from sinkscope.models.source import ModelError
    from sinkscope.sinks.finding.find import find
    from sinkscope.sinks.validating.validate import validate
    from sinkscope.var_patch import redistribute, select_rows
    from sinkscope.visualization import OverlayStyle, overlay
    from sinkscope.web.runs.inline import inspector

# public name -> module that defines it; the imports above say the same to type checkers.
_MODULES = {
    "Comparison": "attention_extractor",
    "GenerationSettings": "config",
    "GenerationTrace": "attention_extractor",
    "Job": "jobs.job",
    "ModelError": "models.source",
    "ModelHandle": "models.loading",
    "ModelSettings": "config",
    "OverlayStyle": "visualization",
    "PatchMap": "attention_processor",
    "PromptTrace": "attention_extractor",
    "SinkProfile": "models.profiles",
    "Stopped": "jobs.job",
    "VARSettings": "config",
    "compare": "attention_extractor",
    "explain": "methods.explain",
    "explain_map": "methods.explain",
    "find": "sinks.finding.find",
    "forecast": "attention_extractor",
    "generate": "attention_extractor",
    "generate_stash": "attention_extractor",
    "inspector": "web.runs.inline",
    "load_model": "models.loading",
    "open_image": "models.images",
    "overlay": "visualization",
    "patch_map": "attention_processor",
    "prompt_rows": "attention_extractor",
    "read_profile": "models.profiles",
    "redistribute": "var_patch",
    "region_test": "experiments.region",
    "run_experiment": "experiments.run",
    "select_rows": "var_patch",
    "sink_mask": "attention_processor",
    "sink_score": "attention_processor",
    "validate": "sinks.validating.validate",
}

__all__ = [
    "Comparison",
    "GenerationSettings",
    "GenerationTrace",
    "Job",
    "ModelError",
    "ModelHandle",
    "ModelSettings",
    "OverlayStyle",
    "PatchMap",
    "PromptTrace",
    "SinkProfile",
    "Stopped",
    "VARSettings",
    "compare",
    "explain",
    "explain_map",
    "find",
    "forecast",
    "generate",
    "generate_stash",
    "inspector",
    "load_model",
    "open_image",
    "overlay",
    "patch_map",
    "prompt_rows",
    "read_profile",
    "redistribute",
    "region_test",
    "run_experiment",
    "select_rows",
    "sink_mask",
    "sink_score",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    try:
        module = importlib.import_module(f"sinkscope.{_MODULES[name]}")
    except KeyError:
        raise AttributeError(f"module 'sinkscope' has no attribute {name!r}") from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
