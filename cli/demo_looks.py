"""The figure of `demo looks`: a dozen scenes, the answers, and one head's map for a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.attention_processor import patch_map
from sinkscope.config import GenerationSettings
from sinkscope.demo.measure import CHECK_SIZES
from sinkscope.demo.scenes import SHAPES, scene
from sinkscope.models.loading import load_model
from sinkscope.utils import write_atomically
from sinkscope.visualization import OverlayStyle, check_ending, overlay, save

_SEEDS = 4  # seeds of these scenes begin with 4: used neither for training nor for measuring
_ROWS, _COLUMNS = 3, 4
_DPI = 128
_COLOURS = 256


def draw_looks(model: Path, output: Path, at: tuple[int, int] | None) -> None:
    """Run the model on a dozen scenes and draw the map of head `at` for the first thing it names.

    Args:
        model: folder of the bundled model.
        output: picture to write.
        at: layer and head; None takes the best head of the folder's `check.json`.

    Raises:
        ValueError: no head is given and the folder has no `check.json`; or the output's ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_ending(output)
    layer, head = at or _best_head(model)
    handle = load_model(str(model))
    figure = Figure(figsize=(12, 10.5), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(_ROWS, _COLUMNS).ravel()
    for index, panel in enumerate(panels):
        width, height = CHECK_SIZES[index % len(CHECK_SIZES)]
        picture = Image.fromarray(scene((_SEEDS, index), width, height).image)
        inputs = handle.prepare([picture], "Describe the image.")
        trace = generate(handle, inputs, GenerationSettings(max_new_tokens=64))
        named = [i for i, t in enumerate(trace.tokens) if t.text.strip() in SHAPES]
        panel.set_axis_off()
        title = trace.text.replace(", ", ",\n")
        if named:
            heat = patch_map(trace, named[0], layers=[layer], heads=[head])
            panel.imshow(overlay(picture, heat, OverlayStyle()))
            title = f"[{trace.tokens[named[0]].text.strip()}] {title}"
        else:
            panel.imshow(picture)
        panel.set_title(title, fontsize=8)
    figure.suptitle(f"Where head {head} of layer {layer} looked for the word in brackets")
    if output.suffix.lower() != ".png":
        save(figure, output)
        return
    # Textured scenes hardly compress: a palette reduces the file to a quarter without visible loss.
    # The default palette follows the backgrounds and would turn a green square blue.
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    drawn = drawn.quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    write_atomically(output, lambda file: drawn.save(file, "png", optimize=True))


def _best_head(model: Path) -> tuple[int, int]:
    path = model / "check.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: give --layer and --head, or run `demo check --card`.")
    best = json.loads(path.read_text())["looking"]["best_head"]
    return best["layer"], best["head"]
