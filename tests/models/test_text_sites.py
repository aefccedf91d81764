"""Sites and parts by role of each architecture's decoder, on tiny random text models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.interventions.base import Intervention
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import MODULE_SITES, SiteSelection
from tests.text_models import TEXT, WITHOUT_GATE, attention_of, generated

pytestmark = pytest.mark.tiny

LAYER, NEW = 1, 3


@pytest.fixture(name="handle", scope="module")
def _handle(text_handle: ModelHandle) -> ModelHandle:
    return text_handle


@pytest.fixture(name="inputs", scope="module")
def _inputs(text_handle: ModelHandle) -> PromptInputs:
    return text_handle.prepare([], TEXT)


# --- sites --------------------------------------------------------------------------------------

By = Callable[[Any], nn.Module]


def places(handle: ModelHandle) -> dict[str, tuple[By, str, Callable[[Tensor], Tensor]]]:
    """Site -> its module, whether its input is meant, and which part of it: written out again,
    because this is a test."""

    def whole(values: Tensor) -> Tensor:
        return values

    def gpt2_part(number: int) -> Callable[[Tensor], Tensor]:
        return lambda values: values.split(32, dim=-1)[number]

    def neox_part(number: int) -> Callable[[Tensor], Tensor]:  # as GPTNeoXAttention has it
        return lambda values: torch.cat(
            [head.chunk(3, -1)[number] for head in values.split(24, dim=-1)], -1
        )

    if handle.info.family == "gpt2":
        return {
            "block_in": (lambda x: x.ln_1, "in", whole),
            **{
                site: (lambda x: x.attn.c_attn, "out", gpt2_part(number))
                for number, site in enumerate("qkv")
            },
            "attn_out": (lambda x: x.attn.c_proj, "out", whole),
            "mlp_norm_in": (lambda x: x.ln_2, "in", whole),
            "mlp_in": (lambda x: x.ln_2, "out", whole),
            "z": (lambda x: x.mlp.c_proj, "in", whole),
            "mlp_out": (lambda x: x.mlp.c_proj, "out", whole),
            "block_out": (lambda x: x, "out", whole),
        }
    if handle.info.family == "gpt_neox":
        return {
            "block_in": (lambda x: x.input_layernorm, "in", whole),
            **{
                site: (lambda x: x.attention.query_key_value, "out", neox_part(number))
                for number, site in enumerate("qkv")
            },
            "attn_out": (lambda x: x.attention.dense, "out", whole),
            "mlp_norm_in": (lambda x: x.post_attention_layernorm, "in", whole),
            "mlp_in": (lambda x: x.post_attention_layernorm, "out", whole),
            "z": (lambda x: x.mlp.dense_4h_to_h, "in", whole),
            "mlp_out": (lambda x: x.mlp.dense_4h_to_h, "out", whole),
            "block_out": (lambda x: x, "out", whole),
        }
    normed = handle.info.family == "qwen3"
    return {
        "block_in": (lambda x: x.input_layernorm, "in", whole),
        "q": (lambda x: x.self_attn.q_norm if normed else x.self_attn.q_proj, "out", whole),
        "k": (lambda x: x.self_attn.k_norm if normed else x.self_attn.k_proj, "out", whole),
        "v": (lambda x: x.self_attn.v_proj, "out", whole),
        "attn_out": (lambda x: x.self_attn.o_proj, "out", whole),
        "mlp_norm_in": (lambda x: x.post_attention_layernorm, "in", whole),
        "mlp_in": (lambda x: x.post_attention_layernorm, "out", whole),
        "gate": (lambda x: x.mlp.gate_proj, "out", whole),
        "up": (lambda x: x.mlp.up_proj, "out", whole),
        "z": (lambda x: x.mlp.down_proj, "in", whole),
        "mlp_out": (lambda x: x.mlp.down_proj, "out", whole),
        "block_out": (lambda x: x, "out", whole),
    }


def test_sites_are_what_hooks_see(handle: ModelHandle, inputs: PromptInputs) -> None:
    """Prefill and decode, bit for bit."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for site, (find, side, part) in places(handle).items():
        module = find(handle.stack.layers[LAYER])

        def look(values: Any, site: str = site, part: Any = part) -> None:
            values = values[0] if isinstance(values, tuple) else values
            seen.setdefault(site, []).append(part(values))

        if side == "in":
            hooks.append(module.register_forward_pre_hook(lambda m, a, look=look: look(a[0])))
        else:
            hooks.append(module.register_forward_hook(lambda m, a, o, look=look: look(o)))
    with attention_of(handle, "sdpa"):
        generated(handle, inputs)
    for hook in hooks:
        hook.remove()
    probes = {site: Values(SiteSelection(site, (LAYER,))) for site in seen}  # type: ignore[arg-type]
    with attached(handle, inputs, list(probes.values()), new_tokens=NEW) as session:
        generated(handle, inputs)
    assert set(seen) == set(handle.stack.points)
    lacking = set(MODULE_SITES) - set(seen)
    assert lacking == ({"gate", "up"} if handle.info.family in WITHOUT_GATE else set())
    for site, values in seen.items():
        found = session[probes[site]][LAYER]
        right = torch.cat(values, 1)
        assert torch.equal(found.flatten(2), right.flatten(2)), site
        assert found.shape[1] == inputs.layout.length + NEW - 1
        if site in "qkv":
            heads = handle.stack.heads if site == "q" else handle.stack.kv_heads
            assert found.shape[2:] == (heads, handle.stack.head_size)


def test_a_site_that_the_family_lacks(handle: ModelHandle, inputs: PromptInputs) -> None:
    if handle.info.family not in WITHOUT_GATE:
        handle.stack.point("gate", 0)
        return
    with (
        pytest.raises(ValueError, match="site is 'gate'; this model has block_in, q, k, v, attn_"),
        attached(handle, inputs, [Values(SiteSelection("gate"))]),
    ):
        pass


@dataclass(frozen=True)
class Squashed(Intervention):
    edits: tuple[SiteSelection, ...]

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        return torch.tanh(values)


@pytest.mark.parametrize("site", MODULE_SITES)
def test_an_edit_is_what_a_hook_does(handle: ModelHandle, inputs: PromptInputs, site: str) -> None:
    """At prefill and decode; of a fused projection only the intended part changes."""
    if site not in handle.stack.points:
        pytest.skip("this family has no such site")
    find, side, part = places(handle)[site]
    layer = handle.stack.layers[LAYER]
    if site == "block_in":  # changing only the norm's input would not change the residual stream
        module, side = layer, "in"
    else:
        module = find(layer)

    def squashed(values: Tensor) -> Tensor:
        new = values.clone()
        index = torch.arange(values.shape[-1]).expand(1, 1, -1)
        columns = part(index)[0, 0] if values.dim() == 3 else slice(None)
        new[..., columns] = torch.tanh(new[..., columns])
        return new

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (squashed(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (squashed(output[0]), *output[1:])
        return squashed(output)

    hook = (
        module.register_forward_pre_hook(before)
        if side == "in"
        else module.register_forward_hook(after)
    )
    with attention_of(handle, "sdpa"):
        right = generated(handle, inputs)
        hook.remove()
        plain = generated(handle, inputs)
    change = Squashed((SiteSelection(site, (LAYER,)),))  # type: ignore[arg-type]
    with attached(handle, inputs, interventions=[change], new_tokens=NEW):
        ours = generated(handle, inputs)
    assert torch.equal(right.sequences, ours.sequences)
    for a, b in zip(right.logits, ours.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert (plain.logits[0] - ours.logits[0]).abs().max() > 1e-3


def test_gradients_reach_every_site(handle: ModelHandle, inputs: PromptInputs) -> None:
    probes = [Values(SiteSelection(site, (LAYER,))) for site in handle.stack.points]  # type: ignore[arg-type]
    with attached(handle, inputs, probes, gradients=True) as session:
        logits = handle.model(**inputs.tensors).logits
    found = [session[probe][LAYER] for probe in probes]
    for probe, gradient in zip(
        probes, torch.autograd.grad(logits[0, -1, 3], found, allow_unused=True), strict=True
    ):
        assert gradient is not None and float(gradient.abs().max()) > 0, probe.at


# --- parts by role ------------------------------------------------------------------------------


def test_the_equations_of_a_layer(handle: ModelHandle, inputs: PromptInputs) -> None:
    stack = handle.stack
    wanted = [site for site in MODULE_SITES if site in stack.points]
    probes = {site: Values(SiteSelection(site)) for site in wanted}  # type: ignore[arg-type]
    with attached(handle, inputs, list(probes.values())) as session, torch.no_grad():
        logits = handle.model(**inputs.tensors).logits
    at = {site: session[probe][LAYER] for site, probe in probes.items()}
    mlp = stack.mlp(LAYER)

    def linear(projection: Any, values: Tensor) -> Tensor:
        return nn.functional.linear(values, projection.weight, projection.bias)

    def same(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)

    assert stack.parallel == (handle.model.config.to_dict().get("use_parallel_residual", False))
    before = at["block_in"] if stack.parallel else at["block_in"] + at["attn_out"]
    same(at["mlp_norm_in"], before)
    same(at["block_out"], at["block_in"] + at["attn_out"] + at["mlp_out"])
    same(at["mlp_in"], mlp.norm(at["mlp_norm_in"]))
    same(at["z"], mlp.inner(at["mlp_in"]))
    assert mlp.down.weight.shape == (32, 48)
    same(at["mlp_out"], linear(mlp.down, at["z"]))
    if mlp.gated:
        assert mlp.gate is not None and mlp.up is not None and mlp.fc is None
        same(at["gate"], linear(mlp.gate, at["mlp_in"]))
        same(at["up"], linear(mlp.up, at["mlp_in"]))
        same(at["z"], mlp.act(at["gate"]) * at["up"])
    else:
        assert mlp.fc is not None and mlp.fc.weight.shape == (48, 32)
        same(at["z"], mlp.act(linear(mlp.fc, at["mlp_in"])))
    assert stack.final_norm is not None and stack.unembedding.shape == (512, 32)
    last = session[probes["block_out"]][handle.info.layers - 1]
    same(logits, stack.final_norm(last) @ stack.unembedding.T)
    for norm, values in ((mlp.norm, at["mlp_norm_in"]), (stack.final_norm, last)):
        assert norm.kind == ("layer" if handle.info.family in WITHOUT_GATE else "rms")
        centred = values - values.mean(-1, keepdim=True) if norm.kind == "layer" else values
        size = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps)
        bias = 0 if norm.bias is None else norm.bias
        same(norm(values), centred * size * norm.weight + bias)
        assert (norm.bias is not None) == (norm.kind == "layer")
    sizes = (stack.hidden_size, stack.heads, len(stack.layers))
    assert sizes == (32, 4, 3) == (handle.info.hidden_size, handle.info.heads, handle.info.layers)
