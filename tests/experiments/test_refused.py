"""What an experiment refuses, always before any pass through the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.capture.run import RunOutOfMemoryError
from sinkscope.experiments.catalogue import experiment_named
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.samples import TextSample
from sinkscope.experiments.settings import (
    AblateMLPSettings,
    CutEdgesSettings,
    DecomposeMLPInSettings,
    DecomposeOutputSettings,
    LowerAttentionSettings,
    MLPSubspaceSettings,
    ScanSettings,
    SinkTokensSettings,
    StudySettings,
    VisionOrTextSettings,
)
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.samples import Sample
from tests.text_models import TEXT, save_text_model

pytestmark = pytest.mark.tiny
TEXTS = tuple(TextSample(str(i), f"{TEXT} {word}") for i, word in enumerate(("yes", "no", "a")))
IMAGES = tuple(Sample(str(i), (Image.new("RGB", (84, 56), (90 * i, 9, 9)),)) for i in range(2))


@pytest.fixture(scope="module")
def handles(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelHandle]:
    made = {"vl": load_model(str(tiny_folder), device="cpu", dtype="float32")}
    for name in ("qwen3", "gpt2"):
        folder = save_text_model(tmp_path_factory.mktemp(name), name)
        made[name] = load_model(str(folder), device="cpu", dtype="float32")
    return made


def count_passes(handle: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each pass through the model."""
    passes: list[int] = []
    real = handle.model.forward

    def forward(*args: Any, **named: Any) -> Any:
        passes.append(1)
        return real(*args, **named)

    monkeypatch.setattr(handle.model, "forward", forward)
    return passes


REFUSED = (
    ("qwen3", "scan", ScanSettings(head=9), {}, r"head is 9; .* has heads 0 to 3"),
    ("qwen3", "scan", ScanSettings(), {"tokens": (0,)}, "tokens has only 0; .* such as"),
    ("qwen3", "scan", ScanSettings(), {"tokens": (0, 1, 99)}, r"tokens has 99.* positions 0 to "),
    ("qwen3", "scan", ScanSettings(), {"dims": (999,)}, r"dims is \(999,\); .* dimensions 0 to "),
    ("qwen3", "decompose-output", DecomposeOutputSettings(3), {}, r"layer is 3; .* 0 to 2"),
    ("gpt2", "mlp-subspace", MLPSubspaceSettings(0, "g"), {}, "no gate; allowed: z, out, residual"),
    ("gpt2", "mlp-subspace", MLPSubspaceSettings(0, "u"), {}, "no gate; allowed: z, out, residual"),
    (
        "qwen3",
        "mlp-subspace",
        MLPSubspaceSettings(0, top=9999),
        {},
        r"top is 9999; .* neurons; all",
    ),
    (
        "qwen3",
        "mlp-subspace",
        MLPSubspaceSettings(0, "out", 9999),
        {},
        r"top is 9999; .* allowed: 1",
    ),
    (
        "qwen3",
        "ablate-mlp",
        AblateMLPSettings(2),
        {},
        r"layer is 2; .* allowed: 0 to 1, .* a layer after it",
    ),
    ("qwen3", "ablate-mlp", AblateMLPSettings(0, top=40), {}, r"top is 40; .* allowed: 1 to "),
    (
        "qwen3",
        "decompose-mlp-in",
        DecomposeMLPInSettings(2),
        {},
        r"layer is 2; .* 0 to 1, .* a layer after it",
    ),
    (
        *("gpt2", "decompose-mlp-in", DecomposeMLPInSettings(0, before_norm=True), {}),
        "LayerNorm.* allowed: false, or leave it out",
    ),
    (
        "qwen3",
        "lower-attention",
        LowerAttentionSettings(1.0),
        {},
        "factor is 1.0.* allowed: from 0",
    ),
    ("qwen3", "lower-attention", LowerAttentionSettings(layers=(5,)), {}, r"layer is 5; .* 0 to 2"),
    (
        *("qwen3", "cut-edges", CutEdgesSettings("region", (0.0, 0.0, 0.5, 0.5)), {}),
        "text model and sees no images; allowed: sinks, ordinary, first",
    ),
    (
        *("qwen3", "cut-edges", CutEdgesSettings("ordinary"), {"tokens": (0, 1)}),
        "keys is 'ordinary', but the groups of this study are tok0, tok1; name it in tokens",
    ),
    (
        *("qwen3", "vision-or-text", VisionOrTextSettings(), {}),
        r"no vision tower; .* Allowed with .*: scan, .*cut-edges, sink-tokens, on prompts of text",
    ),
    (
        *("vl", "vision-or-text", VisionOrTextSettings(), {"dims": tuple(range(40)), "tau": 1.0}),
        "dims has 40 dimensions; allowed: at most 32",
    ),
    ("vl", "cut-edges", CutEdgesSettings(), {"sinks_by": "profile"}, "no sink dimensions with a "),
    (
        "vl",
        "sink-tokens",
        SinkTokensSettings(),
        {"tokens": (5, 900)},
        r"tokens has 900, but .* 0 to",
    ),
)


@pytest.mark.parametrize(
    ("model", "name", "settings", "asked", "words"),
    REFUSED,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_it_is_refused_before_any_pass(
    handles: dict[str, ModelHandle],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    name: str,
    settings: Any,
    asked: dict[str, Any],
    words: str,
) -> None:
    handle = handles[model]
    passes = count_passes(handle, monkeypatch)
    samples = IMAGES if model == "vl" else TEXTS
    with pytest.raises(ValueError, match=words):
        run_experiment(handle, name, samples, settings, StudySettings(**asked))
    assert not passes


def test_one_sample_where_two_are_needed_is_refused_before_any_pass(
    handles: dict[str, ModelHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_passes(handles["qwen3"], monkeypatch)
    for name, settings in (
        ("scan", ScanSettings()),
        ("decompose-output", DecomposeOutputSettings(0)),
        ("decompose-mlp-in", DecomposeMLPInSettings(0)),
        ("sink-tokens", SinkTokensSettings()),
    ):
        assert experiment_named(name).least == 2
        with pytest.raises(ValueError, match=r"There is 1 sample; .* needs 2 or more"):
            run_experiment(handles["qwen3"], name, TEXTS[:1], settings)
    assert not passes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("can't allocate memory: 9")]
)
@pytest.mark.parametrize(
    ("model", "name", "settings", "words"),
    [
        (
            "qwen3",
            "scan",
            ScanSettings(),
            r"shorter prompts, fewer quantities \(print; now q, k, v",
        ),
        (
            *("vl", "lower-attention", LowerAttentionSettings(layers=(0, 1))),
            r"smaller images \(max_pixels\), a shorter answer \(answer_tokens; now 8\), fewer "
            r"layers \(layers; now 0, 1\), fewer samples \(samples; now 2\), or a smaller model",
        ),
    ],
)
def test_a_full_memory_is_named_with_what_helps(
    handles: dict[str, ModelHandle],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    name: str,
    settings: Any,
    words: str,
    error: BaseException,
) -> None:
    handle = handles[model]

    def full(*args: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(handle.model, "forward", full)
    samples = IMAGES if model == "vl" else TEXTS[:2]
    asked = StudySettings(tokens=(5, 6) if model == "vl" else None)
    with pytest.raises(RunOutOfMemoryError, match=f"Memory is full. What helps: {words}"):
        run_experiment(handle, name, samples, settings, asked)
    assert not handle.lock.locked()


def test_another_fault_is_not_called_a_full_memory(
    handles: dict[str, ModelHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **named: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(handles["qwen3"].model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run_experiment(handles["qwen3"], "scan", TEXTS, ScanSettings())
