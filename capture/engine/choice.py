"""Which engine generates the tokens of a run, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sinkscope.config import GenerationSettings
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class EngineChoice:
    """The engine that ran.

    Attributes:
        setting: the setting `engine`.
        used: `graph`: a recorded step; `step`: the same step, not recorded; `loop`: transformers'
            `generate`.
        why: if it is not the requested one, the reason.
    """

    setting: str
    used: str
    why: str = ""

    def about(self) -> dict[str, Any]:
        """For `GenerationTrace.extra`; empty if the loop ran as requested."""
        if self.used == "loop" and not self.why:
            return {}
        about = {"asked": self.setting, "used": self.used}
        return {"engine": {**about, "why": self.why} if self.why else about}


def choose_engine(handle: ModelHandle, settings: GenerationSettings) -> EngineChoice:
    """`graph` here means steps over a static cache, recorded if the device supports it."""
    setting = settings.engine
    device = handle.device.type
    if setting == "loop" or (setting == "auto" and device != "cuda"):
        return EngineChoice(setting, "loop")
    why = _obstacle(handle)
    return EngineChoice(setting, "loop", why) if why else EngineChoice(setting, "graph")


def _obstacle(handle: ModelHandle) -> str:
    """Why the loop must be used; empty if steps are possible."""
    if handle.device.type not in ("cuda", "cpu"):
        return f"on {handle.device.type} there is no graph"
    spread = getattr(handle.model, "hf_device_map", None) or {}
    weights = {parameter.device for parameter in handle.model.parameters()}
    if len(weights) > 1 or len(set(map(str, spread.values()))) > 1:
        return "the model is spread over several devices"
    if getattr(handle.model, "is_quantized", False) or getattr(handle.model, "hf_quantizer", None):
        return "the model is quantised"
    return ""
