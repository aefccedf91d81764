"""docs/other_tools.md: every snippet runs, and every option of the older tools has its row."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sinkscope.__main__ import app

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "other_tools.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in that looks like a clone and may be written to."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "demo").symlink_to(ROOT / "demo")
    (folder / "runs").mkdir()
    return folder


@pytest.mark.slow
def test_the_python_runs(clone: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks("python"))],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MB of attention" in done.stdout and "relative" in done.stdout
    for name in ("attention_visualization.png", "saliency_map.png", "known.toml"):
        assert (clone / name).stat().st_size > 100


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_runs(line: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, because some read what others wrote."""
    monkeypatch.chdir(clone)
    program, *words = shlex.split(line)
    assert program == "sinkscope"
    done = CliRunner().invoke(app, words)
    # Exit code 3 of a validation means that so few samples confirm nothing, which is a valid
    # result.
    allowed = (0, 3) if words[:2] == ["sinks", "validate"] else (0,)
    assert done.exit_code in allowed, done.output


@pytest.mark.parametrize(
    "words",
    [
        "MODEL_NAME EXTRACT_ALL_LAYERS SPECIFIC_LAYERS HEATMAP_COLORMAP HEATMAP_ALPHA",
        "STORE_ON_CPU USE_FLOAT16 get_attention_heatmap_for_token visualize_attention_on_image",
        "find_sink_dimensions_simple.py find_sink_dimensions_qwen.py validate_sink_dimensions.py",
        "--data_root --dataset --num_samples --top_percent --output --dimensions --tau --model",
        "--var_threshold --var_attn_p --var_head --judge --method --limit --out_dir DIM_SINK",
        "DimProspector HeadFork VARProcessor MetadataStation LogicEngine",
        "--scan --print --decompose-output --find-mlp-subspace --mlp --ablate-mlp-out --layer",
        "--decompose-mlp-in bertviz lvlm-interpret vl-saliency",
    ],
)
def test_what_users_look_for_is_there(words: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [word for word in words.split() if word not in text] == []
