"""The configuration of a run, as plain values: read from options or one TOML file, written into its
folder.

Its file alone reproduces a run: it has the revisions of model and data, and all settings of the
methods. How the work was divided (shards, workers, retries) is not part of it, because that changes
no record.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomlkit

from sinkscope.config import HIGHEST_SEED, ModelSettings, from_mapping
from sinkscope.evaluation.method_specs import MethodSpec, distinct
from sinkscope.setting import REQUIRED, check, explained, like, setting
from sinkscope.setting.checks import shown
from sinkscope.sinks.settings import EngineSettings
from sinkscope.untrusted import read_toml

MOST_QUESTIONS = 10**9
MOST_SHARDS = 32  # questions are spread over this many lots, by cluster


@explained
@dataclass(frozen=True)
class RunSettings:
    """Which questions are asked, and how they are judged."""

    task: str = setting(
        REQUIRED, "The benchmark: demo, jsonl, blink, pope, ...; `evaluate tasks` lists them."
    )
    protocol: str = setting(
        "fixed", "Prompts and scores of: fixed, lmms-eval, vlmevalkit or var-paper."
    )
    data: str | None = setting(
        None,
        "A folder in the published layout, a file, or hub:owner/name[@revision].",
        left_out="the task's own",
    )
    data_revision: str | None = setting(
        None,
        "The required revision of the data: the hub's commit, or the files' fingerprint.",
        left_out="any",
    )
    images: str | None = setting(
        None,
        "Folder that a file's image names are relative to.",
        metavar="FOLDER",
        left_out="the file's own",
    )
    parts: tuple[str, ...] = setting((), "Only these categories of the task.", left_out="all")
    limit: int | None = setting(
        None,
        "Number of questions, from the start of the data.",
        low=1,
        high=MOST_QUESTIONS,
        unit="questions",
        left_out="all",
    )
    judge: str | None = setting(
        None,
        "A judge instead of the protocol's; the protocol's judgement is kept as well.",
        left_out="the protocol's",
    )
    judge_model: str | None = setting(
        None, "For the judge llm: the name of a model at its endpoint.", left_out="none"
    )
    judge_url: str | None = setting(
        None, "For the judge llm: an OpenAI-compatible endpoint.", left_out="OpenAI's own"
    )
    seed: int = setting(0, "Seed, if the checkpoint samples.", low=0, high=HIGHEST_SEED)
    batch_tokens: int = setting(
        16_384,
        "Maximum tokens of a batch: rows times the longest prompt with its new tokens. 0 asks each "
        "question by itself; batches of other sizes differ in the last bits of their numbers.",
        low=0,
        high=10**9,
    )
    model_revision: str | None = setting(
        None,
        "The required revision of the loaded model: a commit, or a folder's fingerprint.",
        user_facing=False,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.judge_model is not None and self.judge != "llm":
            raise ValueError("judge_model is given, but the judge is not llm.")
        if self.judge == "llm" and self.judge_model is None:
            raise ValueError("The judge llm needs judge_model, a name that its endpoint knows.")


@explained
@dataclass(frozen=True)
class WorkSettings:
    """How the work of a run is divided, which changes no record."""

    engine: Literal["local", "ray"] = like(EngineSettings, "engine")
    workers: int | None = like(EngineSettings, "workers")
    retries: int = setting(1, "Retries of a question whose error may be temporary.", low=0, high=10)
    shard: str | None = setting(
        None, "Part i of n, such as 2/4; clusters stay whole.", metavar="I/N", left_out="all"
    )

    def __post_init__(self) -> None:
        check(self)
        self.part()

    def part(self) -> Shard:
        """The parsed shard.

        Raises:
            ValueError: it is not of this form.
        """
        return Shard() if self.shard is None else Shard.read(self.shard)


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration: questions, model and methods."""

    run: RunSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    methods: tuple[MethodSpec, ...] = (MethodSpec("default"),)

    def __post_init__(self) -> None:
        distinct(self.methods)

    def as_dict(self) -> dict[str, Any]:
        """Plain values without what is None, as the TOML file has them."""
        return {
            "run": _given(dataclasses.asdict(self.run)),
            "model": _given(dataclasses.asdict(self.model)),
            "methods": [_given({"name": one.name, "var": one.var}) for one in self.methods],
        }

    def differences(self, other: RunConfig) -> list[str]:
        """The differences to another configuration, in words."""
        mine, theirs = _flat(self.as_dict()), _flat(other.as_dict())
        return [
            f"{key} is {_word(mine.get(key))} there and {_word(theirs.get(key))} here"
            for key in dict.fromkeys((*mine, *theirs))
            if mine.get(key) != theirs.get(key)
        ]

    def toml(self) -> str:
        """The file's text."""
        values = self.as_dict()
        methods = [
            {**method, "var": _given(method["var"])} if "var" in method else method
            for method in values["methods"]
        ]
        values = {"run": values["run"], "model": values["model"], "methods": methods}
        head = (
            "# Made by `sinkscope evaluate run`; `--config` with this file makes the same run.\n\n"
        )
        return head + tomlkit.dumps(values)


def read_config(path: Path) -> RunConfig:
    """Read a run's file.

    Raises:
        ValueError: it cannot be read, is not TOML, or a table, key or value is not allowed.
    """
    values = read_toml(path, "The file")
    unknown = [table for table in values if table not in ("run", "model", "methods")]
    if unknown:
        raise ValueError(
            f"{path.name} has {shown(unknown[0])}; allowed: [run], [model], [[methods]]."
        )
    if "run" not in values:
        raise ValueError(f"{path.name} has no table [run].")
    methods = values.get("methods", [{"name": "default"}])
    if not isinstance(methods, list) or not all(isinstance(one, dict) for one in methods):
        raise ValueError(f"{path.name}: methods is not a list of tables; allowed: [[methods]].")
    return RunConfig(
        from_mapping(RunSettings, values["run"], f"{path.name} [run]"),
        from_mapping(ModelSettings, values.get("model", {}), f"{path.name} [model]"),
        tuple(_method(one, path) for one in methods),
    )


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`: clusters stay whole.

    Raises:
        ValueError: a number outside 1 to count.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        inside = _whole(self.count, 1) and 1 <= self.number <= self.count <= MOST_SHARDS
        if not inside:
            raise ValueError(
                f"shard is {self.number}/{self.count}; allowed: 1/N to N/N, such as 2/4, where N "
                f"is {MOST_SHARDS} at most."
            )

    @staticmethod
    def read(text: str) -> Shard:
        """`2/4`.

        Raises:
            ValueError: it is not of this form.
        """
        if (match := re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())) is None:
            raise ValueError(f"shard is {text!r}; allowed: 1/N to N/N, such as 2/4.")
        return Shard(int(match[1]), int(match[2]))


def _method(values: Mapping[str, Any], path: Path) -> MethodSpec:
    unknown = [key for key in values if key not in ("name", "var")]
    name, var = values.get("name"), values.get("var")
    if unknown or not isinstance(name, str) or not name or not isinstance(var, dict | None):
        raise ValueError(
            f"{path.name}: a method is {dict(values)}; allowed: name, and a table var."
        )
    if var is None:
        return MethodSpec(name)
    return MethodSpec(name, {k: tuple(v) if isinstance(v, list) else v for k, v in var.items()})


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value != ()}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`run.limit` and so on; methods by their names, with their index."""
    flat: dict[str, Any] = {}
    for table in ("run", "model"):
        flat |= {f"{table}.{key}": value for key, value in values[table].items()}
    flat["methods"] = [one["name"] for one in values["methods"]]
    for one in values["methods"]:
        for key, value in (one.get("var") or {}).items():
            if value is not None:
                plain = list(value) if isinstance(value, tuple) else value
                flat[f"method {one['name']}: {key}"] = plain
    return flat


def _word(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
