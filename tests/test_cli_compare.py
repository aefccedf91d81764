"""`sinkscope compare`: its files, its output, its refusals; and sinks marked by `heatmap`."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sinkscope.attention_processor import head_mean
from sinkscope.capture.trace import GenerationTrace
from sinkscope.cli.compare import with_heads_file, with_profile
from sinkscope.cli.options import Draft
from sinkscope.config import VARSettings
from sinkscope.drawing.panels import panel_photo
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import PANEL_PIXELS
from sinkscope.methods.heads import HeadChoice, HeadList
from sinkscope.models.profiles import SinkProfile
from tests.test_cli import refused, run
from tests.web.documents import Blocks
from tests.web.test_payload import unpack

DIMS = (3, 40)
# With these, the random model has a few sinks, and heads qualify.
ACTING = ("--dims", "3,40", "--var-layers", "1-2", "--min-image-mass", "0.05", "--keep", "0.3")
LENGTH = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def image(photo: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "photo.png"
    photo.save(path)
    return path


@pytest.fixture(scope="module")
def tau(tiny_folder: Path, image: Path) -> str:
    """A threshold that about a tenth of the prompt's tokens exceed."""
    from sinkscope.attention_extractor import generate
    from sinkscope.config import GenerationSettings
    from sinkscope.models.images import open_image
    from sinkscope.models.loading import load_model

    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([open_image(image)], "What?")
    probe = VARSettings(DIMS, tau=0.0, layers=(1, 2), min_image_mass=0.0, max_sink_share=1.0)
    report = generate(handle, inputs, GenerationSettings(max_new_tokens=1), probe).var
    assert report is not None
    scores = sorted(s for layer in report["layers"] for s in layer["scores"])
    cut = int(0.9 * len(scores))
    return str((scores[cut] + scores[cut + 1]) / 2)


def words_of(figure: Figure) -> str:
    """All text of a figure but its axes' own."""
    return " ".join(" ".join(text.get_text().split()) for text in figure.texts)


def numbers(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# --- tier 1 ---------------------------------------------------------------------------------------

PROFILE = SinkProfile("m", "f", 64, 4, (1, 2), 5.0, "someone", "low")


@pytest.mark.parametrize(
    ("profile", "dims", "tau", "means"),
    [
        (PROFILE, False, False, ((1, 2), 5.0)),
        (PROFILE, True, False, ((7,), 5.0)),
        (PROFILE, False, True, ((1, 2), 3.0)),
        (PROFILE, True, True, ((7,), 3.0)),
        (None, True, True, ((7,), 3.0)),
    ],
)
def test_what_is_left_out_comes_from_the_profile(
    profile: SinkProfile | None, dims: bool, tau: bool, means: tuple[tuple[int, ...], float]
) -> None:
    given = {"keep": 0.2, **({"dims": (7,)} if dims else {}), **({"tau": 3.0} if tau else {})}
    made = with_profile(Draft(VARSettings, given), profile, "m", seed=4)
    assert made.seed == 4
    assert (made.dims, made.tau, made.keep) == (*means, 0.2)


def test_without_profile_and_dims_it_tells_how_to_give_them() -> None:
    with pytest.raises(
        ValueError, match=r"No sink dimensions are known for some/model.*--dims 458"
    ):
        with_profile(Draft(VARSettings, {"tau": 3.0}), None, "some/model")


# --- tier 2: with the tiny model ------------------------------------------------------------------


@pytest.mark.tiny
def test_a_page_and_the_traces_behind_it(
    image: Path, tiny_folder: Path, tmp_path: Path, tau: str
) -> None:
    page, traces = tmp_path / "out.html", tmp_path / "traces"
    done = run(
        *("compare", image, "What </script> is it?", "--model", tiny_folder, "-o", page, *LENGTH),
        *(*ACTING, "--tau", tau, "--save-traces", traces, "--token", "2"),
    )
    assert done.exit_code == 0, done.output
    blocks = Blocks(page.read_text(encoding="utf-8"))
    header, arrays = unpack(base64.b64decode(blocks.texts["file-run.bin"]))
    assert json.loads(blocks.texts["value"])["place"] == "t=2-2"
    assert header["prompt"] == "What </script> is it?" and blocks.scripts_that_run() == 1
    assert [v["name"] for v in header["variants"]] == ["baseline", "var"]
    assert "given by the user" in page.read_text(encoding="utf-8")

    saved = [GenerationTrace.open(traces / f"{name}.safetensors") for name in ("baseline", "var")]
    assert saved[0].applied == () and saved[1].applied[0].startswith("VAR (official): dims 3, 40")
    for trace, variant in zip(saved, header["variants"], strict=True):
        assert [t["t"] for t in variant["tokens"]] == [t.text for t in trace.tokens]
        top = arrays[f"{variant['name']}.mean.scale"]
        np.testing.assert_allclose(top, head_mean(trace).amax(-1).numpy(), rtol=1e-5)
    shown = run("show", traces / "var.safetensors")
    assert shown.exit_code == 0, shown.output


@pytest.mark.tiny
def test_numbers_agree_with_what_is_printed(
    image: Path, tiny_folder: Path, tmp_path: Path, tau: str
) -> None:
    out = tmp_path / "out.json"
    done = run(
        *("compare", image, "What?", "--model", tiny_folder, "-o", out, *LENGTH, *ACTING),
        *("--tau", tau, "--same-text", "--control", "random", "--seed", "5"),
        *("--var-heads", "2.1,1.0"),
    )
    assert done.exit_code == 0, done.output
    found = numbers(out)
    assert found["format"] == "sinkscope-comparison" and found["same_text"]
    assert found["first_difference"] is None
    settings = found["report"]["settings"]
    assert settings["dims"] == [3, 40] and settings["layers"] == [1, 2]
    assert settings["heads"] == [[1, 0], [2, 1]]
    assert (settings["keep"], settings["control"], settings["seed"]) == (0.3, "random", 5)
    assert settings["tau"] == pytest.approx(float(tau))

    plain, changed = found["baseline"]["tokens"], found["var"]["tokens"]
    change = [
        np.log(b["probability"]) - np.log(a["probability"])
        for a, b in zip(plain, changed, strict=True)
    ]
    np.testing.assert_allclose(found["log_probability_change"], change, atol=1e-9)
    assert any(change), "VAR had no effect at all: the test shows nothing"

    lines = done.stdout.splitlines()
    assert "Same text: VAR was given the baseline's answer, token by token." in lines
    assert f"Log-probability of the common text: {sum(change):+.3f} nats" in done.stdout
    rows = [line.split() for line in lines if re.match(r" +\d+ .*%.*%.*%.*%.*%.*%", line)]
    assert len(rows) == len(plain)
    for row, a, b, nats in zip(rows, plain, changed, change, strict=True):
        said = [float(cell.rstrip("%")) / 100 for cell in row[1:7]]
        values = [
            side[name] for name in ("image_share", "sink_share", "probability") for side in (a, b)
        ]
        np.testing.assert_allclose(said, values, atol=6e-4)
        assert float(row[7]) == pytest.approx(nats, abs=6e-4)
    assert re.search(
        r"VAR changed [\d.]+% of the rows of attention .* in \d of 2 layers", done.stdout
    )
    assert lines[-3].startswith("layer  sinks") and lines[-1].split()[0] == "2"


@pytest.mark.tiny
@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_figure_of_the_word_that_changed_most(
    ending: str,
    image: Path,
    tiny_folder: Path,
    tmp_path: Path,
    tau: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sinkscope import visualization

    drawn: list[Any] = []
    real = visualization.save
    monkeypatch.setattr(
        visualization, "save", lambda figure, path: (drawn.append(figure), real(figure, path))
    )
    out, traces = tmp_path / f"out.{ending}", tmp_path / "traces"
    one = ("compare", image, "What?", "--model", tiny_folder, "-o", out, *LENGTH, *ACTING)
    done = run(*one, "--tau", tau, "--same-text", "--save-traces", traces)
    assert done.exit_code == 0, done.output
    assert out.read_bytes()[:4] == (b"%PDF" if ending == "pdf" else b"\x89PNG")

    both = [GenerationTrace.open(traces / f"{name}.safetensors") for name in ("baseline", "var")]
    plain, changed = (trace.attention.float().mean(dim=(1, 2)) for trace in both)
    texts = [token.text for token in both[0].tokens]
    words = [
        t for t, text in enumerate(texts) if any(c.isalnum() for c in text) and "<" not in text
    ]
    assert words, texts
    most = max(words, key=lambda t: float((changed - plain)[t].abs().sum()))
    figure = drawn[0]
    said = words_of(figure)
    assert f"token {most} " in said and "boxed ×: attention sink" in said
    assert "VAR: With VAR: dims 3, 40" in said and "Baseline: The plain model." in said
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in panels]
    assert titles == ["Baseline", "VAR", "Difference"]
    pictures = [axes.images[0].get_array() for axes in panels]
    assert not np.array_equal(pictures[0], pictures[1])
    if ending == "png":
        assert "token is 6; the answer has 6" in refused(run(*one, "--tau", tau, "--token", "6"))


@pytest.mark.tiny
def test_var_that_changed_nothing_is_said_loudly(
    image: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = run(
        *("compare", image, "What?", "--model", tiny_folder, "-o", out, *LENGTH),
        *("--dims", "3,40", "--tau", "7.9"),
    )
    assert done.exit_code == 0, done.output
    assert "\nVAR changed nothing: no token is a sink." in done.stdout
    assert "Both answers are the same text." in done.stdout
    found = numbers(out)
    assert found["report"]["changed"] is False
    assert found["baseline"]["answer"] == found["var"]["answer"]
    assert not any(found["log_probability_change"])


@pytest.mark.tiny
def test_a_figure_without_an_effect_shows_none(
    image: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkscope import visualization

    drawn: list[Any] = []
    monkeypatch.setattr(visualization, "save", lambda figure, path: drawn.append(figure))
    out = tmp_path / "out.png"
    out.touch()
    done = run(
        *("compare", image, "What?", "--model", tiny_folder, "-o", out, *LENGTH),
        # In one pass over the text instead of step by step, so rounding differs.
        *("--dims", "3,40", "--tau", "7.9", "--same-text", "--token", "3"),
    )
    assert done.exit_code == 0, done.output
    figure = drawn[0]
    assert "VAR changed nothing: no token is a sink" in words_of(figure)
    assert "no difference anywhere" in words_of(figure)
    *_, last = (axes for axes in figure.axes if axes.get_title(loc="left"))
    difference = np.asarray(last.images[0].get_array())
    photo = panel_photo(Image.open(image), PANEL_PIXELS, View())
    assert np.array_equal(difference, photo)
    assert "Log-probability" not in done.stdout


@pytest.mark.tiny
def test_a_profile_gives_dims_tau_and_marks(
    image: Path, tiny_folder: Path, tmp_path: Path, tau: str
) -> None:
    folder = tmp_path / "with_profile"
    shutil.copytree(tiny_folder, folder)
    (folder / "sink_profile.toml").write_text(
        'model = "tiny"\nfamily = "qwen2_5_vl"\nhidden_size = 64\nlayers = 4\ndims = [3, 40]\n'
        f'tau = {tau}\nsource = "a test"\nconfidence = "low"\n'
    )
    out = tmp_path / "out.json"
    words = ("compare", image, "What?", "--model", folder, "-o", out, *LENGTH)
    assert run(*words).exit_code == 0
    found = numbers(out)
    assert found["report"]["settings"]["dims"] == [3, 40]
    assert found["report"]["settings"]["tau"] == pytest.approx(float(tau))
    assert found["sink_dimensions"] == "profile of tiny: a test (confidence: low)."

    pictures = {}
    for switch in ("--sinks", "--no-sinks"):
        path = tmp_path / f"{switch}.png"
        picture = ("heatmap", image, "What?", "--model", folder, "-o", path, "--token", "1")
        assert run(*picture, "--max-new-tokens", "2", switch).exit_code == 0
        pictures[switch] = np.asarray(Image.open(path)).astype(int)
    differ = np.abs(pictures["--sinks"] - pictures["--no-sinks"]).sum(-1) > 0
    assert 0 < differ.mean() < 0.5  # marks, and not another picture


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_what_can_be_refused_is_refused_before_the_model_loads(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("sinkscope.models.loading.load_model", loaded)
    out = tmp_path / "out.html"

    def mistake(*words: str | Path, output: Path = out, source: Path = image) -> str:
        return refused(run("compare", source, "What?", "--output", output, *words))

    assert "does not exist" in mistake(output=tmp_path / "missing" / "out.html")
    assert "is the input itself" in mistake(output=image)
    assert ".html, .png, .pdf, .svg, .json" in mistake(output=tmp_path / "out.docx")
    assert "cat.png does not exist" in mistake(source=tmp_path / "cat.png")
    assert "dims is 'x'" in mistake("--dims", "x")
    assert "var_layers is '5-2'" in mistake("--var-layers", "5-2")
    assert "layers is 'a'" in mistake("--layers", "a")
    assert "heads is 'b'" in mistake("--heads", "b")
    old = run("compare", image, "What?", "--output", out, "--capture-layers", "1")
    assert old.exit_code == 2 and "No such option" in old.output  # --layers means them now
    assert "tau is -1.0" in mistake("--tau", "-1")
    assert "tau is nan" in mistake("--tau", "nan")
    assert "keep is 1.5" in mistake("--keep", "1.5")
    assert "max_sink_share is -0.1" in mistake("--max-sink-share", "-0.1")
    assert "min_image_mass is 2.0" in mistake("--min-image-mass", "2")
    assert "temperature is -1.0" in mistake("--temperature", "-1")
    assert "max_new_tokens is 0" in mistake("--max-new-tokens", "0")
    assert "seed is -1" in mistake("--seed", "-1")
    assert "device is 'tpu'" in mistake("--device", "tpu")
    assert "does not exist" in mistake("--save-traces", tmp_path / "a" / "b")
    assert "a folder, not a file" in mistake("--save-traces", image)
    assert not out.exists()


@pytest.mark.tiny
def test_what_the_model_refuses_is_refused_before_it_computes(
    image: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    def computed(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model computed first")

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "forward", computed)
    out = tmp_path / "out.html"

    def mistake(*words: str) -> str:
        return refused(run("compare", image, "What?", "--model", tiny_folder, "-o", out, *words))

    assert "No sink dimensions are known for" in (said := mistake()) and "--dims" in said
    assert "hidden size allows 0 to 63" in mistake("--dims", "64", "--tau", "5")
    assert "never exceeds sqrt(hidden size) = 8.0" in mistake("--dims", "3", "--tau", "8.5")
    assert "tau is 20" in mistake("--dims", "3")
    assert "layers has [4]" in mistake("--dims", "3", "--tau", "5", "--var-layers", "4")
    assert "layer" in mistake("--dims", "3", "--tau", "5", "--layers", "9")
    known = ("--dims", "3", "--tau", "5", "--var-heads")
    assert "heads has 1.9; the layers of this model have heads 0 to" in mistake(*known, "1.9")
    assert "heads is '1;2'; allowed: all (leave it out), LAYER.HEAD" in mistake(*known, "1;2")
    listed = tmp_path / "heads.json"
    assert "cannot be read" in mistake(*known, str(listed))
    HeadList("localising", "other", "sha256:0", (HeadChoice(1, 0, 0.5, 0.2),)).save(listed)
    assert "The list of heads is of other (sha256:0), and" in mistake(*known, str(listed))
    assert not out.exists()


def test_a_file_of_heads_is_read(tmp_path: Path) -> None:
    listed = HeadList("localising", "demo", "r", (HeadChoice(2, 1, 0.5, 0.2),))
    listed.save(tmp_path / "heads.json")
    given = Draft(VARSettings, {"dims": (1,), "heads": str(tmp_path / "heads.json")})
    draft, found = with_heads_file(given)
    assert found == listed and draft.make() == VARSettings((1,), heads=((2, 1),))
    words = Draft(VARSettings, {"dims": (1,), "heads": "2.1"})
    assert with_heads_file(words) == (words, None)
