"""The folder of a scored set of explanations: the evaluation's, with its own configuration.

    score.toml        what makes the run: data, methods, settings, model
    provenance.json   what it was made with
    records.jsonl     a line for each target and method (`evaluation.record.AnswerRecord`)
    summary.json      progress

Of a record, `question` is the target's id, `cluster` its image, `truth` the word, `answer` the
answer that contains it, `score` the pointing game's, and `details` holds all scores, `tokens`
(indices of the word's) and `seconds`. Without a map, `details` holds `lacking`, the reason, and
`score` is null. A record with an `error` is tried again by the next run into the folder.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from sinkscope.config import ModelSettings, from_mapping
from sinkscope.evaluation.explanations.settings import ScoreSettings
from sinkscope.evaluation.method_specs import MethodSpec
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import RunFolder
from sinkscope.untrusted import read_json, read_toml
from sinkscope.utils import write_bytes_atomically

CONFIG = "score.toml"


@dataclass(frozen=True)
class ScoreConfig:
    """The configuration that determines the records.

    Attributes:
        score: data, methods, settings.
        model: the model.
        names: of the methods, including controls, in the order of records.
        revision: of the model.
        fingerprint: of the data's list of targets; "" for drawn scenes.
    """

    score: ScoreSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    names: tuple[str, ...] = ()
    revision: str = ""

    @property
    def methods(self) -> tuple[MethodSpec, ...]:
        """In the form that a run's folder needs."""
        return tuple(MethodSpec(name) for name in self.names)

    def as_dict(self) -> dict[str, Any]:
        """Plain values without what is None."""
        return {
            "score": _given(dataclasses.asdict(self.score)),
            "model": _given(dataclasses.asdict(self.model)),
            "made": {"names": list(self.names), "revision": self.revision},
        }

    def toml(self) -> str:
        """The file's text."""
        head = "# Made by `sinkscope explain-score`; the same command continues in this folder.\n\n"
        return head + tomlkit.dumps(self.as_dict())

    def differences(self, other: ScoreConfig) -> list[str]:
        """The differences to another configuration, in words. The number of targets is not one: a
        run may be extended."""
        differences = []
        for table, values in self.as_dict().items():
            others = other.as_dict()[table]
            for key in dict.fromkeys((*values, *others)):
                if (table, key) != ("score", "limit") and values.get(key) != others.get(key):
                    there, here = (_setting_text(one.get(key)) for one in (values, others))
                    differences.append(f"{key} is {there} there and {here} here")
        return differences


def read_score_config(path: Path) -> ScoreConfig:
    """Read the configuration of a folder.

    Raises:
        ValueError: it cannot be read, or a key or value is not allowed.
    """
    table = read_toml(path, "The file")
    if set(table) != {"score", "model", "made"}:
        raise ValueError(f"{path.name} has {sorted(table)}; allowed: [score], [model], [made].")
    names = table["made"].get("names", [])
    return ScoreConfig(
        from_mapping(ScoreSettings, table["score"], f"{path.name} [score]"),
        from_mapping(ModelSettings, table["model"], f"{path.name} [model]"),
        tuple(map(str, names)),
        str(table["made"].get("revision", "")),
    )


class ScoreFolder(RunFolder):
    """A folder open for writing; existing records of the same configuration are kept."""

    config_name = CONFIG

    def __init__(self, folder: Path, config: ScoreConfig) -> None:
        super().__init__(folder, config)  # type: ignore[arg-type]  # a config of its own kind
        self.score_config = config

    def __enter__(self) -> ScoreFolder:
        super().__enter__()
        text = self.score_config.toml()
        write_bytes_atomically(self.folder / CONFIG, text.encode())
        return self

    def _check(self) -> None:
        if (self.folder / CONFIG).exists():
            if differs := read_score_config(self.folder / CONFIG).differences(self.score_config):
                raise ValueError(
                    f"The folder {self.folder} holds another run: {'; '.join(differs[:5])}. Give "
                    "another folder, or the settings of that run."
                )
        elif any(self.folder.iterdir()):
            raise ValueError(
                f"The folder {self.folder} is not empty and holds no run; give a new one."
            )


def read_scores(folder: Path) -> tuple[ScoreConfig, list[AnswerRecord], dict[str, Any]]:
    """Configuration, records and summary of a folder; a half-written last line is skipped.

    Raises:
        ValueError: the folder holds no such run, or a line is not a record.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}; allowed: a folder of `explain-score`.")
    records = []
    path = folder / "records.jsonl"
    if path.is_file():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    where = f"Line {number} of {path.name}"
                    records.append(AnswerRecord.of_line(line.decode(), where))
    summary: dict[str, Any] = {}
    if (folder / "summary.json").is_file():
        summary = read_json(folder / "summary.json", "The summary")
    return read_score_config(folder / CONFIG), records, summary


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }


def _setting_text(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
