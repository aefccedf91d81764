"""Lists of single heads, and their JSON file: what `methods.heads` finds, and users name. No torch.

A list says which heads do something (localise, feed on sinks). It limits VAR to them, and
`PickedHeads` makes maps of only these heads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sinkscope.attention_processor import refuse_lacking
from sinkscope.models.info import ModelInfo
from sinkscope.setting.checks import shown
from sinkscope.setting.heads import Heads, heads_text, heads_words, layer_heads
from sinkscope.untrusted import Bounds, UntrustedFileError, cut, parse_json, read_json
from sinkscope.utils import write_bytes_atomically

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace

Kind = Literal["localising", "feeds_on_sinks"]
FORMAT, VERSION = "sinkscope heads", 1
MOST_PICKED = 1000  # heads of one map; they must fit into a link
WORDS = {"": "head", "localising": "localising head", "feeds_on_sinks": "sink head"}
NAMES: dict[str, Kind] = {"localising": "localising", "sinks": "feeds_on_sinks"}  # for users
SMALL = Bounds(bytes=2_000_000, values=1_000_000, lists=200_000)  # of an upload


@dataclass(frozen=True)
class HeadChoice:
    """One head.

    Attributes:
        layer, head: indices in the model.
        image_mass: share of its rows on the image, the mean over tokens.
        value: spatial entropy in nats (localising), or the sinks' share of the image mass.
    """

    layer: int
    head: int
    image_mass: float
    value: float


@dataclass(frozen=True)
class HeadList:
    """Chosen heads, best first.

    Attributes:
        kind: what they do.
        model, revision: its model (`ModelInfo`).
        chosen: the heads.
        description: the source of the list, in words.
    """

    kind: Kind
    model: str
    revision: str
    chosen: tuple[HeadChoice, ...]
    description: str = ""

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """The heads of one layer, rising: what views and `GenerationSettings.heads` take."""
        return tuple(sorted(one.head for one in self.chosen if one.layer == layer))

    def layer_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of each, rising: what `VARSettings.heads` takes."""
        return tuple(sorted((one.layer, one.head) for one in self.chosen))

    def check_model(self, info: ModelInfo) -> None:
        """Refuse another model than the list's: its heads have other indices.

        Raises:
            ValueError: naming both.
        """
        if self.revision != info.revision:
            raise ValueError(
                f"The list of heads is of {cut(self.model)} ({cut(self.revision)}), and {info.id} "
                f"({info.revision}) is loaded."
            )

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        text = self.as_json()
        write_bytes_atomically(Path(path), text.encode())

    def picked(self) -> PickedHeads:
        """Its heads for a view.

        Raises:
            ValueError: it has none, or too many for one map.
        """
        if not self.chosen:
            raise ValueError("The list of heads is empty.")
        return PickedHeads(self.layer_heads(), self.kind)

    def as_json(self) -> str:
        """The text of its file."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        values["chosen"] = [asdict(one) for one in self.chosen]
        values["said"] = values.pop("description")  # the key of the file's first version
        return json.dumps(values, indent=1) + "\n"

    @staticmethod
    def open(path: Path | str) -> HeadList:
        """Read a list.

        Raises:
            ValueError: the file is missing, or is not such a list; the text says what is wrong.
        """
        path = Path(path)
        return HeadList.of(read_json(path, "The list of heads"), path.name)

    @staticmethod
    def read(text: str, name: str = "The text") -> HeadList:
        """The list in the text of a file that a user sent.

        Raises:
            ValueError: it is not such a list, or too long; the text says what is wrong.
        """
        try:
            if len(text) > SMALL.bytes:
                raise UntrustedFileError(
                    f"it has more than {SMALL.bytes:,} letters, the most allowed"
                )
            return HeadList.of(parse_json(text, SMALL), name)
        except UntrustedFileError as error:
            raise ValueError(f"{name} is not a list of heads, because {error}.") from error

    @staticmethod
    def of(values: Any, name: str) -> HeadList:
        """A list from the value of its file, which is called `name` in errors.

        Raises:
            ValueError: it is not such a list.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{name} is not a list of heads (format is not {FORMAT!r}).")
        if values.get("version") != VERSION:
            version = shown(values.get("version"))
            raise ValueError(f"{name} has version {version}; allowed: {VERSION}.")
        try:
            chosen = tuple(
                HeadChoice(
                    _index(one["layer"]),
                    _index(one["head"]),
                    float(one["image_mass"]),
                    float(one["value"]),
                )
                for one in values["chosen"]
            )
            kind = values["kind"]
            if kind not in get_args(Kind):
                raise ValueError(f"kind is {shown(kind)}; allowed: {', '.join(get_args(Kind))}")
            return HeadList(
                kind, str(values["model"]), str(values["revision"]), chosen, str(values["said"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} is a damaged list of heads: {cut(str(error))}") from error


@dataclass(frozen=True)
class PickedHeads:
    """Single heads whose maps become one, instead of a range of layers and heads.

    Attributes:
        pairs: (layer, head) of each, rising, indices in the model.
        kind: kind of the list that they come from; empty if they were named one by one.
    """

    pairs: Heads
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", layer_heads("heads", self.pairs))
        if self.kind not in WORDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(WORDS)}.")
        if len(self.pairs) > MOST_PICKED:
            raise ValueError(
                f"{len(self.pairs)} heads are chosen; allowed: at most {MOST_PICKED} for one map."
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have one, rising."""
        return tuple(sorted({layer for layer, _ in self.pairs}))

    @property
    def words(self) -> str:
        """`3 localising heads (4.1, 4.3, 5.0)`: LAYER.HEAD, the first of many."""
        return heads_words(self.pairs, WORDS[self.kind])

    def check_run(self, layers: Sequence[int], heads: Sequence[int]) -> None:
        """Refuse heads that a run did not keep.

        Raises:
            ValueError: naming the first of them.
        """
        refuse_lacking(layers, heads, self.pairs)


@dataclass(frozen=True)
class HeadsFrom:
    """A user's choice of heads for a map, before there is a run.

    Attributes:
        from_run: `localising` or `sinks`: found in the run itself; empty: the heads are given.
        given: a list, or heads that were named one by one.
    """

    from_run: str = ""
    given: HeadList | PickedHeads | None = None

    @staticmethod
    def read(value: str, *, files: bool = False) -> HeadsFrom:
        """From text: `localising`, `sinks`, `4.1,5.0-2`, or the JSON of a list.

        Args:
            value: the text.
            files: whether a text that ends in .json is the name of a file.

        Raises:
            ValueError: it is none of them, or a list without heads.
        """
        text = value.strip()
        if text in NAMES:
            return HeadsFrom(text)
        if files and text.lower().endswith(".json"):
            given = HeadList.open(text)
        elif text.startswith("{"):
            given = HeadList.read(text, "heads_from")
        else:
            return HeadsFrom(given=PickedHeads(_named(text, files)))
        given.picked()
        return HeadsFrom(given=given)

    def check_model(self, info: ModelInfo) -> None:
        """Refuse heads of another model or that this model does not have, before anything runs.

        Raises:
            ValueError: naming them.
        """
        if isinstance(self.given, HeadList):
            self.given.check_model(info)
        if self.given is not None:
            pairs = _picked(self.given).pairs
            lacking = [one for one in pairs if one[0] >= info.layers or one[1] >= info.heads]
            if lacking:
                raise ValueError(
                    f"heads_from names {heads_text(lacking[:1])}, and {info.id} has "
                    f"{info.layers} layers of {info.heads} heads, from 0."
                )

    def heads_of(self, run: GenerationTrace) -> PickedHeads:
        """The heads, for the maps of a run.

        Raises:
            ValueError: they are another model's, the run did not keep them, or none was found.
        """
        if self.given is None:
            from sinkscope.methods.heads import found_heads  # imported here, because it needs torch

            return found_heads(run, self.from_run).picked()
        self.check_model(run.model)
        picked = _picked(self.given)
        picked.check_run(run.layers, run.heads)
        return picked


def _picked(given: HeadList | PickedHeads) -> PickedHeads:
    return given.picked() if isinstance(given, HeadList) else given


def _named(text: str, files: bool) -> Heads:
    try:
        return layer_heads("heads_from", text)
    except ValueError as error:
        file = ", the file of a list (.json)" if files else ", the JSON of a list"
        raise ValueError(
            f"heads_from is {text[:80]!r}; allowed: {', '.join(NAMES)}, LAYER.HEAD with commas, "
            f"such as 4.1,4.3,5.0-2{file}."
        ) from error


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a layer or head is {shown(value)}; allowed: whole numbers from 0")
    return value
