"""Seeded scenes with exact ground truth: textured backgrounds and up to nine coloured shapes.

A scene depends only on its seed and settings, so a training run, a test and a figure in the
documentation can refer to the same picture. This file draws; questions about a scene are in
``demo.questions``.

Objects are in the cells of a 3 x 3 layout with jitter, so "top left" is always unambiguous.
Background colours are less saturated than the six object colours. Scenes without objects may have a
more colourful, photo-like background, which teaches the model to say "nothing".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 215, 40),
    "green": (45, 160, 60),
    "blue": (45, 85, 215),
    "purple": (140, 60, 180),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
SIDE_RANGE = (84, 1120)
OBJECT_RANGE = (0, len(PLACES))
BACKGROUNDS = ("any", "texture", "photo")


@dataclass(frozen=True)
class SceneObject:
    """One drawn object.

    Attributes:
        shape: One of ``SHAPES``.
        colour: One of ``COLOURS``.
        place: One of ``PLACES``: its cell of the 3 x 3 layout.
        size: Side of its square bounding box, in pixels.
        box: ``(x0, y0, x1, y1)`` in pixels, x1 and y1 exclusive.
    """

    shape: str
    colour: str
    place: str
    size: int
    box: tuple[int, int, int, int]

    @property
    def cell(self) -> int:
        """Index of the place, row-major from the top left."""
        return PLACES.index(self.place)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        objects: In reading order of their places (row-major).
        owner: ``(H, W)`` uint8: 0 for background, ``i + 1`` if object ``i`` covers the pixel.
        seed: The seed that it was drawn from.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    owner: NDArray[np.uint8]
    seed: tuple[int, ...]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Pixels of object ``index``: ``(H, W)`` bool."""
        pixels: NDArray[np.bool_] = self.owner == index + 1
        return pixels


def scene(
    seed: int | Sequence[int],
    width: int = 224,
    height: int = 224,
    *,
    min_objects: int = 1,
    max_objects: int = 4,
    repeat: float = 0.35,
    background: str = "any",
) -> Scene:
    """Draws the scene of a seed.

    Args:
        seed: A non-negative integer, or several.
        width: Pixels, 84 to 1120.
        height: Pixels, 84 to 1120.
        min_objects: 0 to 9.
        max_objects: ``min_objects`` to 9; the number is uniform between the two.
        repeat: Probability, 0 to 1, that shapes are drawn with replacement (so a scene can have two
            stars).
        background: "texture" (grey, tinted), "photo" (more colourful), or "any".

    Returns:
        The scene, objects in reading order.

    Raises:
        ValueError: For a setting outside its range, with the range.
    """
    _check_settings(width, height, min_objects, max_objects, repeat, background)
    entropy = (seed,) if isinstance(seed, (int, np.integer)) else tuple(int(part) for part in seed)
    if any(part < 0 for part in entropy):
        raise ValueError(f"seed is {seed}: it has to be 0 or more")
    rng = np.random.default_rng(list(entropy))
    count = int(rng.integers(min_objects, max_objects + 1))
    canvas = _background(rng, width, height, background, empty=count == 0)
    cells = sorted(rng.permutation(len(PLACES))[:count].tolist())
    names = _shape_names(rng, count, repeat)
    owner = np.zeros((height, width), np.uint8)
    objects: list[SceneObject] = []
    for cell, name in zip(cells, names, strict=True):
        objects.append(_place_object(rng, canvas, owner, cell, name, len(objects) + 1))
    return Scene(np.asarray(canvas).copy(), tuple(objects), owner, entropy)


def _check_settings(
    width: int, height: int, low: int, high: int, repeat: float, background: str
) -> None:
    for name, value in (("width", width), ("height", height)):
        if not SIDE_RANGE[0] <= value <= SIDE_RANGE[1]:
            raise ValueError(
                f"{name} is {value}: a scene is {SIDE_RANGE[0]} to {SIDE_RANGE[1]} pixels "
                "wide and high"
            )
    if not OBJECT_RANGE[0] <= low <= OBJECT_RANGE[1]:
        raise ValueError(f"min_objects is {low}: allowed is 0 to {OBJECT_RANGE[1]}")
    if not low <= high <= OBJECT_RANGE[1]:
        raise ValueError(
            f"max_objects is {high}: allowed is min_objects ({low}) to {OBJECT_RANGE[1]}"
        )
    if not 0.0 <= repeat <= 1.0:
        raise ValueError(f"repeat is {repeat}: allowed is 0 to 1")
    if background not in BACKGROUNDS:
        raise ValueError(f"background is {background!r}: allowed is {', '.join(BACKGROUNDS)}")


def _shape_names(rng: np.random.Generator, count: int, repeat: float) -> list[str]:
    if rng.random() >= repeat and count <= len(SHAPES):
        return [SHAPES[i] for i in rng.permutation(len(SHAPES))[:count]]
    names = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    if count > 1 and rng.random() < 0.6:
        # By chance alone repeats are rare, and counting needs them.
        names[int(rng.integers(count))] = names[int(rng.integers(count))]
    return names


def _place_object(
    rng: np.random.Generator,
    canvas: Image.Image,
    owner: NDArray[np.uint8],
    cell: int,
    name: str,
    number: int,
) -> SceneObject:
    """Draws one object into ``canvas`` and ``owner`` (both changed in place)."""
    height, width = owner.shape
    cell_w, cell_h = width / 3, height / 3
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    size = int(min(cell_w, cell_h) * rng.uniform(0.62, 0.98))
    slack_x, slack_y = max(0.0, (cell_w - size) / 2 + 1), max(0.0, (cell_h - size) / 2 + 1)
    # In long cells the jitter must not move the object so far that its place becomes ambiguous.
    slack_x, slack_y = min(slack_x, 0.3 * cell_w), min(slack_y, 0.3 * cell_h)
    centre_x = (cell % 3 + 0.5) * cell_w + rng.uniform(-1, 1) * slack_x
    centre_y = (cell // 3 + 0.5) * cell_h + rng.uniform(-1, 1) * slack_y
    x0 = int(np.clip(centre_x - size / 2, 0, width - size))
    y0 = int(np.clip(centre_y - size / 2, 0, height - size))
    shade = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.1) + rng.normal(0, 8, 3)
    fill = tuple(int(v) for v in np.clip(shade, 0, 255))
    mask = _shape_mask(name, size, rng.uniform(-0.25, 0.25))
    canvas.paste(fill, (x0, y0), mask)
    window = owner[y0 : y0 + size, x0 : x0 + size]
    window[np.asarray(mask) > 127] = number
    return SceneObject(name, colour, PLACES[cell], size, (x0, y0, x0 + size, y0 + size))


def _shape_mask(name: str, size: int, rotation: float) -> Image.Image:
    """An anti-aliased mask of the shape, ``size`` x ``size``, drawn at twice that and averaged
    down."""
    side = 2 * size
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    centre, radius = side / 2, side / 2 * 0.86
    if name in ("circle", "ring"):
        draw.ellipse([centre - radius, centre - radius, centre + radius, centre + radius], fill=255)
        if name == "ring":
            hole = radius * 0.5
            draw.ellipse([centre - hole, centre - hole, centre + hole, centre + hole], fill=0)
    else:
        draw.polygon(_outline(name, centre, radius * 0.98, rotation), fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


def _outline(name: str, centre: float, radius: float, rotation: float) -> list[tuple[float, float]]:
    if name == "cross":
        long, short = radius, radius * 0.33
        points = [
            (-short, -long),
            (short, -long),
            (short, -short),
            (long, -short),
            (long, short),
            (short, short),
            (short, long),
            (-short, long),
            (-short, short),
            (-long, short),
            (-long, -short),
            (-short, -short),
        ]
        cos, sin = math.cos(rotation), math.sin(rotation)
        return [(centre + x * cos - y * sin, centre + x * sin + y * cos) for x, y in points]
    if name == "square":
        radii, angles = [radius * 1.1] * 4, [math.pi / 4 + i * math.pi / 2 for i in range(4)]
    elif name == "triangle":
        radii, angles = [radius * 1.12] * 3, [-math.pi / 2 + i * math.tau / 3 for i in range(3)]
    else:
        radii = [radius * 1.12, radius * 0.46] * 5
        angles = [-math.pi / 2 + i * math.pi / 5 for i in range(10)]
    return [
        (centre + r * math.cos(a + rotation), centre + r * math.sin(a + rotation))
        for r, a in zip(radii, angles, strict=True)
    ]


def _background(
    rng: np.random.Generator, width: int, height: int, kind: str, *, empty: bool
) -> Image.Image:
    photo = kind == "photo" or (kind == "any" and rng.random() < (0.6 if empty else 0.15))
    pixels = (
        _photo_like(rng, width, height, saturation=1.0 if empty else 0.25)
        if photo
        else _texture(rng, width, height)
    )
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Grey with a tint: soft blobs, and waves, a checkerboard or a ramp; ``(H, W, 3)``."""
    base, tint = rng.uniform(40, 215), rng.uniform(-14, 14, 3)
    plane = base + _soft_noise(rng, width, height, 6, rng.uniform(3, 16))
    kind = int(rng.integers(4))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == 1:
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 30)
        phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
        plane = plane + rng.uniform(4, 10) * np.sin(phase)
    elif kind == 2:
        period = int(rng.integers(6, 20))
        plane = plane + rng.uniform(4, 10) * ((((x // period) + (y // period)) % 2) * 2 - 1)
    elif kind == 3:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
        plane = plane + rng.uniform(15, 40) * ramp
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(1, 7)
    pixels: NDArray[np.float32] = (plane[..., None] + tint + grain).astype(np.float32)
    return pixels


def _photo_like(
    rng: np.random.Generator, width: int, height: int, saturation: float
) -> NDArray[np.float32]:
    """Clouds of several scales with colour, sometimes a horizon or soft-edged patches; ``(H, W,
    3)``."""
    light = np.full((height, width), rng.uniform(60, 190), np.float32)
    colour = np.zeros((height, width, 3), np.float32) + rng.normal(0, 28, 3)
    for cells in (2, 4, 8, 16):
        light = light + _soft_noise(rng, width, height, cells, rng.uniform(4, 40) / cells**0.35)
        for channel in range(3):
            amount = saturation * rng.uniform(0, 45) / cells**0.5
            colour[..., channel] += _soft_noise(rng, width, height, cells, amount)
    if rng.random() < 0.5:  # a horizon: two halves that differ, with an uneven edge
        edge = rng.uniform(0.3, 0.7) * height + _soft_noise(rng, width, 8, 5, height * 0.06)[0]
        below = np.arange(height)[:, None] > edge[None, :]
        light = light + np.where(below, rng.uniform(-60, 60), 0.0)
        colour = colour + np.where(below[..., None], rng.normal(0, 30, 3), 0.0)
    pixels = light[..., None] + colour * saturation
    pixels = pixels + rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(1, 9)
    if rng.random() < 0.5:
        smooth = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        pixels = np.asarray(smooth.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2))))
    result: NDArray[np.float32] = pixels.astype(np.float32)
    return result


def _soft_noise(
    rng: np.random.Generator, width: int, height: int, cells: int, amount: float
) -> NDArray[np.float32]:
    """Normal noise on a ``cells`` x ``cells`` lattice, enlarged smoothly to ``(height, width)``."""
    lattice = rng.normal(0, amount, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC))
