"""The browser's file: reading it restores the values, within the steps of its codes."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from sinkscope.attention_processor import head_mean, image_share, sink_share
from sinkscope.benchmarks.page import weight
from sinkscope.web.components.assets import read_static
from sinkscope.web.runs.payload import build_payload, build_token_maps, compand, encode_image
from sinkscope.web.runs.store import Run
from tests.web.synthetic import HOSTILE, make_pair, make_trace, scene


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    raw = gzip.decompress(data)
    assert raw[:4] == b"SINK"
    (length,) = struct.unpack("<I", raw[4:8])
    header = json.loads(raw[8 : 8 + length])
    arrays = {}
    for item in header["arrays"]:
        count = int(np.prod(item["shape"]))
        at = 8 + length + item["offset"]
        assert at % 4 == 0  # a browser's typed arrays must begin at a multiple of their size
        arrays[item["name"]] = np.frombuffer(raw, item["dtype"], count, at).reshape(item["shape"])
    return header, arrays


def expand(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return scale[..., None] * (codes / np.iinfo(codes.dtype).max) ** 2


@pytest.mark.parametrize(("dtype", "worst"), [(np.uint8, 0.13), (np.uint16, 5e-4)])
def test_companding_keeps_what_a_sink_would_wipe_out(dtype: type, worst: float) -> None:
    row = np.full(64, 0.001, np.float32)
    row[5] = 1.0  # a sink that holds a thousand times its neighbours
    codes, scale = compand(row[None], dtype)
    relative = abs(expand(codes, scale)[0] - row) / row
    assert relative.max() < worst
    linear = np.rint(row / row.max() * 255)
    assert (linear[np.arange(64) != 5] == 0).all()  # what this is for


def test_companding_of_nothing() -> None:
    codes, scale = compand(np.zeros((2, 3, 4)))
    assert codes.max() == 0 and scale.shape == (2, 3) and np.isfinite(expand(codes, scale)).all()


def test_a_small_run_carries_everything() -> None:
    pair = make_pair()
    run = Run(pair)
    header, arrays = unpack(build_payload(run))
    assert header["run"] == run.id and not header["lazy"]
    for name, trace in pair.items():
        got = expand(arrays[f"{name}.mean"], arrays[f"{name}.mean.scale"])
        np.testing.assert_allclose(got, head_mean(trace), atol=1e-5)
        full = expand(arrays[f"{name}.full"], arrays[f"{name}.full.scale"])
        np.testing.assert_allclose(full, trace.attention.float(), atol=2e-5)
        for key, expected in (("image", image_share(trace)), ("sink", sink_share(trace))):
            np.testing.assert_allclose(arrays[f"{name}.{key}"] / 65535, expected, atol=1e-5)
        mass = arrays[f"{name}.segments"] / 65535
        np.testing.assert_allclose(mass.sum(-1), 1, atol=1e-3)
        texts = [
            token["t"] for v in header["variants"] if v["name"] == name for token in v["tokens"]
        ]
        assert texts == [token.text for token in trace.tokens]
    sinks = header["variants"][0]["sinks"][2]
    assert sinks["columns"] == [7, 82] and sinks["layer"] == 2


def test_the_prompts_rows_and_the_generic_one_travel_with_it() -> None:
    pair = make_pair()
    header, arrays = unpack(build_payload(Run(pair)))
    for name, trace in pair.items():
        variant = next(v for v in header["variants"] if v["name"] == name)
        rows = trace.prompt_rows
        assert rows is not None
        asked = variant["asked"]["tokens"]
        assert [token["t"] for token in asked] == [token.text for token in rows.tokens]
        assert [token["k"] for token in asked] == ["user"] * 6 + ["template"] * 3
        got = expand(arrays[f"{name}.prompt.full"], arrays[f"{name}.prompt.full.scale"])
        np.testing.assert_allclose(got, rows.attention.float(), atol=2e-5)
        np.testing.assert_allclose(arrays[f"{name}.prompt.image"] / 65535, 0.3, atol=1e-5)
        # Both sides are divided by the plain model's row of the generic prompt.
        assert variant["reference"] == {"of": "baseline", "prompt": "Describe anything."}
    reference = pair["baseline"].reference
    assert reference is not None
    got = expand(arrays["baseline.reference.full"], arrays["baseline.reference.full.scale"])
    np.testing.assert_allclose(got, reference.attention[0].float(), atol=2e-4)
    assert "var.reference.full" not in arrays


def test_a_run_without_them_says_why() -> None:
    bare = dataclasses.replace(make_trace(), prompt_rows=None, reference=None)
    reported = dataclasses.replace(bare, extra={"no_reference": "it was stopped"})
    for trace, why in (
        (bare, "it was generated without reference=True"),
        (reported, "it was stopped"),
    ):
        header, arrays = unpack(build_payload(Run({"baseline": trace})))
        assert header["variants"][0]["asked"] is None
        assert header["variants"][0]["reference"] == {}
        relative = header["methods"][1]
        assert relative["name"] == "relative"
        assert relative["why"]["baseline"].endswith(why)
        assert not [name for name in arrays if "prompt" in name or "reference" in name]


def test_a_reference_of_other_patches_is_not_sent() -> None:
    trace = make_trace()
    assert trace.reference is not None
    (grid,) = trace.layout.grids
    view = grid.views[0]  # as many patches, in another shape
    turned = dataclasses.replace(view, rows=view.columns, columns=view.rows)
    other = dataclasses.replace(grid, views=(turned,))
    layout = dataclasses.replace(trace.layout, grids=(other,))
    wrong = dataclasses.replace(
        trace, reference=dataclasses.replace(trace.reference, layout=layout)
    )
    header, arrays = unpack(build_payload(Run({"baseline": wrong})))
    assert header["variants"][0]["reference"] == {}
    (why,) = [m["why"]["baseline"] for m in header["methods"] if m["name"] == "relative"]
    assert "cut into other patches" in why
    assert not [name for name in arrays if "reference" in name]


def test_a_large_run_leaves_single_heads_for_later() -> None:
    trace = make_trace(rows=8, columns=12, layers=6, heads=8)
    small = build_payload(Run({"baseline": trace}), eager_bytes=1000)
    header, arrays = unpack(small)
    assert header["lazy"] and "baseline.full" not in arrays
    _, later = unpack(build_token_maps(trace, 3, 5))
    expected = trace.attention[3:5].float().mean(0).numpy()
    got = expand(later["full"], later["full.scale"])
    assert got.shape == expected.shape == (6, 8, 96)
    np.testing.assert_allclose(got, expected, atol=0.005 * expected.max())


def test_texts_pass_unchanged_and_empty_answers_too() -> None:
    header, _ = unpack(build_payload(Run({"baseline": make_trace(HOSTILE)})))
    assert [token["t"] for token in header["variants"][0]["tokens"]] == list(HOSTILE)
    header, arrays = unpack(build_payload(Run({"baseline": make_trace((), finish="stopped")})))
    assert header["variants"][0]["tokens"] == [] and arrays["baseline.mean"].shape == (0, 6, 96)


def test_images_for_the_screen() -> None:
    data, name = encode_image(scene())
    assert name == "image.png" and data.startswith(b"\x89PNG")
    data, name = encode_image(Image.new("RGB", (4000, 1000)))
    assert name == "image.jpg" and len(data) < 100_000


def test_colour_maps_are_those_of_matplotlib() -> None:
    import base64
    import re

    source = read_static("inspector")
    found = dict(re.findall(r"^(\w+): \"([A-Za-z0-9+/=]{1000,})\"", source, re.MULTILINE))
    assert set(found) == {"inferno", "magma", "viridis", "cividis", "coolwarm"}
    for name, text in found.items():
        table = np.frombuffer(base64.b64decode(text), np.uint8).reshape(256, 3)
        expected = matplotlib.colormaps[name](np.arange(256))[:, :3] * 255
        assert abs(table - expected).max() <= 0.51


def test_weight_and_templates_of_the_page() -> None:
    ours = weight()  # everything that comes with the page, as `web.server.compress` sends it
    assert ours["bytes"] < 220_000 and ours["sent"] < 66_000
    for name in ("inspector", "status", "examples"):
        for part in (read_static(f"{name}.html"), read_static(f"{name}.css")):
            # Gradio would evaluate these as code.
            assert not any(sign in part for sign in ("${", "{{", "`", "\\", "<script"))
        assert "innerHTML" not in read_static(name) and "outerHTML" not in read_static(name)
