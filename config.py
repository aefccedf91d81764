"""Settings of SinkScope: frozen dataclasses, checked when made, read from TOML files and flags.

This file knows what may be set and what is allowed. It does not know any model: limits that depend
on the loaded model (hidden size, number of layers) are checked by the code that has the model at
hand.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from sinkscope.utils import run_folder

Dialect = Literal["official", "paper"]
Control = Literal["none", "random"]
Reduce = Literal["mean", "max", "min"]
Decoding = Literal["ours", "checkpoint"]
Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

S = TypeVar("S")

MOST_PIXELS = 100_000_000  # of a resized image: 128,000 vision tokens of 28 x 28 pixels
HIGHEST_INDEX = 9999  # in a list that a user writes; no layer, head or dimension of today is beyond
LONGEST_LIST = 1000  # characters of such a list
# Of GenerationSettings; with decoding "checkpoint" the checkpoint has its own.
OF_CHECKPOINT = ("temperature", "top_p", "top_k", "repetition_penalty")


def _refuse(setting: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{setting} is {value!r}; allowed: {allowed}.")


def _integer(setting: str, value: object, low: int, high: int | None = None) -> None:
    allowed = (
        f"a whole number from {low} up" if high is None else f"a whole number from {low} to {high}"
    )
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < low
        or (high is not None and value > high)
    ):
        raise _refuse(setting, value, allowed)


def _number(setting: str, value: object, low: float, high: float = math.inf) -> None:
    allowed = (
        f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number from {low:g} up"
    )
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise _refuse(setting, value, allowed)


def plain_numbers(settings: Any) -> None:
    """Make the numbers of a settings dataclass Python's own, of the type that each field says.

    A slider gives 1 where 1.0 is meant, an array its scalars; transformers, JSON and safetensors
    take neither for the other. What is no number stays as it is, for the checks to refuse.
    """
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        kinds = str(one.type).replace(" ", "").split("|")
        if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
            value = value.item()  # a scalar of NumPy or torch
        if "float" in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1000 else math.inf
        elif "float" in kinds and isinstance(value, float):
            value = float(value)  # of a subclass
        object.__setattr__(settings, one.name, value)


def _one_of(setting: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise _refuse(setting, value, ", ".join(allowed))


def _indices(setting: str, value: object, required: bool = False) -> tuple[int, ...] | None:
    """A tuple of plain whole numbers from any sequence of them (lists, arrays); None is all."""
    allowed = "at least one whole number from 0 up, each once"
    if not required:
        allowed = f"all (leave it out), or {allowed}"
    if value is None and not required:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise _refuse(setting, value, allowed)
    given = list(value)
    try:
        made = tuple(operator.index(v) for v in given)
    except TypeError as error:
        raise _refuse(setting, value, allowed) from error
    wrong = any(isinstance(v, bool) for v in given) or any(v < 0 for v in made)
    if wrong or not made or len(set(made)) != len(made):
        raise _refuse(setting, value, allowed)
    return made


def index_list(setting: str, text: str) -> tuple[int, ...]:
    """`7, 2-5` -> (2, 3, 4, 5, 7): how users write layers, heads and dimensions, wherever they do.

    Raises:
        ValueError: it is no such list, or an empty one; the text names the setting.
    """
    if len(text) > LONGEST_LIST:
        raise ValueError(
            f"{setting} is a list of {len(text)} characters; allowed: at most {LONGEST_LIST}."
        )
    found: set[int] = set()
    for part in text.replace("–", "-").split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise _refuse(setting, text, "indices such as 2-5 or 0, 3, 7")
        low, high = int(first), int(last or first)
        if high < low or high > HIGHEST_INDEX:
            raise ValueError(
                f"{setting} is {text!r}; a range goes upwards, to {HIGHEST_INDEX} at most."
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


@dataclass(frozen=True)
class ModelSettings:
    """Which model to load, and how.

    Attributes:
        model: `demo`, a hub id such as `Qwen/Qwen2.5-VL-3B-Instruct`, or a folder.
        revision: commit, tag or branch of a hub id; the commit it resolves to is recorded in every
            trace.
        device: `auto` takes CUDA where there is one, then MPS, then the CPU. `cuda:N` picks one
            GPU.
        dtype: `auto` takes what the checkpoint says on a GPU, and float32 on a CPU.
        min_pixels, max_pixels: bounds on the RESIZED image's area in pixels; None leaves the
            processor's own.
        local_files_only: never ask a hub; only what is already on disk.
        profile: a sink profile file to use instead of the model's own; one that is for another
            model or other sizes is refused.
    """

    model: str = "demo"
    revision: str | None = None
    device: str = "auto"
    dtype: DType = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    local_files_only: bool = False
    profile: str | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if not isinstance(self.model, str) or not self.model.strip():
            raise _refuse(
                "model",
                self.model,
                "demo, a hub id such as Qwen/Qwen2.5-VL-3B-Instruct, or a folder",
            )
        name, colon, index = str(self.device).partition(":")
        if name not in get_args(Device) or (colon and not (name == "cuda" and index.isdecimal())):
            raise _refuse("device", self.device, "auto, cpu, cuda, cuda:N, mps")
        _one_of("dtype", self.dtype, get_args(DType))
        if not isinstance(self.local_files_only, bool):
            raise _refuse("local_files_only", self.local_files_only, "true or false")
        for setting in ("min_pixels", "max_pixels"):
            if getattr(self, setting) is not None:
                _integer(setting, getattr(self, setting), 1, MOST_PIXELS)
        if (
            self.min_pixels is not None
            and self.max_pixels is not None
            and self.min_pixels > self.max_pixels
        ):
            raise _refuse("min_pixels", self.min_pixels, f"at most max_pixels ({self.max_pixels})")
        if self.profile is not None and (not isinstance(self.profile, str) or not self.profile):
            raise _refuse("profile", self.profile, "the name of a sink profile file")


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated and what of its attention is kept.

    Attributes:
        max_new_tokens: upper bound on the answer's length, in tokens.
        temperature: 0 is greedy decoding; above 0 the answer is sampled.
        top_p, top_k: nucleus and top-k limits of sampling (top_k 0: no limit). Unused when greedy.
        repetition_penalty: 1 leaves the model's own distribution alone.
        seed: seeds sampling; recorded in the trace in any case.
        decoding: `ours` takes the next token as these settings say, and nothing of the checkpoint's
            generation_config.json but its special tokens. `checkpoint` takes it as that file says:
            temperature, top_p, top_k and repetition_penalty must then be left alone, and
            max_new_tokens holds where the file sets no lower limit.
        layers, heads: which to capture (None: all). Indices as in the model, from 0.
        reduce_heads: keep only the mean over the captured heads, as it comes: a trace as many times
            smaller as there are heads. For large jobs.
        prompt_rows: keep the rows of the prompt's own tokens after the last image too, the last so
            many of them; 0 keeps none. They are read in passing, at prefill.
        reference: pass a generic prompt over the same image too, for relative maps.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    decoding: Decoding = "ours"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    reduce_heads: bool = False
    prompt_rows: int = 0
    reference: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        _integer("max_new_tokens", self.max_new_tokens, 1, 8192)
        _number("temperature", self.temperature, 0.0, 10.0)
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise _refuse("top_p", self.top_p, "a number above 0, at most 1")
        _integer("top_k", self.top_k, 0)
        _number("repetition_penalty", self.repetition_penalty, 0.1, 10.0)
        _integer("seed", self.seed, 0, 2**63 - 1)
        _one_of("decoding", self.decoding, get_args(Decoding))
        for name in OF_CHECKPOINT if self.decoding == "checkpoint" else ():
            if (given := getattr(self, name)) != getattr(type(self), name):
                raise ValueError(
                    f"{name} is {given!r} and decoding 'checkpoint', which takes it from the "
                    "model's generation_config.json; allowed: to leave it out, or decoding 'ours'."
                )
        object.__setattr__(self, "layers", _indices("layers", self.layers))
        object.__setattr__(self, "heads", _indices("heads", self.heads))
        _integer("prompt_rows", self.prompt_rows, 0, 8192)
        for setting in ("reduce_heads", "reference"):
            if not isinstance(getattr(self, setting), bool):
                raise _refuse(setting, getattr(self, setting), "true or false")


@dataclass(frozen=True)
class VARSettings:
    """Visual Attention Redistribution (arXiv 2503.03321), in names that mean one thing in both
    dialects.

    Attributes:
        dims: sink dimensions of the residual stream (`D_sink`).
        tau: threshold on the sink score phi.
        keep: fraction of a sink's attention that STAYS on it (the paper's p is 1 - keep).
        max_sink_share: a head is image-centric while sinks hold at most this share of its image
            attention (the paper's rho is 1 - max_sink_share).
        min_image_mass: a row must put at least this much attention on the image to be changed.
        dialect: `official` (the published code) or `paper`; they differ in details that
            docs/method.md lists.
        layers: decoder layers to act on; None is 2 .. L-2.
        control: `random` treats as many random vision tokens as if they were the sinks.
        seed: seeds the control's choice.
    """

    dims: tuple[int, ...]
    tau: float = 20.0
    keep: float = 0.6
    max_sink_share: float = 0.5
    min_image_mass: float = 0.2
    dialect: Dialect = "official"
    layers: tuple[int, ...] | None = None
    control: Control = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "dims", _indices("dims", self.dims, required=True))
        object.__setattr__(self, "layers", _indices("layers", self.layers))
        _number("tau", self.tau, 0.0)
        for setting in ("keep", "max_sink_share", "min_image_mass"):
            _number(setting, getattr(self, setting), 0.0, 1.0)
        _one_of("dialect", self.dialect, get_args(Dialect))
        _one_of("control", self.control, get_args(Control))
        _integer("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class ImageLimits:
    """What an image from outside may be. Checked before any pixel is decoded.

    Attributes:
        max_megapixels: width x height, in millions; above it the file is refused unread.
        max_bytes: size of the file.
        max_aspect: longer side divided by the shorter (the model's processor refuses 200 and more).
    """

    max_megapixels: float = 50.0
    max_bytes: int = 50_000_000
    max_aspect: float = 199.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        _number("max_megapixels", self.max_megapixels, 0.001, 1000.0)
        _integer("max_bytes", self.max_bytes, 1)
        _number("max_aspect", self.max_aspect, 1.0)


@dataclass(frozen=True)
class AppSettings:
    """Where the web app listens and what it may use.

    Attributes:
        host, port: address to listen on. Any other than loopback demands `auth`.
        auth: `user:password`, or None.
        cache_dir: where runs are written; None is `utils.run_folder("cache")`.
        store_megabytes: memory for runs kept open; older ones spill to `cache_dir`.
        queue_size: how many requests may wait.
        job_minutes: how long one job (an answer, finding sinks, a file) may compute before it is
            stopped; what it has by then is kept. 0 sets no limit.
        prompt_rows, reference: what the page captures beside the answer's rows (see
            `GenerationSettings`): the looking of so many prompt tokens, and a generic prompt for
            its relative maps.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: str | None = None
    cache_dir: str | None = None
    store_megabytes: int = 1024
    queue_size: int = 16
    job_minutes: float = 0.0
    prompt_rows: int = 128
    reference: bool = True

    @property
    def cache(self) -> Path:
        """The folder that runs are written to."""
        return run_folder("cache") if self.cache_dir is None else Path(self.cache_dir)

    def __post_init__(self) -> None:
        plain_numbers(self)
        _integer("port", self.port, 0, 65535)
        _integer("store_megabytes", self.store_megabytes, 1)
        _integer("queue_size", self.queue_size, 1)
        _number("job_minutes", self.job_minutes, 0, 100_000)
        _integer("prompt_rows", self.prompt_rows, 0, 8192)
        if not isinstance(self.reference, bool):
            raise _refuse("reference", self.reference, "true or false")
        if self.auth is not None:
            user, _, password = self.auth.partition(":")
            if not user or not password:
                raise ValueError("auth is malformed; allowed: user:password, both not empty.")
        if self.host not in ("127.0.0.1", "localhost", "::1") and self.auth is None:
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach; that needs auth "
                "(user:password). "
                "Without it only 127.0.0.1, localhost and ::1 are allowed."
            )


@dataclass(frozen=True)
class Settings:
    """All settings of one start of the app or the command line."""

    model: ModelSettings = field(default_factory=ModelSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    images: ImageLimits = field(default_factory=ImageLimits)
    app: AppSettings = field(default_factory=AppSettings)


def read_settings(path: Path) -> Settings:
    """Read a TOML file with the tables `[model] [generation] [images] [app]`, all of them optional.

    Raises:
        ValueError: the file is missing or no TOML, or a table, key or value is not allowed; the
            text says which.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"The settings file {path} cannot be read: {error.strerror or error}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The settings file {path} is not valid TOML: {error}.") from error
    sections: dict[str, type[Any]] = {
        "model": ModelSettings,
        "generation": GenerationSettings,
        "images": ImageLimits,
        "app": AppSettings,
    }
    for table in tables:
        if table not in sections:
            raise ValueError(
                f"The settings file {path} has a table [{table}]; allowed: {', '.join(sections)}."
            )
    return Settings(
        **{
            name: from_mapping(cls, tables.get(name, {}), f"[{name}]")
            for name, cls in sections.items()
        }
    )


def from_mapping(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """Make the settings dataclass `cls` from plain values; lists become tuples, unknown keys are
    refused by name."""
    allowed = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise _refuse(where, values, f"a table with {', '.join(allowed)}")
    for key in values:
        if key not in allowed:
            raise ValueError(f"{where} has {key!r}; allowed: {', '.join(allowed)}.")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
