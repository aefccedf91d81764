"""The forecast for layers whose weights are not plain matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from sinkscope.attention_extractor import forecast
from sinkscope.capture import run_times as timing
from sinkscope.config import GenerationSettings
from sinkscope.models.loading import load_model


class Packed(nn.Module):
    """Like a quantised layer: its weights are integers in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("weights", torch.zeros(40, 50, dtype=torch.int32))


class Bytes(nn.Linear):
    """A linear layer by name, whose weight cannot be multiplied directly."""

    def __init__(self) -> None:
        super().__init__(30, 30)
        self.weight = nn.Parameter(torch.zeros(450, 1, dtype=torch.uint8), requires_grad=False)


def test_the_matrix_that_stands_for_a_layer() -> None:
    plain = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 9))
    assert timing._largest_matrix(plain) is plain[1].weight
    for layer, elements in ((Packed(), 2000), (Bytes(), 450), (nn.Identity(), 1)):
        matrix = timing._largest_matrix(layer)
        assert matrix.is_floating_point() and matrix.ndim == 2
        assert matrix.numel() == pytest.approx(elements, rel=0.1)
        seconds = timing._seconds_per_product([layer], 3)
        assert 0 < seconds < float("inf")


@pytest.mark.tiny
def test_a_heads_width_is_what_the_model_says(
    tiny_folder: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo], "What?")
    settings = GenerationSettings(max_new_tokens=5)
    info, stack = handle.info, handle.stack
    keys = 2 * info.layers * stack.kv_heads * (inputs.layout.length + 5) * 4  # of width 1, float32
    plain = forecast(handle, inputs, settings).cache_bytes
    assert plain == keys * stack.hidden_size // stack.heads
    for layer in stack.layers:
        monkeypatch.setattr(layer.self_attn, "head_dim", 24)
    assert forecast(handle, inputs, settings).cache_bytes == keys * 24
    text = handle.model.config.get_text_config()
    monkeypatch.setattr(text, "head_dim", 40, raising=False)
    assert forecast(handle, inputs, settings).cache_bytes == keys * 40


@pytest.mark.tiny
def test_a_small_model_is_not_called_free(tiny_folder: Path, photo: Image.Image) -> None:
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo], "What?")
    settings = GenerationSettings(max_new_tokens=50)
    least = 50 * handle.info.layers * timing.LAYER_SECONDS
    assert forecast(handle, inputs, settings).seconds >= least
