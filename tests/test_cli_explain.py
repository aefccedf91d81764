"""`explain` and `explain-score` as a user types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sinkscope.cli.explain import explained_tokens
from sinkscope.cli.main import app
from sinkscope.evaluation.explanations.compare import compare_scores
from sinkscope.evaluation.explanations.folder import read_scores
from tests.capture.test_storage import small_trace

pytestmark = pytest.mark.tiny
QUICK = "attention,relative,chefer,logit-lens"


def run(*arguments: object) -> tuple[int, str, str]:
    made = CliRunner().invoke(app, [str(one) for one in arguments])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made.exit_code, made.stdout, " ".join(made.stderr.split())


@pytest.fixture
def picture(photo: Image.Image, tmp_path: Path) -> Path:
    photo.resize((112, 84)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("ending", ["png", "pdf", "html", "npz"])
def test_explain_writes_what_the_ending_says(
    ending: str, picture: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"made.{ending}"
    code, said, _ = run(
        *("explain", picture, "What?", "-o", out, "--model", tiny_folder, "--token", "0-1"),
        *("--methods", QUICK, "--max-new-tokens", 3, "--device", "cpu", "--dtype", "float32"),
    )
    assert code == 0 and "chefer" in said and "without sinks" not in said
    data = out.read_bytes()
    assert data.startswith(
        {"png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!doct", "npz": b"PK"}[ending]
    )
    if ending == "npz":
        made = np.load(out)
        about = json.loads(str(made["about"]))
        assert made["map_chefer"].shape == made["map_attention"].shape
        assert about["methods"]["logit_lens"]["unit"] == "probability"
        assert made["agreement"].shape == (len(about["methods"]),) * 2
    if ending == "html":
        text = data.decode()
        assert text.count("data:image/png") == 4 and "<script" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("-o", "x.gif"), "allowed: a file ending in .png"),
        (("-o", "x.png", "--methods", "nothing"), "method is 'nothing'"),
        (("-o", "x.png", "--token", "99"), "token is '99', and max_new_tokens allows 2"),
        (("-o", "x.png", "--token", "1-7"), "token is '1-7', and max_new_tokens allows 2"),
        (("-o", "x.png", "--layers", "77"), "77"),
    ],
)
def test_explain_refuses_in_a_sentence(
    changes: tuple[str, ...],
    said: str,
    picture: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run(
        *("explain", picture, "What?", "--model", tiny_folder, "--max-new-tokens", 2, *changes)
    )
    assert code == 2 and said in error and not list(tmp_path.glob("x.*"))


def test_tokens_by_word_index_range_and_answer() -> None:
    trace = small_trace()
    texts = [token.text for token in trace.tokens]
    assert explained_tokens(trace, "1").tokens == (1,)
    assert explained_tokens(trace, "0-1").tokens == (0, 1)
    assert explained_tokens(trace, "answer").tokens == tuple(range(len(texts)))
    assert explained_tokens(trace, trace.text.strip()).tokens == (0, 1, 2)


def masked_folder(folder: Path, photo: Image.Image) -> Path:
    """Three rows: a mask, boxes, and COCO's bbox; two of them of one image."""
    folder.mkdir()
    photo.resize((112, 84)).save(folder / "a.png")
    photo.resize((84, 112)).save(folder / "b.png")
    mask = np.zeros((84, 112), dtype=np.uint8)
    mask[0:28, 0:56] = 255
    Image.fromarray(mask).save(folder / "a_mask.png")
    rows = [
        {
            "id": "m",
            "image": "a.png",
            "prompt": "What?",
            "answer": "a cat",
            "word": "cat",
            "mask": "a_mask.png",
        },
        {
            "id": "b",
            "image": "a.png",
            "question": "Where?",
            "answer": "the cat sits",
            "word": "cat",
            "boxes": [[28, 28, 84, 56]],
        },
        {
            "id": "c",
            "image": "b.png",
            "prompt": "What?",
            "answer": "cat",
            "word": "cat",
            "bbox": [0, 0, 28, 28],
        },
        {
            "id": "none",
            "image": "b.png",
            "prompt": "What?",
            "answer": "dog",
            "word": "cat",
            "box": [0, 0, 28, 28],
        },
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_explain_score_on_a_users_folder_and_resume(
    tiny_folder: Path, photo: Image.Image, tmp_path: Path
) -> None:
    data, out = masked_folder(tmp_path / "data", photo), tmp_path / "run"
    command = (
        *("explain-score", "--data", data, "-o", out, "--model", tiny_folder, "--steps", 3),
        *("--methods", "attention,logit-lens", "--device", "cpu", "--dtype", "float32"),
        *("--resamples", 100),
    )
    code, _, error = run(*command, "--limit", 2)
    assert code == 0, error
    code, _, error = run(*command)
    assert code == 0, error
    config, records, summary = read_scores(out)
    assert [r.question for r in records] == [n for n in ("m", "b", "c", "none") for _ in range(4)]
    assert config.names == ("random", "centre_prior", "attention", "logit_lens")
    assert summary["scored"] == 3 and summary["left_out"] == 1 and summary["complete"]
    first = records[2]
    assert first.answer == "a cat" and first.details["cells"] == 2 and first.details["of"] == 12
    assert set(first.details["scores"]) == {
        *("pointing", "energy", "nss", "auc", "obj_iou", "insertion", "deletion")
    }
    found = compare_scores(records)
    assert found.targets == 3 and found.clusters == 2
    assert found.left_out == {"the word 'cat' is not in the answer": 1}
    for name in ("report.md", "report.html", "scores.csv"):
        assert (out / name).is_file()
    text = (out / "report.md").read_text()
    assert "random" in text and "centre" in text and "n = 3 words in 2 images" in text
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert {row["score"] for row in rows} == set(found.figures)
    # Another run cannot continue in this folder; a damaged end of the records is cut off.
    code, _, error = run(*command, "--seed", 5)
    assert code == 2 and "holds another run: seed is 0 there and 5 here" in error
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:30])
    assert run(*command)[0] == 0
    _, again, summary = read_scores(out)
    assert (summary["scored"], summary["left_out"]) == (3, 1)
    for one, other in zip(again, records, strict=True):
        assert one.details.get("scores") == pytest.approx(other.details.get("scores"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.png", "word": "x"}, "either `mask` or `box`"),
        ({"image": "a.png", "word": "x", "box": [5, 5, 5, 9]}, "x0 < x1"),
        ({"image": "a.png", "box": [0, 0, 5, 9]}, "names no word; give one for all with --word"),
        ({"image": 5, "word": "x", "box": [0, 0, 5, 9]}, "image is 5; allowed: a text"),
    ],
)
def test_rows_that_cannot_be_are_said_before_a_model_is_loaded(
    row: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, _, error = run("explain-score", "--data", tmp_path / "rows.jsonl", "-o", tmp_path / "run")
    assert code == 2 and said in error
    code, _, error = run("explain-score", "--data", tmp_path / "nothing", "-o", tmp_path / "run")
    assert code == 2 and "allowed: demo, or a folder" in error
