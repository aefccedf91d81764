"""One press of Generate: what the page's controls said, checked and turned into settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sinkscope.config import GenerationSettings, Settings, VARSettings, index_list
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class Request:
    """One press of Generate, with everything the page's controls said.

    Raises (from `settings` and `var`):
        ValueError: naming the setting, its value and what is allowed.
    """

    image: str | None
    prompt: str
    compare: bool = False
    same_text: bool = False
    tau: float = 20.0
    keep: float = 0.6
    max_sink_share: float = 0.5
    min_image_mass: float = 0.2
    layers: str = ""
    dialect: str = "official"
    control: str = "none"
    max_new_tokens: float = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: float = 0
    repetition_penalty: float = 1.0
    seed: float = 0
    dims: str = ""
    dims_of: str = ""
    decoding: str = "ours"

    def settings(self, start: Settings) -> GenerationSettings:
        """What the controls say, over the start's settings, which alone say what is captured."""
        return replace(
            start.generation,
            prompt_rows=start.generation.prompt_rows or start.app.prompt_rows,
            reference=start.generation.reference or start.app.reference,
            max_new_tokens=whole("max_new_tokens", self.max_new_tokens),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=whole("top_k", self.top_k),
            repetition_penalty=self.repetition_penalty,
            seed=whole("seed", self.seed),
            decoding=self.decoding,  # type: ignore[arg-type]
        )

    def var(self, handle: ModelHandle) -> VARSettings | None:
        if not self.compare:
            return None
        return VARSettings(
            dims=self.sink_dims(handle),
            tau=self.tau,
            keep=self.keep,
            max_sink_share=self.max_sink_share,
            min_image_mass=self.min_image_mass,
            dialect=self.dialect,  # type: ignore[arg-type]
            layers=parse_indices("layers", self.layers),
            control=self.control,  # type: ignore[arg-type]
            seed=whole("seed", self.seed),
        )

    def sink_dims(self, handle: ModelHandle) -> tuple[int, ...]:
        """The sink dimensions of this request: its own, else those of the model's profile.

        Raises:
            ValueError: there are none, or the request's own are another model's.
        """
        own = parse_indices("sink dimensions", self.dims)
        if own is not None:
            if self.dims_of and self.dims_of != handle.info.id:
                raise ValueError(
                    f"The sink dimensions in the VAR settings were found on {self.dims_of}, but "
                    f"{handle.info.id} is loaded; empty that box, or find this model's own in the "
                    "Sinks tab."
                )
            return own
        if handle.profile is None:
            raise ValueError(
                "VAR needs the sink dimensions of a model, and none are known for "
                f"{handle.info.id}; find them in the Sinks tab, give them in a file "
                "sink_profile.toml in its folder, or switch off Compare with VAR."
            )
        return handle.profile.dims


def parse_indices(setting: str, text: str | None) -> tuple[int, ...] | None:
    """What a text box for indices says (`config.index_list`); an empty one is None, which is all.

    Raises:
        ValueError: not such a list.
    """
    return index_list(setting, text) if text and text.strip() else None


def whole(setting: str, value: object) -> int:
    """The number of a control as an integer.

    Raises:
        ValueError: it is empty, infinite, not a number, or has a fraction.
    """
    if not isinstance(value, int | float) or not math.isfinite(value) or int(value) != value:
        raise ValueError(f"{setting} is {value!r}; allowed: a whole number.")
    return int(value)
