"""The figure of scenes and where the best head looks: small, and with the right colours."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sinkscope.cli import demo_looks
from sinkscope.demo.scenes import COLOURS


@pytest.mark.slow
def test_the_figure_is_a_small_palette_picture_with_the_scenes_colours(tmp_path, monkeypatch):
    from sinkscope.cli.demo import app

    monkeypatch.setattr(demo_looks, "_ROWS", 1)
    monkeypatch.setattr(demo_looks, "_COLUMNS", 2)
    path = tmp_path / "looks.png"
    done = CliRunner().invoke(app, ["looks", str(path), "--layer", "5", "--head", "7"])
    assert done.exit_code == 0, done.output
    drawn = Image.open(path)
    assert drawn.mode == "P" and drawn.size == (1536, 1344) and path.stat().st_size < 600_000
    # The first scene shows a blue square, a purple and a green circle; their brightness varies.
    pixels = np.asarray(drawn.convert("RGB"), float).reshape(-1, 3)
    pixels = pixels[np.ptp(pixels, axis=1) > 90]
    hues = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    for name in ("blue", "purple", "green"):
        wanted = np.array(COLOURS[name], float)
        assert ((hues @ wanted) / np.linalg.norm(wanted) > 0.99).sum() > 1000, name


def test_a_folder_without_a_check_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="give --layer and --head"):
        demo_looks.draw_looks(tmp_path, tmp_path / "looks.png", None)
