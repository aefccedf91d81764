"""A run of the tiny model in float64, and a dense reimplementation of its passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings
from sinkscope.methods.passes import Passes, passes_of
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from tests.methods.dense import Dense, Seen

TOKENS = 5


@dataclass(frozen=True)
class World:
    """A run, passes of its model, and the same pass computed densely."""

    handle: ModelHandle
    inputs: PromptInputs
    run: GenerationTrace
    passes: Passes
    dense: Dense
    seen: Seen

    @property
    def vision(self) -> list[int]:
        return list(self.run.layout.vision_positions().tolist())

    def at(self, token: int) -> int:
        """Position that predicted a token, written out again on purpose."""
        return len(self.inputs.token_ids) + token - 1

    def id(self, token: int) -> int:
        return self.run.tokens[token].id


@pytest.fixture(scope="session")
def world(tiny_folder: Path, photo: Image.Image) -> World:
    """Shared: never change it."""
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    handle.model.generation_config.eos_token_id = None
    handle.model.double()
    inputs = handle.prepare([photo.resize((140, 84))], "What is there?")
    run = generate(handle, inputs, GenerationSettings(max_new_tokens=TOKENS))
    passes = passes_of(handle, run, inputs)
    dense = Dense(tiny_folder)
    return World(handle, inputs, run, passes, dense, dense.read(passes.tensors()))
