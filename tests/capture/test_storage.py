"""The trace on disk: complete, checked, and never half written."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sinkscope.attention_extractor import compare
from sinkscope.attention_processor import head_mean, patch_map
from sinkscope.capture.storage import TraceReader
from sinkscope.capture.trace import (
    Alternative,
    GeneratedToken,
    GenerationTrace,
    LayerSinks,
    PromptToken,
    PromptTrace,
)
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import load_model
from sinkscope.models.views import one_view

ROOT = Path(__file__).resolve().parents[2]


def small_trace(tokens: int = 3) -> GenerationTrace:
    generator = torch.Generator().manual_seed(tokens)
    rows = torch.rand(tokens, 2, 3, 6, generator=generator)
    shares = torch.rand(tokens, 2, 3, 4, generator=generator)
    return GenerationTrace(
        tokens=tuple(
            GeneratedToken(t, f"w{t}é", 0.5, 0, (Alternative(t, "w", 0.5),)) for t in range(tokens)
        ),
        layout=PromptLayout(
            10,
            (Segment("template", 0, 2), Segment("image", 2, 8, 0), Segment("user", 8, 10)),
            (one_view(2, 1, 4, 6, 2, (56, 84), (50, 80)),),
        ),
        images=(Image.new("RGB", (80, 50), (1, 2, 3)),),
        prompt='a "quoted" prompt \ud7ff 你好',
        prompt_tokens=tuple("abcdefghij"),
        attention=rows.half(),
        layers=(0, 3),
        heads=(0, 1, 2),
        shares=shares / shares.sum(-1, keepdim=True),
        entropy=torch.rand(tokens, 2, 3, generator=generator),
        sinks=(LayerSinks(3, (4, 7), (20.5, 22.25)),),
        applied=("VAR",),
        model=ModelInfo("m", "r", "f", "float32", "cpu", 4, 3, 64),
        settings={"max_new_tokens": tokens},
        seed=5,
        finish_reason="length",
        seconds=0.25,
        var={"moved": 0.5},
    )


def assert_same(before: object, after: object, where: str = "trace") -> None:
    """Equal in all values and types, recursively."""
    assert type(before) is type(after), where
    if isinstance(before, torch.Tensor):
        assert isinstance(after, torch.Tensor) and before.dtype == after.dtype, where
        assert torch.equal(before, after), where
    elif isinstance(before, Image.Image):
        assert before.mode == after.mode and before.tobytes() == after.tobytes(), where  # type: ignore[attr-defined]
    elif dataclasses.is_dataclass(before):
        for field in dataclasses.fields(before):
            pair = getattr(before, field.name), getattr(after, field.name)
            assert_same(*pair, f"{where}.{field.name}")
    elif isinstance(before, dict):
        assert list(before) == list(after), where  # type: ignore[call-overload]
        for key, value in before.items():
            assert_same(value, after[key], f"{where}.{key}")  # type: ignore[index]
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), where  # type: ignore[arg-type]
        for index, value in enumerate(before):
            assert_same(value, after[index], f"{where}[{index}]")  # type: ignore[index]
    else:
        assert before == after, where


def test_what_is_opened_is_what_was_saved(tmp_path: Path) -> None:
    trace = small_trace()
    trace.save(tmp_path / "run.safetensors")
    assert_same(trace, GenerationTrace.open(tmp_path / "run.safetensors"))


def test_settings_report_and_the_rest_are_plain_before_they_are_saved(tmp_path: Path) -> None:
    trace = dataclasses.replace(
        small_trace(),
        settings={"layers": (1, 3), "heads": None, "nested": {"a": (0.5, np.float32(0.25))}},
        var={"layers": ({"layer": np.int64(2), "moved": torch.tensor(1.5)},)},
        extra={"decoding": {"used": {"bad_words_ids": ((1, 2), (3,))}}, 4: True},
    )
    assert trace.settings == {"layers": [1, 3], "heads": None, "nested": {"a": [0.5, 0.25]}}
    assert trace.var == {"layers": [{"layer": 2, "moved": 1.5}]}
    assert trace.extra["4"] is True
    trace.save(tmp_path / "run.safetensors")
    assert_same(trace, GenerationTrace.open(tmp_path / "run.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, torch.zeros(2), Path("x")])
def test_what_no_file_can_hold_is_refused_when_a_trace_is_made(value: object) -> None:
    with pytest.raises(ValueError, match=r"extra\.a\[1\] is "):
        dataclasses.replace(small_trace(), extra={"a": [1, value]})


@pytest.mark.tiny
def test_a_whole_run_is_opened_as_it_was_made(
    tiny_folder: Path, photo: Image.Image, tmp_path: Path
) -> None:
    """Everything that a run can have, from settings given as tuples to VAR's report."""
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    handle.model.generation_config.bad_words_ids = [[5], [6, 7]]
    settings = GenerationSettings(
        3, layers=(1, 2, 3), heads=(0, 2), prompt_rows=4, reference=True, decoding="checkpoint"
    )
    var = VARSettings(dims=(0, 3), tau=1.5, layers=(1, 2))
    pair = compare(handle, handle.prepare([photo], "What is there?"), settings, var)
    for name in ("baseline", "var"):
        trace = getattr(pair, name)
        assert trace.prompt_rows is not None and trace.reference is not None
        trace.save(tmp_path / name)
        assert_same(trace, GenerationTrace.open(tmp_path / name))
    assert pair.var.var is not None and pair.var.sinks


def prompt_trace(trace: GenerationTrace, rows: int) -> PromptTrace:
    """Rows of the last positions of the trace's prompt."""
    like = small_trace(rows + 5)
    positions = tuple(range(10 - rows, 10))
    return PromptTrace(
        positions,
        tokens=tuple(PromptToken(p, trace.prompt_tokens[p]) for p in positions),
        layout=trace.layout,
        attention=like.attention[:rows],
        layers=trace.layers,
        heads=trace.heads,
        shares=like.shares[:rows],
        entropy=like.entropy[:rows],
        sinks=trace.sinks,
        model=trace.model,
        prompt="of this",
    )


def test_rows_of_prompts_are_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    plain = small_trace()
    trace = dataclasses.replace(
        plain, prompt_rows=prompt_trace(plain, 2), reference=prompt_trace(plain, 1)
    )
    trace.save(path)
    again = GenerationTrace.open(path)
    with TraceReader(path) as reader:
        assert reader.outline.reference is None
        part = reader.part([1])
    for got in (again, part):
        for name in ("prompt_rows", "reference"):
            before, after = getattr(trace, name), getattr(got, name)
            for field in dataclasses.fields(before):
                a, b = getattr(before, field.name), getattr(after, field.name)
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
    content = load_file(path)
    content["reference_shares"] += 0.5
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    save_file(content, path, metadata=about)
    with TraceReader(path) as reader, pytest.raises(ValueError, match="checksum of its reference"):
        reader.part([1])


def test_a_file_of_version_2_has_no_rows_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["sinkscope-trace"])
    del about["prompt_rows"], about["reference"]
    about["version"] = 2
    save_file(load_file(path), path, metadata={"sinkscope-trace": json.dumps(about)})
    again = GenerationTrace.open(path)
    assert again.prompt_rows is None
    assert again.reference is None
    with TraceReader(path) as reader:
        assert reader.part([0]).reference is None


def test_an_answer_without_tokens_can_be_saved(tmp_path: Path) -> None:
    small_trace(0).save(tmp_path / "run.safetensors")
    assert GenerationTrace.open(tmp_path / "run.safetensors").tokens == ()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no trace file"):
        GenerationTrace.open(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match="damaged or no trace"):
        GenerationTrace.open(path)


def test_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        GenerationTrace.open(path)


def test_a_safetensors_file_that_is_no_trace(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no SinkScope trace"):
        GenerationTrace.open(tmp_path / "a.safetensors")


def test_a_file_of_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    about = {"sinkscope-trace": json.dumps({"format": "sinkscope-trace", "version": 99})}
    save_file({"attention": torch.zeros(1)}, path, metadata=about)
    with pytest.raises(ValueError, match="format version 99; this SinkScope reads up to 6"):
        GenerationTrace.open(path)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    assert set(load_file(path)) == {"attention", "shares", "entropy", "head_mean", "image_0"}


KILLED = """
import sys, os, pathlib
from sinkscope import utils
from tests.capture.test_storage import small_trace
real = os.fsync
def fsync(handle):
    print("written, not yet renamed", flush=True)
    sys.stdin.readline()  # the parent kills us here
    real(handle)
os.fsync = fsync
small_trace(40).save(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_while_saving_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace(3).save(path)
    before = path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("written")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert path.read_bytes() == before
    assert len(GenerationTrace.open(path).tokens) == 3


def test_a_folder_that_is_not_there_is_said_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        small_trace().save(tmp_path / "none" / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


# --- one token at a time --------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    small_trace().save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


def rewritten(path: Path, change: dict[str, object], without: tuple[str, ...] = ()) -> None:
    """The same file with another JSON part, and without some tensors."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["sinkscope-trace"])
        tensors = {n: file.get_tensor(n) for n in file.keys() if n not in without}  # noqa: SIM118
    about = {k: v for k, v in {**about, **change}.items() if v is not None}
    save_file(tensors, path, metadata={"sinkscope-trace": json.dumps(about)})


def test_a_reader_gives_what_the_whole_trace_gives(path: Path) -> None:
    whole = GenerationTrace.open(path)
    with TraceReader(path) as reader:
        assert reader.outline.tokens == whole.tokens
        assert reader.outline.layout == whole.layout
        assert reader.outline.attention.shape == whole.attention.shape
        assert reader.image(0).tobytes() == whole.images[0].tobytes()
        for t in range(3):
            assert torch.equal(reader.head_mean(t), head_mean(whole)[t])
            mean = whole.attention[t].float().mean(dim=(0, 1))
            assert torch.allclose(reader.mean(t), mean, atol=1e-7)
        part = reader.part([2, 0])
    assert part.tokens == (whole.tokens[2], whole.tokens[0])
    for name in ("attention", "shares", "entropy"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[2, 0]])
    heat = patch_map(part, 0, layers=[3], reduce="max")
    assert (heat.values == patch_map(whole, 2, layers=[3], reduce="max").values).all()


def test_a_part_without_tokens(path: Path) -> None:
    with TraceReader(path) as reader:
        assert reader.part([]).attention.shape == (0, 2, 3, 6)


@pytest.mark.parametrize("token", [-1, 3])
def test_a_token_that_is_not_there(path: Path, token: int) -> None:
    with TraceReader(path) as reader:
        for read in (reader.mean, reader.head_mean, lambda t: reader.part([t])):
            with pytest.raises(ValueError, match=f"token is {token}; the trace has 3"):
                read(token)
        with pytest.raises(ValueError, match="image is 1; the prompt has 1"):
            reader.image(1)


def test_damage_is_found_at_the_token_that_has_it(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        rows = file.get_tensor("attention")[1].numpy().tobytes()
    where = bytes(data).index(rows)
    data[where + 3] ^= 4
    path.write_bytes(data)
    with TraceReader(path) as reader:
        reader.part([0, 2])
        with pytest.raises(ValueError, match="checksum of token 1"):
            reader.part([1])


def test_what_cannot_be_opened_whole_cannot_be_opened_in_part(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ValueError, match="There is no trace file"):
        TraceReader(tmp_path / "none.safetensors")
    rewritten(path, {"version": 99})
    with pytest.raises(ValueError, match="format version 99"):
        TraceReader(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged or no trace"):
        TraceReader(path)


def test_a_file_of_version_1_is_read(path: Path) -> None:
    whole = GenerationTrace.open(path)
    rewritten(path, {"version": 1, "token_checksums": None}, without=("head_mean",))
    with TraceReader(path) as reader:
        assert torch.equal(reader.head_mean(1), head_mean(whole)[1])
        assert torch.equal(reader.part([1]).attention, whole.attention[1:2])


def test_the_file_is_what_the_librarys_own_writer_makes(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert torch.equal(tensors["head_mean"], head_mean(GenerationTrace.open(path)))
    save_file(tensors, path, metadata)
    assert len(GenerationTrace.open(path).tokens) == 3
