"""A session: what is attached, in which order it acts, and that nothing of it remains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sinkscope.capture.prefix import forward_prefix
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.config import VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.models import attention
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sites import NO_END, SiteSelection
from sinkscope.var_patch import VAR

pytestmark = pytest.mark.tiny
NEW = 5


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo.resize((112, 84))], "What is there?")


def generate(handle: ModelHandle, inputs: PromptInputs, **options: Any) -> Any:
    return handle.model.generate(
        **inputs.tensors,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


# --- a probe and interventions as somebody else would write them ---------------------------------


@dataclass(frozen=True)
class Norms(Probe):
    """An example probe: norms of the residual stream."""

    reads: tuple[SiteSelection, ...] = (SiteSelection("block_in"),)

    def see(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        return values.norm(dim=-1)


@dataclass(frozen=True)
class Times(Intervention):
    """An example intervention: multiplies rows and the MLP's output, and records when."""

    factor: float
    layers: tuple[int, ...] = (1,)
    edits: tuple[SiteSelection, ...] = (SiteSelection("mlp_out", (1,)),)
    said: list[tuple[str, float]] = field(default_factory=list, compare=False)

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        self.said.append(("rows", self.factor))
        return rows * self.factor

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        self.said.append((site, self.factor))
        return values * self.factor


@dataclass(frozen=True)
class Plus(Intervention):
    """Another example: adds to the MLP's output."""

    amount: float
    edits: tuple[SiteSelection, ...] = (SiteSelection("mlp_out", (1,)),)

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        return values + self.amount


def test_a_made_up_probe_needs_one_small_class(handle: ModelHandle, inputs: PromptInputs) -> None:
    norms, stream = Norms(), Values(SiteSelection("block_in"))
    with attached(handle, inputs, [norms, stream]) as session:
        generate(handle, inputs)
    assert sorted(session[norms]) == list(range(handle.info.layers))
    for layer, parts in session[norms].items():
        assert len(parts) == NEW  # pass by pass
        assert torch.equal(torch.cat(parts, 1), session[stream][layer].norm(dim=-1))


def test_interventions_act_in_the_order_listed_and_probes_see_what_is_left(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    def mlp_out(*interventions: Intervention) -> Tensor:
        probe = Values(SiteSelection("mlp_out", (1,)))
        with attached(handle, inputs, [probe], interventions) as session:
            handle.model(**inputs.tensors)
        return session[probe][1]

    def without_rows(factor: float) -> Times:  # otherwise rows also change the MLP's input
        return Times(factor, layers=())

    plain = mlp_out()
    torch.testing.assert_close(mlp_out(without_rows(2.0), Plus(1.0)), 2 * plain + 1)
    torch.testing.assert_close(mlp_out(Plus(1.0), without_rows(2.0)), 2 * (plain + 1))


def test_rows_compose_and_are_seen_changed(handle: ModelHandle, inputs: PromptInputs) -> None:
    end = inputs.layout.length
    said: list[tuple[str, float]] = []
    both = [Times(0.5, edits=(), said=said), Times(0.25, edits=(), said=said)]
    first, deep = Rows((1,), range(NO_END)), Rows((3,), (end - 1,))
    with attached(handle, inputs, [first, deep], both) as session:
        handle.model(**inputs.tensors)
    assert [factor for _, factor in said] == [0.5, 0.25] * (len(said) // 2)
    plain = Rows((1,), range(NO_END))
    with attached(handle, inputs, [plain]) as before:
        handle.model(**inputs.tensors)
    after_image = inputs.layout.after_images
    for position in range(end):
        factor = 0.125 if position >= after_image else 1.0  # the default range of interventions
        torch.testing.assert_close(
            session[first][1, position], before[plain][1, position] * factor, rtol=0, atol=1e-6
        )
    assert session[deep][3, end - 1].sum(-1) == pytest.approx(1.0), "the next layers are their own"


# --- what is not attached does not cost ---------------------------------------------------------


def test_layers_of_which_nothing_is_wanted_are_plain_sdpa_bit_for_bit(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's input equals that of plain SDPA at every step, so the rows of the only
    captured layer are those of the plain model."""
    last, end = handle.info.layers - 1, inputs.layout.length
    stream = Values(SiteSelection("block_in", (last,)))
    handle.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        with attached(handle, inputs, [stream]) as plain:
            generate(handle, inputs)
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})
    computed: list[int] = []
    real = attention.attention_rows

    def counted(query: Tensor, *rest: Any) -> Tensor:
        computed.append(query.shape[2])
        return real(query, *rest)

    monkeypatch.setattr(attention, "attention_rows", counted)
    own = Values(SiteSelection("block_in", (last,)))
    rows = TraceRows((last,), (0, 1, 2, 3), NEW)
    with attached(handle, inputs, [own, rows], new_tokens=NEW) as session:
        generate(handle, inputs)
    assert torch.equal(session[own][last], plain[stream][last])
    assert session[own][last].shape[1] == end + NEW - 1
    assert computed == [1] * NEW, "one row a token, in one layer"


def test_rows_of_the_prompt_are_not_computed_at_decode(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    plain = generate(handle, inputs)
    with attached(handle, inputs, [Rows(None, (3, 7))]) as session:
        ours = generate(handle, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    assert len(session.run.layouts) == 1


# --- passes -------------------------------------------------------------------------------------


def test_a_pass_without_a_cache_begins_again(handle: ModelHandle, inputs: PromptInputs) -> None:
    end = inputs.layout.length
    rows, marks = Rows((2,), (end - 1,)), SinkScores((3, 40), 1.0)
    with attached(handle, inputs, [rows, marks]) as session:
        for _ in range(3):
            handle.model(**inputs.tensors, use_cache=False)
    assert list(session[rows]) == [(2, end - 1)]
    assert {len(scores) for scores in session[marks].scores().values()} == {end}


def test_a_session_continues_behind_a_prefix(handle: ModelHandle, inputs: PromptInputs) -> None:
    dims, end = (3, 40), inputs.layout.length
    prefix = forward_prefix(handle, inputs, dims)
    whole, behind = (Rows(None, (end - 1,)) for _ in range(2))
    marks = [SinkScores(dims, 1.0) for _ in range(2)]
    with attached(handle, inputs, [whole, marks[0]]) as first:
        handle.model(**inputs.tensors)
    with attached(handle, inputs, [behind, marks[1]], prefix=prefix) as second:
        handle.model(
            input_ids=inputs.tensors["input_ids"][:, prefix.length :],
            past_key_values=prefix.fork(handle, 1),
            use_cache=True,
        )
    for key, row in first[whole].items():
        torch.testing.assert_close(second[behind][key], row, rtol=0, atol=1e-5)
    for one, other in zip(first[marks[0]].found(), second[marks[1]].found(), strict=True):
        assert one.positions == other.positions
    var = VAR((VARSettings(dims, 1.0, layers=(1, 2)),))
    for wrong in (SinkScores((5,)), dataclasses.replace(var, settings=(VARSettings((5,), 1.0),))):
        parts = ([wrong], []) if isinstance(wrong, Probe) else ([], [wrong])
        with (
            pytest.raises(ValueError, match=r"dims is \(5,\), but the shared prefix was scored by"),
            attached(handle, inputs, *parts, prefix=prefix),
        ):
            pytest.fail("it began")


def test_prompts_of_a_batch_are_counted_from_the_longest(
    handle: ModelHandle, photo: Image.Image
) -> None:
    short = handle.prepare([photo.resize((56, 56))], "What?")
    long = handle.prepare([photo.resize((112, 84))], "What is that over there?")
    with attached(handle, [short, long]) as session:
        run = session.run
    assert (run.batch, run.length) == (2, long.layout.length)
    pad = long.layout.length - short.layout.length
    assert run.after_image == max(pad + short.layout.grids[0].after, long.layout.grids[0].after)
    var = VAR((VARSettings((3,), 1.0, layers=(1,)), None))
    with (
        pytest.raises(ValueError, match="VAR acts on one prompt at a time"),
        attached(handle, [short, long], interventions=[var]),
    ):
        pytest.fail("it began")


# --- what is refused ----------------------------------------------------------------------------


def test_two_sessions_on_one_model_are_refused(handle: ModelHandle, inputs: PromptInputs) -> None:
    with (
        attached(handle, inputs, [Norms()]),
        attached(handle, inputs, [Norms()]),
        pytest.raises(RuntimeError, match="Another session is attached"),
    ):
        handle.model(**inputs.tensors)
    handle.model(**inputs.tensors)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Values(SiteSelection("z", (9,))), r"layers has \[9\] at z; this model has layers 0 to 3"),
        (Times(1.0, layers=(4,)), r"layers has \[4\] at rows; this model has layers 0 to 3"),
        (
            Plus(1.0, edits=(SiteSelection("rows"),)),
            "site is 'rows', which can be read and not edited",
        ),
        (TraceRows((0,), (0,), 1, batch_row=1), "batch_row is 1; the batch has rows 0 to 0"),
        (VAR((None, None)), "settings has 2 entries; allowed: one a batch row, 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_hook_is_placed(
    handle: ModelHandle, inputs: PromptInputs, part: Any, words: str
) -> None:
    parts = ([], [part]) if isinstance(part, Intervention) else ([part], [])
    with pytest.raises(ValueError, match=words), attached(handle, inputs, *parts):
        pytest.fail("it began")
    assert not handle.stack.language_model._forward_pre_hooks


def test_a_change_of_shape_is_named(handle: ModelHandle, inputs: PromptInputs) -> None:
    @dataclass(frozen=True)
    class Shorter(Intervention):
        edits: tuple[SiteSelection, ...] = ()

        def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
            return values[..., :-1]

        def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
            return rows[..., :-1]

    for edits, words in (
        ((SiteSelection("block_in", (0,)),), "of block_in .* in layer 0"),
        ((), "of rows"),
    ):
        with (
            pytest.raises(ValueError, match=f"Shorter made .* {words}.* the shape must stay"),
            attached(handle, inputs, interventions=[Shorter(edits)]),
        ):
            handle.model(**inputs.tensors)


def test_more_tokens_than_were_said_are_refused_by_var(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    var = VAR((VARSettings((3, 40), 1.0, layers=(1, 2)),))
    with (
        pytest.raises(ValueError, match=r"2 tokens were expected \(new_tokens\)"),
        attached(handle, inputs, interventions=[var], new_tokens=2),
    ):
        generate(handle, inputs)


def test_results_are_asked_for_by_the_object_itself(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    norms, other = Norms(), Norms()
    with attached(handle, inputs, [norms]) as session:
        handle.model(**inputs.tensors)
    assert session[norms]
    with pytest.raises(KeyError, match="not attached to this session"):
        session[other]
