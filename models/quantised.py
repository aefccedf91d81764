"""Quantised checkpoints: which library each form needs, and whether it can be used here.

transformers reads them all. A form that it does not know it would silently skip, and load the
packed numbers as if they were weights.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from sinkscope.models.source import ModelError, first_line
from sinkscope.models.weights import FLOATS, StoredTensor

# Form -> (module, package) of all that it needs besides torch and accelerate. Other forms need
# none: transformers has them built in, or turns them back into plain weights.
LIBRARIES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "aqlm": (("aqlm", "aqlm[gpu,cpu]"),),
    "auto-round": (("auto_round", "auto-round"),),
    "awq": (("gptqmodel", "gptqmodel"),),
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "eetq": (("kernels", "kernels"),),
    "fbgemm_fp8": (("fbgemm_gpu", "fbgemm-gpu"),),
    "fouroversix": (("fouroversix", "fouroversix"),),
    "fp_quant": (("fp_quant", "fp_quant"),),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "higgs": (("flute", "flute-kernel"), ("fast_hadamard_transform", "fast_hadamard_transform")),
    "hqq": (("hqq", "hqq"),),
    "nvfp4": (("kernels", "kernels"),),
    "quanto": (("optimum.quanto", "optimum-quanto"),),
    "quark": (("quark", "amd-quark"),),
    "sinq": (("sinq", "sinq"),),
    "spqr": (("spqr_quant", "spqr_quant[gpu]"),),
    "torchao": (("torchao", "torchao"),),
    "vptq": (("vptq", "vptq"),),
}


def quantisation(config: Any) -> str | None:
    """The form in which a checkpoint is quantised, None for a plain one."""
    about = _about(config)
    if about is None:
        return None
    if about.get("load_in_4bit") or about.get("load_in_8bit"):  # older bitsandbytes name no form
        return "bitsandbytes"
    method = about.get("quant_method")
    return str(getattr(method, "value", method))


def check_quantisation(
    name: str, config: Any, device: str, tensors: Mapping[str, StoredTensor]
) -> None:
    """Refuse a quantised checkpoint that cannot be loaded here, before anything large is read.

    Args:
        name: of the model, for the sentence.
        config: of the checkpoint.
        device: where the weights go.
        tensors: the headers of its weight files.

    Raises:
        ModelError: naming the form and the package that it needs, or what else is in the way.
    """
    method, about = quantisation(config), _about(config)
    if method is None or about is None:
        return
    known = sorted({form.removesuffix("_4bit").removesuffix("_8bit") for form in _forms()})
    if method not in known:
        declared = "names no method (quant_method)" if method == "None" else f"says {method!r}"
        raise ModelError(
            f"{name} is quantised in a way that transformers cannot load: quantization_config in "
            f"config.json {declared}; known: {', '.join(known)}."
        )
    lacking = [package for module, package in LIBRARIES.get(method, ()) if not _installed(module)]
    if lacking:
        leftover = (
            " Its weight files hold plain numbers, though: if the checkpoint was merged or "
            "dequantised, remove quantization_config from its config.json instead."
            if all(tensor.dtype in FLOATS for tensor in tensors.values())
            else ""
        )
        raise ModelError(
            f"{name} is quantised with {method}; install {' and '.join(lacking)} to load it."
            + leftover
        )
    try:
        quantiser = AutoHfQuantizer.from_config(copy.deepcopy(about), pre_quantized=True)
        quantiser.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:
        # Each form checks versions and hardware in its own way, and may raise anything.
        raise ModelError(
            f"{name} is quantised with {method}, which cannot be used on {device} here: "
            f"{first_line(error)}"
        ) from error


def _forms() -> list[str]:
    return list(AUTO_QUANTIZATION_CONFIG_MAPPING)


def _about(config: Any) -> dict[str, Any] | None:
    for part in (config, config.get_text_config()):
        about = getattr(part, "quantization_config", None)
        if about:
            return dict(about) if isinstance(about, Mapping) else dict(about.to_dict())
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of optimum.quanto without optimum
        return False
