"""Cut edges: masks by hand, and a running model against eager attention in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.capture.prefix import forward_prefix
from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.interventions.edges import CutEdges
from sinkscope.models.family import PromptInputs, PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection

MODEL = ModelInfo("m", "r", "f", "float32", "cpu", layers=2, heads=1, hidden_size=8)
CPU = torch.device("cpu")


def run_of(length: int, batch: int = 1) -> RunInfo:
    layout = PromptLayout(length, (Segment("user", 0, length),), ())
    return RunInfo(MODEL, (layout,) * batch, length, 2, CPU)


def test_a_mask_by_hand() -> None:
    """Queries 1 and 3 lose keys 0, 1 and 2; query 1 keeps its own key, and query 2 all of them."""
    cuts = CutEdges(((0, 1, 2),), queries=(1, 3)).begin(run_of(4))
    mask = cuts.mask(0, range(4), 4, CPU)
    assert mask is not None and mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def test_a_pass_without_a_chosen_query_has_no_mask() -> None:
    cuts = CutEdges(((0,),), queries=range(3, 6)).begin(run_of(4))
    assert cuts.mask(0, range(3), 3, CPU) is None
    later = cuts.mask(1, range(5, 6), 8, CPU)  # decode, in a longer static cache
    assert later is not None and later[0, 0].int().tolist() == [[0, 1, 1, 1, 1, 1, 0, 0]]


def test_each_row_of_the_batch_its_own() -> None:
    cuts = CutEdges(((0,), (), (1, 2)), queries=range(3, 4)).begin(run_of(4, batch=3))
    mask = cuts.mask(0, range(3, 4), 4, CPU)
    assert mask is not None
    assert mask[:, 0, 0].int().tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (CutEdges(((0,), (1,))), "keys has 2 sets; allowed: 1 for all rows of the batch, or 3"),
        (CutEdges(((6,),)), "keys has position 6; allowed: 0 to 5"),
        (CutEdges(((-1,),)), "keys has position -1; allowed: 0 to 5"),
        (CutEdges(((0,),), queries=(9,)), "queries has position 9; allowed: 0 to 5"),
        (CutEdges(((0,),), queries=range(2, 8)), "queries has position 6; allowed: 0 to 5"),
        (CutEdges(((0,),), layers=(2,)), "layers has 2; this model has layers 0 to 1"),
    ],
)
def test_what_does_not_exist_is_named(cuts: CutEdges, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        cuts.begin(run_of(4, batch=3))


# --- a running model ----------------------------------------------------------------------------

ANSWER = (70, 71, 72, 73)  # any tokens: they are read, not made


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    """Two images, so that there is text between vision tokens."""
    return handle.prepare([photo.resize((140, 112)), photo.resize((84, 84))], "What is it?")


def with_answer(inputs: PromptInputs, answer: tuple[int, ...] = ANSWER) -> dict[str, torch.Tensor]:
    """The prompt's tensors followed by the answer."""
    made = dict(inputs.tensors)
    ids = made["input_ids"]
    made["input_ids"] = torch.cat([ids, torch.tensor([answer])], 1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    made["mm_token_type_ids"] = torch.nn.functional.pad(made["mm_token_type_ids"], (0, len(answer)))
    return made


def eager64(
    handle: ModelHandle,
    inputs: PromptInputs,
    keys: tuple[int, ...],
    queries: tuple[int, ...],
    layers: tuple[int, ...],
) -> torch.Tensor:
    """float64 (positions, vocabulary): a copy of the model with eager attention, to whose scores an
    additive mask is added edge by edge."""
    model = copy.deepcopy(handle.model).double()
    model.set_attn_implementation({"text_config": "eager"})
    tensors = with_answer(inputs)
    length = tensors["input_ids"].shape[1]
    causal = torch.full((1, 1, length, length), float("-inf"), dtype=torch.float64).triu(1)
    cut = causal.clone()
    for query in queries:
        for key in keys:
            if key != query:
                cut[0, 0, query, key] = float("-inf")

    def hook(mask: torch.Tensor) -> Any:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    for number, layer in enumerate(model.model.language_model.layers):
        mask = cut if number in layers else causal
        layer.register_forward_pre_hook(hook(mask), with_kwargs=True)
    tensors["pixel_values"] = tensors["pixel_values"].double()
    with torch.no_grad():
        return model(**tensors).logits[0]


def cutting(
    handle: ModelHandle,
    inputs: PromptInputs,
    cuts: CutEdges,
    rows: int,
    answer: tuple[int, ...] = ANSWER,
) -> torch.Tensor:
    """float32 (rows, positions, vocabulary): one pass over everything."""
    tensors = with_answer(inputs, answer)
    rest = {k: v for k, v in tensors.items() if k not in ("pixel_values", "image_grid_thw")}
    many = {k: v.repeat(rows, 1) for k, v in rest.items()}
    many["pixel_values"] = tensors["pixel_values"].repeat(rows, 1)
    many["image_grid_thw"] = tensors["image_grid_thw"].repeat(rows, 1)
    with attached(handle, inputs, interventions=[cuts], batch=rows, new_tokens=len(ANSWER)):
        return handle.model(**many).logits


def from_prefix(
    handle: ModelHandle, inputs: PromptInputs, cuts: CutEdges, rows: int
) -> torch.Tensor:
    """float32 (rows, positions after the last image, vocabulary), continued from a prefix."""
    prefix = forward_prefix(handle, inputs, ())
    ids = with_answer(inputs)["input_ids"][:, prefix.length :].repeat(rows, 1)
    with attached(
        handle,
        inputs,
        interventions=[cuts],
        batch=rows,
        new_tokens=len(ANSWER),
        prefix=prefix,
    ):
        return handle.model(
            input_ids=ids, past_key_values=prefix.fork(handle, rows), use_cache=True
        ).logits


@pytest.mark.tiny
@pytest.mark.parametrize("layers", [None, (1,), (0, 3)])
def test_equals_eager_float64_at_prefill(
    handle: ModelHandle, inputs: PromptInputs, layers: tuple[int, ...] | None
) -> None:
    one, two = inputs.layout.grids
    sets = (
        (one.positions[0], one.positions[0] + 3),
        (),
        (*range(one.positions[0], one.after), two.positions[0], two.after),  # and a key of text
    )
    queries = (
        one.after,
        two.positions[0] + 2,
        *range(two.after, inputs.layout.length + len(ANSWER)),
    )
    found = cutting(handle, inputs, CutEdges(sets, queries, layers), len(sets))
    plain = found[1]
    for row, keys in zip(found, sets, strict=True):
        exact = eager64(handle, inputs, keys, queries, layers or tuple(range(4)))
        torch.testing.assert_close(row, exact.float(), rtol=0, atol=3e-5)
        assert torch.allclose(row[: one.after], plain[: one.after], rtol=0, atol=1e-5)
    changed = (found[[0, 2]] - plain).abs().amax((1, 2))
    assert changed.min() > 1e-2, "each set must change something"


@pytest.mark.tiny
def test_equals_eager_float64_from_a_prefix(handle: ModelHandle, inputs: PromptInputs) -> None:
    one, two = inputs.layout.grids
    sets = ((one.positions[0] + 1, one.positions[0] + 2), (two.positions[0],), ())
    found = from_prefix(handle, inputs, CutEdges(sets), len(sets))
    queries = tuple(range(two.after, inputs.layout.length + len(ANSWER)))
    for row, keys in zip(found, sets, strict=True):
        exact = eager64(handle, inputs, keys, queries, (0, 1, 2, 3))
        torch.testing.assert_close(row, exact[two.after :].float(), rtol=0, atol=3e-5)
    whole = cutting(handle, inputs, CutEdges(sets), len(sets))
    torch.testing.assert_close(found, whole[:, two.after :], rtol=0, atol=2e-5)


@pytest.mark.tiny
def test_nothing_cut_is_the_plain_run(handle: ModelHandle, inputs: PromptInputs) -> None:
    """Bit for bit if no pass has a chosen query; otherwise up to the last digits of another
    kernel."""
    last = inputs.layout.length + len(ANSWER) - 1
    with attached(handle, inputs, new_tokens=len(ANSWER)):
        plain = handle.model(**with_answer(inputs)).logits
    for cuts, digits in (
        (CutEdges(((),)), 1e-5),
        (CutEdges(((0,),), queries=()), 0.0),
        (CutEdges(((0,),), layers=()), 0.0),
        (CutEdges(((last,),)), 1e-5),  # only its own query could see it
    ):
        found = cutting(handle, inputs, cuts, 1)
        torch.testing.assert_close(found, plain, rtol=0, atol=digits)


@pytest.mark.tiny
def test_queries_before_the_image_and_in_it_are_not_touched(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    """Their residual stream is unchanged in every layer; that of the following text is not."""
    start, stop = inputs.layout.grids[0].positions[0], inputs.layout.after_images
    layers = tuple(range(4))

    def states(*cuts: CutEdges) -> torch.Tensor:
        probe = Values(SiteSelection("block_in", layers))
        with attached(handle, inputs, [probe], list(cuts)) as session:
            handle.model(**inputs.tensors)
        return torch.cat([session[probe][layer] for layer in layers])

    plain, cut = states(), states(CutEdges(((start, start + 1),)))
    torch.testing.assert_close(cut[:, :stop], plain[:, :stop], rtol=0, atol=1e-5)
    assert (cut[1:, stop:] - plain[1:, stop:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.tiny
def test_rows_are_a_softmax_over_what_remains(handle: ModelHandle, inputs: PromptInputs) -> None:
    end, start = inputs.layout.length, inputs.layout.grids[0].positions[0]
    seen = (end - 2, end - 1)
    plain, rows = Rows((0,), seen), Rows((0,), seen)
    gone = [start, start + 3]
    with attached(handle, inputs, [plain]) as before:
        handle.model(**inputs.tensors)
    cuts = CutEdges((tuple(gone),), queries=(end - 1,))
    with attached(handle, inputs, [rows], [cuts]) as after:
        handle.model(**inputs.tensors)
    left = before[plain][0, end - 1].clone()
    left[..., gone] = 0
    left = left / left.sum(-1, keepdim=True)
    torch.testing.assert_close(after[rows][0, end - 1], left, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        after[rows][0, end - 2], before[plain][0, end - 2], rtol=0, atol=1e-6
    )


@pytest.mark.tiny
def test_generating_cuts_the_answer_too(handle: ModelHandle, inputs: PromptInputs) -> None:
    """Each decoded row is cut like the row of a single pass over the same tokens."""
    start = inputs.layout.grids[0].positions[0]
    cuts = CutEdges((tuple(range(start, start + 6)),))
    tensors = dict(inputs.tensors)
    with attached(handle, inputs, interventions=[cuts], new_tokens=4):
        made = handle.model.generate(
            **tensors, max_new_tokens=4, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    new = tuple(made.sequences[0, inputs.layout.length :].tolist())
    at_once = cutting(handle, inputs, cuts, 1, new)[0, inputs.layout.length - 1 : -1]
    torch.testing.assert_close(torch.cat(made.logits), at_once, rtol=0, atol=1e-4)
