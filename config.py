"""Settings of SinkScope: frozen dataclasses, checked when made, read from TOML files and flags.

Each setting is declared once, as a field (`sinkscope.setting`): its default, help and allowed
values. Options, API, page and checks follow from it. This file is independent of the model: limits
that depend on the loaded model (hidden size, number of layers) are checked by the code that has the
model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from sinkscope.setting import REQUIRED, Heads, check, explained, layer_heads, refuse, setting
from sinkscope.setting.images import ImageLimits as ImageLimits
from sinkscope.setting.serving import AppSettings as AppSettings
from sinkscope.untrusted import read_toml

Dialect = Literal["official", "paper"]
Control = Literal["none", "random"]
Reduce = Literal["mean", "max", "min"]
Decoding = Literal["ours", "checkpoint"]
Engine = Literal["auto", "loop", "graph"]
Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

S = TypeVar("S")

MOST_PIXELS = 100_000_000  # of a resized image: 128,000 vision tokens of 28 x 28 pixels
HIGHEST_SEED = 2**63 - 1
# Of GenerationSettings; with decoding "checkpoint" the checkpoint has its own.
OF_CHECKPOINT = ("temperature", "top_p", "top_k", "repetition_penalty")


@explained
@dataclass(frozen=True)
class ModelSettings:
    """Which model to load, and how.

    The commit that `revision` resolves to is recorded in every trace. On a GPU the number type
    `auto` is what the checkpoint says, on a CPU float32. A profile for another model or other sizes
    is refused.
    """

    model: str = setting(
        "demo",
        "Which model: demo, a hub id such as Qwen/Qwen2.5-VL-3B-Instruct, or a folder.",
        allowed="demo, a hub id such as Qwen/Qwen2.5-VL-3B-Instruct, or a folder",
    )
    revision: str | None = setting(
        None, "Commit, tag or branch of a hub id.", left_out="the newest"
    )
    device: str = setting(
        "auto",
        "Device: auto (CUDA if there is one, else MPS, else the CPU), cpu, cuda, cuda:N or mps.",
        allowed="auto, cpu, cuda, cuda:N, mps",
    )
    dtype: DType = setting("auto", "Number type of the weights.", label="Number type")
    min_pixels: int | None = setting(
        None,
        "Smallest area of the resized image.",
        low=1,
        high=MOST_PIXELS,
        unit="pixels",
        label="Smallest image",
        left_out="the model's own",
    )
    max_pixels: int | None = setting(
        None,
        "Largest area of the resized image.",
        low=1,
        high=MOST_PIXELS,
        unit="pixels",
        label="Largest image",
        left_out="the model's own",
    )
    local_files_only: bool = setting(
        False, "Never contact a hub; use only what is already on disk.", user_facing=False
    )
    profile: str | None = setting(
        None,
        "Sink profile to use instead of the model's own.",
        metavar="FILE",
        allowed="the name of a sink profile file",
    )
    adapter: str | None = setting(
        None,
        "LoRA or other peft adapter, merged into the model in memory.",
        metavar="FOLDER",
        allowed="a folder with an adapter",
    )

    def __post_init__(self) -> None:
        check(self)
        name, colon, index = self.device.partition(":")
        if name not in get_args(Device) or (colon and not (name == "cuda" and index.isdecimal())):
            raise refuse("device", self.device, "auto, cpu, cuda, cuda:N, mps")
        if (
            self.min_pixels is not None
            and self.max_pixels is not None
            and self.min_pixels > self.max_pixels
        ):
            raise refuse("min_pixels", self.min_pixels, f"at most max_pixels ({self.max_pixels})")


@explained
@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated and what of its attention is kept.

    With `decoding` "checkpoint", temperature, top_p, top_k and repetition_penalty must be left out.
    With "ours", only the special tokens of the checkpoint's file are used. max_new_tokens holds
    unless the file sets a lower limit. The seed is always recorded.
    """

    max_new_tokens: int = setting(
        64, "Maximum length of an answer.", low=1, high=8192, unit="tokens", slider_range=(1, 512)
    )
    decoding: Decoding = setting(
        "ours",
        "How tokens are chosen. ours: only by these settings; checkpoint: as the model's own "
        "generation_config.json says.",
        label="Decoding",
        choice_labels=("as set here", "as the checkpoint says"),
    )
    temperature: float = setting(
        0.0,
        "0: greedy decoding; above 0: sampling.",
        low=0.0,
        high=10.0,
        slider_range=(0, 2),
        step=0.05,
    )
    top_p: float = setting(
        1.0,
        "Sample only from the most likely tokens that have this total probability.",
        low=0.0,
        above=True,
        high=1.0,
        slider_range=(0.01, 1),
        step=0.01,
    )
    top_k: int = setting(
        0, "Sample only from this many of the most likely tokens; 0: no limit.", low=0, high=10**6
    )
    repetition_penalty: float = setting(
        1.0,
        "Above 1, tokens that already occurred become less likely.",
        low=0.1,
        high=10.0,
        slider_range=(0.5, 2),
        step=0.01,
    )
    seed: int = setting(
        0, "Seed of sampling and of VAR's random control.", low=0, high=HIGHEST_SEED
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers to capture, such as 2-5 or 0,3,7.", left_out="all"
    )
    heads: tuple[int, ...] | None = setting(
        None, "Heads to capture, such as 0-3 or 1,6.", left_out="all"
    )
    reduce_heads: bool = setting(
        False,
        "Keep only the mean over the captured heads: the trace is smaller by their number. "
        "For large jobs.",
        user_facing=False,
    )
    prompt_rows: int = setting(
        0,
        "Also keep the rows of this many of the prompt's last tokens after the last image; they "
        "are read at prefill.",
        low=0,
        high=8192,
        unit="tokens",
        user_facing=False,
    )
    reference: bool = setting(
        False,
        "Also pass a generic prompt with the same image through the model, for relative maps.",
        user_facing=False,
    )
    engine: Engine = setting(
        "auto",
        "How the tokens after the first are generated. loop: by transformers' generate; graph: by "
        "one recorded step over a static cache (on a CPU the same step, not recorded); auto: graph "
        "on CUDA, else loop. Both give the same rows, except for rounding.",
        label="Engine",
    )
    compile: bool = setting(
        False,
        "Compile the text model inside the graph. The first answer of each size waits for the "
        "compilation, which may take minutes.",
        label="Compile the text model",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in OF_CHECKPOINT if self.decoding == "checkpoint" else ():
            if (given := getattr(self, name)) != getattr(type(self), name):
                raise ValueError(
                    f"{name} is {given!r} and decoding 'checkpoint', which takes it from the "
                    "model's generation_config.json; allowed: to leave it out, or decoding 'ours'."
                )


@explained
@dataclass(frozen=True)
class VARSettings:
    """Visual Attention Redistribution (arXiv 2503.03321), in names that mean one thing in both
    dialects, which differ in details that docs/method.md lists.

    `dims` is the paper's D_sink, `tau` the threshold on the sink score phi, p is 1 - `keep`, rho is
    1 - `max_sink_share`. On the command line, on the page and in the API, `layers` is `var_layers`.
    """

    dims: tuple[int, ...] = setting(
        REQUIRED,
        "Sink dimensions of the residual stream, such as 458,2570.",
        label="Sink dimensions",
        left_out="those of the model's profile",
    )
    tau: float = setting(
        20.0,
        "Sink score above which an image token is a sink.",
        low=0.0,
        slider_range=(0, 60),
        step=0.1,
        left_out="that of the model's profile",
    )
    keep: float = setting(
        0.6,
        "Part of a sink's attention that stays on it.",
        low=0.0,
        high=1.0,
        slider_range=(0, 1),
        step=0.01,
    )
    max_sink_share: float = setting(
        0.5,
        "A head is changed only if sinks hold at most this share of its attention on the image.",
        low=0.0,
        high=1.0,
        slider_range=(0, 1),
        step=0.01,
    )
    min_image_mass: float = setting(
        0.2,
        "A row is changed only if at least this share of it is on the image.",
        low=0.0,
        high=1.0,
        slider_range=(0, 1),
        step=0.01,
    )
    dialect: Dialect = setting(
        "official", "official: the published code; paper: the paper's text.", label="Dialect"
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "Layers in which VAR acts, such as 2-5 or 0,3,7.",
        name="var_layers",
        label="VAR's layers",
        left_out="2 to L-2, or those of the heads",
    )
    heads: Heads | None = setting(
        None,
        "The heads that VAR may change: LAYER.HEAD, such as 4.1,4.3,5.0-2, or a list of heads as "
        "JSON (on the command line also its file).",
        converter=layer_heads,
        name="var_heads",
        label="VAR's heads",
        left_out="all",
        metavar="LIST|FILE.json",
    )
    control: Control = setting(
        "none",
        "random: treat as many random image tokens as if they were the sinks.",
        label="Control",
    )
    seed: int = setting(
        0,
        "Seed of the control's choice.",
        low=0,
        high=HIGHEST_SEED,
        user_facing=False,  # users give one seed, that of generation
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Settings:
    """All settings of one start of the app or the command line."""

    model: ModelSettings = field(default_factory=ModelSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    images: ImageLimits = field(default_factory=ImageLimits)
    app: AppSettings = field(default_factory=AppSettings)


SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "generation": GenerationSettings,
    "images": ImageLimits,
    "app": AppSettings,
}


def read_settings(path: Path) -> Settings:
    """Read a TOML file with the tables `[model] [generation] [images] [app]`, all of them optional.

    Raises:
        ValueError: the file is missing or no TOML, or a table, key or value is not allowed; the
            text says which.
    """
    return make_settings(read_tables(path))


def make_settings(tables: Mapping[str, Any]) -> Settings:
    """Settings of the values that are given, by section; the rest are defaults.

    Raises:
        ValueError: naming section, setting, value and what is allowed.
    """
    sections = {n: from_mapping(cls, tables.get(n, {}), f"[{n}]") for n, cls in SECTIONS.items()}
    return Settings(**sections)


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a settings file; their keys and values are not looked at.

    Raises:
        ValueError: the file is missing or no TOML, or a table is none of `SECTIONS`.
    """
    tables = read_toml(path, "The settings file")
    for table in tables:
        if table not in SECTIONS:
            raise ValueError(
                f"The settings file {path.name} has a table [{table}]; "
                f"allowed: {', '.join(SECTIONS)}."
            )
        if not isinstance(tables[table], Mapping):
            raise refuse(f"[{table}]", tables[table], "a table")
    return tables


def from_mapping(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """Make the settings dataclass `cls` from plain values; lists become tuples, unknown keys are
    refused by name."""
    # Every S is a dataclass.
    allowed = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise refuse(where, values, f"a table with {', '.join(allowed)}")
    for key in values:
        if key not in allowed:
            raise ValueError(f"{where} has {key!r}; allowed: {', '.join(allowed)}.")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
