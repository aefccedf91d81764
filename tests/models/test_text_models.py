"""Text models: prompts, attention rows and sites of each architecture, on tiny random ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache

from sinkscope.attention_extractor import generate
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.capture.storage import open_trace, save_trace
from sinkscope.config import GenerationSettings
from sinkscope.interventions.base import Intervention
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelError, ModelHandle, load_model
from sinkscope.models.sites import MODULE_SITES, At
from tests.text_models import TEXT, configs, save_text_model

pytestmark = pytest.mark.tiny

LAYER, NEW = 1, 3
NAMES = tuple(configs())
WITHOUT_GATE = ("gpt2", "gpt_neox", "gpt_neox_serial")


@pytest.fixture(scope="module", params=NAMES)
def handle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    folder = save_text_model(tmp_path_factory.mktemp("text"), request.param)
    return load_model(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle) -> PromptInputs:
    return handle.prepare([], TEXT)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return load_model(str(save_text_model(tmp_path_factory.mktemp("llama"), "llama")), device="cpu")


def told(handle: ModelHandle, inputs: PromptInputs, **more: Any) -> Any:
    """Generates a few tokens, with a cache that keeps every key."""
    return handle.model.generate(
        **inputs.tensors,
        past_key_values=DynamicCache(),
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **more,
    )


@contextmanager
def attention_of(handle: ModelHandle, name: str) -> Iterator[None]:
    handle.model.set_attn_implementation(name)
    try:
        yield
    finally:
        handle.model.set_attn_implementation(NAME)


# --- prompts ------------------------------------------------------------------------------------


def test_a_prompt_is_the_text_alone(handle: ModelHandle, inputs: PromptInputs) -> None:
    ids = handle.tokenizer(TEXT)["input_ids"]
    begins = handle.info.family in ("llama", "mistral")
    assert list(inputs.token_ids) == ids
    assert (ids[0] == handle.tokenizer.bos_token_id) is begins
    assert "".join(inputs.token_texts) == handle.tokenizer.decode(ids)
    assert [s.kind for s in inputs.layout.segments] == ["template"] * begins + ["user"]
    assert inputs.layout.segments[-1].stop == inputs.layout.length == len(ids)
    assert inputs.images == () and inputs.layout.grids == () and not inputs.chat
    assert inputs.layout.vision_positions().tolist() == []
    if begins:
        assert "".join(inputs.token_texts[1:]).strip() == TEXT


def test_a_chat_template_only_where_it_is_asked_for(handle: ModelHandle) -> None:
    history = [("a star?", "Yes")]
    made = handle.prepare([], "a red star", "Be brief", history=history, chat=True)
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "a star?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "a red star"},
    ]
    right = handle.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert list(made.token_ids) == right
    said = [s for s in made.layout.segments if s.kind != "template"]
    assert [s.kind for s in said] == ["system", "user", "assistant", "user"]
    text = ["".join(made.token_texts[s.start : s.stop]).strip() for s in said]
    assert text == ["Be brief", "a star?", "Yes", "a red star"]
    with pytest.raises(ValueError, match="system is given without a chat template; a text model"):
        handle.prepare([], "x", "Be brief")
    special = handle.tokenizer.bos_token
    with pytest.raises(ValueError, match=r"A user message has .* control token in a conversation"):
        handle.prepare([], f"a {special} b", chat=True)


def test_typed_special_tokens_stay_text(handle: ModelHandle) -> None:
    special = handle.tokenizer.eos_token
    made = handle.prepare([], f"a{special}b")
    assert handle.tokenizer.eos_token_id not in made.token_ids
    assert "".join(made.token_texts).endswith(f"a{special}b")


def test_what_a_text_model_refuses(handle: ModelHandle, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"There are 1 images, but .* is a text model"):
        handle.prepare([photo], "x")
    with pytest.raises(ValueError, match=r"max_pixels is 9000, but models of the family .* take no"):
        handle.prepare([], "x", max_pixels=9000)
    with pytest.raises(ValueError, match="The prompt is empty; give a text"):
        handle.prepare([], " ")
    with pytest.raises(ModelError, match="min_pixels is 9000, but models of the family"):
        load_model(handle.info.id, min_pixels=9000)


def test_learned_positions_end(tmp_path: Path) -> None:
    handle = load_model(str(save_text_model(tmp_path, "gpt2")), device="cpu")
    handle.prepare([], "!" * 256)
    with pytest.raises(ValueError, match="has 257 tokens; this model has learned 256 positions"):
        handle.prepare([], "!" * 257)


def test_folders_that_are_no_text_model(llama: ModelHandle, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama.info.id, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(str(folder))
    shutil.copytree(llama.info.id, folder, dirs_exist_ok=True)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"num_hidden_layers": 4}))
    with pytest.raises(ModelError, match="not complete: 9 tensors are missing"):
        load_model(str(folder))


# --- attention rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows(Probe):
    looks: tuple[At, ...] = (At("rows"),)


def test_rows_are_those_of_eager_attention(handle: ModelHandle, inputs: PromptInputs) -> None:
    """All rows of the prompt and of the answer, in every layer; the output is plain SDPA's."""
    with attention_of(handle, "eager"):
        eager = told(handle, inputs, output_attentions=True)
    with attention_of(handle, "sdpa"):
        plain = told(handle, inputs)
    probe = Rows()
    with attached(handle, inputs, [probe], new_tokens=NEW) as session:
        ours = told(handle, inputs)
    assert torch.equal(ours.sequences, eager.sequences)
    for a, b, c in zip(ours.logits, plain.logits, eager.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-4)
    for layer in range(handle.info.layers):
        prefill = torch.cat(
            [r for r in session[probe][layer] if r.shape[-1] <= inputs.layout.length], 2
        )
        torch.testing.assert_close(prefill, eager.attentions[0][layer], rtol=0, atol=1e-5)
        steps = session[probe][layer][-(NEW - 1) :]
        for step, right in zip(steps, eager.attentions[1:], strict=True):
            torch.testing.assert_close(step, right[layer], rtol=0, atol=1e-5)
    sharp = eager.attentions[0][-1][0, :, -1].amax(-1)
    assert float(sharp.max()) > 0.3, "rows so flat that another one would not be seen"


def test_windows_are_said(handle: ModelHandle, inputs: PromptInputs) -> None:
    with attention_of(handle, "eager"), torch.no_grad():
        rows = handle.model(**inputs.tensors, output_attentions=True).attentions
    length = inputs.layout.length
    for window, layer in zip(handle.stack.windows, rows, strict=True):
        seen = (layer[0, 0, -1] > 0).sum()
        assert int(seen) == min(length, window or length)


def test_queries_and_keys_give_the_row(handle: ModelHandle, inputs: PromptInputs) -> None:
    @dataclass(frozen=True)
    class Keys(Probe):
        looks: tuple[At, ...] = (At("queries_keys", (LAYER,)),)

    keys, rows = Keys(), Rows((At("rows", (LAYER,)),))
    with attached(handle, inputs, [keys, rows]) as session, torch.no_grad():
        handle.model(**inputs.tensors)
    ((query, key, scale),) = session[keys][LAYER]
    if handle.stack.windows[LAYER] is not None:
        return  # the row of a window is not that of all keys
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    last = torch.softmax(query[:, :, -1:] @ key.transpose(2, 3) * scale, -1)
    torch.testing.assert_close(session[rows][LAYER][-1][:, :, -1:], last, rtol=0, atol=1e-5)


# --- sites --------------------------------------------------------------------------------------

By = Callable[[Any], nn.Module]


def places(handle: ModelHandle) -> dict[str, tuple[By, str, Callable[[Tensor], Tensor]]]:
    """Site -> its module, whether it is what goes in, and which part of it: said here once more, as
    a test must."""

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
        told(handle, inputs)
    for hook in hooks:
        hook.remove()
    probes = {site: Values(At(site, (LAYER,))) for site in seen}  # type: ignore[arg-type]
    with attached(handle, inputs, list(probes.values()), new_tokens=NEW) as session:
        told(handle, inputs)
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
        attached(handle, inputs, [Values(At("gate"))]),
    ):
        pass


@dataclass(frozen=True)
class Squashed(Intervention):
    edits: tuple[At, ...]

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        return torch.tanh(values)


@pytest.mark.parametrize("site", MODULE_SITES)
def test_an_edit_is_what_a_hook_does(handle: ModelHandle, inputs: PromptInputs, site: str) -> None:
    """Prefill and decode; of a fused projection only the part that is meant changes."""
    if site not in handle.stack.points:
        pytest.skip("this family has no such site")
    find, side, part = places(handle)[site]
    layer = handle.stack.layers[LAYER]
    if site == "block_in":  # the norm's input alone would leave the residual stream as it is
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
        right = told(handle, inputs)
        hook.remove()
        plain = told(handle, inputs)
    change = Squashed((At(site, (LAYER,)),))  # type: ignore[arg-type]
    with attached(handle, inputs, interventions=[change], new_tokens=NEW):
        ours = told(handle, inputs)
    assert torch.equal(right.sequences, ours.sequences)
    for a, b in zip(right.logits, ours.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert (plain.logits[0] - ours.logits[0]).abs().max() > 1e-3


def test_gradients_reach_every_site(handle: ModelHandle, inputs: PromptInputs) -> None:
    probes = [Values(At(site, (LAYER,))) for site in handle.stack.points]  # type: ignore[arg-type]
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
    probes = {site: Values(At(site)) for site in wanted}  # type: ignore[arg-type]
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


# --- a whole run --------------------------------------------------------------------------------


def test_a_run_without_image_is_recorded(
    handle: ModelHandle, inputs: PromptInputs, tmp_path: Path
) -> None:
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=NEW))
    with attention_of(handle, "eager"):
        eager = told(handle, inputs, output_attentions=True)
    assert [token.id for token in trace.tokens] == eager.sequences[
        0, inputs.layout.length :
    ].tolist()
    assert trace.attention.shape == (NEW, 3, 4, 0)
    torch.testing.assert_close(trace.shares.sum(-1), torch.ones(NEW, 3, 4))
    first = eager.attentions[0][LAYER][0, :, -1]
    stretches = [first[:, s.start : s.stop].sum(-1) for s in inputs.layout.segments]
    torch.testing.assert_close(
        trace.shares[0, LAYER, :, :-1], torch.stack(stretches, -1), rtol=0, atol=1e-5
    )
    save_trace(trace, tmp_path / "run.safetensors")
    again = open_trace(tmp_path / "run.safetensors")
    assert again.tokens == trace.tokens and again.layout == trace.layout and again.images == ()
    assert torch.equal(again.shares, trace.shares)
