"""The recorder on made-up rows: in whatever order rows arrive, the trace is the same."""

from __future__ import annotations

import pytest
import torch

from sinkscope.capture import host_copies
from sinkscope.capture import recorder as recording
from sinkscope.capture.recorder import TraceRecorder
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.views import one_view

LAYERS, HEADS, PROMPT, TOKENS = 5, 3, 20, 4
LAYOUT = PromptLayout(
    PROMPT,
    (
        Segment("system", 0, 2),
        Segment("image", 2, 8, 0),
        Segment("user", 8, 9),
        Segment("image", 9, 13, 1),
        Segment("user", 13, PROMPT),
    ),
    (one_view(2, 1, 4, 6, 2, (56, 84), (1, 1)), one_view(9, 1, 4, 4, 2, (56, 56), (1, 1))),
)


def all_rows(batch: int = 1) -> torch.Tensor:
    """(layers, B, H, N + T - 1, K) causal rows of a prompt and its answer."""
    keys = PROMPT + TOKENS - 1
    scores = torch.randn(
        LAYERS, batch, HEADS, keys, keys, generator=torch.Generator().manual_seed(0)
    )
    later = torch.ones(keys, keys, dtype=torch.bool).triu(1)
    return torch.softmax(3 * scores.masked_fill(later, float("-inf")), dim=-1)


def expected(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expected results from (T, L, H, K), by the definitions."""
    shares = [rows[..., s.start : s.stop].sum(-1) for s in LAYOUT.segments]
    shares.append(rows[..., PROMPT:].sum(-1))
    entropy = torch.special.entr(rows).sum(-1)
    return rows[..., LAYOUT.vision_positions()].half(), torch.stack(shares, -1), entropy


def check(found: tuple[torch.Tensor, ...], rows: torch.Tensor) -> None:
    attention, shares, entropy = expected(rows)
    assert found[0].dtype == torch.float16 and torch.equal(found[0], attention)
    assert found[1].dtype == torch.float32 and torch.allclose(found[1], shares, atol=1e-6)
    assert found[2].dtype == torch.float32 and torch.allclose(found[2], entropy, atol=1e-5)


def answers(rows: torch.Tensor, batch_row: int = 0) -> torch.Tensor:
    """(T, L, H, K): the rows that explain the answer."""
    return rows[:, batch_row, :, PROMPT - 1 :].movedim(2, 0)


@pytest.mark.parametrize("staged", [1, 3 * HEADS * 23 * 4, 1 << 22], ids=["1", "3", "all"])
@pytest.mark.parametrize("batch, batch_row", [(1, 0), (2, 0), (2, 1)])
def test_step_by_step_as_in_generation(
    batch: int, batch_row: int, staged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STAGED_BYTES", staged)
    rows = all_rows(batch)
    recorder = TraceRecorder(LAYOUT, range(LAYERS), range(HEADS), TOKENS, batch_row=batch_row)
    for position in range(PROMPT - 1, PROMPT + TOKENS - 1):
        for layer in range(LAYERS):
            recorder.record(
                layer, rows[layer, :, :, position : position + 1, : position + 1], position
            )
    check(recorder.recorded(TOKENS), answers(rows, batch_row))


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_in_chunks_of_one_pass(chunk: int) -> None:
    rows = all_rows()
    recorder = TraceRecorder(LAYOUT, range(LAYERS), range(HEADS), TOKENS)
    for layer in range(LAYERS):
        for low in range(PROMPT - 4, PROMPT + TOKENS - 1, chunk):
            recorder.record(layer, rows[layer, :, :, low : low + chunk], low)
    check(recorder.recorded(TOKENS), answers(rows))


def test_some_layers_and_heads_in_any_order_of_arrival() -> None:
    rows = all_rows()
    recorder = TraceRecorder(LAYOUT, (1, 2, 4), (0, 2), TOKENS)
    for layer in (4, 0, 2, 1, 3):
        recorder.record(layer, rows[layer], 0)
    check(recorder.recorded(TOKENS), answers(rows)[:, [1, 2, 4]][:, :, [0, 2]])


def test_a_stretch_of_the_prompt() -> None:
    rows = all_rows()
    recorder = TraceRecorder(LAYOUT, range(LAYERS), range(HEADS), 6, first=5)
    for layer in range(LAYERS):
        recorder.record(layer, rows[layer, :, :, :PROMPT, :PROMPT], 0)
    check(recorder.recorded(6), rows[:, 0, :, 5:11].movedim(2, 0))


def test_a_row_on_one_key_has_no_entropy() -> None:
    recorder = TraceRecorder(LAYOUT, (0,), (0,), 1)
    row = torch.zeros(1, 1, 1, PROMPT)
    row[..., 3] = 1
    recorder.record(0, row, PROMPT - 1)
    attention, shares, entropy = recorder.recorded(1)
    assert entropy.item() == 0 and shares[0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert attention[0, 0, 0].tolist() == [0, 1, *[0] * 8]


def test_what_was_not_recorded_cannot_be_finished() -> None:
    rows = all_rows()
    recorder = TraceRecorder(LAYOUT, range(LAYERS), range(HEADS), TOKENS)
    for layer in range(LAYERS):
        recorder.record(layer, rows[layer, :, :, PROMPT - 1 : PROMPT], PROMPT - 1)
    recorder.recorded(1)
    with pytest.raises(RuntimeError, match="2 tokens were generated but only 1"):
        recorder.recorded(2)


def test_a_batch_row_that_is_not_there() -> None:
    recorder = TraceRecorder(LAYOUT, (0,), (0,), 1, batch_row=1)
    with pytest.raises(ValueError, match="batch row 1, but the batch has 1"):
        recorder.record(0, torch.ones(1, 1, 1, PROMPT), PROMPT - 1)


class Arrives:
    """An event that is done at the third query, or when waited for."""

    def __init__(self) -> None:
        self._asked = 0

    def query(self) -> bool:
        self._asked += 1
        return self._asked > 2

    def synchronize(self) -> None:
        self._asked = 3


@pytest.fixture
def copies_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorders for rows on a GPU, tested without a GPU."""
    monkeypatch.setattr(
        host_copies, "pinned_bytes", lambda size: torch.empty(size, dtype=torch.uint8)
    )
    monkeypatch.setattr(host_copies, "record_event", lambda device: Arrives())


@pytest.mark.usefixtures("copies_without_gpu")
@pytest.mark.parametrize("staged", [1, 3 * HEADS * 23 * 4, 1 << 25], ids=["1", "3", "all"])
@pytest.mark.parametrize("reduce_heads", [False, True])
def test_a_gpus_rows_cross_once_a_token(
    staged: int, reduce_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STAGED_ON_A_GPU", staged)
    rows = all_rows()
    made = [
        TraceRecorder(
            LAYOUT,
            range(LAYERS),
            range(HEADS),
            TOKENS,
            pinned=pinned,
            reduce_heads=reduce_heads,
        )
        for pinned in (True, False)
    ]
    for position in range(PROMPT - 1, PROMPT + TOKENS - 1):
        for layer in range(LAYERS):
            for recorder in made:
                part = rows[layer, :, :, position : position + 1, : position + 1]
                recorder.record(layer, part, position)
    ours, plain = (recorder.recorded(TOKENS) for recorder in made)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert made[0]._copies is not None
    assert made[0]._copies.started == TOKENS


@pytest.mark.usefixtures("copies_without_gpu")
@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_a_gpus_rows_of_a_prompt_cross_too(chunk: int) -> None:
    rows = all_rows()
    recorder = TraceRecorder(LAYOUT, range(LAYERS), range(HEADS), TOKENS, pinned=True)
    for layer in range(LAYERS):
        for low in range(PROMPT - 4, PROMPT + TOKENS - 1, chunk):
            recorder.record(layer, rows[layer, :, :, low : low + chunk], low)
    check(recorder.recorded(TOKENS), answers(rows))
