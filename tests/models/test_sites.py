"""Sites by role: the values read there, and the effect of an edit there, on the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.interventions.base import Intervention
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sites import MODULE_SITES, NO_END, SiteSelection, put, take
from sinkscope.models.stack import TextStack

NEW, LAYER = 4, 2
# Module of each site, and whether its input is meant: written out again, because this is a test.
MODULES: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "block_in": (lambda layer: layer, "in"),
    "q": (lambda layer: layer.self_attn.q_proj, "out"),
    "k": (lambda layer: layer.self_attn.k_proj, "out"),
    "v": (lambda layer: layer.self_attn.v_proj, "out"),
    "attn_out": (lambda layer: layer.self_attn.o_proj, "out"),
    "mlp_norm_in": (lambda layer: layer.post_attention_layernorm, "in"),
    "mlp_in": (lambda layer: layer.post_attention_layernorm, "out"),
    "gate": (lambda layer: layer.mlp.gate_proj, "out"),
    "up": (lambda layer: layer.mlp.up_proj, "out"),
    "z": (lambda layer: layer.mlp.down_proj, "in"),
    "mlp_out": (lambda layer: layer.mlp.down_proj, "out"),
    "block_out": (lambda layer: layer, "out"),
}


def test_positions_that_pass() -> None:
    assert SiteSelection("z").positions_in(5, 3) == range(5, 8)
    assert SiteSelection("z", None, range(6, 100)).positions_in(5, 3) == range(6, 8)
    assert not SiteSelection("z", None, range(5)).positions_in(5, 3)
    assert not SiteSelection("z", None, range(8, 9)).positions_in(5, 3)
    assert SiteSelection("z", None, (0, 5, 7, 8)).positions_in(5, 3) == (5, 7)
    assert SiteSelection("rows", None, range(9, NO_END)).positions_in(20, 1) == range(20, 21)


@pytest.mark.parametrize("positions", [(3, 3), (4, 2), (-1, 2), range(0, 8, 2), range(-1, 3)])
def test_positions_that_are_none(positions: Any) -> None:
    with pytest.raises(ValueError, match="allowed: a range of step 1, or rising whole numbers"):
        SiteSelection("z", None, positions)
    with pytest.raises(ValueError, match="site is 'w'; allowed: block_in, q, "):
        SiteSelection("w")  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", [range(10, 16), range(12, 14), (10, 13, 15), range(10, 11)])
def test_what_is_taken_is_put_back(positions: Sequence[int]) -> None:
    values = torch.arange(6.0)[None, :, None] * torch.ones(2, 1, 3)
    part = take(values, positions, 10)
    assert part[0, :, 0].tolist() == [position - 10 for position in positions]
    changed = put(values, positions, 10, part + 100)
    for position in range(10, 16):
        expected = position - 10 + 100 * (position in positions)
        assert (changed[:, position - 10] == expected).all()
    assert float(values.max()) == 5, "the values themselves are not written to"


def test_a_family_without_a_site_says_what_there_is() -> None:
    stack = TextStack(nn.Linear(1, 1), (nn.Linear(1, 1),), nn.Linear(1, 1), 1, 1, 1)
    with pytest.raises(ValueError, match="site is 'z'; this model has "):
        stack.point("z", 0)


# --- on the tiny model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo.resize((112, 84))], "What is there?")


def generate(handle: ModelHandle, inputs: PromptInputs) -> Any:
    return handle.model.generate(
        **inputs.tensors,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


@contextmanager
def plain_sdpa(handle: ModelHandle) -> Iterator[None]:
    handle.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})


@contextmanager
def by_hand(
    handle: ModelHandle, site: str, layer: int, do: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """A plain torch hook on the site's module."""
    find, side = MODULES[site]
    module = find(handle.stack.layers[layer])

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        new = do(args[0])
        return None if new is None else (new, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        assert isinstance(output, Tensor)
        return do(output)

    hook = (
        module.register_forward_pre_hook(before)
        if side == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.tiny
def test_every_site_has_a_module_here() -> None:
    assert set(MODULES) == set(MODULE_SITES)


@pytest.mark.tiny
@pytest.mark.parametrize("where", ["all", "range", "tuple", "answer"])
@pytest.mark.parametrize("site", MODULE_SITES)
def test_reading_is_what_a_hook_sees(
    handle: ModelHandle, inputs: PromptInputs, site: str, where: str
) -> None:
    end = inputs.layout.length
    wanted = {
        "all": None,
        "range": range(3, end + 1),
        "tuple": (0, 5, end - 1, end, end + 2),
        "answer": range(end, NO_END),
    }[where]
    seen: list[Tensor] = []
    with plain_sdpa(handle), by_hand(handle, site, LAYER, lambda values: seen.append(values)):
        plain = generate(handle, inputs)
    right = torch.cat(seen, dim=1)
    assert right.shape[1] == end + NEW - 1
    probe = Values(SiteSelection(site, (LAYER,), wanted))  # type: ignore[arg-type]
    with attached(handle, inputs, [probe], new_tokens=NEW) as session:
        ours = generate(handle, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    (found,) = session[probe].values()
    here = [p for p in range(right.shape[1]) if wanted is None or p in wanted]
    assert torch.equal(found.flatten(2), right[:, here])
    if site in ("q", "k", "v"):
        heads = handle.stack.heads if site == "q" else handle.stack.kv_heads
        assert found.shape[2:] == (heads, 16)


@dataclass(frozen=True)
class Squashed(Intervention):
    """Squashes a site's values (a norm would undo a constant factor)."""

    edits: tuple[SiteSelection, ...]

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        assert values.shape[1] == len(positions)
        return torch.tanh(values)


@pytest.mark.tiny
@pytest.mark.parametrize("where", ["all", "range", "tuple"])
@pytest.mark.parametrize("site", MODULE_SITES)
def test_an_edit_is_what_a_hook_does(
    handle: ModelHandle, inputs: PromptInputs, site: str, where: str
) -> None:
    """At prefill and decode: edited keys and values stay in the cache."""
    end = inputs.layout.length
    wanted = {"all": None, "range": range(4, end + 2), "tuple": (1, 6, end - 1, end + 1)}[where]
    passed = 0

    def squash(values: Tensor) -> Tensor:
        nonlocal passed
        here = [p for p in range(values.shape[1]) if wanted is None or p + passed in wanted]
        passed += values.shape[1]
        new = values.clone()
        new[:, here] = torch.tanh(new[:, here])
        return new

    with plain_sdpa(handle), by_hand(handle, site, LAYER, squash):
        right = generate(handle, inputs)
    change = Squashed((SiteSelection(site, (LAYER,), wanted),))  # type: ignore[arg-type]
    seen = Values(SiteSelection(site, (LAYER,)))  # type: ignore[arg-type]
    with attached(handle, inputs, [seen], [change], new_tokens=NEW) as session:
        ours = generate(handle, inputs)
    for a, b in zip(right.logits, ours.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    plain = generate(handle, inputs)
    assert (plain.logits[0] - ours.logits[0]).abs().max() > 1e-3
    assert session[seen][LAYER].shape[1] == end + NEW - 1  # probes see the edited values


@pytest.mark.tiny
def test_the_sites_of_a_layer_are_its_equations(handle: ModelHandle, inputs: PromptInputs) -> None:
    probes = {site: Values(SiteSelection(site)) for site in MODULE_SITES}  # type: ignore[arg-type]
    layer = handle.stack.layers[LAYER]
    with attached(handle, inputs, list(probes.values())) as session:
        handle.model(**inputs.tensors)
    at = {site: session[probe][LAYER] for site, probe in probes.items()}
    normed = layer.input_layernorm(at["block_in"])  # type: ignore[operator]
    mlp: Any = layer.mlp
    for site, projection in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
        made = getattr(layer.self_attn, projection)(normed)
        torch.testing.assert_close(at[site].flatten(2), made, rtol=0, atol=1e-5)
    equations = {
        "mlp_norm_in": at["block_in"] + at["attn_out"],
        "mlp_in": layer.post_attention_layernorm(at["mlp_norm_in"]),  # type: ignore[operator]
        "gate": mlp.gate_proj(at["mlp_in"]),
        "up": mlp.up_proj(at["mlp_in"]),
        "z": torch.nn.functional.silu(at["gate"]) * at["up"],
        "mlp_out": mlp.down_proj(at["z"]),
        "block_out": at["mlp_norm_in"] + at["mlp_out"],
    }
    for site, expected in equations.items():
        torch.testing.assert_close(at[site], expected, rtol=0, atol=1e-5)
    following = session[probes["block_in"]][LAYER + 1]
    assert torch.equal(at["block_out"], following)


@pytest.mark.tiny
def test_queries_and_keys_are_the_rotated_projections(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    """Rotation keeps norms; their softmax is the attention row (`test_attention`)."""

    @dataclass(frozen=True)
    class Both(Probe):
        reads: tuple[SiteSelection, ...] = (SiteSelection("queries_keys", (LAYER,)),)

    both, q, k = Both(), Values(SiteSelection("q", (LAYER,))), Values(SiteSelection("k", (LAYER,)))
    with attached(handle, inputs, [both, q, k]) as session:
        handle.model(**inputs.tensors)
    ((rotated, keys, scale),) = session[both][LAYER]
    for turned, flat in ((rotated, session[q][LAYER]), (keys, session[k][LAYER])):
        torch.testing.assert_close(turned.norm(dim=-1), flat.transpose(1, 2).norm(dim=-1))
        assert not torch.allclose(turned, flat.transpose(1, 2))
    assert scale == pytest.approx(16**-0.5)


@pytest.mark.tiny
def test_where_nobody_looks_nothing_is_called(handle: ModelHandle, inputs: PromptInputs) -> None:
    """Only the requested hooks exist, and a probe of prompt positions is not called at decode."""
    called: list[tuple[str, int, Sequence[int]]] = []

    @dataclass(frozen=True)
    class Told(Probe):
        reads: tuple[SiteSelection, ...]

        def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
            called.append((site, layer, positions))

    def hooks(stack: TextStack) -> int:
        modules = [m for layer in stack.layers for m in layer.modules()]
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)

    end, before = inputs.layout.length, hooks(handle.stack)
    sites = (SiteSelection("z", (1,), range(end)), SiteSelection("gate", (3,), range(end, NO_END)))
    with attached(handle, inputs, [Told(sites)], new_tokens=NEW):
        assert hooks(handle.stack) == before + 2
        generate(handle, inputs)
    assert hooks(handle.stack) == before
    answer = [("gate", 3, range(p, p + 1)) for p in range(end, end + NEW - 1)]
    assert called == [("z", 1, range(end)), *answer]
