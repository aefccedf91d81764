"""Rows of a hub dataset, streamed: shuffled by the library if a sample is drawn, else in order.

hub:owner/name                       split train
hub:owner/name:split
hub:owner/name:configuration:split
hub:owner/name@revision:...          a commit, tag or branch
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.records.pictures import HubPictures
from sinkscope.records.sources import Rows, Source
from sinkscope.records.tables import with_labels

HUB = "hub:"
FORMS = f"{HUB}owner/name[@revision][:[configuration:]split]"
SMALLEST_BUFFER = 200  # minimum size of the library's shuffle buffer


@dataclass(frozen=True)
class HubName:
    """What `hub:...` names.

    Attributes:
        dataset: owner/name.
        configuration, revision: None for the dataset's own.
        split: `train` by default.
    """

    dataset: str
    configuration: str | None
    split: str
    revision: str | None


def hub_name(source: str) -> HubName:
    """The parts of `hub:...`.

    Raises:
        ValueError: it has another form.
    """
    name, *rest = source.removeprefix(HUB).split(":")
    dataset, sign, revision = name.partition("@")
    parts = dataset.split("/")
    if len(parts) != 2 or not all(parts) or len(rest) > 2 or (sign and not revision):
        raise ValueError(f"The data {source} names no dataset; allowed: {FORMS}.")
    configuration = rest[0] if len(rest) == 2 and rest[0] else None
    split = rest[-1] if rest and rest[-1] else "train"
    return HubName(dataset, configuration, split, revision or None)


def hub_source(source: str, count: int | None, seed: int = 0) -> Source:
    """A dataset's rows in an order made by the seed; they can be read once.

    Args:
        source: in one of the forms above.
        count: how many are wanted; the library's shuffle buffer is a few times as large. None: all
            of them, in the dataset's own order.
        seed: of the shuffling.

    Raises:
        ValueError: another form, the library datasets is missing, or the dataset cannot be read.
    """
    named = hub_name(source)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"The data {source} is a dataset of a hub; install the library datasets to read it."
        ) from error
    problems = (OSError, KeyError, ValueError, datasets.exceptions.DatasetsError)
    options: dict[str, Any] = {"split": named.split, "streaming": True}
    if named.revision is not None:
        options["revision"] = named.revision
    configurations = () if named.configuration is None else (named.configuration,)

    def rows() -> Rows:
        try:
            stream = datasets.load_dataset(named.dataset, *configurations, **options)
            labels = _labels(stream)
            # Undecoded: our limits apply, and an unreadable image is skipped without ending a run.
            stream = stream.decode(False)
            if count is not None:
                stream = stream.shuffle(seed=seed, buffer_size=max(SMALLEST_BUFFER, 4 * count))
            numbered = enumerate(iter(stream), 1)
        except problems as error:
            raise ValueError(f"The dataset {source} cannot be read: {error}") from error
        while True:
            try:
                number, row = next(numbered)
            except StopIteration:
                return
            except problems as error:
                raise ValueError(f"The dataset {source} cannot be read: {error}") from error
            yield number, with_labels(dict(row), labels)

    cache = getattr(getattr(datasets, "config", None), "HF_CACHE_HOME", None)
    pictures = HubPictures(None if cache is None else Path(cache))
    return Source(
        source, "row", rows, pictures, lambda number: f"a row of {source}", whole=count is None
    )


def _labels(stream: Any) -> dict[str, list[str]]:
    """Names of the classes of each column of class labels, if the dataset declares its columns."""
    features = getattr(stream, "features", None) or {}
    return {
        column: list(map(str, names))
        for column, feature in features.items()
        if isinstance(names := getattr(feature, "names", None), list)
    }
