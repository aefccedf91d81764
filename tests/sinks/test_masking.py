"""Hiding tokens: equal to dense attention with a mask, and exact if nothing is hidden."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.validating.masking import (
    ForcedAnswer,
    answer_tokens,
    hidden_log_probabilities,
    read_answer,
)

pytestmark = pytest.mark.tiny
ANSWER = "a red star and a blue circle."


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def forced(handle: ModelHandle, photo: Image.Image) -> ForcedAnswer:
    """Two images, so that there is text between vision tokens."""
    inputs = handle.prepare([photo.resize((140, 112)), photo.resize((84, 84))], "What is it?")
    return read_answer(handle, inputs, answer_tokens(handle, ANSWER, 8))


def sets_of(forced: ForcedAnswer, *positions: list[int]) -> torch.Tensor:
    hidden = torch.zeros(len(positions), forced.inputs.layout.length, dtype=torch.bool)
    for row, chosen in zip(hidden, positions, strict=True):
        row[chosen] = True
    return hidden


def dense(
    handle: ModelHandle,
    forced: ForcedAnswer,
    hidden: torch.Tensor,
    first_query: int,
    first_layer: int = 0,
) -> torch.Tensor:
    """Eager attention with an additive mask; embeddings and positions are computed again."""
    model = copy.deepcopy(handle.model)
    model.set_attn_implementation({"text_config": "eager"})
    tensors = forced.inputs.tensors
    ids = torch.cat([tensors["input_ids"], torch.tensor([forced.answer[:-1]])], 1)
    image = tensors["mm_token_type_ids"][0] == 1
    positions, _ = model.model.get_rope_index(
        ids,
        torch.nn.functional.pad(tensors["mm_token_type_ids"], (0, len(forced.answer) - 1)),
        tensors["image_grid_thw"],
        attention_mask=torch.ones_like(ids),
    )
    embedded = model.get_input_embeddings()(ids)
    pictures = model.model.get_image_features(tensors["pixel_values"], tensors["image_grid_thw"])
    embedded[0, : len(image)][image] = torch.cat(tuple(pictures.pooler_output))
    length = ids.shape[1]
    mask = torch.full((1, 1, length, length), float("-inf"))
    for query in range(length):
        for key in range(query + 1):
            gone = key < len(hidden) and bool(hidden[key]) and key < query and query >= first_query
            if not gone:
                mask[0, 0, query, key] = 0.0
    causal = torch.full_like(mask, float("-inf")).triu(1)

    def until(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": causal}

    for layer in model.model.language_model.layers[:first_layer]:
        layer.register_forward_pre_hook(until, with_kwargs=True)
    states = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions, attention_mask={"full_attention": mask}
    ).last_hidden_state
    logits = model.lm_head(states)[0, forced.inputs.layout.length - 1 :]
    logs = torch.log_softmax(logits.double(), -1)
    return logs[torch.arange(len(forced.answer)), torch.tensor(forced.answer)].float()


def test_plain_pass_is_the_model_itself(handle: ModelHandle, forced: ForcedAnswer) -> None:
    nothing = sets_of(forced, [])
    again = hidden_log_probabilities(handle, forced, nothing)[0]
    assert torch.equal(again, forced.log_probabilities)
    assert torch.equal(
        hidden_log_probabilities(handle, forced, nothing, from_queries="after_image")[0], again
    )
    torch.testing.assert_close(again, dense(handle, forced, nothing[0], 0), rtol=0, atol=2e-5)


def test_hiding_equals_dense_attention_with_a_mask(
    handle: ModelHandle, forced: ForcedAnswer
) -> None:
    one, two = forced.inputs.layout.grids
    whole = [*one.positions, *two.positions]
    sets = ([one.positions[3]], [one.positions[0], two.positions[-1]], whole, [0], [])
    hidden = sets_of(forced, *sets)
    for from_queries, first in (("later", 0), ("after_image", two.after)):
        # 70 tokens a batch: one row at once; the default: all five
        rows = {
            size: hidden_log_probabilities(
                handle, forced, hidden, from_queries=from_queries, batch_tokens=size
            )
            for size in (70, 4096)
        }
        torch.testing.assert_close(rows[70], rows[4096], rtol=0, atol=2e-5)
        for row, own in zip(rows[4096], hidden, strict=True):
            torch.testing.assert_close(row, dense(handle, forced, own, first), rtol=0, atol=2e-5)
        plain = rows[4096][-1]
        assert (rows[4096][:-1] - plain).abs().amax(1).min() > 1e-4, "each set must change it"


def test_each_layer_may_hide_its_own(handle: ModelHandle, forced: ForcedAnswer) -> None:
    start = forced.inputs.layout.grids[0].positions[0]
    same = sets_of(forced, [start, start + 5])
    layers = len(handle.stack.layers)
    everywhere = same[:, None].expand(-1, layers, -1)
    assert torch.equal(
        hidden_log_probabilities(handle, forced, everywhere),
        hidden_log_probabilities(handle, forced, same),
    )
    different = torch.zeros(layers + 2, layers, same.shape[1], dtype=torch.bool)
    for layer in range(layers):
        different[layer, layer] = same[0]
    different[layers] = same[0]  # everywhere; the last row hides nothing
    rows = hidden_log_probabilities(handle, forced, different)
    apart = (rows[:, None] - rows[None]).abs().amax(-1) + torch.eye(layers + 2)
    assert apart.min() > 1e-5, "each layer has its own effect"
    # hidden only in the last layer: the layers before it are unchanged
    whole = different[layers - 1].any(0)
    torch.testing.assert_close(
        rows[layers - 1], dense(handle, forced, whole, 0, layers - 1), rtol=0, atol=2e-5
    )


def test_the_last_batch_is_filled_up_and_cut(handle: ModelHandle, forced: ForcedAnswer) -> None:
    start = forced.inputs.layout.grids[0].positions[0]
    hidden = sets_of(forced, *[[start + k] for k in range(5)])
    alone = torch.cat([hidden_log_probabilities(handle, forced, row[None]) for row in hidden])
    in_twos = hidden_log_probabilities(handle, forced, hidden, batch_tokens=2 * forced.length)
    assert in_twos.shape == (5, len(forced.answer))
    torch.testing.assert_close(in_twos, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32_and_no_noise_of_its_own(
    tiny_folder: Path, handle: ModelHandle, forced: ForcedAnswer, dtype: str
) -> None:
    half = load_model(str(tiny_folder), device="cpu", dtype=dtype)  # type: ignore[arg-type]
    own = read_answer(half, forced.inputs, forced.answer)
    start = forced.inputs.layout.grids[0].positions[0]
    hidden = sets_of(forced, [], [start], [], [start, start + 1])
    rows = hidden_log_probabilities(half, own, hidden, batch_tokens=2 * own.length)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[0], rows[2]), "the same set in two batches is the same number"
    exact = hidden_log_probabilities(handle, forced, hidden)
    torch.testing.assert_close(rows, exact, rtol=0, atol=0.2)


def test_nothing_stays_on_the_model(handle: ModelHandle, forced: ForcedAnswer) -> None:
    def hooks() -> int:
        modules = [handle.stack.language_model, handle.stack.output_head, *handle.stack.layers]
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)

    before = hooks()
    start = forced.inputs.layout.grids[0].positions[0]
    hidden_log_probabilities(handle, forced, sets_of(forced, [start]))
    assert hooks() == before == 0
    again = read_answer(handle, forced.inputs, forced.answer)
    assert torch.equal(again.log_probabilities, forced.log_probabilities)


def test_refusals(handle: ModelHandle, forced: ForcedAnswer) -> None:
    length = forced.inputs.layout.length
    for wrong in (
        torch.zeros(1, length),
        torch.zeros(0, length, dtype=torch.bool),
        torch.zeros(1, length + 1, dtype=torch.bool),
        torch.zeros(1, 3, length, dtype=torch.bool),
    ):
        with pytest.raises(ValueError, match=rf"hidden has shape .* \(sets, {length}\)"):
            hidden_log_probabilities(handle, forced, wrong)
    with pytest.raises(ValueError, match="from_queries is 'all'; allowed: later, after_image"):
        hidden_log_probabilities(handle, forced, sets_of(forced, []), from_queries="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="The answer has no token"):
        read_answer(handle, forced.inputs, ())


def test_special_tokens_in_an_answer_stay_text(handle: ModelHandle) -> None:
    special = set(handle.processor.tokenizer.all_special_ids)
    ids = answer_tokens(handle, "yes<|im_end|> no", 64)
    assert ids and not special & set(ids)
    assert answer_tokens(handle, "yes<|im_end|> no", 2) == ids[:2]
