"""Several images in one question, and many questions in one call, of `heatmap` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.capture.trace import GenerationTrace
from tests.test_cli import LENGTH, refused, run

pytestmark = pytest.mark.tiny


@pytest.fixture
def folder(photo: Image.Image, tmp_path: Path) -> Path:
    """Three images, one of them in a folder of its own, and a file that is not an image."""
    found = tmp_path / "photos"
    (found / "more").mkdir(parents=True)
    photo.save(found / "a.png")
    photo.rotate(90).save(found / "b.png")
    photo.rotate(180).save(found / "more" / "a.png")
    return found


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with each loaded model."""
    from sinkscope.models import loading

    made: list[Any] = []
    plain = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: (made.append(a), plain(*a, **k))[1])
    return made


def lines(output: Path) -> list[dict[str, Any]]:
    text = (output / "answers.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_several_images_of_one_question(
    folder: Path, photo: Image.Image, tiny_folder: Path, tmp_path: Path
) -> None:
    second, out, kept = folder / "b.png", tmp_path / "out.png", tmp_path / "run.safetensors"
    done = run(
        *("heatmap", folder / "a.png", "Which?", "--image", second, "--model", tiny_folder),
        *(*LENGTH, "--token", "1", "-o", out, "--save-trace", kept),
    )
    assert done.exit_code == 0, done.output
    assert "\ntoken  image 0  image 1  probability  text\n" in done.stdout
    assert not out.exists()
    sizes = [Image.open(tmp_path / f"out.image-{k}.png").size for k in (0, 1)]
    assert sizes == [photo.size, photo.rotate(90).size]
    trace = GenerationTrace.open(kept)
    assert len(trace.images) == 2
    # `show` of the second image draws what heatmap drew of it.
    again = tmp_path / "again.png"
    assert run("show", kept, "--token", "1", "--image", "1", "-o", again).exit_code == 0
    assert again.read_bytes() == (tmp_path / "out.image-1.png").read_bytes()
    same = refused(run("heatmap", second, "x", "--image", out, "-o", out))
    assert "does not exist" in same


def test_compare_takes_several_images(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out, pair = tmp_path / "out.json", ("--image", folder / "b.png")
    done = run(
        *("compare", folder / "a.png", "Which?", *pair, "--model", tiny_folder, *LENGTH),
        *("--dims", "3", "--tau", "1", "-o", out),
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads(out.read_text(encoding="utf-8"))["images"]) == 2


def test_a_folder_of_images_with_one_model(
    folder: Path, tiny_folder: Path, tmp_path: Path, loads: list[Any]
) -> None:
    (folder / "c.png").write_text("no image")
    out, traces = tmp_path / "out", tmp_path / "traces"
    done = run(
        *("heatmap", folder, "What is it?", "--model", tiny_folder, *LENGTH, "-o", out),
        *("--save-trace", traces),
    )
    assert done.exit_code == 3, done.output  # one of them could not be asked
    assert len(loads) == 1
    assert "Wrote 3 of 4" in done.stderr and "c.png is not an image" in done.stderr
    found = {line["name"]: line for line in lines(out)}
    assert set(found) == {"a", "b", "c", "more-a"}
    assert "not an image" in found["c"]["error"]
    for name in ("a", "b", "more-a"):
        assert found[name]["prompt"] == "What is it?" and len(found[name]["tokens"]) == 3
        assert min(Image.open(out / f"{name}.png").size) > 300
        trace = GenerationTrace.open(traces / f"{name}.safetensors")
        assert trace.text.strip() == found[name]["answer"]
    # The same as for one image alone.
    alone = tmp_path / "alone.png"
    run("heatmap", folder / "b.png", "What is it?", "--model", tiny_folder, *LENGTH, "-o", alone)
    assert alone.read_bytes() == (out / "b.png").read_bytes()


def test_a_file_of_questions(
    folder: Path, tiny_folder: Path, tmp_path: Path, loads: list[Any]
) -> None:
    data = tmp_path / "asked.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": "one", "image": "photos/a.png", "question": "What?"},
        {"id": "two", "images": ["photos/a.png", "photos/b.png"], "question": "Which?"},
        {"id": "one", "image": "photos/b.png", "question": "Again?"},
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "out"
    done = run("heatmap", data, "--model", tiny_folder, *LENGTH, "-o", out)
    assert done.exit_code == 0, done.output
    assert len(loads) == 1
    found = lines(out)
    assert [line["prompt"] for line in found] == ["What?", "Which?", "Again?"]
    assert [line["name"] for line in found] == ["one", "two", "one-3"]
    assert found[1]["pictures"] == ["two.image-0.png", "two.image-1.png"]
    assert all(len(token["image_share"]) == 2 for token in found[1]["tokens"])
    assert all((out / name).is_file() for line in found for name in line["pictures"])


def test_what_is_refused_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, loads: list[Any]
) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad.jsonl").write_text('{"picture": 3}\n', encoding="utf-8")

    def refusal(*words: str | Path) -> str:
        return refused(run("heatmap", *words))

    assert "The prompt is missing" in refusal(folder / "a.png", "-o", tmp_path / "a.png")
    assert "allowed for many questions: a folder" in refusal(folder, "x", "-o", tmp_path / "a.png")
    assert "in the folder of the images" in refusal(folder, "x", "-o", folder / "out")
    assert "--image is for one question" in refusal(
        folder, "x", "--image", folder / "a.png", "-o", out
    )
    assert "has no images" in refusal(empty, "x", "-o", out)
    assert "has no image in 1 of 1 line" in refusal(tmp_path / "bad.jsonl", "x", "-o", out)
    assert "The prompt is empty" in refusal(folder, " ", "-o", out)
    assert loads == [] and not out.exists()
