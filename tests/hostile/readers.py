"""Every reader of files from outside, with a valid file for each as a starting point."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.capture.arrays import open_arrays
from sinkscope.capture.storage import TraceReader
from sinkscope.capture.trace import GenerationTrace
from sinkscope.capture.trace_file import CHECKSUM, FORMAT, header_checksum
from sinkscope.config import read_settings
from sinkscope.evaluation.explanations.folder import read_score_config
from sinkscope.evaluation.explanations.settings import ScoreSettings
from sinkscope.evaluation.explanations.targets import targets_of
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.settings import read_config
from sinkscope.experiments.result import Result
from sinkscope.experiments.samples import read_prompts
from sinkscope.methods.heads import HeadList
from sinkscope.models.adapters import check_adapter
from sinkscope.models.images import open_image
from sinkscope.models.profiles import read_profile
from sinkscope.records.pictures import FolderPictures
from sinkscope.records.sources import file_source
from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.validating.validation import Validation
from sinkscope.web.runs.payload import build_payload
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run, open_run

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: the kind of file.
        file: the file's name.
        sound: bytes of a valid file.
        read: reads it; the result is also used, because opened files are shown.
        kind: `json`, `toml`, `lines`, `table`, `text` or `trace`: selects suitable attacks.
    """

    name: str
    file: str
    sound: Callable[[], bytes]
    read: Callable[[Path], Any]
    kind: str


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a trace file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], about: Any, tensors: bytes) -> bytes:
    """A trace file whose header has the right checksum, whatever its content."""
    metadata = {**header["__metadata__"], FORMAT: json.dumps(about)}
    table = {
        name: (part["dtype"], tuple(part["shape"]))
        for name, part in header.items()
        if name != "__metadata__"
    }
    if CHECKSUM in metadata:
        metadata[CHECKSUM] = header_checksum(metadata, table)
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def trace_bytes() -> bytes:
    """A trace of today's format, with prompt rows, a reference and a report of VAR."""
    import tempfile

    from tests.web.synthetic import make_pair

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        make_pair(("A", " ball", "."), ("A", " dog", "."))["var"].save(path)
        return path.read_bytes()


def _trace(path: Path) -> None:
    run = Run({"baseline": GenerationTrace.open(path)})
    build_payload(run)
    build_standalone(run)


def _lazily(path: Path) -> None:
    with TraceReader(path) as reader:
        reader.part(range(len(reader.outline.tokens)))
        for index in range(len(reader.outline.layout.grids)):
            reader.image(index)


def _rows(path: Path) -> None:
    list(file_source(path, FolderPictures(path.parent), path.name).rows())


def _results() -> bytes:
    from tests.experiments.test_run import result_with

    return encoded_result(result_with(None).as_dict())


def encoded_result(values: Any) -> bytes:
    return json.dumps(values).encode()


def _validation() -> bytes:
    import tempfile

    from tests.sinks.made_up import validation

    with tempfile.TemporaryDirectory() as folder:
        validation().save(Path(folder) / "v.json")
        return (Path(folder) / "v.json").read_bytes()


def _heads() -> bytes:
    import tempfile

    from sinkscope.methods.heads import HeadChoice

    with tempfile.TemporaryDirectory() as folder:
        HeadList("localising", "m", "r", (HeadChoice(1, 2, 0.5, 0.25),)).save(
            Path(folder) / "h.json"
        )
        return (Path(folder) / "h.json").read_bytes()


def _adapter(path: Path) -> None:
    (path.parent / "adapter_model.safetensors").touch()
    check_adapter(path.parent)


def _record() -> bytes:
    """A line of an evaluation."""
    said = ("demo", "short", "1", 0, "var", "hash", "a ball", "ball", 1.0, {}, "ball", "c", "1", {})
    return AnswerRecord(*said, log_probabilities=(-0.5,)).line().encode()


ROWS = [
    {"image": "a.png", "question": "What?", "answer": "a ball", "choices": ["a", "b"]},
    {"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image> Hi"}]},
]
TARGETS = [
    {"image": "a.png", "word": "ball", "box": [0, 0, 10, 10], "prompt": "Where?"},
    {"image": "b.png", "word": "dog", "bbox": [1, 1, 5, 5]},
]
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "categories": [{"id": 2, "name": "ball"}],
    "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 3, 3], "segmentation": []}],
}
SETTINGS = b"[generation]\nmax_new_tokens = 12\nlayers = [1, 2]\n[images]\nmax_megapixels = 3.5\n"
RUN = (
    b'[run]\ntask = "demo"\nlimit = 5\n[model]\nmodel = "demo"\n'
    b'[[methods]]\nname = "var"\n[methods.var]\nkeep = 0.5\n'
)
SCORE = b'[score]\ndata = "demo"\n[model]\nmodel = "demo"\n[made]\nnames = ["a"]\nrevision = "r"\n'


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _run_json(path: Path) -> None:
    """Only run.json is attacked: the traces beside it are valid."""
    for name in ("baseline", "var"):
        target = path.parent / f"{name}.safetensors"
        if not target.exists():
            target.write_bytes((FIXTURES / "run_v4" / f"{name}.safetensors").read_bytes())
    open_run(path.parent)


RUN_JSON = b'{"kind": "run", "same_text": true, "created": 1.0, "variants": ["baseline", "var"]}'
ADAPTER = Reader(
    "adapter",
    "adapter_config.json",
    lambda: b'{"peft_type": "LORA", "r": 8}',
    _adapter,
    "json",
)
READERS: tuple[Reader, ...] = (
    Reader("trace", "a.safetensors", trace_bytes, _trace, "trace"),
    Reader("trace, token by token", "a.safetensors", trace_bytes, _lazily, "trace"),
    Reader("trace for NumPy", "a.safetensors", trace_bytes, open_arrays, "trace"),
    *(
        Reader(
            f"trace of format {n}",
            "a.safetensors",
            (FIXTURES / f"run_v{n}" / "var.safetensors").read_bytes,
            _trace,
            "trace",
        )
        for n in (1, 2, 3, 4)
    ),
    Reader("run", "run.json", lambda: RUN_JSON, _run_json, "json"),
    Reader(
        "profile", "p.toml", (FIXTURES / "profiles/first.toml").read_bytes, read_profile, "toml"
    ),
    Reader("settings", "s.toml", lambda: SETTINGS, read_settings, "toml"),
    Reader("evaluation", "run.toml", lambda: RUN, read_config, "toml"),
    Reader("scores", "score.toml", lambda: SCORE, read_score_config, "toml"),
    Reader(
        "findings",
        "f.json",
        (FIXTURES / "profiles/found.findings.json").read_bytes,
        Findings.open,
        "json",
    ),
    Reader("validation", "v.json", _validation, Validation.open, "json"),
    Reader("result", "result.json", _results, Result.open, "json"),
    Reader("heads", "h.json", _heads, HeadList.open, "json"),
    Reader(
        "prompts", "p.txt", lambda: b"One prompt\nAnother\n", lambda p: read_prompts(p, 2), "text"
    ),
    Reader("JSON lines", "r.jsonl", lambda: _lines(ROWS), _rows, "lines"),
    Reader("JSON list", "r.json", lambda: json.dumps(ROWS).encode(), _rows, "json"),
    Reader(
        "held list", "r.json", lambda: json.dumps({"n": 1, "data": ROWS}).encode(), _rows, "json"
    ),
    Reader(
        "CSV", "r.csv", lambda: b'image,question,answer\na.png,"What?, why?",ball\n', _rows, "table"
    ),
    Reader("TSV", "r.tsv", lambda: b"index\timage\tanswer\n1\tAAAA\tball\n", _rows, "table"),
    Reader(
        "targets",
        "t.jsonl",
        lambda: _lines(TARGETS),
        lambda path: list(targets_of(ScoreSettings(data=str(path)))),
        "lines",
    ),
    Reader(
        "COCO",
        "t.json",
        lambda: json.dumps(COCO).encode(),
        lambda path: list(targets_of(ScoreSettings(data=str(path)))),
        "json",
    ),
    *((ADAPTER,) if importlib.util.find_spec("peft") else ()),
    Reader(
        "record",
        "records.jsonl",
        _record,
        lambda path: AnswerRecord.of_line(path.read_bytes(), "Line 1 of records.jsonl"),
        "json",
    ),
    Reader("image", "a.png", lambda: png(), open_image, "image"),
)


def png() -> bytes:
    import io

    from tests.web.synthetic import scene

    out = io.BytesIO()
    scene(40, 30).save(out, "PNG")
    return out.getvalue()
