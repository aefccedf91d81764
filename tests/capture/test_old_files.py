"""Trace files of every version can be opened, and lose nothing when saved again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sinkscope.attention_processor import head_mean
from sinkscope.capture.storage import TraceReader
from sinkscope.capture.trace import GenerationTrace, PromptTrace
from sinkscope.capture.trace_file import VERSION
from sinkscope.capture.trace_values import values_of
from sinkscope.methods.explain import explain_map

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
OLD = (1, 2, 3, 4, 5)
FILES = [
    (v, FIXTURES / f"run_v{v}" / f"{name}.safetensors") for v in OLD for name in ("baseline", "var")
]


def raw(path: Path) -> dict[str, object]:
    """The JSON part, read without our reader."""
    with safe_open(path, framework="pt") as file:
        made: dict[str, object] = json.loads(file.metadata()["sinkscope-trace"])
        return made


def test_there_is_a_file_of_each_version() -> None:
    assert {raw(path)["version"] for _, path in FILES} == set(OLD) == set(range(1, VERSION))


def same(a: GenerationTrace | PromptTrace, b: GenerationTrace | PromptTrace) -> None:
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), field.name
        elif isinstance(one, PromptTrace):
            same(one, other)
        elif field.name == "images":
            assert [image.tobytes() for image in one] == [image.tobytes() for image in other]
        else:
            assert one == other, field.name


@pytest.mark.parametrize(("version", "path"), FILES)
def test_an_old_file_opens_with_all_that_is_in_it(version: int, path: Path, tmp_path: Path) -> None:
    trace, said, held = GenerationTrace.open(path), raw(path), load_file(path)
    for name in ("attention", "shares", "entropy"):
        assert torch.equal(getattr(trace, name), held[name])
    assert json.loads(json.dumps(values_of(trace)["tokens"])) == said["tokens"]
    assert all(token.piece == "" for token in trace.tokens)  # no old file has their bytes
    was = said["layout"]
    assert trace.layout.length == was["length"]
    assert [dataclasses.asdict(segment) for segment in trace.layout.segments] == was["segments"]
    for grid, before in zip(trace.layout.grids, was["grids"], strict=True):
        if version >= 5:
            (view,) = before["views"]
            ((start, _),) = view["positions"]
            t, merge = view["frames"], view["merge"]
            h, w = view["rows"] * merge, view["columns"] * merge
        else:
            start, t, h, w, merge = (before[name] for name in ("start", "t", "h", "w", "merge"))
        rows, columns = h // merge, w // merge
        assert list(grid.positions) == list(range(start, start + t * rows * columns))
        assert (grid.rows, grid.columns, grid.tokens) == (rows, columns, t * rows * columns)
        assert grid.plain and grid.marks == () and grid.patches == t * h * w
        sizes = [list(grid.resized), list(grid.original)]
        assert sizes == [before["resized"], before["original"]]
    for name in ("prompt", "seed", "finish", "seconds", "var", "settings", "extra"):
        assert getattr(trace, "finish_reason" if name == "finish" else name) == said[name]
    for name in ("prompt_tokens", "layers", "heads", "applied"):
        assert list(getattr(trace, name)) == said[name]
    assert (trace.prompt_rows is not None) == (trace.reference is not None) == (version >= 3)
    if version >= 3:
        assert trace.prompt_rows is not None
        assert torch.equal(trace.prompt_rows.attention, held["prompt_rows_attention"])
        explain_map(trace, 0, "relative")
    with TraceReader(path) as reader:
        for token in range(len(trace.tokens)):
            assert torch.allclose(reader.head_mean(token), head_mean(trace)[token], atol=1e-6)
        same(reader.part(range(len(trace.tokens))), dataclasses.replace(trace, images=()))
        assert reader.image(0).tobytes() == trace.images[0].tobytes()
    trace.save(tmp_path / "again.safetensors")
    assert raw(tmp_path / "again.safetensors")["version"] == VERSION
    same(GenerationTrace.open(tmp_path / "again.safetensors"), trace)


def test_the_versions_are_of_the_same_run() -> None:
    """The meaning of rows has never changed: the code of each version captured the same ones."""
    first, *later = (GenerationTrace.open(path) for _, path in FILES[::2])
    for trace in later:
        assert [token.id for token in trace.tokens] == [token.id for token in first.tokens]
        assert (trace.layout, trace.layers, trace.heads) == (
            first.layout,
            first.layers,
            first.heads,
        )
        assert (trace.attention.float() - first.attention.float()).abs().max() <= 1e-3


@pytest.mark.parametrize("name", ["baseline", "var"])
def test_the_example_run_opens(name: str) -> None:
    path = ROOT / "demo" / "example" / f"{name}.safetensors"
    trace = GenerationTrace.open(path)
    with TraceReader(path) as reader:
        assert torch.equal(reader.part([0]).attention, trace.attention[:1])
