"""A user's own questions in the Evaluate tab: accepted and refused uploads, and opened files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.evaluation.base import Question
from sinkscope.evaluation.data import open_data
from sinkscope.evaluation.tasks.jsonl import TASK
from sinkscope.evaluation.work import Work
from sinkscope.web.evaluate import upload as evaluate_upload
from sinkscope.web.evaluate.files import MEDIA
from sinkscope.web.evaluate.open import form_values
from sinkscope.web.evaluate.request import MINE, EvaluateRequest
from sinkscope.web.evaluate.upload import QUESTIONS, keep_questions
from sinkscope.web.server.uploads import NO_UPLOAD
from sinkscope.web.sinks.request import Picture
from tests.evaluation.tasks.layouts import COLOURS, png
from tests.web.test_evaluate_handlers import Make, drain, make, model, opened

__all__ = ["make", "model"]  # fixtures

LIMITS = ImageLimits()
RED: dict[str, Any] = {"image": "red.png", "question": "What colour?", "answer": "red"}
BLUE: dict[str, Any] = {"image": "photos/blue.png", "question": "Which?", "answer": "blue"}


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Picture, ...]]:
    """Puts files where Gradio puts uploads: rows, and other files by name."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))

    def put(rows: Any, name: str = "mine.jsonl", **others: bytes) -> tuple[Picture, ...]:
        text = rows if isinstance(rows, bytes) else "\n".join(map(json.dumps, rows)).encode()
        files = {name: text, "red.png": png("red"), "blue.png": png("blue"), **others}
        made = []
        for number, (called, data) in enumerate(files.items()):
            path = Path(get_upload_folder()) / f"{number:040}" / called
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            made.append(Picture(called, path))
        return tuple(made)

    return put


def kept(files: tuple[Picture, ...], folder: Path, most: int = 100) -> list[Question]:
    path, count = keep_questions(files, folder, LIMITS, most)
    assert path == folder / QUESTIONS
    found = list(TASK.read(open_data(str(path), None, TASK.tables)))
    assert len(found) == count
    return [one for one in found if isinstance(one, Question)]


def test_a_copy_asks_what_the_upload_asks(upload: Any, tmp_path: Path) -> None:
    rows = [
        {**RED, "id": "a", "category": "colours"},
        BLUE,
        {**BLUE, "choices": ["red", "blue", "A"], "answer": "B"},
        {**RED, "image": base64.b64encode(png("green")).decode(), "answers": ["red", "dark red"]},
        {**RED, "image": ["red.png", "blue.png"], "question": "What changed?"},
    ]
    found = kept(upload(rows), tmp_path / "data")
    assert [one.text for one in found] == [row["question"] for row in rows]
    truths = [one.truth for one in found]
    assert truths == ["red", "blue", "B", ("red", "dark red"), "red"]
    assert found[2].options == (("A", "red"), ("B", "blue"), ("C", "A"))
    assert (found[0].id, found[0].category) == ("a", "colours")
    colours = [[picture().getpixel((3, 3)) for picture in one.pictures] for one in found]
    red, green, blue = (COLOURS[name] for name in ("red", "green", "blue"))
    assert colours == [[red], [blue], [blue], [green], [red, blue]]
    assert len(list((tmp_path / "data").iterdir())) == 4  # each image once, and the questions
    assert len(kept(upload(rows), tmp_path / "few", most=2)) == 2


def test_a_table_is_taken_too(upload: Any, tmp_path: Path) -> None:
    files = upload(b"image,question,answer\nred.png,What colour?,red\n", "mine.csv")
    assert [one.truth for one in kept(files, tmp_path / "data")] == ["red"]


@pytest.mark.parametrize(
    "name",
    [
        "{secret}",
        "file://{secret}",
        "../../../../../../{secret}",
        "red.png/../../../{secret}",
        "..\\..\\secret.png",
        "https://example.org/secret.png",
        "hf://datasets/x/y/secret.png",
    ],
)
def test_nothing_but_uploads_is_opened(upload: Any, tmp_path: Path, name: str) -> None:
    """A picture on the server is not among the uploads, whatever its name."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("green"))
    files = upload([RED, {**RED, "image": name.format(secret=secret)}])
    with pytest.raises(ValueError, match=r"Line 2 of mine\.jsonl") as caught:
        kept(files, tmp_path / "data")
    said = str(caught.value)
    assert "is not among the uploaded files" in said or "nothing is fetched" in said
    assert str(tmp_path / "gradio") not in said


def test_a_file_that_is_no_upload_is_refused(upload: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("green"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**RED, "image": "secret.png"}))
    uploaded = upload([{**RED, "image": "secret.png"}])
    for files in ((*uploaded, Picture("secret.png", secret)), (Picture("mine.jsonl", rows),)):
        with pytest.raises(ValueError, match=NO_UPLOAD[:40]):
            kept(files, tmp_path / str(len(files)))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([RED, {**RED, "answer": None}], "Line 2 of mine.jsonl: has no answer"),
        ([{**RED, "image": "green.png"}], "'green.png' is not among the uploaded files"),
        ([{**RED, "choices": ["x", "y"], "answer": "D"}], "allowed: A, B"),
        ([RED, "text"], "line 2 of mine.jsonl is not an object"),
        ([{"question": "What?", "answer": "x"}] * 5, "(5 rows in all)"),
        (b'{"image": "red.png", ', "Line 1 of mine.jsonl is not JSON"),
        (b"\n\n", "mine.jsonl has no rows."),
    ],
)
def test_rows_that_cannot_be_asked_are_named(
    upload: Any, tmp_path: Path, rows: Any, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        kept(upload(rows), tmp_path / "data")
    assert words in str(caught.value)


def test_uploads_have_limits(upload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = upload([RED, BLUE])
    with pytest.raises(ValueError, match="No file with questions was uploaded; allowed: one"):
        kept(files[1:], tmp_path / "a")
    with pytest.raises(ValueError, match="2 files with questions were given; allowed: one"):
        kept((files[0], *files), tmp_path / "b")
    broken = upload([{**RED, "image": "broken.png"}], **{"broken.png": b"\x89PNG\r\n\x1a\n"})
    with pytest.raises(ValueError, match=r"broken\.png is damaged"):
        kept(broken, tmp_path / "c")
    files = upload([RED, BLUE])
    monkeypatch.setattr(evaluate_upload, "MOST_BYTES", len(png("red")) + 10)
    with pytest.raises(ValueError, match="more than 0 MB together"):
        kept(files, tmp_path / "d")
    monkeypatch.setattr(evaluate_upload, "MOST_FILES", 2)
    with pytest.raises(ValueError, match="3 files were uploaded; allowed: at most 2"):
        kept(files, tmp_path / "e")


# --- a run ----------------------------------------------------------------------------------------


def answers(work: Work) -> tuple[str, str]:
    pixel = work.pictures[0]().getpixel((3, 3))
    right = next(name for name, colour in COLOURS.items() if colour == pixel)
    return right, "green"


@pytest.mark.tiny
def test_a_run_over_an_upload(
    upload: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**(RED, BLUE)[n % 2], "id": str(n)} for n in range(6)]
    rows.append({**RED, "id": "two", "image": ["red.png", "blue.png"]})
    files = upload(rows)
    handlers = make(answers)
    request = EvaluateRequest(
        methods=("default", "var"),
        source=MINE,
        files=files,
        dims="7, 30",
        tau=5.0,
        questions=100,
    )
    last = drain(handlers.run(request, "s"))[-1]
    assert last["phase"] == "ready" and last["message"] == "Done", last
    header = opened(last)
    assert header["complete"]
    assert header["title"].startswith("var against default on 7 questions of an upload")
    assert [one["value"] for one in header["scores"]] == [1.0, 0.0]
    assert [one["text"] for one in header["asked"]] == [row["question"] for row in rows]
    assert all(one["picture"] for one in header["asked"])
    for file in files:  # uploads may be removed: the run has a copy
        file.path.unlink()
    again = handlers.open_evaluation({"run": last["run"]})
    assert opened(again)["scores"] == header["scores"]
    values = form_values(handlers, {"run": last["run"], "question": "1", "method": "var"}, "")
    assert values["prompt"] == BLUE["question"]
    assert np.asarray(Image.open(values["image"]))[3, 3].tolist() == list(COLOURS["blue"])
    assert values["image_2"] is None  # what another question had there goes
    two = {"run": last["run"], "question": "two", "method": "var"}
    values = form_values(handlers, two, "")
    seen = [np.asarray(Image.open(values[name]))[3, 3].tolist() for name in ("image", "image_2")]
    assert seen == [list(COLOURS["red"]), list(COLOURS["blue"])] and values["image_3"] is None
    monkeypatch.setattr("sinkscope.web.evaluate.open.MORE", ())
    with pytest.raises(ValueError, match="has 2 images; Explore asks about 1 at most"):
        form_values(handlers, two, "")
    for what in MEDIA:
        file = handlers.evaluation_file({"run": last["run"], "what": what})
        data = Path(file["url"].split("file=", 1)[1]).read_bytes()
        if what != "all.zip":
            assert str(tmp_path).encode() not in data, what
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        assert 'data = "data/questions.jsonl"' in packed.read("run.toml").decode()
        for name in packed.namelist():
            assert str(tmp_path).encode() not in packed.read(name), name


@pytest.mark.tiny
def test_a_refused_upload_leaves_nothing(upload: Any, make: Make) -> None:
    handlers = make(answers)
    for files, words in (
        ((), "No file was uploaded. Upload one with questions, and its images."),
        (upload([{**RED, "answer": None}]), "Line 1 of mine.jsonl: has no answer"),
    ):
        request = EvaluateRequest(methods=("default",), source=MINE, files=files)
        last = drain(handlers.run(request, "s"))[-1]
        assert last["phase"] == "error" and words in last["message"]
    assert list((handlers.settings.app.cache / "page_evaluations").iterdir()) == []
    strange = drain(handlers.run(EvaluateRequest(source="x"), "s"))[-1]
    assert "source is 'x'; allowed: Drawn scenes, My questions." in strange["message"]
