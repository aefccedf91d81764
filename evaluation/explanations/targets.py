"""Words to explain, each with its object in the image: drawn scenes, and users' folders."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sinkscope.demo.measure import CHECK_SIZES
from sinkscope.demo.questions import DESCRIBE, questions
from sinkscope.demo.scenes import scene
from sinkscope.evaluation.explanations.run_length import read_run_length
from sinkscope.evaluation.explanations.settings import ScoreSettings
from sinkscope.models.images import FORMATS, open_image
from sinkscope.records.text import lines_of
from sinkscope.setting.checks import shown
from sinkscope.untrusted import (
    DATASET,
    UntrustedFileError,
    cut,
    open_regular,
    parse_json,
    read_json,
)

Mask = npt.NDArray[np.bool_]
SEED = 19  # the first number of these scenes' seeds; training, card, sinks, benchmark have others
SCENES = 500
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MOST_MASK = 100_000_000  # pixels; the largest image that is opened has fewer
MASK_TAILS = ("_mask", ".mask", "-mask", "_seg")
LAYOUTS = (
    "a .jsonl file (image, prompt, word, and mask or boxes), NAME.jpg next to NAME_mask.png, "
    "images/NAME.jpg with masks/NAME.png, or images with a COCO instances*.json"
)


@dataclass(frozen=True)
class Target:
    """A word of an answer, and the object that it names.

    Attributes:
        id: unique in the data.
        cluster: its image; targets of one image are not independent.
        prompt: asked about the image.
        word: to explain, at its first occurrence in the answer.
        load: opens the image and its mask, bool (height, width).
        answer: explained instead of the model's own answer; None: the model's own.
        expected: the model's own answer must be this one, so that the word names the object; None:
            any answer that contains the word.
        start: offset from which the word is searched in the answer, in characters.
    """

    id: str
    cluster: str
    prompt: str
    word: str
    load: Callable[[], tuple[Image.Image, Mask]]
    answer: str | None = None
    expected: str | None = None
    start: int = 0


def targets_of(settings: ScoreSettings) -> Iterator[Target]:
    """The targets that the settings name, in the data's order.

    Raises:
        ValueError: there is no such data, or an invalid row; file and line are named.
    """
    if settings.data == "demo":
        return itertools.islice(scenes(settings.seed), settings.limit or SCENES)
    return itertools.islice(_read(Path(settings.data), settings), settings.limit)


def scenes(seed: int = 0) -> Iterator[Target]:
    """An endless stream of held-out scenes: "Describe the image." and the shape of one object,
    drawn by the seed. The mask is exact: the pixels that show the object."""
    for index in itertools.count():
        width, height = CHECK_SIZES[index % len(CHECK_SIZES)]
        drawn = scene((SEED, seed, index), width, height)
        (asked,) = questions(drawn, ("describe",))
        visible = [i for i in range(len(drawn.objects)) if drawn.mask(i).any()]
        chosen = visible[int(np.random.default_rng([SEED, seed, index]).integers(len(visible)))]
        thing = drawn.objects[chosen]
        # The phrases of the answer are in the order of the objects.
        start = sum(len(phrase) + 2 for phrase in asked.answer.split(", ")[:chosen])
        image, mask = Image.fromarray(drawn.image), drawn.mask(chosen)
        yield Target(
            f"scene-{index}",
            f"scene-{index}",
            DESCRIBE,
            thing.shape,
            # Mypy infers no defaults.
            lambda image=image, mask=mask: (image, mask),  # type: ignore[misc]
            expected=asked.answer,
            start=start,
        )


def _read(path: Path, settings: ScoreSettings) -> Iterator[Target]:
    if path.is_file() and path.suffix.lower() in (".jsonl", ".json"):
        yield from (_coco if path.suffix.lower() == ".json" else _rows)(path, settings)
        return
    if not path.is_dir():
        raise ValueError(f"data is {str(path)!r}; allowed: demo, or a folder or file: {LAYOUTS}.")
    listed = sorted(path.glob("*.jsonl"))
    coco = sorted((*path.glob("instances*.json"), *path.glob("annotations/instances*.json")))
    if len(listed) == 1:
        yield from _rows(listed[0], settings)
    elif listed:
        names = ", ".join(one.name for one in listed)
        raise ValueError(f"{path} has several lists ({names}); give one of them as data.")
    elif len(coco) == 1:
        yield from _coco(coco[0], settings)
    elif pairs := _pairs(path):
        for image, mask in pairs:
            name = image.stem
            yield Target(
                name,
                name,
                _needed(settings.prompt or DESCRIBE, "prompt", image.name),
                _needed(settings.word, "word", image.name),
                # mypy infers no defaults.
                lambda image=image, mask=mask: (_image(image), _mask(mask)),  # type: ignore[misc]
            )
    else:
        raise ValueError(f"The folder {path} has no images with masks; allowed: {LAYOUTS}.")


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Images and their masks, by name."""
    images, masks = folder / "images", folder / "masks"
    if images.is_dir() and masks.is_dir():
        by_stem = {one.stem: one for one in masks.iterdir() if one.suffix.lower() in IMAGES}
        image_paths = [one for one in sorted(images.iterdir()) if one.suffix.lower() in IMAGES]
        lacking = [one.name for one in image_paths if one.stem not in by_stem]
        if lacking:
            raise ValueError(f"{masks} has no mask for {lacking[0]} ({len(lacking)} have none).")
        return [(one, by_stem[one.stem]) for one in image_paths]
    files = {one.stem: one for one in sorted(folder.iterdir()) if one.suffix.lower() in IMAGES}
    return [
        (image, files[stem + tail])
        for stem, image in files.items()
        for tail in MASK_TAILS
        if stem + tail in files
    ]


def _rows(path: Path, settings: ScoreSettings) -> Iterator[Target]:
    """A .jsonl: image, prompt (or question), word, mask or box or boxes; id, answer, cluster."""
    seen: set[str] = set()
    for number, line in lines_of(path, path.name):
        if not line.strip():
            continue
        where = f"Line {number} of {path.name}"
        try:
            row = parse_json(line)
        except UntrustedFileError as error:
            raise ValueError(f"{where} is damaged, because {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not JSON object.")
        target = _row(row, where, path.parent, settings)
        if target.id in seen:
            raise ValueError(f"{where}: the id {target.id} is in the data twice.")
        seen.add(target.id)
        yield target


def _row(row: Mapping[str, Any], where: str, folder: Path, settings: ScoreSettings) -> Target:
    image = _text(row, ("image", "file_name", "img"), where)
    prompt = _text(row, ("prompt", "question"), where) or settings.prompt or DESCRIBE
    word = _text(row, ("word", "target", "phrase", "category"), where) or settings.word
    mask = _text(row, ("mask", "segmentation_file"), where)
    boxes = _boxes(row, where)
    if image is None or (mask is None) == (not boxes):
        raise ValueError(f"{where} needs `image`, and either `mask` or `box`, `boxes` or `bbox`.")
    answer = _text(row, ("answer", "caption"), where)
    name = str(row.get("id", where.split()[1]))

    def look() -> tuple[Image.Image, Mask]:
        picture = _image(folder / image)
        return picture, _mask(folder / mask) if mask else _filled(boxes, picture.size)

    cluster = str(row.get("cluster", image))
    return Target(name, cluster, prompt, _needed(word, "word", where), look, answer)


def _coco(path: Path, settings: ScoreSettings) -> Iterator[Target]:
    """COCO's instances file: all objects of one category in one image are one target, its word the
    category's name. Polygons are drawn, run-length masks read, including those of crowds, which
    cover several objects of the category."""
    try:
        instances = read_json(path, "The file", DATASET)
        names = {one["id"]: str(one["name"]) for one in instances["categories"]}
        files = {one["id"]: str(one["file_name"]) for one in instances["images"]}
        groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
        for one in instances["annotations"]:
            groups.setdefault((one["image_id"], one["category_id"]), []).append(one)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no COCO instances file: {cut(repr(error))}.") from error
    for (image_id, category), objects in groups.items():
        if settings.word is not None and names.get(category) != settings.word:
            continue
        if image_id not in files or category not in names:
            raise ValueError(f"{path.name} has an annotation of an unknown image or category.")
        image = _image_path(path, files[image_id])

        def look(
            image: Path = image, objects: Sequence[Mapping[str, Any]] = objects
        ) -> tuple[Image.Image, Mask]:
            picture = _image(image)
            try:
                return picture, _drawn(objects, picture.size)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}: image {image.name}: {error}") from error

        prompt = settings.prompt or DESCRIBE
        name = names[category]
        yield Target(f"{image_id}-{name}", str(image_id), prompt, name, look)


def _image_path(path: Path, name: str) -> Path:
    for folder in (path.parent, path.parent / "images", path.parent.parent):
        if os.path.isfile(folder / name):  # noqa: PTH113 - Path.is_file fails for a name too long
            return folder / name
    split = path.stem.removeprefix("instances_")
    for folder in (path.parent / split, path.parent.parent / split):
        if os.path.isfile(folder / name):  # noqa: PTH113
            return folder / name
    return path.parent / name


def _drawn(objects: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Mask:
    canvas = Image.new("1", size)
    pen = ImageDraw.Draw(canvas)
    covered = np.zeros((size[1], size[0]), dtype=bool)
    for one in objects:
        polygons = one.get("segmentation") or []
        if isinstance(polygons, dict):
            mask = read_run_length(polygons)
            if mask.shape != covered.shape:
                raise ValueError(
                    f"a run-length mask has size {polygons['size']}; allowed: that of its image, "
                    f"[{size[1]}, {size[0]}]."
                )
            covered |= mask
            continue
        for polygon in polygons:
            pen.polygon([float(value) for value in polygon], fill=1)
        if not polygons:
            x, y, width, height = (float(value) for value in one["bbox"])
            pen.rectangle((x, y, x + width - 1, y + height - 1), fill=1)
    return np.asarray(canvas, dtype=bool) | covered


def _boxes(row: Mapping[str, Any], where: str) -> list[tuple[float, float, float, float]]:
    """x0, y0, x1, y1 in pixels; `bbox` is COCO's x, y, width, height."""
    given_boxes: Any = row.get("boxes", [row["box"]] if "box" in row else [])
    if "bbox" in row and not given_boxes:
        box = row["bbox"]
        several = isinstance(box, list) and box and isinstance(box[0], list)
        given_boxes = box if several else [box]
        try:
            given_boxes = [(x, y, x + w, y + h) for x, y, w, h in given_boxes]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: bbox is {shown(box)}; allowed: x, y, width, height."
            ) from error
    if not isinstance(given_boxes, list):
        raise ValueError(
            f"{where}: boxes is {shown(given_boxes)}; allowed: a list of x0, y0, x1, y1."
        )
    boxes = []
    for one in given_boxes:
        try:
            x0, y0, x1, y1 = (float(value) for value in one)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: a box is {shown(one)}; allowed: x0, y0, x1, y1.") from error
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"{where}: a box is {shown(one)}; allowed: x0 < x1 and y0 < y1.")
        boxes.append((x0, y0, x1, y1))
    return boxes


def _filled(boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]) -> Mask:
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = True
    return mask


def _image(path: Path) -> Image.Image:
    return open_image(path)


def _mask(path: Path) -> Mask:
    """The set pixels of a mask file: with a palette (VOC) all but index 0; of grey values those
    above the middle, or above 0 if none is above 1."""
    try:
        with open_regular(path) as stream, Image.open(stream, formats=FORMATS) as file:
            if file.width * file.height > MOST_MASK:
                raise ValueError(
                    f"The mask {path.name} is {file.width} x {file.height}; "
                    f"allowed: {MOST_MASK / 1e6:g} megapixels."
                )
            file.load()
            if file.mode == "P":
                return np.asarray(file) > 0
            values = np.asarray(file if file.mode in ("1", "I", "I;16") else file.convert("L"))
    except FileNotFoundError as error:
        raise ValueError(f"The mask {path.name} does not exist.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no such format"
        raise ValueError(f"The mask {path.name} cannot be read as an image: {why}.") from error
    if values.dtype == np.bool_:
        return values
    top = int(values.max(initial=0))
    return np.asarray(values > (127 if 1 < top < 256 else 0))


def _text(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str | None:
    for key in keys:
        if (value := row.get(key)) is not None:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{where}: {key} is {value!r}; allowed: a text.")
            return value
    return None


def _needed(value: str | None, name: str, where: str) -> str:
    if value is None:
        raise ValueError(f"{where} names no {name}; give one for all with --{name}.")
    return value
