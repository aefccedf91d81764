"""`--heads-from`: maps of single heads, by `show`, `heatmap` and `explain`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope import attention_extractor
from sinkscope.capture.trace import GenerationTrace
from sinkscope.methods.explain import explain_map
from sinkscope.methods.head_list import HeadChoice, HeadList
from sinkscope.methods.heads import localising_heads
from tests.test_cli import refused, run
from tests.web.synthetic import make_trace

SMALL = ("--device", "cpu", "--dtype", "float32", "--max-new-tokens", "2")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, GenerationTrace]:
    trace = make_trace()
    trace.save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors", trace


@pytest.fixture
def picture(photo: Image.Image, tmp_path: Path) -> Path:
    photo.resize((112, 84)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_show_draws_them(saved: tuple[Path, GenerationTrace], tmp_path: Path) -> None:
    path, trace = saved
    localising_heads([trace]).save(tmp_path / "heads.json")
    files = {name: tmp_path / f"{name}.png" for name in ("plain", "found", "listed", "named")}
    named = ",".join(f"{a}.{b}" for a, b in localising_heads([trace]).layer_heads())
    for name, more in (
        ("plain", ()),
        ("found", ("--heads-from", "localising")),
        ("listed", ("--heads-from", tmp_path / "heads.json")),
        ("named", ("--heads-from", named)),
    ):
        done = run("show", path, "--token", "5", "-o", files[name], *more)
        assert done.exit_code == 0, done.output
    pixels = {name: np.asarray(Image.open(file)) for name, file in files.items()}
    assert (pixels["found"] == pixels["listed"]).all() and (
        pixels["found"] == pixels["named"]
    ).all()
    assert (pixels["found"] != pixels["plain"]).any()
    sheet = tmp_path / "sheet.svg"
    for output, more in ((sheet, ()), (tmp_path / "one.svg", ("--token", "5", "--figure"))):
        done = run("show", path, "-o", output, "--heads-from", "sinks", *more)
        assert done.exit_code == 0, done.output
    assert "sink heads (" in sheet.read_text()
    assert "heads (" in (tmp_path / "one.svg").read_text()


def test_show_writes_the_list_that_it_found(
    saved: tuple[Path, GenerationTrace], tmp_path: Path
) -> None:
    path, trace = saved
    listed = tmp_path / "heads.json"
    done = run("show", path, "--heads-from", "localising", "--save-heads", listed)
    assert done.exit_code == 0, done.output
    assert HeadList.open(listed) == localising_heads([trace])
    other = ("--save-heads", tmp_path / "o.json")
    assert "which find a list" in refused(run("show", path, "--heads-from", "1.2", *other))
    assert "which find a list" in refused(run("show", path, *other))
    wrong = run("show", path, "--heads-from", "sinks", "--save-heads", tmp_path / "o.txt")
    assert ".json" in refused(wrong)


def test_show_animates_them(saved: tuple[Path, GenerationTrace], tmp_path: Path) -> None:
    out = tmp_path / "a.gif"
    done = run("show", saved[0], "--token", "3", "-o", out, "--heads-from", "1.2,3.4-5")
    assert done.exit_code == 0, done.output
    assert out.read_bytes()[:4] == b"GIF8"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--heads-from", "most"), "heads_from is 'most'; allowed: localising, sinks, LAYER.HEAD"),
        (("--heads-from", "none.json"), "none.json cannot be read"),
        (("--heads-from", "empty.json"), "The list of heads is empty."),
        (("--heads-from", "other.json"), "The list of heads is of other (r), and synthetic"),
        (("--heads-from", "6.0"), "heads_from names 6.0, and synthetic has 6 layers of 8 heads"),
        (("--heads-from", "1.2", "--layers", "1"), "heads_from is given; allowed: no layers"),
    ],
)
def test_show_refuses_what_does_not_fit(
    saved: tuple[Path, GenerationTrace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    HeadList("localising", "synthetic", "000000000000", ()).save("empty.json")
    HeadList("localising", "other", "r", (HeadChoice(1, 1, 0.5, 0.1),)).save("other.json")
    assert said in refused(run("show", saved[0], "--token", "5", "-o", "x.png", *more))
    assert not Path("x.png").exists()


@pytest.mark.tiny
def test_heatmap_and_explain_take_them(picture: Path, tiny_folder: Path, tmp_path: Path) -> None:
    trace, out = tmp_path / "t.safetensors", tmp_path / "h.png"
    asked = ("What?", "--model", tiny_folder, *SMALL, "--heads-from", "0.1,1.0")
    done = run("heatmap", picture, *asked, "--token", "0", "-o", out, "--save-trace", trace)
    assert done.exit_code == 0, done.output
    sheet = tmp_path / "e.npz"
    done = run(
        "explain", picture, *asked, "--token", "0", "-o", sheet, "--methods", "attention,tam"
    )
    assert done.exit_code == 0, done.output
    made = np.load(sheet)
    expected = explain_map(GenerationTrace.open(trace), 0, "attention", pairs=((0, 1), (1, 0)))
    np.testing.assert_allclose(made["map_attention"], expected.values, rtol=1e-3)
    assert "2 heads (0.1, 1.0)" in json.dumps(json.loads(str(made["about"])))


@pytest.mark.tiny
@pytest.mark.parametrize("verb", ["heatmap", "explain"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--heads-from", "99.0"), "heads_from names 99.0"),
        (("--heads-from", "other.json"), "The list of heads is of other (r)"),
        (("--heads-from", "0.1", "--layers", "0"), "allowed: no layers"),
        (("--token", "2"), "token is '2', and max_new_tokens allows 2"),
    ],
)
def test_they_are_refused_before_anything_is_computed(
    verb: str,
    more: tuple[str, ...],
    said: str,
    picture: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(attention_extractor, "generate", never)
    monkeypatch.chdir(tmp_path)
    HeadList("localising", "other", "r", (HeadChoice(0, 1, 0.5, 0.1),)).save("other.json")
    asked = (verb, picture, "What?", "-o", "x.png", "--model", tiny_folder, *SMALL, *more)
    assert said in refused(run(*asked))
