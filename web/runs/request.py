"""A click on Generate: the values of the page's controls, checked and turned into settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sinkscope.config import GenerationSettings, Settings, VARSettings
from sinkscope.models.loading import ModelHandle
from sinkscope.setting import Setting, index_list, read_all, refuse, user_settings

# The settings that a request may have. What is captured is set by the settings file.
ANSWER: tuple[Setting, ...] = user_settings(GenerationSettings, "layers", "heads")
VAR: tuple[Setting, ...] = user_settings(VARSettings)
MORE = ("image_2", "image_3", "image_4")  # the form's controls for further images
NAMES = tuple(one.name for one in (*VAR, *ANSWER))


@dataclass(frozen=True)
class Request:
    """What a click on Generate requests: the values of the page's controls.

    Attributes:
        image: path of an upload.
        prompt: the question about it.
        compare: also answer with VAR.
        same_text: VAR reads the baseline's answer, token by token.
        dims_of: the model that the sink dimensions in `values` were found on, if any.
        values: the values of the settings' controls, by the settings' names (`NAMES`); missing,
            None and empty ones are left out.
        more: paths of further images of the question; None for an empty place.

    Raises (from `settings` and `var`):
        ValueError: naming the setting, its value and what is allowed.
    """

    image: str | None
    prompt: str
    compare: bool = False
    same_text: bool = False
    dims_of: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[str | None, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The given uploads, in the order of the form."""
        return tuple(path for path in (self.image, *self.more) if path)

    def settings(self, start: Settings) -> GenerationSettings:
        """The controls' values over the start's settings, which alone set what is captured."""
        for name in self.values:
            if name not in NAMES:
                raise ValueError(f"There is no setting {name!r}; allowed: {', '.join(NAMES)}.")
        settings = replace(
            start.generation,
            prompt_rows=start.generation.prompt_rows or start.app.prompt_rows,
            reference=start.generation.reference or start.app.reference,
            **read_all(GenerationSettings, self.values),
        )
        if settings.max_new_tokens > start.app.token_limit:
            raise ValueError(
                f"max_new_tokens is {settings.max_new_tokens}; allowed here: at most "
                f"{start.app.token_limit} (token_limit of this server)."
            )
        return settings

    def var(self, handle: ModelHandle) -> VARSettings | None:
        """VAR's settings over those of the model's profile; None without `compare`."""
        if not self.compare:
            return None
        values = read_all(VARSettings, self.values)
        given = {name: value for name, value in values.items() if value is not None}
        if handle.profile is not None:
            given.setdefault("tau", handle.profile.tau)
        given["dims"] = self._sink_dims(given.get("dims"), handle)
        if "seed" in self.values:
            given["seed"] = read_all(GenerationSettings, self.values)["seed"]
        return VARSettings(**given)

    def _sink_dims(
        self, given_dims: tuple[int, ...] | None, handle: ModelHandle
    ) -> tuple[int, ...]:
        """The sink dimensions of this request: its own, else those of the model's profile.

        Raises:
            ValueError: there are none, or the request's own are another model's.
        """
        if given_dims is not None:
            if self.dims_of and self.dims_of != handle.info.id:
                raise ValueError(
                    f"The sink dimensions in the VAR settings were found on {self.dims_of}, but "
                    f"{handle.info.id} is loaded; empty that box, or find this model's own in the "
                    "Sinks tab."
                )
            return given_dims
        if handle.profile is None:
            raise ValueError(
                "VAR needs the sink dimensions of a model, and none are known for "
                f"{handle.info.id}; find them in the Sinks tab, give them in a file "
                "sink_profile.toml in its folder, or switch off Compare with VAR."
            )
        return handle.profile.dims


def parse_indices(setting: str, text: str | None) -> tuple[int, ...] | None:
    """Read a text box for indices (`setting.index_list`); an empty one gives None, which means all.

    Raises:
        ValueError: not such a list.
    """
    if text is not None and not isinstance(text, str):
        raise refuse(setting, text, "a text such as 2-5 or 0, 3, 7")
    return index_list(setting, text) if text and text.strip() else None
