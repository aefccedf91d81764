"""The entry for lmms-eval's registry, which calls this when it starts, so nothing heavy is
imported."""

from __future__ import annotations

from typing import Any

MODEL = "sinkscope.evaluation.lmms_plugin.model.SinkScope"


def manifest() -> Any:
    """The `ModelManifest` of the model `sinkscope`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sinkscope", chat_class_path=MODEL)
