"""Attention received: exact against the dense matrix of an eager model, and its laws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sinkscope.sinks.received
from sinkscope.models.loading import load_model
from sinkscope.sinks.finding.measure import measure
from sinkscope.sinks.received import choose, first_query_of, received
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.settings import FindSettings


def dense(rows: torch.Tensor, first_query: int = 0) -> torch.Tensor:
    """The definition, word by word, from softmax rows (H, N, N) in float64."""
    mean = rows.double().mean(0)
    length = len(mean)
    out = torch.zeros(length, dtype=torch.float64)
    for j in range(length):
        later = [q for q in range(j + 1, length) if q >= first_query]
        if later:
            out[j] = sum((q + 1) * mean[q, j] for q in later) / len(later)
    return out


def softmax_rows(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    keys = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    scores = (query @ keys.transpose(1, 2)).double() * scale
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(later, float("-inf")), -1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 23), st.integers(0, 22), st.integers(1, 9), st.integers(0, 10**6))
def test_equals_the_definition(length: int, first: int, step: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(4, length, 8, generator=generator)
    key = 2 * torch.randn(2, length, 8, generator=generator)
    first = min(first, length - 1)
    with pytest.MonkeyPatch.context() as patch:  # any chunk of rows gives the same
        patch.setattr(sinkscope.sinks.received, "block_bytes", lambda device: step * 4 * length * 4)
        ours = received(query, key, 8**-0.5, first)
    torch.testing.assert_close(
        ours.double(), dense(softmax_rows(query, key, 8**-0.5), first), rtol=1e-5, atol=1e-6
    )


def test_uniform_rows_give_one_to_every_key_wherever_it_stands() -> None:
    query, key = torch.zeros(2, 40, 4), torch.randn(1, 40, 4)
    got = received(query, key, 0.5)
    torch.testing.assert_close(got[:-1], torch.ones(39))
    assert got[-1] == 0  # no later query


def test_what_a_token_gives_itself_is_not_received() -> None:
    length = 6
    key = torch.eye(length)[None] * 100
    got = received(key.clone(), key, 1.0)  # every row attends to its own key
    assert float(got.max()) < 1e-6


def test_half_precision_does_not_overflow() -> None:
    query = torch.full((1, 5, 128), 60.0, dtype=torch.float16)
    key = torch.full((1, 5, 128), 60.0, dtype=torch.float16)  # products of 460800
    torch.testing.assert_close(received(query, key, 128**-0.5)[:-1], torch.ones(4))


def test_first_query_of_each_way_to_choose() -> None:
    assert first_query_of("received", 50, 40) == 0
    assert first_query_of("after_image", 50, 40) == 40
    assert first_query_of("last_row", 50, 40) == 49


def test_choose_takes_the_top_of_each_image_above_the_ratio() -> None:
    scores = torch.tensor([1.0, 1, 1, 1, 9, 3.5, 2, 2, 2, 2.0])
    chosen = choose(scores, (6, 4), 1.0, 3.0)
    assert chosen.sinks.nonzero()[:, 0].tolist() == [
        4
    ]  # one an image at most; none stands out in 2
    assert chosen.ordinary.tolist() == [True] * 4 + [False, False] + [True] * 4  # 3.5: neither
    assert chosen.top.tolist() == [4, 6]  # the first of equal ones
    both = choose(scores, (6, 4), 40.0, 3.0)
    assert both.sinks.nonzero()[:, 0].tolist() == [4, 5]
    alone = choose(torch.tensor([5.0]), (1,), 50.0, 3.0)
    assert not alone.sinks.any() and alone.ordinary.all()  # a single token cannot stand out
    assert not choose(torch.zeros(4), (4,), 50.0, 1.0).sinks.any()


@pytest.mark.tiny
@pytest.mark.parametrize("tokens_by", ["received", "after_image", "last_row"])
def test_measured_on_a_model_as_eager_attention_has_it(
    tiny_folder: Path, photo: Image.Image, tokens_by: str
) -> None:
    """Two images, and a shorter prompt beside it, so that one is padded on the left."""
    small = photo.resize((84, 112))
    samples = [
        Sample("two", (photo.resize((140, 112)), small), "What is there?"),
        Sample("one", (small,), "Describe."),
    ]
    handle = load_model(str(tiny_folder), device="cpu")
    batch = measure(handle, samples, FindSettings(tokens_by=tokens_by))  # type: ignore[arg-type]
    single = [
        measure(handle, [sample], FindSettings(tokens_by=tokens_by))[0]  # type: ignore[arg-type]
        for sample in samples
    ]
    eager = load_model(str(tiny_folder), device="cpu")
    eager.model.set_attn_implementation({"text_config": "eager"})
    for together, alone, sample in zip(batch, single, samples, strict=True):
        inputs = eager.prepare(sample.open_images(), sample.prompt)
        with torch.no_grad():
            out = eager.model(**inputs.tensors, output_attentions=True, use_cache=False)
        first = first_query_of(tokens_by, inputs.layout.length, inputs.layout.after_images)  # type: ignore[arg-type]
        vision = inputs.layout.vision_positions()
        expected = torch.stack([dense(rows[0], first)[vision] for rows in out.attentions])
        assert float(expected.max()) > 0.5
        for stats in (together, alone):
            torch.testing.assert_close(
                stats.received.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.max())
            )
