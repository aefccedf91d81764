"""The published code's own numbers: sink scores, sinks, selected rows and new attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.redistribute import redistribute
from sinkscope.interventions.var.selection import select_rows
from sinkscope.models.sink_score import sink_mask, sink_score

FILES = sorted((Path(__file__).parents[2] / "golden").glob("*.npz"))
STEPS = ("prefill", "decode0", "decode1")


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("meta"))), arrays


def settings_of(meta: dict[str, Any]) -> VARSettings:
    return VARSettings(
        dims=tuple(meta["dims"]),
        tau=meta["tau"],
        keep=meta["p"],
        max_sink_share=meta["rho"],
        min_image_mass=meta["summ"],
        dialect="official",
    )


def span(meta: dict[str, Any], keys: int) -> Tensor:
    vision = torch.zeros(1, keys, dtype=torch.bool)
    vision[:, meta["im"] : meta["im"] + meta["n"]] = True
    return vision


def flagged(positions: np.ndarray, keys: int) -> Tensor:
    sinks = torch.zeros(1, keys, dtype=torch.bool)
    sinks[0, torch.from_numpy(positions.astype(np.int64))] = True
    return sinks


def test_the_vectors_are_there() -> None:
    assert len(FILES) == 9


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_sinks(path: Path) -> None:
    meta, arrays = read(path)
    settings = settings_of(meta)
    for i, layer in enumerate(meta["layers"]):
        hidden = torch.from_numpy(arrays["hidden"][i])[None]
        phi = torch.from_numpy(arrays[f"phi_{layer}"])
        torch.testing.assert_close(sink_score(hidden, settings.dims)[0], phi, rtol=0, atol=1e-6)
        if layer >= 2:
            found = sink_mask(hidden, settings.dims, settings.tau, settings.dialect)[0].nonzero()[
                :, 0
            ]
            assert found.tolist() == sorted(arrays[f"sinks_{layer}"].tolist())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_selection_and_redistribution(path: Path, step: str) -> None:
    meta, arrays = read(path)
    settings = settings_of(meta)
    for i, layer in enumerate(meta["layers"]):
        weights = torch.from_numpy(arrays[f"attn_{step}"][i])[None]
        expected = torch.from_numpy(arrays[f"out_{step}_{layer}"])[None]
        keys = weights.shape[3]
        vision = span(meta, keys)
        sinks = flagged(arrays[f"sinks_{layer}"], keys)

        selected = select_rows(weights, sinks, vision, settings).nonzero().tolist()
        assert sorted(map(tuple, selected)) == sorted(
            map(tuple, arrays[f"coords_{step}_{layer}"].tolist())
        )

        first_query = meta["im"] + meta["n"] if step == "prefill" else 0
        out = redistribute(weights, sinks, vision, settings, first_query)
        # Where the published code divides 0 by 0, the row stays unchanged.
        expected = torch.where(expected.isnan().any(-1, keepdim=True), weights, expected)
        assert out.dtype == weights.dtype
        if weights.dtype == torch.float16:
            # Both sides round to storage; the published code also does its arithmetic in float16.
            torch.testing.assert_close(out.float(), expected.float(), rtol=2**-10, atol=2e-6)
        else:
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
        if step == "prefill":
            assert torch.equal(out[:, :, :first_query], weights[:, :, :first_query])
