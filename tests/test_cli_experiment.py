"""`sinkscope experiment`: what it prints and writes, two runs side by side, and how it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sinkscope.experiments.catalogue import EXPERIMENTS
from sinkscope.experiments.result import Result
from sinkscope.experiments.samples import own_prompts
from tests.sinks.planted import Plant, painted_samples, planted
from tests.test_cli import refused, run
from tests.text_models import save_text_model

PLANT = Plant((5, 33), seed=0, layer=1, layers=4)
FEW = ("--samples", "4", "--bootstrap", "100", "--controls", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    planted(folder, PLANT)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for sample in painted_samples(5, seed=5):
        sample.open_images()[0].save(folder / f"{sample.id}.png")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text"), "gpt2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("llama"), "llama")


def experiment(name: str, *words: Any) -> Any:
    return run("experiment", name, *words, *FEW)


def test_help_lists_every_experiment() -> None:
    said = run("experiment", "--help").stdout
    assert all(one.name in said for one in EXPERIMENTS)
    for one in EXPERIMENTS:
        assert run("experiment", one.name, "--help").exit_code == 0


@pytest.mark.tiny
def test_a_run_is_printed_and_written(model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--model", model, "--data", pictures, "--layer", "1", "-o", out)
    done = experiment("ablate-mlp", *words)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "Verdict: positive" in said and "A (causal): yes" in said and "Thresholds: A:" in said
    result = Result.open(out)
    assert result.findings.values["top"] == [0] and len(result.samples) == 4
    assert result.settings["experiment"]["layer"] == 1
    assert result.model["id"] == str(model) and result.versions["torch"]
    for chart in ("sink_attention", "one_layer_at_a_time", "answer", "projections"):
        assert (out / f"{chart}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{chart}.pdf").read_bytes()[:4] == b"%PDF"
    lines = (out / "effects.csv").read_text().splitlines()
    assert lines[0].startswith("# ") and str(model) in lines[0]
    rows = list(csv.DictReader(lines[1:]))
    assert [row["arm"] for row in rows] == ["plain", "ablated", "random direction", "random tokens"]
    assert float(rows[1]["removed"]) == result.findings.values["removed"]


@pytest.mark.tiny
def test_the_same_run_twice_gives_the_same_files(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in "ab":
        words = ("--model", model, "--data", pictures, "-o", tmp_path / name, "--print", "k,attn")
        assert experiment("scan", *words).exit_code == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in "ab")
        if name == "result.json":
            one, other = (
                json.dumps({**json.loads(x), "seconds": 0}).encode() for x in (one, other)
            )
        assert one == other, name


@pytest.mark.tiny
def test_json_is_all_that_is_printed(text: Path) -> None:
    done = experiment("decompose-output", "--model", text, "--layer", "1", "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["experiment"] == "decompose-output" and made["source"] == "SinkScope's own prompts"
    assert made["groups"] == {"first": 4, "ordinary": 4, "last": 4}


@pytest.mark.tiny
def test_two_runs_side_by_side(text: Path, llama: Path, tmp_path: Path) -> None:
    for name, folder in (("a", text), ("b", llama)):
        words = ("--model", folder, "--layer", "1", "--tokens", "0,1,8", "-o", tmp_path / name)
        assert experiment("decompose-output", *words).exit_code == 0
    out = tmp_path / "both"
    words = ("--compare", tmp_path / "a", tmp_path / "b" / "result.json", "-o", out, "--json")
    done = run("experiment", *words)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    table = next(table for table in made["findings"]["tables"] if table["name"] == "output")
    columns = table["columns"]
    assert columns[:4] == ["tokens", "norm_Y A", "norm_Y B", "norm_Y B-A"]
    one, other = (Result.open(tmp_path / name) for name in "ab")
    for row in table["rows"]:
        (a,) = (r[1] for r in one.findings.tables[0].rows if r[0] == row[0])
        (b,) = (r[1] for r in other.findings.tables[0].rows if r[0] == row[0])
        assert row[1:4] == [a, b, b - a]
    assert (out / "norm.png").is_file() and (out / "output.csv").is_file()
    assert experiment("scan", "--model", text, "-o", tmp_path / "c").exit_code == 0
    said = refused(run("experiment", "--compare", tmp_path / "a", tmp_path / "c"))
    assert "different experiments, decompose-output and scan" in said


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("mlp-subspace", ("--layer", "9"), "layer is 9; .* has layers 0 to 3"),
        ("ablate-mlp", ("--layer", "3"), "allowed: 0 to 2, the last but one"),
        ("mlp-subspace", ("--layer", "1", "--mlp", "gate"), "'gate' is not one of"),
        ("scan", ("--head", "9"), "head is 9; .* has heads 0 to 3"),
        ("scan", ("--tokens", "sink"), "tokens is 'sink'; allowed: sinks, ordinary, first, last"),
        (
            "scan",
            ("--tokens", "0,9999"),
            "tokens has 9999, but .+ has positions 0 to",
        ),
        ("scan", ("--print", "z"), "print is .*; allowed: some of q, k, v, hidden, attn, mlp"),
        ("scan", ("--tokens", "0"), "a second group"),
        ("scan", ("--dims", "64"), "dims is .*64.*; .* has dimensions 0 to 63"),
        ("scan", ("--sinks-by", "profile"), "no sink dimensions with a threshold are known"),
        ("scan", ("--dims", "3", "--tau", "9"), r"No sinks in these 4 samples: no vision token"),
        ("ablate-mlp", ("--layer", "0", "--top", "1"), "top neurons are none.* have such a set: 1"),
        ("cut-edges", ("--keys", "region"), "region is None; allowed: a box with keys region"),
        ("cut-edges", ("--layers", "7"), "layer is 7; .* has layers 0 to 3"),
        ("lower-attention", ("--factor", "1"), "changes nothing"),
        ("lower-attention", ("--factor", "2"), "factor is 2.0; allowed: a number from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(
    model: Path, pictures: Path, name: str, words: tuple[str, ...], says: str
) -> None:
    done = experiment(name, "--model", model, "--data", pictures, *words)
    if "not one of" in says:  # typer's own text
        assert done.exit_code == 2 and "Invalid value" in done.output
        return
    import re

    assert re.search(says, refused(done)), refused(done)


@pytest.mark.tiny
def test_one_sample_is_too_few_for_a_spread(model: Path, pictures: Path) -> None:
    words = ("--model", model, "--data", pictures, "--samples", "1")
    assert "needs 2 or more" in refused(run("experiment", "scan", *words))


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("mlp-subspace", ("--layer", "1", "--mlp", "g"), "have no gate; allowed: z, out, residual"),
        ("vision-or-text", (), "is a text model and has no vision tower"),
        ("scan", ("--tokens", "sinks,first"), "the samples have no images"),
        ("scan", ("--data", "PICTURES"), "is a text model and sees no images"),
        ("scan", ("--data", "demo/examples/four_things.png"), "is a text model and sees no images"),
        ("scan", ("--data", "nowhere.txt"), "nowhere.txt cannot be read"),
        (
            "cut-edges",
            ("--keys", "region", "--region", "0,0,1,1"),
            "sees no images; allowed: sinks",
        ),
    ],
)
def test_a_text_model_refuses_what_is_not_for_it(
    text: Path, pictures: Path, name: str, words: tuple[str, ...], says: str
) -> None:
    words = tuple(str(pictures) if word == "PICTURES" else word for word in words)
    assert says in refused(experiment(name, "--model", text, *words))


@pytest.mark.tiny
def test_a_model_of_images_without_any_asks_for_them(model: Path, tmp_path: Path) -> None:
    assert "data is missing" in refused(experiment("scan", "--model", model))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is this?")
    assert "allowed: a folder of images" in refused(
        experiment("scan", "--model", model, "--data", prompts)
    )


@pytest.mark.tiny
def test_prompts_of_a_file(text: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The star is red and the circle\n\nNo circle is as blue as\n")
    done = experiment("scan", "--model", text, "--data", prompts, "--json", "--print", "hidden")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["samples"] == ["line 1", "line 3"]
    assert "prompts.txt has 2 prompts; 4 were asked for." in made["findings"]["notes"]
    prompts.write_text("\n \n")
    said = refused(experiment("scan", "--model", text, "--data", prompts))
    assert "has no prompt" in said
    assert len(own_prompts(32).samples) == 32


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "y.json").write_text("nothing")
    for name, says in (
        ("x.json", "is not a result of an experiment"),
        ("y.json", "is not JSON"),
        ("z.json", "cannot be read"),
    ):
        done = run("experiment", "--compare", tmp_path / name, tmp_path / name)
        assert says in refused(done)
