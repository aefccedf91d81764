"""Scenes: the same seed gives the same truth, and the truth agrees with the pixels."""

import numpy as np
import pytest

from sinkscope.demo.scenes import COLOURS, PLACES, SHAPES, scene


def test_the_seed_and_settings_alone_decide_a_scene():
    one, two, other = scene(5, 196, 140), scene(5, 196, 140), scene(6, 196, 140)
    assert np.array_equal(one.image, two.image) and one.objects == two.objects
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (140, 196, 3) and one.image.dtype == np.uint8


@pytest.mark.parametrize("size", [(168, 168), (280, 140), (84, 84), (140, 336)])
def test_boxes_masks_places_and_colours_agree_with_the_picture(size):
    for seed in range(30):
        made = scene(seed, *size, max_objects=6)
        assert [o.cell for o in made.objects] == sorted({o.cell for o in made.objects})
        for i, o in enumerate(made.objects):
            x0, y0, x1, y1 = o.box
            assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1] and x1 - x0 == o.size
            mask = made.mask(i)
            outside = mask.copy()
            outside[y0:y1, x0:x1] = False
            assert mask.any() and not outside.any()
            centre = ((x0 + x1) / 2 / size[0] * 3, (y0 + y1) / 2 / size[1] * 3)
            assert PLACES[int(centre[1]) * 3 + int(centre[0])] == o.place
            colour = np.median(made.image[mask].astype(float), axis=0)
            likeness = {  # the brightness varies, the hue does not
                c: np.dot(colour, rgb) / np.linalg.norm(colour) / np.linalg.norm(rgb)
                for c, rgb in COLOURS.items()
            }
            assert max(likeness, key=likeness.get) == o.colour and o.shape in SHAPES


def test_a_scene_may_be_empty_and_its_background_chosen():
    plain = scene(3, min_objects=0, max_objects=0, background="texture")
    photo = scene(3, min_objects=0, max_objects=0, background="photo")
    assert plain.objects == () and not plain.owner.any()
    saturation = [np.ptp(s.image.astype(int), axis=2).mean() for s in (plain, photo)]
    assert saturation[0] < saturation[1]


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"width": 83}, "84 to 1120"),
        ({"height": 1121}, "84 to 1120"),
        ({"max_objects": 10}, r"min_objects \(1\) to 9"),
        ({"min_objects": -1}, "0 to 9"),
        ({"min_objects": 3, "max_objects": 2}, r"min_objects \(3\) to 9"),
        ({"repeat": 1.5}, "0 to 1"),
        ({"background": "marble"}, "any, texture, photo"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_a_setting_outside_its_range_is_refused_with_the_range(setting, allowed):
    with pytest.raises(ValueError, match=allowed) as refusal:
        scene(**{"seed": 0, **setting})
    assert next(iter(setting)) in str(refusal.value)
