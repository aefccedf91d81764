"""Trying the cases: the outcome for each folder, compared with transformers if it loads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.source import ModelError
from tests.checkpoints import reference
from tests.checkpoints.cases import Case

PROMPTS = ("  Where is the starfish?\n", "Is it 你好 <red>\n\nor blue ")
HISTORY = (("What is shown?", "A star.\n"),)


@dataclass(frozen=True)
class Outcome:
    """The outcome for a folder.

    Attributes:
        loads: whether it loaded.
        words: the refusal, or the note on what was loaded; the folder's path is replaced by X.
        handle: the model, or None.
        folder: the loaded folder.
    """

    loads: bool
    words: str
    handle: ModelHandle | None
    folder: Path


def attempt(case: Case, published: Path, model: Path, room: Path) -> Outcome:
    """Make a case's folder and load it as if no library for quantised weights were installed.

    Args:
        case: what to try.
        published: the published layout of the tiny model.
        model: the tiny model's own folder.
        room: an empty folder to work in.
    """
    folder = room / "model"
    shutil.copytree(published, folder)
    folder = case.change(folder, model) or folder
    try:
        with patch("sinkscope.models.quantised._installed", lambda module: False):
            handle = load_model(str(folder), device="cpu", **case.settings)
    except ModelError as error:
        words = " ".join(str(error).replace(str(folder), "X").split())
        return Outcome(False, words, None, folder)
    return Outcome(True, handle.info.note, handle, folder)


def differences(
    handle: ModelHandle,
    folder: Path,
    images: Sequence[Image.Image],
    template: str | None = None,
    parts_only: bool = False,
) -> list[str]:
    """The differences between a loaded folder and transformers' result; empty if all is right.

    Args:
        handle: the loaded model.
        folder: its folder.
        images: shown in each prompt.
        template, parts_only: as in `Case`.
    """
    theirs = reference.processor(folder)
    size = handle.processor.image_processor.size
    theirs.image_processor.size = {
        "shortest_edge": size["shortest_edge"],
        "longest_edge": size["longest_edge"],
    }
    found: list[str] = []
    last = None
    for prompt in PROMPTS:
        for system, history in ((None, ()), ("Be brief. ", HISTORY)):
            asked = reference.messages(images, prompt, system, history, parts_only)
            try:
                expected = reference.prepared(theirs, asked, template)
            except Exception as error:
                ours = _refusal(handle, images, prompt, system, history)
                if not ours:
                    found.append(f"transformers refuses {prompt!r} ({error}), we do not")
                continue
            made = handle.prepare(images, prompt, system, history=history)
            if list(made.token_ids) != expected["input_ids"][0].tolist():
                found.append(f"ids of {prompt!r}")
            for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids"):
                if not torch.equal(made.tensors[name].float(), expected[name].float()):
                    found.append(f"{name} of {prompt!r}")
            last = made
    if last is not None:
        with torch.no_grad():
            ours = handle.model(**last.tensors).logits
            plain = reference.model(folder)(**last.tensors).logits.float()
        if not torch.allclose(ours, plain, atol=2e-4 * float(plain.abs().max())):
            found.append(f"logits, by up to {float((ours - plain).abs().max()):.2g}")
    return found


def _refusal(
    handle: ModelHandle,
    images: Sequence[Image.Image],
    prompt: str,
    system: str | None,
    history: Sequence[tuple[str, str]],
) -> str:
    try:
        handle.prepare(images, prompt, system, history=history)
    except ValueError as error:
        return str(error)
    return ""
