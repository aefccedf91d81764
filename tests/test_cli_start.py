"""Imports of a verb before it works, and that a saved run gives the same results without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope.attention_processor import patch_map
from sinkscope.capture.arrays import as_arrays, open_arrays
from sinkscope.capture.trace import GenerationTrace
from sinkscope.cli.tables import Column, plain_table
from tests.test_cli import refused, run

HEAVY = ("torch", "transformers", "gradio", "scipy", "pandas", "cv2", "av")


def imported(code: str) -> set[str]:
    """The heavy libraries that a process imports when it runs `code`."""
    script = f"{code}\nimport sys\nprint('IMPORTED', *({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = (one for one in done.stdout.splitlines() if one.startswith("IMPORTED"))
    return set(line.split()[1:])


def by_typer(*words: str | Path) -> str:
    """Code that runs a verb and ignores its exit code."""
    return (
        "import sys\nfrom sinkscope.__main__ import app\n"
        f"try:\n    app({[str(word) for word in words]!r})\n"
        "except SystemExit as ended:\n    print('EXIT', ended.code)"
    )


@pytest.fixture(scope="module")
def saved(photo: Image.Image, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two images on disk."""
    from sinkscope.attention_extractor import generate
    from sinkscope.config import GenerationSettings
    from sinkscope.models.loading import load_model

    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo, photo.resize((90, 130))], "Which?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=3, prompt_rows=4))
    path = tmp_path_factory.mktemp("saved") / "run.safetensors"
    trace.save(path)
    return path


@pytest.mark.tiny
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-o", "sheet.png"),
        ("--token", "1", "--image", "1", "-o", "token.png"),
        ("--token", "1", "--figure", "--layers", "1-2", "-o", "token.pdf"),
    ],
)
def test_a_saved_run_is_shown_without_torch(
    words: tuple[str, ...], saved: Path, tmp_path: Path
) -> None:
    given = [str(tmp_path / word) if "." in word else word for word in words]
    assert imported(by_typer("show", saved, *given)) == set()
    assert not given or (tmp_path / words[-1]).stat().st_size > 1000


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("option", "value"), [("--colormap", "jet"), ("--scale", "cubic"), ("--opacity", "2")]
)
def test_a_refusal_imports_nothing_heavy(option: str, value: str, tmp_path: Path) -> None:
    code = by_typer("heatmap", "a.png", "What?", "-o", tmp_path / "a.png", option, value)
    assert imported(code) == set()


@pytest.mark.tiny
def test_nothing_heavy_is_imported_before_a_model_is_to_be_loaded(
    photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    stop = "import sys\nfrom sinkscope.cli import common\ncommon.load = lambda s: sys.exit(0)\n"
    asked = (tmp_path / "photo.png", "What?", "-o", tmp_path / "a.png")
    assert imported(stop + by_typer("heatmap", *asked)) == set()
    assert imported(stop + by_typer("compare", *asked)) == set()


@pytest.mark.tiny
def test_arrays_are_the_tensors_of_the_same_file(saved: Path) -> None:
    of_torch, of_numpy = GenerationTrace.open(saved), open_arrays(saved)
    shared = as_arrays(of_torch)
    for name in ("attention", "shares", "entropy"):
        expected = getattr(of_torch, name).numpy()
        for trace in (of_numpy, shared):
            found = getattr(trace, name)
            assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert of_numpy.prompt_rows is not None and of_torch.prompt_rows is not None
    np.testing.assert_array_equal(
        of_numpy.prompt_rows.attention, of_torch.prompt_rows.attention.numpy()
    )
    assert of_numpy.tokens == of_torch.tokens and of_numpy.layout == of_torch.layout
    for reduce in ("mean", "max", "min"):
        for image in (0, 1):
            maps = [
                patch_map(trace, [0, 2], (1, 2), (0, 3), reduce, image=image)  # type: ignore[arg-type]
                for trace in (of_torch, of_numpy)
            ]
            np.testing.assert_allclose(maps[0].values, maps[1].values, rtol=1e-5)
            assert maps[0].label == maps[1].label


@pytest.mark.tiny
def test_a_damaged_file_is_refused_as_arrays_too(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data)
    assert "damaged" in refused(run("show", bad))
    assert "There is no trace file" in refused(run("show", tmp_path / "no.safetensors"))


def test_a_plain_table_lines_up() -> None:
    columns = [Column("token"), Column("image\nplain"), Column("image\nVAR"), Column("text")]
    rows = [("0", "5.1%", "12.0%", "the"), ("10", "100.0%", "-", "star  ")]
    assert plain_table(columns, rows) == [
        "        image  image",
        "token   plain    VAR  text",
        "    0    5.1%  12.0%  the",
        "   10  100.0%      -  star",
    ]


def test_a_table_on_a_terminal_has_bars_and_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sinkscope.cli import tables

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    columns = [Column("image", bar=True), Column("text")]
    tables.print_table(columns, [("50.0%", "[red]a[/red]"), ("0.0%", "b")])
    out = capsys.readouterr().out
    assert "█" * (tables.BAR // 2) in out and "[red]a[/red]" in out
    assert out.count("█") == tables.BAR // 2
