"""Two-layer models of each family in float64 with samples: loaded by the project, and plain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from sinkscope.experiments.result import Result, Table
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.samples import AnySample, TextSample
from sinkscope.experiments.settings import StudySettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.samples import Sample
from tests.experiments.reference import Changes, Plain, Seen
from tests.text_models import configs, tokenizer_of
from tests.tiny_model import save_model

FAMILIES = ("vl", "qwen3", "llama", "gpt2", "gpt_neox")
ANSWER = " a blue circle; no yes"
PROMPTS = (
    "a red star, and a blue circle; a red star again",
    "A red star is left of a blue circle. Yes no yes no yes.",
    "no circle is red, and no star is blue: a circle is a circle",
    "Yes, yes, the star is red; the circle is left of a star.",
)


@dataclass(frozen=True)
class World:
    """A model in two forms, samples, and the tokens of interest; the first of them is the sink.

    Attributes:
        handle: as the project loads it, in float64.
        plain: the same weights, without the project's code.
        samples: each with an answer.
        tokens: positions.
    """

    handle: ModelHandle
    plain: Plain
    samples: tuple[AnySample, ...]
    tokens: tuple[int, ...]
    family: str

    def settings(self, **more: Any) -> StudySettings:
        return StudySettings(**{"tokens": self.tokens, "bootstrap": 100, **more})

    def run(self, name: str, settings: Any, **more: Any) -> Result:
        return run_experiment(self.handle, name, self.samples, settings, self.settings(**more))

    def inputs(self, sample: AnySample) -> tuple[dict[str, Tensor], int, int]:
        """Tensors of the prompt in float64, its length, and the first query that counts."""
        made = self.handle.prepare(sample.open_images(), sample.prompt)
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in made.tensors.items()}
        length = tensors["input_ids"].shape[1]
        return tensors, length, made.layout.grids[-1].after if made.layout.grids else 4

    def answer(self, sample: AnySample) -> list[int]:
        assert sample.answer is not None
        ids = self.handle.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        return list(ids)[:8]

    def run_changed(self, sample: AnySample, changes: Changes | None = None) -> tuple[Seen, float]:
        """A pass over prompt and answer, and the answer's mean log-probability."""
        tensors, length, _ = self.inputs(sample)
        answer = self.answer(sample)
        more = torch.tensor([answer[:-1]], dtype=torch.long)
        longer = dict(tensors)
        for name, fill in (("input_ids", more), ("attention_mask", torch.ones_like(more))):
            if name in tensors:
                longer[name] = torch.cat([tensors[name], fill], 1)
        if "mm_token_type_ids" in tensors:
            marks = tensors["mm_token_type_ids"]
            longer["mm_token_type_ids"] = torch.cat([marks, torch.zeros_like(more).to(marks)], 1)
        seen = self.plain.run(longer, changes)
        assert seen.logits is not None
        logs = torch.log_softmax(seen.logits[length - 1 :], dim=-1)
        own = logs[torch.arange(len(answer)), torch.tensor(answer)]
        return seen, float(own.mean())

    def prompt(self, sample: AnySample, changes: Changes | None = None) -> Seen:
        """A pass over only the prompt."""
        return self.plain.run(self.inputs(sample)[0], changes)


def make_world(folder: Path, family: str) -> World:
    """The world of a family."""
    if family == "vl":
        save_model(folder, layers=2)
    else:
        _save_text(folder, family)
    handle = load_model(str(folder), device="cpu", dtype="float32")
    handle.model.double()
    plain = Plain(folder, family)
    if family == "vl":
        samples: tuple[AnySample, ...] = tuple(_pictures(4))
        start = handle.prepare(samples[0].open_images(), "x").layout.grids[0].positions[0]
        return World(handle, plain, samples, (start + 2, start + 7, 1), family)
    texts = tuple(TextSample(f"{i}", text, ANSWER) for i, text in enumerate(PROMPTS))
    return World(handle, plain, texts, (0, 1, 8), family)


def _save_text(folder: Path, name: str, seed: int = 3) -> None:
    config = configs()[name]
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval().to(torch.float32)
        for where, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                parameter.data.normal_(1.0 if where.endswith("weight") else 0.0, 0.2)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    tokenizer_of(config.model_type).save_pretrained(folder)


def _pictures(count: int) -> list[Sample]:
    made = []
    for index in range(count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            pixels = torch.randint(0, 255, (84, 112, 3), dtype=torch.uint8).numpy()
        made.append(Sample(f"{index}", (Image.fromarray(pixels),), "What is there?", ANSWER))
    return made


def cell(table: Table, keys: tuple[Any, ...], column: str) -> float:
    """A table's cell by the row's keys and the column's name."""
    row = next(row for row in table.rows if row[: len(keys)] == keys)
    value = row[table.columns.index(column)]
    assert isinstance(value, int | float), (keys, column, value)
    return value


def table_named(result: Result, name: str) -> Table:
    return next(table for table in result.findings.tables if table.name == name)
