"""Animations: one frame per token, the right ones, bounded size, and no file after an error."""

from __future__ import annotations

import importlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sinkscope.drawing import encoders
from sinkscope.drawing.animation import animate, animation_steps
from sinkscope.drawing.encoders import encoder
from sinkscope.drawing.frames import Frames
from sinkscope.drawing.view import View
from tests.web.synthetic import HOSTILE, make_pair, make_trace

SMALL = {"rows": 4, "columns": 4, "layers": 2, "heads": 2}
KINDS = [".gif", ".mp4"]


def frames_of(path: Path) -> list[np.ndarray]:
    """The frames of a file, uint8 (height, width, 3), decoded independently of the encoder."""
    if path.suffix == ".gif":
        with Image.open(path) as picture:
            found = []
            for k in range(picture.n_frames):
                picture.seek(k)
                found.append(np.asarray(picture.convert("RGB")))
            return found
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_back_as_they_went_in(kind: str, tmp_path: Path) -> None:
    path, sent = tmp_path / f"a{kind}", []
    for k in range(4):
        frame = np.full((48, 64, 3), (250, 250, 240), np.uint8)
        frame[8:24, 8 * k : 8 * k + 24] = ((200, 30, 60), (20, 60, 200), (30, 160, 60), (0, 0, 0))[
            k
        ]
        sent.append(frame)
    sent.append(sent[-1])  # nothing changes
    with encoder(path, 64, 48, 0.5, sent) as write:
        for frame in sent:
            write(frame)
    found = frames_of(path)
    repeats = len(found) // len(sent)
    assert len(found) == repeats * len(sent) and repeats == (1 if kind == ".gif" else 4)
    for frame, seen in zip(sent, found[::repeats], strict=True):
        away = abs(frame.astype(int) - seen.astype(int))
        # Video stores colour at half the resolution, so edges are soft.
        assert np.percentile(away, 80) <= 12 and (kind == ".mp4" or away.max() <= 8)


def test_a_gif_loops_and_has_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    animate(make_trace(HOSTILE), path, seconds=0.25, width=320)
    with Image.open(path) as picture:
        assert picture.n_frames == len(HOSTILE) and picture.info["loop"] == 0
        assert picture.info["duration"] == 250


def test_a_window_slides_over_the_tokens(tmp_path: Path) -> None:
    trace, reports = make_trace(), []
    path = tmp_path / "a.gif"
    animate(
        trace, path, first=2, last=8, window=3, width=320, on_frame=lambda *x: reports.append(x)
    )
    assert reports[-1] == (5, 5) and len(frames_of(path)) == 5
    one = tmp_path / "one.gif"
    animate(make_pair(), one, View(difference=True), first=3, last=4, width=480)
    first, second = frames_of(one)
    assert (first != second).any()


def test_each_side_goes_over_tokens_of_its_own(tmp_path: Path) -> None:
    """The side with fewer tokens stays at its last one."""
    pair, seen = make_pair(), []

    class Watched(Frames):
        def frame(self, tokens: Any, own: Any = None) -> Any:
            seen.append((list(tokens), None if own is None else list(own)))
            return super().frame(tokens, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sinkscope.drawing.animation.Frames", Watched)
        path, reports = tmp_path / "a.mp4", []
        animate(
            pair,
            path,
            first=3,
            last=4,
            second_tokens=(21, 23),
            on_frame=lambda *at: reports.append(at),
        )
        assert seen == [([3], [21]), ([4], [22]), ([4], [23])] and reports[-1] == (3, 3)
        seen.clear()
        animate(pair, tmp_path / "b.mp4", first=3, last=4, window=3, second_tokens=(21, 24))
        assert seen == [([3, 4], [21, 22, 23]), ([3, 4], [22, 23, 24])]
    with pytest.raises(ValueError, match="second_tokens is '5 to 4'; allowed: rising"):
        animate(pair, path, second_tokens=(5, 4))
    with pytest.raises(ValueError, match="second_tokens is"):
        animate(pair, path, second_tokens=(0, 99))


def test_settings_are_refused_by_name(tmp_path: Path) -> None:
    trace = make_trace()
    for options, words in (
        ({"window": 28}, "window is 28; allowed: 1 to 27"),
        ({"first": 5, "last": 4}, "tokens is '5 to 4'"),
        ({"last": 27}, "allowed: 0 to 26"),
        ({"seconds": float("nan")}, "seconds is nan; allowed: 0.05 to 10"),
        ({"width": 9999}, "width is 9999; allowed: 320 to 1920"),
    ):
        with pytest.raises(ValueError, match=words):
            animate(trace, tmp_path / "a.gif", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"allowed: a file ending in \.gif or \.mp4"):
        animate(trace, tmp_path / "a.avi")
    long = make_trace(tuple("a" for _ in range(2001)), **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2001 frames; allowed: at most 2000"):
        animate(long, tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_half_an_animation_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    steps = animation_steps(make_trace(), tmp_path / f"a{kind}", width=320)
    assert next(steps) == (1, 27)
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_a_long_answer_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        trace = make_trace(tuple(f" w{k}" for k in range(count)), **SMALL)  # type: ignore[arg-type]
        tracemalloc.start()
        animate(trace, tmp_path / "a.gif", width=320)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(5)  # fonts and tables, cached by the first run
    assert peak(60) < peak(20) + 4 * 320 * 400 * 3  # a few frames' worth, not forty


def test_a_machine_without_video_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str) -> Any:
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(encoders.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"PyAV .*libGL.so.1: cannot open shared object"):
        animate(make_trace(), tmp_path / "a.mp4", width=320)
    assert list(tmp_path.iterdir()) == []


def test_opencv_writes_where_there_is_no_pyav(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        importlib.import_module("cv2")
    except (ImportError, OSError) as error:
        pytest.skip(f"OpenCV cannot be imported here: {error}")
    real = importlib.import_module

    def without(name: str) -> Any:
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        return real(name)

    monkeypatch.setattr(encoders.importlib, "import_module", without)
    path = tmp_path / "a.mp4"
    animate(make_trace(), path, last=3, width=320)
    monkeypatch.undo()
    assert len(frames_of(path)) == 4 * 3  # 0.4 s a frame at 7.5 frames a second
