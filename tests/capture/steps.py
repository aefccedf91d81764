"""Shared by the tests of decode steps: a small model without an end token, settings, questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from sinkscope.attention_extractor import GenerationTrace
from sinkscope.capture.engine.step import DecodeStep
from sinkscope.capture.engine.store import NAME, StepStore, release_steps
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model

GREEDY = GenerationSettings(max_new_tokens=6, engine="graph")
SAMPLED = dataclasses.replace(GREEDY, temperature=1.2, top_p=0.9, repetition_penalty=1.2, seed=3)
VAR = VARSettings((3, 40), tau=0.5, keep=0.3, layers=(1, 2), min_image_mass=0, max_sink_share=1)


@pytest.fixture(scope="module")
def shared(tiny_folder: Path) -> ModelHandle:
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture
def handle(shared: ModelHandle) -> ModelHandle:
    release_steps(shared)
    return shared


@pytest.fixture(scope="module")
def inputs(shared: ModelHandle, photo: Image.Image) -> PromptInputs:
    return shared.prepare([photo], "What is there?")


def ids(trace: GenerationTrace) -> list[int]:
    return [token.id for token in trace.tokens]


def looped(settings: GenerationSettings) -> GenerationSettings:
    return dataclasses.replace(settings, engine="loop")


def steps_of(handle: ModelHandle) -> list[DecodeStep]:
    store: StepStore = handle.kept[NAME]
    return list(store._steps.values())
