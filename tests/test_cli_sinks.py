"""`sinkscope sinks`: its files and output, how it refuses, stops and resumes; and the other verbs
with a profile file."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from sinkscope.models.profiles import published, read_profile
from sinkscope.sinks.finding.findings import Findings
from tests.sinks.planted import Plant, painted_samples, planted
from tests.test_cli import refused, run

PLANT = Plant((5, 33), hidden=64, seed=3, layer=1, decoys=(20,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has sinks, on `PLANT.dims`."""
    folder = tmp_path_factory.mktemp("planted")
    planted(folder, PLANT)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures, and a file that is not a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for sample in painted_samples(20, seed=7):
        sample.open_images()[0].save(folder / f"{sample.id}.png")
    (folder / "broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def profile(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output files of `sinks find` for twelve pictures; its printed output is in said.txt."""
    folder = tmp_path_factory.mktemp("profile")
    path = folder / "found.toml"
    done = run(
        *("sinks", "find", "--model", model, "--data", pictures, "--samples", "12", "-o", path),
        *("--work", folder / "work", "--min-contrast", "2.5", "--plots", folder / "plots"),
    )
    assert done.exit_code == 0, done.output
    (folder / "said.txt").write_text(done.stdout)
    (folder / "errors.txt").write_text(done.stderr)
    return path


# --- tier 1 ---------------------------------------------------------------------------------------


def test_all_published_profiles_are_listed() -> None:
    done = run("sinks", "show")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["model", "hidden", "layers", "dims", "tau", "confidence"]
    assert [line.split()[0] for line in lines[1:]] == [one.model for one in published()]
    plain = json.loads(run("sinks", "show", "--json").stdout)
    assert [one["dims"] for one in plain] == [list(one.dims) for one in published()]


def test_one_published_profile_with_its_source() -> None:
    done = run("sinks", "show", "--profile", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert done.exit_code == 0, done.output
    (wanted,) = [one for one in published() if one.model == "Qwen/Qwen2.5-VL-7B-Instruct"]
    said = " ".join(done.stdout.split())
    assert " ".join(wanted.source.split()) in said and f"confidence {wanted.confidence}" in said
    assert "allowed: a file, demo, or one of" in refused(run("sinks", "show", "--profile", "nope"))
    assert "nothing to draw" in refused(run("sinks", "show", "--profile", "demo", "--plots", "x"))


# --- refusals -------------------------------------------------------------------------------------


def test_what_can_be_refused_is_refused_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("sinkscope.models.loading.load_model", loaded)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    out = tmp_path / "out.toml"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "broken.png").write_text("no image")

    def mistake(*words: str | Path, data: Path = pictures, output: Path = out) -> str:
        return refused(run("sinks", "find", "--data", data, "--output", output, *words))

    assert "allowed: a .toml file" in mistake(output=tmp_path / "out.json")
    assert "does not exist" in mistake(output=tmp_path / "no" / "out.toml")
    assert "does not exist" in mistake(data=tmp_path / "nowhere")
    assert "The only sample" in mistake(data=empty)
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"image": "a.png", "utterance": "Is it?", "gold": "no"}\n' * 3)
    said = mistake(data=unknown)
    assert "no question in 3 of 3 lines; keys present: image, utterance, gold; allowed:" in said
    assert "does not exist" in mistake("--images", tmp_path / "nowhere")
    assert "the scenes of demo are drawn" in mistake("--images", tmp_path, data=Path("demo"))
    assert "samples is 0" in mistake("--samples", "0")
    assert "top_percent is 0" in mistake("--top-percent", "0")
    assert "layers is 'x'" in mistake("--layers", "x")
    assert "workers is 0" in mistake("--workers", "0")
    assert "Ray is not installed" in mistake("--engine", "ray")
    assert "allowed: a folder, not a file" in mistake("--plots", pictures / "broken.png")
    assert not out.exists()

    wrong = tmp_path / "wrong.toml"
    wrong.write_text("dims = [1]")
    said = refused(run("sinks", "validate", "--profile", wrong, "--data", pictures))
    assert "lacks model" in said
    said = refused(run("heatmap", pictures / "000.png", "What?", "-o", "x.png", "--profile", wrong))
    assert "lacks model" in said


# --- with a planted model -------------------------------------------------------------------------


@pytest.mark.tiny
def test_planted_dimensions_are_found_and_written(profile: Path) -> None:
    read = read_profile(profile)
    assert read.dims == PLANT.dims and 0 < read.tau < 8
    said = (profile.parent / "said.txt").read_text()
    taken = [line.split() for line in said.splitlines() if re.match(r"\d+ +sink ", line)]
    assert sorted(int(line[0]) for line in taken) == list(PLANT.dims)
    assert re.search(r"^20 +always on ", said, re.M)  # the decoy, with its verdict
    assert f"tau  {read.tau:g}" in said
    errors = (profile.parent / "errors.txt").read_text()
    assert "12 samples from" in errors and "Wrote" in errors
    plots = {path.name for path in (profile.parent / "plots").iterdir()}
    assert plots == {
        f"{name}.{kind}"
        for name in ("phi_by_layer", "contrast_matrix", "tau_sweep")
        for kind in ("png", "pdf")
    }


@pytest.mark.tiny
def test_again_takes_no_forward_pass(
    model: Path, pictures: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sinkscope.sinks.finding.find.measure", lambda *_: pytest.fail("measured again")
    )
    again = tmp_path / "again.toml"
    done = run(
        *("sinks", "find", "--model", model, "--data", pictures, "--samples", "12", "-o", again),
        *("--work", profile.parent / "work", "--min-contrast", "2.5", "--json"),
    )
    assert done.exit_code == 0, done.output
    assert again.read_text() == profile.read_text()
    assert json.loads(done.stdout)["dims"] == list(PLANT.dims)


@pytest.mark.tiny
def test_fewer_than_asked_for_and_unreadable_ones_are_said(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("000.png", "001.png", "broken.png"):
        (few / name).write_bytes((pictures / name).read_bytes())
    done = run(
        *("sinks", "find", "--model", model, "--data", few, "--samples", "9"),
        *("-o", tmp_path / "p.toml", "--work", tmp_path / "work"),
    )
    assert "2 samples from" in done.stderr and "9 were asked for" in done.stderr
    assert "Skipped broken.png: " in done.stderr


@pytest.fixture
def pope(tmp_path: Path, pictures: Path) -> Path:
    """Two questions about each picture, and a line without one, as POPE's files are laid out."""
    names = sorted(path.name for path in pictures.iterdir() if path.name != "broken.png")
    rows = [
        {"question_id": 2 * i + j, "image": name, "text": f"Is there a {thing}?", "label": "no"}
        for i, name in enumerate(names)
        for j, thing in enumerate(("dog", "cat"))
    ]
    path = tmp_path / "coco_pope_random.json"
    text_only = {"question_id": 99, "text": "Is there a word?", "label": "yes"}
    path.write_text("\n".join(map(json.dumps, [*rows, text_only])))
    return path


@pytest.mark.tiny
def test_popes_questions_and_answers_are_asked_and_kept(
    model: Path, pictures: Path, pope: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.toml"
    words = ("--data", pope, "--images", pictures, "--samples", "8")
    done = run(
        *("sinks", "find", "--model", model, *words, "-o", out, "--work", tmp_path / "work"),
        *("--min-contrast", "2.5"),
    )
    assert done.exit_code == 0, done.output
    used = json.loads(out.with_name("p.findings.json").read_text())["samples"]
    assert len(used) == 8 and {s["question"] for s in used} == {
        "Is there a dog?",
        "Is there a cat?",
    }
    assert {s["answer"] for s in used} == {"no"}
    for sample in used:
        assert sample["where"] == f"line {int(sample['id']) + 1} of coco_pope_random.json"
    first = used[0]
    assert f"For instance, {first['where']}: '{first['question']}', answer 'no'" in done.stderr
    assert "1 of 41 lines have no image and were skipped (line 41)." in done.stderr

    # One file serves both: no picture used by finding is used for validation, whatever the
    # question.
    result = tmp_path / "v.json"
    done = run("sinks", "validate", "--profile", out, *words, "--output", result)
    assert done.exit_code in (0, 3), done.output
    made = json.loads(result.read_text())
    assert len(made["samples"]) == 8 and made["held_out"]
    seen = {int(sample["id"]) // 2 for sample in used}
    assert seen.isdisjoint(int(sample["id"]) // 2 for sample in made["samples"])
    assert not any(sample["own"] for sample in made["samples"])
    assert {sample["question"][:11] for sample in made["samples"]} == {"Is there a "}


@pytest.mark.tiny
def test_without_sinks_nothing_is_written_and_the_exit_code_says_so(
    tiny_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "none.toml"
    done = run(
        *("sinks", "find", "--model", tiny_folder, "--data", pictures, "--samples", "4"),
        *("-o", path, "--work", tmp_path / "work"),
    )
    assert done.exit_code == 3, done.output
    assert "No sink dimension was found" in " ".join(done.stdout.split())
    assert "No profile was written" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["work"]


@pytest.mark.tiny
def test_interrupted_it_says_what_remains_and_goes_on(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sinkscope.sinks.finding.find

    plain, seen = sinkscope.sinks.finding.find.measure, []

    def measure(*args: Any, **options: Any) -> Any:
        seen.append(args)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args, **options)

    words = (
        *("sinks", "find", "--model", model, "--data", pictures, "--samples", "4"),
        *("-o", tmp_path / "p.toml", "--work", tmp_path / "work", "--min-contrast", "2.5"),
    )
    monkeypatch.setattr("sinkscope.sinks.finding.find.measure", measure)
    before = signal.getsignal(signal.SIGINT)
    done = run(*words)
    assert done.exit_code == 130, done.output
    assert "Stopped after 2 of 4 samples; 2 remain." in done.stderr
    assert "the same command continues from there" in done.stderr
    assert signal.getsignal(signal.SIGINT) is before
    seen.extend([()] * 9)  # from here on it only counts
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert len(seen) == 2 + 9 + 2


@pytest.mark.tiny
def test_where_sinks_arise_is_said_only_as_far_as_it_was_looked_at(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ("sinks", "find", "--model", model, "--data", pictures, "--samples", "4")
    rest = ("-o", tmp_path / "found.toml", "--work", tmp_path)
    for layers, where in (("3,5", "before layer 3, the first"), ("0,4-5", "in layers 0-3.")):
        done = run(*words, *rest, "--layers", layers)
        assert done.exit_code == 0, done.output
        assert f"The sinks arise: 100% {where}" in done.stdout
        findings = Findings.open(tmp_path / "found.findings.json")
        assert findings.from_vision_tower == (0.0 if layers[0] == "0" else None)


@pytest.mark.tiny
def test_validation_leaves_out_what_finding_used(
    profile: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "validation.json"
    words = ("sinks", "validate", "--profile", profile, "--data", pictures, "--samples", "12")
    done = run(*words, "--output", out, "--answers", "own", "--plots", tmp_path / "plots")
    assert done.exit_code in (0, 3), done.output
    made = json.loads(out.read_text())
    used = {sample["id"] for sample in json.loads(_beside(profile).read_text())["samples"]}
    held = {sample["id"] for sample in made["samples"]}
    assert len(used) == 12 and len(held) == 8 and not used & held and made["held_out"]
    assert "Left out 12 samples that finding used" in done.stderr
    assert "12 were asked for" in done.stderr
    assert done.stdout.startswith(f"Verdict: {made['verdict']['word']}\n")
    assert (done.exit_code == 0) == (made["verdict"]["word"] == "confirmed")
    assert (tmp_path / "plots" / "masking_effect.pdf").is_file()

    own = tmp_path / "own"
    own.mkdir()
    for name in used:
        (own / name).write_bytes((pictures / name).read_bytes())
    words = ("sinks", "validate", "--profile", profile, "--data", own, "--answers", "own")
    assert "used all of them (12)" in refused(run(*words, "--samples", "2"))
    done = run(*words, "--samples", "2", "--allow-finding-data", "--json")
    assert json.loads(done.stdout)["held_out"] is False


def _beside(profile: Path) -> Path:
    return profile.with_name("found.findings.json")


@pytest.mark.tiny
def test_a_profile_is_shown_with_what_finding_came_to(
    profile: Path, model: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    done = run("sinks", "show", "--profile", profile, "--plots", tmp_path / "p", "--model", model)
    assert done.exit_code == 0, done.output
    assert "dims         5, 33" in done.stdout and "source       found by SinkScope" in done.stdout
    said = (profile.parent / "said.txt").read_text()
    assert done.stdout.partition(" s\n")[2] == said.partition(" s\n")[2]
    assert "The profile fits" in done.stderr
    assert (tmp_path / "p" / "tau_sweep.png").is_file()
    wrong = refused(run("sinks", "show", "--profile", profile, "--model", tiny_folder))
    assert "hidden size 64 and 6 layers" in wrong and "hidden size 64 and 4 layers" in wrong


@pytest.mark.tiny
def test_the_other_verbs_use_a_profile_file(
    profile: Path, model: Path, pictures: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    image = next(path for path in sorted(pictures.iterdir()) if path.name != "broken.png")
    common = ("--profile", profile, "--max-new-tokens", "3")
    drawn = tmp_path / "drawn.pdf"
    done = run("heatmap", image, "What?", "--model", model, "-o", drawn, "--token", "0", *common)
    assert done.exit_code == 0, done.output
    out = tmp_path / "out.json"
    done = run("compare", image, "What?", "--model", model, "-o", out, *common)
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert "found by SinkScope" in written["sink_dimensions"]
    assert sorted(written["report"]["settings"]["dims"]) == list(PLANT.dims)
    for verb in ("heatmap", "compare"):
        words = (verb, image, "What?", "--model", tiny_folder, "-o", tmp_path / "x.pdf")
        assert "6 layers; the model" in refused(run(*words, "--profile", profile))


@pytest.mark.slow
def test_the_bundled_models_own_scenes(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    done = run(
        *("sinks", "find", "--data", "demo", "--samples", "10", "-o", path),
        *("--work", tmp_path / "work"),
    )
    assert done.exit_code == 0, done.output
    assert sorted(read_profile(path).dims) == [17, 101]
    # Another seed by default: other scenes, with true answers.
    done = run("sinks", "validate", "--profile", path, "--data", "demo", "--samples", "2", "--json")
    assert done.exit_code in (0, 3), done.output
    made = json.loads(done.stdout)
    assert made["held_out"] and not any(sample["own"] for sample in made["samples"])
