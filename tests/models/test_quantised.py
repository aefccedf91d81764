"""Quantised checkpoints: each format that transformers knows is loaded with its library, or the
missing library is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from sinkscope.models.quantised import LIBRARIES, check_quantisation, quantisation
from sinkscope.models.source import ModelError
from sinkscope.models.weights import StoredTensor

# transformers has these built in, or converts them back to plain weights without their hardware.
BUILT_IN = {"bitnet", "fp8", "gemma", "gguf", "metal", "mxfp4", "mxfp8"}
PACKED = {"a.qweight": StoredTensor((8, 8), "I32")}


def config(about: dict[str, Any] | None) -> Any:
    made = SimpleNamespace(quantization_config=about)
    made.get_text_config = lambda: SimpleNamespace()
    return made


def forms() -> set[str]:
    return {
        form.removesuffix("_4bit").removesuffix("_8bit")
        for form in AUTO_QUANTIZATION_CONFIG_MAPPING
    }


def test_every_form_of_transformers_has_its_libraries() -> None:
    assert forms() - BUILT_IN <= set(LIBRARIES)


@pytest.mark.parametrize("form", sorted(LIBRARIES))
def test_a_missing_library_is_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.models.quantised._installed", lambda module: False)
    if form not in forms():
        pytest.skip(f"this version of transformers does not know {form}")
    with pytest.raises(ModelError) as caught:
        check_quantisation("owner/name", config({"quant_method": form}), "cpu", PACKED)
    assert f"owner/name is quantised with {form}; install " in str(caught.value)
    for _, package in LIBRARIES[form]:
        assert package in str(caught.value)


def test_a_part_of_the_libraries_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sinkscope.models.quantised._installed", lambda module: module == "gptqmodel"
    )
    with pytest.raises(ModelError, match="install optimum to load it"):
        check_quantisation("x", config({"quant_method": "gptq", "bits": 4}), "cpu", PACKED)


def test_what_is_in_the_way_beside_a_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the module exists, the library's own check decides; here it misses the package."""
    monkeypatch.setattr("sinkscope.models.quantised._installed", lambda module: True)
    with pytest.raises(ModelError, match="quantised with awq, which cannot be used on cpu here: "):
        check_quantisation("x", config({"quant_method": "awq", "bits": 4}), "cpu", PACKED)


@pytest.mark.parametrize("about", [{"quant_method": "modelopt"}, {"bits": 4}])
def test_a_form_that_transformers_would_pass_over_is_refused(about: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"transformers cannot load.*known: .*awq"):
        check_quantisation("x", config(about), "cpu", PACKED)


def test_plain_weights_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantisation(config(None)) is None
    check_quantisation("x", config(None), "cpu", PACKED)
    assert quantisation(config({"load_in_8bit": True})) == "bitsandbytes"


def test_a_leftover_of_a_training_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.models.quantised._installed", lambda module: False)
    plain = {"a.weight": StoredTensor((8, 8), "BF16")}
    with pytest.raises(
        ModelError, match=r"plain numbers.*remove quantization_config from its config.json"
    ):
        check_quantisation("x", config({"quant_method": "bitsandbytes"}), "cpu", plain)
