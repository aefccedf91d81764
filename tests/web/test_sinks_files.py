"""An upload with a file of questions: which picture each is asked about, and no other file
opens."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import ImageLimits
from sinkscope.jobs.job import Stopped
from sinkscope.web.server.uploads import NO_UPLOAD
from sinkscope.web.sinks.payload import build_sinks_payload
from sinkscope.web.sinks.request import IMAGES, Picture, SampleSplit, SinksRequest, draw_samples
from sinkscope.web.sinks.run import _opened
from tests.sinks.planted import painted_samples
from tests.web.image_openers import opener

pytestmark = pytest.mark.usefixtures("uploads")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Picture, ...]:
    """Like Gradio's uploads: each file in a folder of its own."""
    made = []
    for sample in painted_samples(10):
        folder = tmp_path_factory.mktemp("upload")
        sample.open_images()[0].save(folder / "file.png")
        made.append(Picture(f"{sample.id}.png", folder / "file.png"))
    return tuple(made)


def drawn(
    folder: Path,
    pictures: tuple[Picture, ...],
    rows: list[dict[str, Any]],
    name: str = "C:\\data\\pope.jsonl",
    **changes: Any,
) -> SampleSplit:
    path = folder / "uploaded.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    request = {"samples": 6, "held_out": 4, **changes}
    return draw_samples(
        SinksRequest(IMAGES, (*pictures, Picture(name, path)), **request), opener(), ImageLimits()
    )


def questions(pictures: tuple[Picture, ...], each: int = 3) -> list[dict[str, Any]]:
    return [
        {"image": f"coco/train2017/{picture.name}", "text": f"Is there a {n}?", "label": "no"}
        for picture in pictures
        for n in range(each)
    ]


def test_questions_are_asked_and_no_picture_is_on_both_sides(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    both = drawn(tmp_path, pictures, questions(pictures))
    assert len(both.find.samples) == 6 and len(both.validate.samples) >= 2
    everything = [*both.find.samples, *both.validate.samples]
    assert all(s.prompt.startswith("Is there a ") and s.answer == "no" for s in everything)
    assert {s.where.partition(" of ")[2] for s in everything} == {"pope.jsonl"}
    seen = {digest for sample in both.find.samples for digest in sample.digests}
    assert seen.isdisjoint(d for sample in both.validate.samples for d in sample.digests)
    again = drawn(tmp_path, pictures[::-1], questions(pictures)[::-1])
    assert [s.id for s in again.find.samples] == [s.id for s in both.find.samples]
    # Few pictures with many questions are split by picture.
    few = drawn(tmp_path, pictures[:2], questions(pictures[:2], 10), samples=5, held_out=5)
    assert few.find.samples and few.validate.samples
    assert {s.digests for s in few.find.samples}.isdisjoint(s.digests for s in few.validate.samples)


def test_what_was_noticed_is_said(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    rows = [*questions(pictures[:3], 1), {"text": "What?"}, {"image": "gone.png", "text": "Who?"}]
    both = drawn(tmp_path, pictures[:3], rows, held_out=0)
    notes = "\n".join(both.find.notes())
    assert "pope.jsonl has 3 usable samples; 6 were asked for." in notes
    assert "The image 'gone.png' is not among the uploaded files." in notes
    assert "1 of 5 lines have no image and were skipped (line 4)." in notes
    assert both.validate.notes() == ()


def test_the_forms_own_question_does_not_replace_one_that_nobody_can_find(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    rows = [{"image": picture.name, "utterance": "Is it?"} for picture in pictures]
    with pytest.raises(
        ValueError, match=r"pope\.jsonl has no question in 10 of 10 lines; keys pre"
    ):
        drawn(tmp_path, pictures, rows)
    both = drawn(tmp_path, pictures, rows, prompt="What is it?")
    assert {s.prompt for s in both.find.samples} == {"What is it?"}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../secret.png", "file:///etc/passwd", "{secret}", "secret.png", "\0"],
)
def test_no_file_of_the_machine_is_reached(
    name: str, tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    """Not opened, and not distinguishable from a file that does not exist."""
    secret = tmp_path / "secret.png"
    painted_samples(1, seed=99)[0].open_images()[0].save(secret)
    row = {"image": name.replace("{secret}", str(secret)), "text": "What?"}
    with pytest.raises(ValueError) as error:
        drawn(tmp_path, pictures, [row])
    assert "is not among the uploaded files" in str(error.value)
    assert str(tmp_path) not in str(error.value) and "exist" not in str(error.value)


def test_pictures_in_the_file_itself(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    rows = [
        {"image": base64.b64encode(p.path.read_bytes()).decode(), "question": "What?"}
        for p in pictures[:4]
    ]
    both = drawn(tmp_path, (), rows, samples=4, held_out=0)
    assert len(both.find.samples) == 4
    assert _opened(both.find.samples[0]).size == both.find.samples[0].open_images()[0].size


def test_kinds_and_numbers_of_files(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    two = (*pictures, Picture("other.csv", tmp_path / "x"))
    with pytest.raises(ValueError, match="2 files with questions were given; allowed: one"):
        drawn(tmp_path, two, questions(pictures))
    with pytest.raises(
        ValueError, match=r"b\.parquet cannot be read from an upload; allowed: \.js"
    ):
        drawn(tmp_path, pictures, [], name="/a/b.parquet")
    with pytest.raises(ValueError, match=r"^Entry 1 of pope\.jsonl is not JSON object: \[1\]"):
        path = tmp_path / "bad.jsonl"
        path.write_text("[[1]]")
        draw_samples(
            SinksRequest(IMAGES, (*pictures, Picture("pope.jsonl", path)), samples=2),
            opener(),
            ImageLimits(),
        )


def test_stop_and_limits(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    path = tmp_path / "pope.jsonl"
    path.write_text("\n".join(map(json.dumps, questions(pictures, 200))))
    request = SinksRequest(IMAGES, (*pictures, Picture("pope.jsonl", path)), samples=2)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        draw_samples(request, opener(), ImageLimits(), None, stop)
    with pytest.raises(ValueError, match=r"megapixels; at most 0\.01 are allowed"):
        draw_samples(request, opener(limits := ImageLimits(max_megapixels=0.01)), limits)


def test_the_page_shows_what_was_asked() -> None:
    from dataclasses import replace

    import numpy as np

    from sinkscope.sinks.finding.findings import UsedSample
    from sinkscope.web.sinks.payload import Scores
    from tests.sinks.made_up import findings
    from tests.web.test_payload import unpack

    asked = UsedSample("a", "f", ("d",), "Is it\nhere?", "no", "line 3 of pope.jsonl")
    made = replace(findings(), samples=(asked, UsedSample("b", "g", ("e",))))
    zeros = np.zeros((len(made.layers), 4), np.float32)
    shown = [Scores(name, 2, 2, zeros, zeros) for name in ("a", "b")]
    header, _ = unpack(build_sinks_payload(made, None, "", shown, {}))
    assert [one["asked"] for one in header["samples"]] == [
        "Asked: Is it here? Answer: no (line 3 of pope.jsonl)",
        "",
    ]


def test_a_file_of_questions_that_was_not_uploaded_is_refused_like_a_missing_one(
    pictures: tuple[Picture, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "0.png", "text": "Is it red?", "label": "yes"}))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    for outside in (path, tmp_path / "missing.jsonl"):
        request = SinksRequest(IMAGES, (*pictures, Picture("rows.jsonl", outside)))
        with pytest.raises(ValueError) as refusal:
            draw_samples(request, opener(), ImageLimits())
        assert str(refusal.value) == NO_UPLOAD
