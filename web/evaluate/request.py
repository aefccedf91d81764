"""A click on Run in the Evaluate tab: questions, methods and settings.

The page asks the bundled scenes, which are generated in any number, or uploaded questions
(`web.evaluate.upload`): neither needs a file on the server. Benchmarks are run from the command
line (`sinkscope evaluate run`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.config import HIGHEST_SEED, ModelSettings, VARSettings
from sinkscope.evaluation.method_specs import MethodSpec
from sinkscope.evaluation.settings import RunConfig, RunSettings
from sinkscope.evaluation.tasks.demo import TASK
from sinkscope.evaluation.tasks.jsonl import TASK as OWN
from sinkscope.models.loading import ModelHandle
from sinkscope.setting import (
    checked,
    explained,
    like,
    refuse,
    setting,
    settings_of,
)
from sinkscope.web.components.controls import control_value
from sinkscope.web.runs.request import Request
from sinkscope.web.sinks.request import Picture

MOST_QUESTIONS = 1000
SCENES, MINE = "Drawn scenes", "My questions"
TYPES: tuple[str, ...] = TASK.parts
METHODS: dict[str, str] = {  # name -> label on the page
    "default": "Default, the plain model",
    "var": "VAR",
    "var-random": "Random control",
}


@explained
@dataclass(frozen=True)
class EvaluateRequest:
    """What the tab's controls say; `config` looks at it.

    `methods` are of `METHODS`, `source` is `SCENES` or `MINE`; `types` of `TYPES` are of scenes,
    `files` what was uploaded. `dims` are sink dimensions of this browser
    alone, `dims_of` the model that they were found on, as in `web.runs.request.Request`, and
    `dims_tau` the threshold that goes with them.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    types: tuple[str, ...] = TYPES
    source: str = SCENES
    files: tuple[Picture, ...] = ()
    dims: str = ""
    dims_of: str = ""
    dims_tau: float | None = None
    questions: int = setting(
        210,  # 30 scenes; with fewer, bootstrap intervals are too short
        "Questions per method: seven per scene, or the first ones of yours. Intervals are too "
        "short below 30 scenes.",
        low=1,
        high=MOST_QUESTIONS,
        label="Questions",
    )
    keep: float = like(VARSettings, "keep")
    tau: float | None = like(
        VARSettings,
        "tau",
        default=None,
        slider_range=None,
        left_out="that of the dimensions in use",
    )
    seed: int = setting(
        0,
        "Seed of the control's random tokens, and of the resampling.",
        low=0,
        high=HIGHEST_SEED,
        label="Seed",
    )

    def config(
        self, handle: ModelHandle, model: ModelSettings, kept: tuple[Path, int] | None = None
    ) -> RunConfig:
        """The configuration of the run.

        Args:
            handle: the loaded model.
            model: the model's settings, as written to `run.toml`.
            kept: the copy of the upload, and its number of questions.

        Raises:
            ValueError: naming the setting, its value and what is allowed; or VAR is chosen but no
                sink dimensions are known.
        """
        values = self.check()
        types = () if set(self.types) == set(TYPES) else tuple(t for t in TYPES if t in self.types)
        run = RunSettings(TASK.name, parts=types, limit=values["questions"], seed=values["seed"])
        if kept is not None:
            run = RunSettings(OWN.name, data=str(kept[0]), limit=kept[1], seed=values["seed"])
        chosen = [name for name in METHODS if name in self.methods]
        methods = tuple(self._method(name, handle, values) for name in chosen)
        return RunConfig(run, model, methods)

    def check(self) -> dict[str, Any]:
        """The settings by field, read and checked.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        if self.source not in (SCENES, MINE):
            raise ValueError(f"source is {self.source!r}; allowed: {SCENES}, {MINE}.")
        if self.source == MINE and not self.files:
            raise ValueError("No file was uploaded. Upload one with questions, and its images.")
        for name, text in (("dims", self.dims), ("dims_of", self.dims_of)):
            if not isinstance(text, str):
                raise refuse(name, text, "a text")
        for name, given, allowed in (
            ("methods", self.methods, tuple(METHODS)),
            ("types", self.types if self.source == SCENES else TYPES, TYPES),
        ):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise refuse(name, given, f"some of {', '.join(allowed)}")
            if not given:
                raise ValueError(f"{name} is empty; allowed: one or more of {', '.join(allowed)}.")
            if strange := [one for one in given if one not in allowed]:
                raise ValueError(f"{name} has {strange[0]!r}; allowed: {', '.join(allowed)}.")
        values = {one: getattr(self, one.field) for one in settings_of(EvaluateRequest)}
        return {one.field: checked(one, control_value(one, value)) for one, value in values.items()}

    def _method(self, name: str, handle: ModelHandle, given: dict[str, Any]) -> MethodSpec:
        if name == "default":
            return MethodSpec(name)
        values: dict[str, Any] = {"keep": given["keep"]}
        if self.dims.strip():
            threshold = {} if self.dims_tau is None else {"tau": self.dims_tau}
            own_dims = {"dims": self.dims, **threshold}
            request = Request(None, "", True, dims_of=self.dims_of, values=own_dims)
            var = request.var(handle)
            assert var is not None
            values |= {"dims": var.dims, "tau": var.tau}
        elif handle.profile is None:
            raise ValueError(
                f"The sink dimensions of {handle.info.id} are not known, so {name} cannot run: "
                "find them in the Sinks tab, or compare without it."
            )
        if given["tau"] is not None:
            values["tau"] = given["tau"]
        if name == "var-random":
            values |= {"control": "random", "seed": given["seed"]}
        return MethodSpec(name, values)
