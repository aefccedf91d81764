"""Drawing: pixels show the cell they belong to, numbers survive colours, inputs stay unchanged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sinkscope.attention_processor import PatchMap
from sinkscope.models.views import one_view
from sinkscope.visualization import (
    OverlayStyle,
    contact_sheet,
    figure,
    overlay,
    save,
    scale_of,
    visible,
)

OPAQUE = OverlayStyle(scale="linear", opacity=1.0, alpha_by_value=False, colormap="gray")


def make_map(values: np.ndarray, original: tuple[int, int]) -> PatchMap:
    rows, columns = values.shape
    grid = one_view(
        start=3,
        t=1,
        h=2 * rows,
        w=2 * columns,
        merge=2,
        resized=(28 * rows, 28 * columns),
        original=original,
    )
    return PatchMap(
        values=values.astype(np.float32),
        unit="attention mass",
        normalisation="none",
        image=0,
        grid=grid,
        label="token 0 'a', mean over layers 0-3 and heads 0-3",
    )


def grey(height: int, width: int, level: int = 128) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


# --- geometry -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(20, 130), st.integers(20, 130))
def test_each_pixel_shows_the_cell_whose_box_holds_its_centre(
    rows: int, columns: int, height: int, width: int
) -> None:
    last = max(1, rows * columns - 1)
    # A single cell has all attention; a map of zeros would not be a map.
    values = (last - np.arange(rows * columns, dtype=np.float32)[::-1]).reshape(rows, columns)
    patch_map = make_map(values, (height, width))
    drawn = overlay(grey(height, width), patch_map, OPAQUE)[..., 0]
    seen = np.zeros((height, width), bool)
    for cell, (x0, y0, x1, y1) in enumerate(patch_map.grid.boxes()):
        level = round(values.flat[cell] / last * 255)
        for y in range(height):
            if not y0 <= y + 0.5 < y1:
                continue
            inside = (np.arange(width) + 0.5 >= x0) & (np.arange(width) + 0.5 < x1)
            assert (np.abs(drawn[y, inside].astype(int) - level) <= 1).all()
            seen[y, inside] = True
    assert seen.all()


def test_a_photo_whose_sides_are_no_multiples_of_a_cell() -> None:
    values = np.zeros((25, 36))
    values[24, 35] = 1
    drawn = overlay(grey(700, 1000), make_map(values, (700, 1000)), OPAQUE)[..., 0]
    lit = np.argwhere(drawn == 255)
    assert lit.min(axis=0).tolist() == [672, 972]  # 24 * 28 and 35 * 27.78 = 972.2
    assert lit.max(axis=0).tolist() == [699, 999]


def test_a_resized_copy_of_the_image_is_drawn_at_its_own_scale() -> None:
    values = np.array([[0, 1], [0, 0]])
    patch_map = make_map(values, (700, 1000))
    drawn = overlay(grey(70, 100), patch_map, OPAQUE)[..., 0]
    assert (drawn[:35, 50:] == 255).all() and (drawn[35:] == 0).all() and (drawn[:, :50] == 0).all()


def test_one_pixel_image() -> None:
    assert overlay(grey(1, 1), make_map(np.ones((2, 2)), (1, 1))).shape == (1, 1, 3)


def test_an_image_of_another_shape_is_refused() -> None:
    patch_map = make_map(np.ones((2, 3)), (700, 1000))
    with pytest.raises(ValueError, match="700 x 1000 pixels; the map belongs to one of 1000 x 700"):
        overlay(grey(1000, 700), patch_map)
    with pytest.raises(ValueError, match="uint8"):
        overlay(np.zeros((700, 1000)), patch_map)  # type: ignore[arg-type]


def test_values_that_do_not_fit_the_grid_are_refused() -> None:
    patch_map = make_map(np.ones((2, 3)), (60, 90))
    with pytest.raises(ValueError, match="grid is 2 x 3"):
        overlay(grey(60, 90), dataclasses.replace(patch_map, values=np.ones((3, 2), np.float32)))
    with pytest.raises(ValueError, match="not finite"):
        overlay(grey(60, 90), make_map(np.array([[np.inf, 1]]), (60, 90)))


# --- colours --------------------------------------------------------------------------------------


def test_blending_by_hand() -> None:
    patch_map = make_map(np.array([[0.0, 0.5, 1.0]]), (10, 30))
    style = OverlayStyle(scale="linear", opacity=0.6, colormap="viridis")
    drawn = overlay(grey(10, 30, 100), patch_map, style)
    table = matplotlib.colormaps["viridis"]
    for x, value in ((5, 0.0), (15, 0.5), (25, 1.0)):
        colour = np.array(table(round(value * 255))[:3]) * 255
        alpha = 0.6 * min(1, 1.3 * value**0.7)
        expected = 100 * (1 - alpha) + colour * alpha
        assert np.abs(drawn[5, x] - expected).max() <= 1
    assert (drawn[:, :10] == 100).all()  # no attention: the photo is unchanged


def test_opacity_zero_is_the_photo(photo: Image.Image) -> None:
    patch_map = make_map(np.arange(12.0).reshape(3, 4), (photo.height, photo.width))
    drawn = overlay(photo, patch_map, OverlayStyle(opacity=0))
    assert (drawn == np.asarray(photo)).all()


def test_bands_leave_no_seam() -> None:
    patch_map = make_map(np.array([[1.0, 0.0]]), (700, 40))
    drawn = overlay(grey(700, 40), patch_map, OverlayStyle(smoothing=True))
    assert (drawn == drawn[0]).all()


def test_inputs_are_not_changed(photo: Image.Image) -> None:
    patch_map = make_map(np.arange(12.0).reshape(3, 4), (photo.height, photo.width))
    array, values = np.asarray(photo).copy(), patch_map.values.copy()
    array.flags.writeable = values.flags.writeable = False
    frozen = dataclasses.replace(patch_map, values=values)
    before = photo.tobytes()
    for style in (OverlayStyle(), OverlayStyle(sinks=(1, 5)), OverlayStyle(scale="rank")):
        overlay(array, frozen, style)
        overlay(photo, frozen, style)
    figure(photo, frozen)
    assert photo.tobytes() == before


def test_smoothing_meets_the_cells_at_their_centres() -> None:
    values = np.array([[0.0, 1.0, 0.25]])
    style = dataclasses.replace(OPAQUE, smoothing=True)
    drawn = overlay(grey(4, 303), make_map(values, (4, 303)), style)[2, :, 0].astype(int)
    assert np.abs(drawn[[50, 151, 252]] - [0, 255, 64]).max() <= 1
    assert abs(drawn[101] - 128) <= 2  # half way
    assert drawn[0] == 0 and abs(drawn[-1] - 64) <= 1  # flat beyond the outer centres


# --- scales (what each one does: tests/drawing/test_scale.py) ------------------------------------


def test_a_sink_blacks_out_a_linear_scale_but_not_the_default() -> None:
    values = np.full((20, 20), 0.001, np.float32)
    values[5, :10] = 0.004
    values[0, 7] = 0.5
    patch_map = make_map(values, (20, 20))
    linear = scale_of(patch_map, OverlayStyle(scale="linear")).unit(values)
    assert linear[5, 5] < 0.01
    for scale in ("percentile", "log", "rank"):
        unit = scale_of(patch_map, OverlayStyle(scale=scale)).unit(values)  # type: ignore[arg-type]
        assert unit[5, 5] - unit[0, 0] > 0.2, scale
        assert unit[0, 7] == unit.max()


def test_fixed_limits_make_two_pictures_comparable() -> None:
    style = dataclasses.replace(OPAQUE, limits=(0.0, 0.2))
    weak, strong = (make_map(np.array([[0.0, x]]), (10, 20)) for x in (0.05, 0.2))
    assert abs(int(overlay(grey(10, 20), weak, style)[5, 15, 0]) - 64) <= 1
    assert overlay(grey(10, 20), strong, style)[5, 15, 0] == 255


@pytest.mark.parametrize("smoothing", [False, True])
def test_a_missing_value_shows_the_photo(smoothing: bool) -> None:
    values = np.array([[0.1, np.nan, 0.4]])
    style = dataclasses.replace(OPAQUE, smoothing=smoothing)
    drawn = overlay(grey(12, 33), make_map(values, (12, 33)), style)[5, :, 0]
    assert drawn[16] == 128 and drawn[0] != 128 and drawn[32] == 255


def test_signed_values_are_drawn_around_zero() -> None:
    plain = make_map(np.array([[-0.2, 0.0, 0.2]]), (10, 30))
    patch_map = dataclasses.replace(plain, signed=True)
    drawn = overlay(grey(10, 30), patch_map, OverlayStyle(opacity=1))
    assert drawn[5, 5].tolist() == [59, 76, 192] and drawn[5, 25].tolist() == [180, 4, 38]
    assert drawn[5, 15].tolist() == [128, 128, 128]
    assert (
        drawn
        == overlay(
            grey(10, 30), plain, OverlayStyle(opacity=1), scale_of(patch_map, OverlayStyle())
        )
    ).all()
    words = texts(figure(grey(10, 30), patch_map))
    assert "−20.0 %" in words and "+20.0 %" in words and "the same on both sides of 0" in words


@pytest.mark.parametrize("scale", ["percentile", "linear", "log", "rank"])
def test_an_all_zero_map_shows_the_photo(scale: str) -> None:
    patch_map = make_map(np.zeros((2, 2)), (20, 20))
    style = OverlayStyle(scale=scale)  # type: ignore[arg-type]
    assert (overlay(grey(20, 20), patch_map, style) == 128).all()
    flat = dataclasses.replace(style, alpha_by_value=False)
    assert (overlay(grey(20, 20), patch_map, flat) == 128).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"colormap": "jet"}, "colormap is 'jet'; allowed: inferno"),
        ({"scale": "square"}, "scale is 'square'; allowed: percentile"),
        ({"opacity": 1.5}, "opacity is 1.5"),
        ({"opacity": float("nan")}, "opacity is nan"),
        ({"limits": (1.0, 1.0)}, "limits is"),
        ({"limits": (0.0, 1.0), "scale": "log"}, "positive ones with log"),
        ({"limits": (0.0, 1.0), "scale": "rank"}, "none with rank"),
    ],
)
def test_settings_outside_their_range(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OverlayStyle(**wrong)  # type: ignore[arg-type]


# --- marks ----------------------------------------------------------------------------------------


def test_sinks_are_marked_inside_their_cell_and_nowhere_else() -> None:
    patch_map = make_map(np.zeros((3, 4)), (120, 160))
    plain = overlay(grey(120, 160), patch_map)
    marked = overlay(grey(120, 160), patch_map, OverlayStyle(sinks=(6,)))  # row 1, column 2
    changed = np.argwhere((plain != marked).any(axis=-1))
    assert changed.min(axis=0).tolist() >= [40, 80] and changed.max(axis=0).tolist() <= [79, 119]
    colours = {tuple(marked[y, x]) for y, x in changed}
    assert colours == {(0, 0, 0), (255, 255, 255)}  # a double stroke: seen on any colour


def test_a_sink_is_marked_as_on_the_page() -> None:
    # `drawSink` of the page: a box along the whole patch, and a small x at its centre.
    patch_map = make_map(np.zeros((2, 2)), (400, 400))
    plain = overlay(grey(400, 400), patch_map)
    marked = overlay(grey(400, 400), patch_map, OverlayStyle(sinks=(0,)))
    changed = (plain != marked).any(axis=-1)
    assert changed[1, 5:195].all() and changed[5:195, 1].all()
    arms = np.argwhere(changed[6:194, 6:194]) + 6
    assert 90 <= arms.min() <= 95 and 105 <= arms.max() <= 110  # 0.26 * 26 pixels from 100


def test_a_sink_of_few_layers_has_a_dashed_box() -> None:
    patch_map = make_map(np.zeros((2, 2)), (400, 400))
    plain = overlay(grey(400, 400), patch_map)
    marked = overlay(grey(400, 400), patch_map, OverlayStyle(sinks=(0, 3), rare=(3,)))
    changed = (plain != marked).any(axis=-1)
    assert changed[1, :199].all()
    assert 0.3 < changed[201, 203:397].mean() < 0.9
    assert changed[300, 300]  # its x is whole


def test_a_sink_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="sinks is 12; allowed: cells from 0 to 11"):
        overlay(grey(60, 80), make_map(np.zeros((3, 4)), (60, 80)), OverlayStyle(sinks=(12,)))


# --- figures and files ----------------------------------------------------------------------------


def texts(drawn: object) -> str:
    found = drawn.findobj(matplotlib.text.Text)  # type: ignore[attr-defined]
    return "\n".join(text.get_text() for text in found)


def test_a_figure_says_how_to_read_it(photo: Image.Image) -> None:
    values = np.linspace(0, 0.02, 12).reshape(3, 4)
    patch_map = make_map(values, (photo.height, photo.width))
    style = OverlayStyle(scale="linear")
    drawn = figure(photo, patch_map, style, token=" star", share=0.123, note="model demo")
    drawn.canvas.draw()
    words = texts(drawn)
    for part in ("star", "layers 0-3", "heads 0-3", "attention mass", "normalisation: none"):
        assert part in words
    assert "12.3%" in words and "linear" in words and "model demo" in words
    assert "2.00 %" in words and "1.00 %" in words  # the bar's numbers are values


def test_token_texts_are_never_read_as_formulas(photo: Image.Image, tmp_path: Path) -> None:
    patch_map = make_map(np.ones((3, 4)), (photo.height, photo.width))
    patch_map = dataclasses.replace(patch_map, label="token 0 '$\\frac{'")
    save(figure(photo, patch_map, token="$\\bad{", note="$x_{"), tmp_path / "a.png")
    sheet = contact_sheet(photo, [patch_map], ["$\\bad{"], [0.5], title="$\\bad{ $", note="$\\f{")
    save(sheet, tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size[0] > 100


def test_a_sheet_has_a_picture_for_each_token(photo: Image.Image) -> None:
    maps = [make_map(np.full((3, 4), t), (photo.height, photo.width)) for t in range(8)]
    words = ["a", " red", "\n", "", " ", "x", "y", "z"]
    shares = [t / 10 for t in range(8)]
    drawn = contact_sheet(photo, maps, words, shares, title="a red x y z", note="model demo")
    pictures = [axes for axes in drawn.axes if axes.get_images()]
    assert len(pictures) == 8
    titles = [axes.get_title() for axes in pictures]
    assert titles[:3] == ["a  0%", "red  10%", "\u23ce  20%"]


def test_a_long_prompt_is_cut_visibly(photo: Image.Image) -> None:
    patch_map, long = make_map(np.ones((1, 1)), (photo.height, photo.width)), "word " * 500
    sheet = contact_sheet(photo, [patch_map], ["a"], [0.1], note=f"prompt: {long}")
    assert texts(sheet).rstrip().endswith("word …")
    drawn = figure(photo, patch_map, token="a", prompt=long, note="x" * 3000)
    assert "word …" in texts(drawn) and texts(drawn).rstrip().endswith("…")


def test_a_sheet_of_a_long_answer_says_what_it_leaves_out(photo: Image.Image) -> None:
    maps = [make_map(np.ones((1, 1)), (photo.height, photo.width))] * 100
    drawn = contact_sheet(photo, maps, ["a"] * 100, [0.1] * 100)
    assert "first 96 of 100 tokens" in texts(drawn)
    with pytest.raises(ValueError, match="at least one map"):
        contact_sheet(photo, [], [], [])


@pytest.mark.parametrize("ending", ["png", "pdf", "svg", "PNG"])
def test_files_are_what_their_ending_says(ending: str, photo: Image.Image, tmp_path: Path) -> None:
    patch_map = make_map(np.ones((3, 4)), (photo.height, photo.width))
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending.lower()]
    once, again = tmp_path / f"one.{ending}", tmp_path / f"two.{ending}"
    save(figure(photo, patch_map), once)
    assert once.read_bytes().startswith(start)
    if ending != "svg":  # its element ids are random
        save(figure(photo, patch_map), again)
        assert once.read_bytes() == again.read_bytes()


def test_pixels_survive_their_file(tmp_path: Path, photo: Image.Image) -> None:
    save(np.asarray(photo), tmp_path / "photo.png")
    assert (np.asarray(Image.open(tmp_path / "photo.png")) == np.asarray(photo)).all()


def test_an_unknown_ending_is_refused_and_leaves_nothing(
    tmp_path: Path, photo: Image.Image
) -> None:
    with pytest.raises(ValueError, match=r"a file ending in \.png"):
        save(np.asarray(photo), tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        save(figure(photo, make_map(np.ones((3, 4)), (210, 300))), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_labels_show_white_space() -> None:
    assert [visible(t) for t in (" star", "star", " ", "", "\n", "a\tb", "\x1b[1m")] == [
        "star",
        "star",
        "\u00b7",
        "\u2205",
        "\u23ce",
        "a\u21e5b",
        "\ufffd[1m",
    ]
