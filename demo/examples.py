"""The pictures that the page offers: a few scenes by seed, each with a question and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sinkscope.demo.folder import write_json
from sinkscope.demo.questions import questions
from sinkscope.demo.scenes import scene


@dataclass(frozen=True)
class ExampleScene:
    """One example: what it is drawn from, and which type of question is asked about it."""

    name: str
    seed: int
    width: int
    height: int
    objects: int
    kind: str
    background: str = "texture"


# Seeds begin with 3, so these scenes are neither trained on nor measured. They were chosen among
# those that the bundled model answers correctly, and the first, which the page shows, because VAR
# clearly changes its maps. So they are no evidence of how often that happens; the model card is.
EXAMPLE_SCENES: tuple[ExampleScene, ...] = (
    ExampleScene("three_things", 603, 196, 196, 3, "describe"),
    ExampleScene("four_things", 117, 196, 196, 4, "describe"),
    ExampleScene("wide", 2, 224, 168, 3, "what"),
    ExampleScene("tall", 3, 140, 196, 3, "where"),
    ExampleScene("two_things", 8, 196, 196, 2, "exist"),
    ExampleScene("how_many", 13, 196, 168, 4, "count"),
    ExampleScene("nothing", 6, 224, 168, 0, "describe", "photo"),
)


def write_examples(folder: Path, examples: tuple[ExampleScene, ...] = EXAMPLE_SCENES) -> list[Path]:
    """Writes the pictures and ``examples.json``: image, prompt, and the true answer of each.

    Returns:
        The pictures' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing, paths = [], []
    for example in examples:
        drawn = scene(
            (3, example.seed),
            example.width,
            example.height,
            min_objects=example.objects,
            max_objects=example.objects,
            background=example.background,
        )
        asked = questions(drawn, [example.kind])
        if not asked:
            raise ValueError(f"the scene of {example.name} does not allow {example.kind!r}")
        path = folder / f"{example.name}.png"
        Image.fromarray(drawn.image).save(path, optimize=True)
        paths.append(path)
        listing.append(
            {
                "image": path.name,
                "prompt": asked[0].prompt,
                "answer": asked[0].answer,
                "type": example.kind,
            }
        )
    write_json(folder / "examples.json", listing)
    return paths
