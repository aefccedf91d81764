"""The bundled example pictures equal the command's output, and their questions fit the scenes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sinkscope import demo
from sinkscope.demo.examples import EXAMPLE_SCENES, write_examples

BUNDLED = Path(demo.__file__).parent / "examples"


def test_the_bundled_examples_are_what_the_command_makes(tmp_path):
    for path in write_examples(tmp_path):
        made, kept = (np.asarray(Image.open(f / path.name)) for f in (tmp_path, BUNDLED))
        assert np.array_equal(made, kept), path.name
    listing = (tmp_path / "examples.json").read_text()
    assert listing == (BUNDLED / "examples.json").read_text()
    assert [e["type"] for e in json.loads(listing)] == [e.kind for e in EXAMPLE_SCENES]


def test_several_shapes_of_pictures_are_offered():
    ratios = {e.width / e.height for e in EXAMPLE_SCENES}
    assert min(ratios) < 1 < max(ratios) and 1 in ratios
