"""Small data sets in the layouts of the published ones, with answers by hand.

`datasets` writes images as {bytes, path} into Parquet and stores its features in the schema. These
files are written by it, so they contain what a download from the hub contains.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 210)}


def picture(colour: str = "red", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A plain picture."""
    return Image.new("RGB", size, COLOURS[colour])


def png(colour: str = "red") -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    picture(colour).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None
) -> None:
    """One Parquet file, as the library datasets writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: [row.get(key) for row in rows] for key in rows[0]}
    made = None if features is None else datasets.Features(features)
    datasets.Dataset.from_dict(columns, features=made).to_parquet(path)


def text() -> Any:
    return datasets.Value("string")


def blink(folder: Path) -> None:
    """BLINK-Benchmark/BLINK: one folder for each configuration."""
    features = {
        "idx": text(),
        "sub_task": text(),
        "question": text(),
        **{f"image_{n}": datasets.Image() for n in range(1, 5)},
        "choices": datasets.Sequence(text()),
        "answer": text(),
        "prompt": text(),
        "explanation": text(),
    }
    from sinkscope.evaluation.tasks.blink import PARTS

    for part in PARTS:
        rows = [
            {
                "idx": f"val_{part}_{n}",
                "sub_task": part,
                "question": "Which colour is it?",
                "image_1": picture("red"),
                "image_2": picture("blue") if n == 2 else None,
                "image_3": None,
                "image_4": None,
                "choices": ["red", "blue"],
                "answer": "(A)" if n == 1 else "(B)",
                "prompt": "Which colour is it?\nSelect from these choices.\n(A) red\n(B) blue",
                "explanation": None,
            }
            for n in (1, 2)
        ]
        write(folder / part / "val-00000-of-00001.parquet", rows, features)


def sat(folder: Path) -> None:
    """nv-njb/SAT."""
    features = {
        "image_bytes": datasets.Sequence(datasets.Image()),
        "question": text(),
        "answers": datasets.Sequence(text()),
        "question_type": text(),
        "correct_answer": text(),
        "correct_answer_idx": datasets.Value("int64"),
    }
    rows = [
        {
            "image_bytes": [picture("red"), picture("blue")],
            "question": "Did the camera move left or right? ",
            "answers": ["left", "right"],
            "question_type": "ego_movement",
            "correct_answer": "right",
            "correct_answer_idx": 1,
        },
        {
            "image_bytes": [picture("green")],
            "question": "Is the box near?",
            "answers": ["yes", "no"],
            "question_type": "obj_movement",
            "correct_answer": "yes",
            "correct_answer_idx": 0,
        },
    ]
    write(folder / "data" / "test-00000-of-00001.parquet", rows, features)


def pope(folder: Path) -> None:
    """POPE: all subsets in one split; question ids start again in each."""
    features = {
        "id": text(),
        "question_id": text(),
        "question": text(),
        "answer": text(),
        "image_source": text(),
        "image": datasets.Image(),
        "category": text(),
    }
    rows = [
        {
            "id": str(number),
            "question_id": str(n),
            "question": f"Is there a {thing} in the image?",
            "answer": "yes" if n == 1 else "no",
            "image_source": "COCO_val2014_000000310196",
            "image": picture("red"),
            "category": category,
        }
        for number, (category, n, thing) in enumerate(
            (c, n, t)
            for c in ("random", "popular", "adversarial")
            for n, t in ((1, "snowboard"), (2, "dog"))
        )
    ]
    write(folder / "data" / "test-00000-of-00001.parquet", rows, features)


def mmvp(folder: Path) -> None:
    """MMVP: pairs of rows."""
    features = {
        "Index": datasets.Value("int64"),
        "Question": text(),
        "Options": text(),
        "Correct Answer": text(),
        "image": datasets.Image(),
    }
    rows = [
        {
            "Index": n,
            "Question": "Are the butterfly's wings closer to being open or closed?",
            "Options": "(a) Open (b) Closed",
            "Correct Answer": answer,
            "image": picture("red"),
        }
        # 99 and 100 as the first release has them, swapped
        for n, answer in ((1, "(a)"), (2, "(b)"), (99, "(a)"), (100, "(b)"))
    ]
    write(folder / "data" / "train-00000-of-00001.parquet", rows, features)


def textvqa(folder: Path) -> None:
    """TextVQA: ten annotators' answers."""
    features = {
        "image_id": text(),
        "question_id": datasets.Value("int32"),
        "question": text(),
        "question_tokens": datasets.Sequence(text()),
        "image": datasets.Image(),
        "answers": datasets.Sequence(text()),
        "ocr_tokens": datasets.Sequence(text()),
        "set_name": text(),
    }
    rows = [
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "question": "what is the brand of this Camera?",
            "question_tokens": ["what"],
            "image": picture("blue"),
            "answers": ["nous les gosses", *["dakota"] * 9],
            "ocr_tokens": ["DAKOTA"],
            "set_name": "val",
        }
    ]
    write(folder / "data" / "validation-00000-of-00003.parquet", rows, features)


def gqa(folder: Path) -> None:
    """GQA: questions and images as two configurations."""
    from sinkscope.evaluation.tasks.gqa import IMAGES, QUESTIONS

    rows = [
        {
            "id": "201307251",
            "imageId": "n161313",
            "question": "Is it overcast?",
            "answer": "no",
            "fullAnswer": "No, it is clear.",
            "isBalanced": True,
            "types": {"semantic": "attr", "structural": "verify", "detailed": "weatherVerify"},
        },
        {
            "id": "201640614",
            "imageId": "n235859",
            "question": "Who is wearing the dress?",
            "answer": "woman",
            "fullAnswer": "The woman is wearing a dress.",
            "isBalanced": True,
            "types": {"semantic": "rel", "structural": "query", "detailed": "relS"},
        },
    ]
    questions = folder / str(QUESTIONS.configuration) / "testdev-00000-of-00001.parquet"
    write(questions, rows)
    images = [
        {"id": "n161313", "image": picture("blue")},
        {"id": "n235859", "image": picture("red")},
    ]
    path = folder / str(IMAGES.configuration) / "testdev-00000-of-00001.parquet"
    write(path, images, {"id": text(), "image": datasets.Image()})


def vizwiz(folder: Path) -> None:
    """VizWiz: ten annotators, categories."""
    features = {
        "question_id": text(),
        "image": datasets.Image(),
        "question": text(),
        "answers": datasets.Sequence(text()),
        "category": text(),
    }
    rows = [
        {
            "question_id": "VizWiz_val_00000000.jpg",
            "image": picture("green"),
            "question": "Ok. There is another picture I hope it is a better one.",
            "answers": ["unanswerable"] * 8 + ["paper", "page"],
            "category": "unanswerable",
        }
    ]
    write(folder / "data" / "val-00000-of-00005.parquet", rows, features)


def mme(folder: Path) -> None:
    """MME: two rows an image, with one question_id."""
    features = {
        "question_id": text(),
        "image": datasets.Image(),
        "question": text(),
        "answer": text(),
        "category": text(),
    }
    rows = [
        {
            "question_id": name,
            "image": picture(colour),
            "question": f"{asked} Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        for category, name, colour, asked, answer in (
            ("color", "color/000000001584.jpg", "red", "Is there a red bus in the image?", "Yes"),
            ("color", "color/000000001584.jpg", "red", "Is there a blue bus in the image?", "No"),
            (
                "code_reasoning",
                "code_reasoning/0001.png",
                "blue",
                "Is a python code shown in the picture?",
                "Yes",
            ),
            (
                "code_reasoning",
                "code_reasoning/0001.png",
                "blue",
                "Is a c++ code shown in the picture?",
                "No",
            ),
        )
    ]
    write(folder / "data" / "test-00000-of-00004.parquet", rows, features)


def chair(folder: Path) -> None:
    """COCO val2014: instances, captions and images."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    images = [
        {"id": number, "file_name": f"COCO_val2014_{number:012}.jpg", "height": 48, "width": 64}
        for number in (42, 73, 74)
    ]
    for image, colour in zip(images, COLOURS, strict=True):
        picture(colour).save(folder / "val2014" / str(image["file_name"]))
    instances = {
        "info": {"description": "COCO 2014 Dataset"},
        "images": images,
        "licenses": [],
        "annotations": [
            {"id": 1, "image_id": 42, "category_id": 18, "bbox": [0, 0, 9, 9]},
            {"id": 2, "image_id": 42, "category_id": 18, "bbox": [9, 9, 9, 9]},
            {"id": 3, "image_id": 73, "category_id": 4, "bbox": [0, 0, 9, 9]},
        ],
        "categories": [
            {"supercategory": "vehicle", "id": 4, "name": "motorcycle"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
        ],
    }
    captions = {
        "images": images,
        "annotations": [
            {"image_id": 42, "id": 7, "caption": "A small dog is curled up on top of the chair"},
            {"image_id": 73, "id": 8, "caption": "A loft bed with a dresser underneath it."},
        ],
    }
    for name, made in (("instances", instances), ("captions", captions)):
        path = folder / "annotations" / f"{name}_val2014.json"
        path.write_text(json.dumps(made))


def older(folder: Path, name: str) -> None:
    """The older evaluation script's JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        picture(colour).save(folder / f"{colour}.png")
    choices = "(A) red\n(B) blue"
    rows = [
        {
            "id": "1",
            "sub_task": "Counting",
            "image_1": "red.png",
            "image_2": "blue.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhich colour is it?\n{choices}"},
                {"from": "gpt", "value": "(A)"},
            ],
        },
        {
            "id": "2",
            "task": "Depth",
            "img_path": "green.png",
            "conversations": [
                {"from": "human", "value": f"Which one? {choices}"},
                {"from": "gpt", "value": "blue"},
            ],
        },
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def jsonl(folder: Path) -> None:
    """A user's own file: a text, a multiple choice, annotators' answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    for colour in COLOURS:
        picture(colour).save(folder / "images" / f"{colour}.png")
    rows = [
        {"id": "a", "image": "red.png", "question": "What colour?", "answer": "red"},
        {
            "id": "b",
            "image": "blue.png",
            "question": "Which?",
            "choices": ["red", "blue"],
            "answer": "B",
            "category": "choice",
        },
        {"id": "c", "images": ["red.png", "blue.png"], "question": "Alike?", "answer": "no"},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LAYOUTS: Mapping[str, Callable[[Path], None]] = {
    "blink": blink,
    "sat": sat,
    "pope": pope,
    "mmvp": mmvp,
    "textvqa": textvqa,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "mme": mme,
    "chair": chair,
    "older-blink": lambda folder: older(folder, "blink_validation.jsonl"),
    "older-sat": lambda folder: older(folder, "sat2_test.jsonl"),
    "jsonl": jsonl,
}


def data_of(name: str, folder: Path) -> tuple[str, Path | None]:
    """Write a data set below `folder`: returns what to give as data, and the folder of images."""
    LAYOUTS[name](folder)
    if name == "jsonl":
        return str(folder / "questions.jsonl"), folder / "images"
    return str(folder), None
