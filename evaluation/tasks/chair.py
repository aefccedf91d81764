"""CHAIR (Rohrbach et al., 2018): objects that a caption names and the picture does not have.

The data is a folder with COCO as published: `annotations/instances_val2014.json`,
`annotations/captions_val2014.json`, and the images in `val2014/`. Questions come in a fixed random
order, so that `--limit 500` is always the same random sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, StoredPicture, Table
from sinkscope.evaluation.judges.chair import Chair, objects_named
from sinkscope.evaluation.metrics.chair import Chair as ChairMetric
from sinkscope.evaluation.tasks.base import Item, Task, lmms_protocol
from sinkscope.records.pictures import FolderPictures
from sinkscope.records.record import Reference
from sinkscope.untrusted import DATASET, read_json
from sinkscope.utils import sha256

INSTANCES = Table("annotations", "instances_val2014")
CAPTIONS = Table("annotations", "captions_val2014")
FOLDER = "val2014"
REQUEST = "Please describe this image in detail."


def read(data: Data | None) -> Iterator[Item]:
    """One question for each image with annotated objects. Its objects are the annotated ones and
    those that its captions name.

    Raises:
        ValueError: a file is missing, or is not a COCO annotation.
    """
    assert data is not None
    if CAPTIONS not in data.tables or not data.files:
        raise ValueError(
            f"The data {data.name} is not a folder with COCO; allowed: one with {INSTANCES}.json, "
            f"{CAPTIONS}.json and the images in {FOLDER}/."
        )
    path = data.files[INSTANCES][0]
    instances = _coco(path, "instances")
    names = {one["id"]: str(one["name"]) for one in instances["categories"]}
    objects: dict[int, set[str]] = defaultdict(set)
    for one in instances["annotations"]:
        objects[one["image_id"]].add(names[one["category_id"]])
    captions_of: dict[int, list[str]] = defaultdict(list)
    for one in _coco(data.files[CAPTIONS][0], "captions")["annotations"]:
        captions_of[one["image_id"]].append(str(one["caption"]))
    files = {one["id"]: str(one["file_name"]) for one in instances["images"]}
    folder = data.images or path.parent.parent / FOLDER
    folder_pictures = FolderPictures(folder.absolute())
    del instances
    for image in sorted(files, key=lambda number: sha256(str(number).encode())):
        if image not in objects:
            continue
        captions = captions_of.get(image, [])
        yield Question(
            id=str(image),
            text=REQUEST,
            pictures=(StoredPicture(Reference("file", files[image]), folder_pictures),),
            truth=sorted(
                objects[image] | {thing for one in captions for thing, _ in objects_named(one)}
            ),
            fields={"captions": captions},
        )


def _coco(path: Path, what: str) -> Mapping[str, Any]:
    values = read_json(path, f"The {what}", DATASET)
    needed = ("images", "annotations", "categories") if what == "instances" else ("annotations",)
    for key in needed:
        if not isinstance(values, dict) or not isinstance(values.get(key), list):
            found_keys = ", ".join(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"The {what} {path} have no list {key!r}; keys present: {found_keys}.")
    return dict(values)


def prompt(question: Question) -> str:
    """The request of the studies that measure CHAIR on long captions, and lmms-eval's."""
    return question.text


TASK = Task(
    name="chair",
    about="objects named in a caption that are not in the picture; COCO, from a folder",
    read=read,
    protocols=(
        Protocol("fixed", prompt, Chair(), ChairMetric(), max_new_tokens=512),
        lmms_protocol(
            prompt, Chair(), ChairMetric(), 2048, "lmms-eval reads its own copy of 500 images."
        ),
        Protocol(
            "var-paper",
            prompt,
            Chair(),
            ChairMetric(),
            max_new_tokens=512,
            note="The paper's captions have 512 tokens at most, on 500 images of val2014 (--limit "
            "500; not the same 500). Its models are LLaVA-1.5's.",
        ),
    ),
    tables=(INSTANCES, CAPTIONS),
    joined=(INSTANCES, CAPTIONS),
    data="a folder with COCO val2014: annotations/ and val2014/",
)
