"""The command line, verb by verb: its files, its output, and its refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from sinkscope.cli import common
from sinkscope.cli.main import app
from sinkscope.cli.picture import Drawing
from sinkscope.setting import index_list, read, settings_of

ROOT = Path(__file__).resolve().parent.parent
LENGTH = ("--max-new-tokens", "3")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result) -> str:
    """The single line of a refusal; there must be no other, and no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and result.stderr.rstrip().endswith(errors[0]), result.stderr
    return errors[0]


@pytest.fixture
def image(photo: Image.Image, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    photo.save(path)
    return path


# --- tier 1 ---------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, sinkscope.cli.main\n"
        "heavy = {'torch', 'transformers', 'gradio', 'matplotlib', 'cv2', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_it_starts_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sinkscope", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "heatmap" in done.stdout and "show" in done.stdout


def test_help_names_every_choice() -> None:
    from typing import get_args

    from sinkscope.visualization import Colormap, Scale

    # As declared in the code, because printed help is cut to the terminal's width.
    helps = {one.field: one.help for one in settings_of(Drawing)}
    for name, choices in (("colormap", Colormap), ("scale", Scale)):
        assert all(choice in helps[name] for choice in get_args(choices))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (None, None),
        ("3", (3,)),
        ("2-5", (2, 3, 4, 5)),
        ("7, 0-2,1", (0, 1, 2, 7)),
        ("4-4", (4,)),
        ("2–3", (2, 3)),
    ],
)
def test_lists_of_indices(text: str | None, means: tuple[int, ...] | None) -> None:
    (layers,) = (one for one in settings_of(Drawing) if one.field == "layers")
    assert read(layers, text) == means


@pytest.mark.parametrize(
    "text", ["", " ", "9" * 1001, "a", "1-", "-1", "5-2", "1,,2", "1.5", "0-99999999", "\u00b2"]
)
def test_what_is_no_list_of_indices(text: str) -> None:
    with pytest.raises(ValueError, match="layers is"):
        index_list("layers", text)


def test_memory_that_is_full_is_a_sentence_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import typer

    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ):
        with pytest.raises(typer.Exit) as ended, common.clear_errors():
            raise error
        assert ended.value.exit_code == common.MISTAKE
        assert capsys.readouterr().err.startswith("Error: Memory is full. What helps: ")
    with pytest.raises(RuntimeError, match="a bug"), common.clear_errors():
        raise RuntimeError("a bug")


# --- tier 2: with the tiny model ------------------------------------------------------------------


@pytest.mark.tiny
def test_a_sheet_and_a_trace_and_what_is_printed(
    image: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    sheet, trace = tmp_path / "sheet.png", tmp_path / "run.safetensors"
    length = ("--max-new-tokens", "7")
    done = run("heatmap", image, "What is it?", "--model", tiny_folder, "-o", sheet, *length)
    assert done.exit_code == 0, done.output
    assert min(Image.open(sheet).size) > 300
    again = run(
        *("heatmap", image, "What is it?", "--model", tiny_folder, "-o", sheet, *length),
        *("--save-trace", trace),
    )
    assert again.stdout == done.stdout  # greedy: the same answer and the same numbers

    # Standard output: the answer, an empty line, a heading, and a line for each token.
    table = done.stdout.partition("\ntoken  image  probability  text\n")[2].splitlines()
    assert len(table) == 7
    assert all(0 <= float(line.split()[1].rstrip("%")) <= 100 for line in table)

    shown = run("show", trace)
    assert shown.exit_code == 0 and shown.stdout == done.stdout


@pytest.mark.tiny
def test_one_token_is_drawn_at_the_photos_own_size(
    image: Path, photo: Image.Image, tiny_folder: Path, tmp_path: Path
) -> None:
    trace, output = tmp_path / "run.safetensors", tmp_path / "token.png"
    one = ("heatmap", image, "What?", "--model", tiny_folder, "--max-new-tokens", "4")
    done = run(*one, "--token", "2", "--layers", "1-2", "-o", output, "--save-trace", trace)
    assert done.exit_code == 0, done.output
    drawn = Image.open(output)
    assert drawn.size == photo.size and drawn.tobytes() != photo.tobytes()

    same = tmp_path / "same.png"
    run("show", trace, "--token", "2", "-o", same)
    assert same.read_bytes() == output.read_bytes()
    run("show", trace, "--token", "2", "--layers", "1", "-o", same)
    assert same.read_bytes() != output.read_bytes()

    pdf = tmp_path / "token.pdf"
    assert run("show", trace, "--token", "2", "-o", pdf).exit_code == 0
    assert pdf.read_bytes().startswith(b"%PDF")

    assert "layers is [0]; the trace holds layers 1-2" in refused(
        run("show", trace, "--layers", "0")
    )
    assert "token is 4; the answer has 4" in refused(run("show", trace, "--token", "4", "-o", same))
    said = refused(run("show", trace, "--token", "zebra", "-o", same))
    assert "'zebra', which is not in the answer" in said


@pytest.mark.tiny
def test_maps_relative_to_a_generic_prompt(image: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.drawing.overlay import under_map
    from sinkscope.methods.explain import explain_map
    from sinkscope.visualization import overlay

    kept, plain, relative = tmp_path / "run.safetensors", tmp_path / "a.png", tmp_path / "b.png"
    one = ("heatmap", image, "What?", "--model", tiny_folder, *LENGTH, "--token", "1")
    first = run(*one, "--no-sinks", "-o", plain)
    second = run(*one, "--no-sinks", "-o", relative, "--relative", "--save-trace", kept)
    assert second.exit_code == 0, second.output
    assert second.stdout == first.stdout  # the shares stay raw
    assert relative.read_bytes() != plain.read_bytes()
    trace = GenerationTrace.open(kept)
    expected = overlay(under_map(trace.images[0]), explain_map(trace, 1, "relative"))
    assert Image.open(relative).tobytes() == expected.tobytes()
    again = tmp_path / "c.png"
    shown = run("show", kept, "--token", "1", "--no-sinks", "--relative", "-o", again)
    assert shown.exit_code == 0, shown.output
    assert again.read_bytes() == relative.read_bytes()
    by_name = run("show", kept, "--token", "1", "--no-sinks", "--method", "relative", "-o", again)
    assert by_name.exit_code == 0 and again.read_bytes() == relative.read_bytes()
    assert "allowed: attention, relative, without_sinks" in refused(
        run("show", kept, "--method", "guess", "-o", again)
    )
    assert "--relative is given; allowed: one of them" in refused(
        run("show", kept, "--relative", "--method", "without-sinks", "-o", again)
    )
    assert "no sink dimensions are known for the run's model" in refused(
        run("show", kept, "--token", "1", "--method", "without-sinks", "-o", again)
    )
    said = refused(run(*one, "-o", again, "--method", "without-sinks"))
    assert "No sink dimensions are known" in said and "--profile" in said
    without = tmp_path / "plain.safetensors"
    run(*one, "-o", plain, "--save-trace", without)
    assert "generated without reference=True" in refused(
        run("show", without, "--token", "1", "--relative", "-o", again)
    )


@pytest.mark.tiny
def test_a_word_of_several_tokens_is_found() -> None:
    from types import SimpleNamespace

    from sinkscope.cli.drawing import find_tokens

    texts = ["a", " st", "ar", " and", " a", " ST", "AR", "!", ""]
    trace = SimpleNamespace(
        tokens=[SimpleNamespace(text=text) for text in texts], text="".join(texts)
    )
    assert find_tokens(trace, "star") == [1, 2]  # type: ignore[arg-type]
    assert find_tokens(trace, "and a") == [3, 4]  # type: ignore[arg-type]
    assert find_tokens(trace, "7") == [7]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'tar', which is not in the answer"):
        find_tokens(trace, "tar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which is not in the answer"):
        find_tokens(trace, " ")  # type: ignore[arg-type]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_what_can_be_refused_is_refused_before_the_model_loads(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("sinkscope.models.loading.load_model", loaded)
    out = tmp_path / "out.png"
    fake = tmp_path / "fake.jpg"
    fake.write_text("no image at all")

    def mistake(*words: str | Path, source: Path = image, output: Path = out) -> str:
        return refused(run("heatmap", source, "What?", "--output", output, *words))

    assert "does not exist" in mistake(output=tmp_path / "missing" / "out.png")
    assert "is a folder" in mistake(output=tmp_path)
    assert "is the input itself" in mistake(output=image)
    assert ".png, .pdf, .svg" in mistake(output=tmp_path / "out.jpg")
    assert "cat.png does not exist" in mistake(source=tmp_path / "cat.png")
    assert "fake.jpg is not an image" in mistake(source=fake)
    assert "layers is 'x'" in mistake("--layers", "x")
    assert "max_new_tokens is 0" in mistake("--max-new-tokens", "0")
    assert "colormap is 'jet'" in mistake("--colormap", "jet")
    assert "opacity is 2.0" in mistake("--opacity", "2")
    assert "device is 'tpu'" in mistake("--device", "tpu")
    assert "min_pixels is 9" in mistake("--min-pixels", "9", "--max-pixels", "8")
    assert "a .safetensors file" in mistake("--save-trace", tmp_path / "run.bin")
    assert not out.exists()


@pytest.mark.tiny
def test_what_only_the_model_can_refuse(image: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"

    def mistake(prompt: str, *words: str | Path) -> str:
        return refused(run("heatmap", image, prompt, "-o", out, *words))

    assert "The prompt is empty" in mistake("  ", "--model", tiny_folder)
    assert "layer" in mistake("What?", "--model", tiny_folder, "--layers", "4")
    assert "nowhere" in mistake("What?", "--model", tmp_path / "nowhere")
    assert "config.json" in mistake("What?", "--model", tmp_path)
    assert not out.exists()


@pytest.mark.tiny
@pytest.mark.parametrize("bug", [False, True])
def test_out_of_memory_is_a_sentence_but_a_bug_is_not_hidden(
    bug: bool, image: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkscope import attention_extractor

    kind = RuntimeError if bug else attention_extractor.RunOutOfMemoryError

    def fail(*args: object, **kwargs: object) -> None:
        raise kind("The device is full; use a smaller image.")

    monkeypatch.setattr(attention_extractor, "generate", fail)
    done = run("heatmap", image, "What?", "--model", tiny_folder, "-o", tmp_path / "out.png")
    if bug:
        assert done.exit_code == 1 and isinstance(done.exception, RuntimeError)
    else:
        assert "The device is full; use a smaller image." in refused(done)


@pytest.mark.tiny
def test_what_is_no_trace(tmp_path: Path, image: Path) -> None:
    assert "photo.png" in refused(run("show", image))
    assert "nothing.safetensors" in refused(run("show", tmp_path / "nothing.safetensors"))


@pytest.mark.tiny
def test_of_two_images_one_is_chosen_and_has_its_own_share(
    tiny_folder: Path, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkscope.attention_extractor import generate
    from sinkscope.config import GenerationSettings
    from sinkscope.drawing import figures
    from sinkscope.models.loading import load_model

    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    second = photo.resize((160, 220)).rotate(180)
    trace = generate(
        handle, handle.prepare([photo, second], "Which?"), GenerationSettings(max_new_tokens=3)
    )
    path = tmp_path / "two.safetensors"
    trace.save(path)

    def shown(*words: str | Path) -> tuple[list[float], Result]:
        done = run("show", path, *words)
        assert done.exit_code == 0, done.output
        table = done.stdout.partition("probability  text\n")[2].splitlines()
        return [float(line.split()[1].rstrip("%")) / 100 for line in table], done

    for image in (0, 1):
        drawn = tmp_path / f"image{image}.png"
        shares, done = shown("--image", str(image), "--token", "1", "-o", drawn)
        columns = trace.layout.columns(image)
        expected = trace.attention[..., columns].float().sum(-1).mean(dim=(1, 2))
        assert shares == pytest.approx(expected.tolist(), abs=1e-3)
        assert f"(of image {image}; the prompt has 2, from 0)" in done.stderr
        assert Image.open(drawn).size == trace.images[image].size
    assert shown()[0] == shown("--image", "0")[0] != shown("--image", "1")[0]
    said = []
    plain = figures.figure
    monkeypatch.setattr(
        figures, "figure", lambda *a, **k: (said.append(k["share"]), plain(*a, **k))[1]
    )
    shares, _ = shown("--image", "1", "--token", "1", "-o", tmp_path / "figure.pdf")
    assert said == pytest.approx([shares[1]], abs=1e-3)  # the caption's "attention on this image"
    assert "image is 2; the prompt has 2" in refused(run("show", path, "--image", "2"))


@pytest.mark.tiny
def test_the_forecast_is_said_before_the_run(
    image: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    done = run("heatmap", image, "What?", "--model", tiny_folder, "-o", out, *LENGTH)
    assert done.exit_code == 0, done.output
    forecast = done.stderr.index("Forecast, for 3 new tokens: about ")
    assert forecast < done.stderr.index("Answering")
    assert "MB of attention" in done.stderr and "Forecast" not in done.stdout


@pytest.mark.tiny
def test_a_prompt_that_is_no_text(image: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"  # Python represents bytes that are not UTF-8 as lone surrogates
    said = refused(run("heatmap", image, "What\udcff?", "--model", tiny_folder, "-o", out))
    assert "prompt" in said and not out.exists()
