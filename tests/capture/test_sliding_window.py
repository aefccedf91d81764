"""Layers with a sliding window: rows as long as the prompt, and the answer of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import compare, generate, prompt_rows
from sinkscope.capture.stash import stash_run
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.loading import ModelHandle, load_model
from tests.checkpoints import reference
from tests.checkpoints.folders import edit_json
from tests.checkpoints.published import write_like

pytestmark = pytest.mark.tiny
SETTINGS = GenerationSettings(max_new_tokens=6)
WINDOW = 24


@pytest.fixture(scope="module", params=[0, 2], ids=["every layer", "half of the layers"])
def folder(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    made = write_like(
        tmp_path_factory.mktemp("sliding") / "model", tiny_folder, {"max_pixels": 28 * 28 * 64}
    )
    edit_json(
        made / "config.json",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=request.param,
    )
    return made


@pytest.fixture(scope="module")
def handle(folder: Path) -> ModelHandle:
    made = load_model(str(folder), device="cpu")
    made.model.generation_config.eos_token_id = None
    return made


def test_answer_and_rows_are_those_of_transformers(
    folder: Path, handle: ModelHandle, photo: Image.Image
) -> None:
    inputs = handle.prepare([photo], "What is there?")
    length = inputs.layout.length
    assert length > 2 * WINDOW
    trace = generate(handle, inputs, SETTINGS)
    eager = reference.model(folder)
    eager.generation_config.eos_token_id = None
    out = eager.generate(
        **inputs.tensors,
        max_new_tokens=SETTINGS.max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    assert [t.id for t in trace.tokens] == out.sequences[0, length:].tolist()
    grid = inputs.layout.grids[0]
    for step, layers in enumerate(out.attentions):
        for layer, rows in enumerate(layers):
            row = rows[0, :, -1]  # (H, K): keys before the window are missing
            whole = torch.zeros(row.shape[0], length + step)
            whole[:, length + step - row.shape[1] :] = row
            kept = trace.attention[step, layer].float()
            assert torch.allclose(kept, whole[:, list(grid.positions)], atol=1e-3)


def test_comparisons_prompt_rows_and_stashes_agree_with_a_run(
    handle: ModelHandle, photo: Image.Image
) -> None:
    inputs = handle.prepare([photo], "What is there?")
    plain = generate(handle, inputs, SETTINGS)
    var = VARSettings(dims=(3, 7), tau=2.0)
    pair = compare(handle, inputs, SETTINGS, var)
    assert [t.id for t in pair.baseline.tokens] == [t.id for t in plain.tokens]
    assert torch.allclose(pair.baseline.attention.float(), plain.attention.float(), atol=1e-3)
    alone = generate(handle, inputs, SETTINGS, var=var)
    assert [t.id for t in pair.var.tokens] == [t.id for t in alone.tokens]
    rows = prompt_rows(handle, inputs, [inputs.layout.length - 1])
    assert torch.allclose(rows.attention[0].float(), plain.attention[0].float(), atol=1e-3)
    stash = stash_run(handle, inputs, SETTINGS)
    assert torch.allclose(stash.trace().attention.float(), plain.attention.float(), atol=1e-3)
