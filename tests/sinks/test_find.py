"""Finding, end to end: planted sinks are found and nothing else; models without sinks give none; an
interrupted run is resumed; order and batches do not matter."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sinkscope.capture.run import RunOutOfMemoryError
from sinkscope.jobs.job import Stopped
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.finding.measure import measure
from sinkscope.sinks.samples import Sample, SampleSet, read_samples
from sinkscope.sinks.settings import FindSettings
from tests.sinks.planted import Plant, painted_cells, painted_samples, planted

pytestmark = pytest.mark.tiny
QUICK = FindSettings(bootstrap=200, halves=20)

PLANTS = (
    Plant((7,), seed=1, layer=0, layers=4),
    Plant((7, 30), seed=2, decoys=(40, 41), first=(20,), layers=5),
    Plant((3, 90, 50), hidden=96, seed=3, decoys=(1,), layers=5),
    Plant((100, 101), hidden=128, seed=4, layer=None, decoys=(5,), first=(9,), layers=4),
    Plant((2, 200), hidden=256, seed=5, decoys=(17, 18, 19), first=(90,), layers=4),
)
NULLS = (
    Plant((), seed=6, decoys=(11, 12), first=(20,), layers=4),  # tokens stand out; nothing marks
    Plant((), hidden=128, seed=7, decoys=(11,), attended=False, layers=4),
    Plant((8,), seed=8, attended=False, layers=4),  # massive activations without attention
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return planted(tmp_path_factory.mktemp("planted"), PLANTS[1])


@pytest.mark.parametrize("plant", PLANTS, ids=lambda p: f"{p.hidden}-{p.dims}")
def test_planted_dims_are_found_and_no_decoy(tmp_path: Path, plant: Plant) -> None:
    handle = planted(tmp_path, plant)
    samples = painted_samples(8)
    found = find(handle, samples, QUICK)
    assert found.dims == tuple(sorted(plant.dims)), found.sentence()
    assert set(plant.decoys) <= set(found.always_on)
    assert set(plant.first) == set(found.first_token_dims)
    for candidate in found.candidates:
        if candidate.dim in plant.decoys:
            assert candidate.kind == "always on"
        if candidate.dim in plant.first:
            assert candidate.kind == "first token"
    assert found.stability == 1.0
    arises = 0 if plant.layer is None else plant.layer + 1
    assert max(found.origins, key=lambda o: o.tokens).layer == arises
    assert found.sink_layers[0] >= arises
    # Tau separates the painted cells from all others, in every layer with sinks.
    for stats, sample in zip(measure(handle, samples, QUICK), samples, strict=True):
        rows = [stats.layers.index(layer) for layer in found.sink_layers]
        flagged = stats.phi(found.dims)[rows] > found.tau
        painted = painted_cells(sample.open_images()[0])
        assert flagged[:, painted].float().mean() > 0.9
        assert flagged.sum() <= 1.1 * len(rows) * len(painted)


@pytest.mark.parametrize("plant", NULLS, ids=lambda p: f"{p.hidden}-{p.attended}")
def test_a_model_without_sinks_yields_none_and_says_why(tmp_path: Path, plant: Plant) -> None:
    found = find(planted(tmp_path, plant), painted_samples(8), QUICK)
    assert found.dims == () and found.tau is None and found.origins == ()
    stands_out = "no dimension marks them" if plant.attended else "does a vision token stand out"
    assert stands_out in found.reason
    with pytest.raises(ValueError, match="no profile to write: No sink dimension"):
        found.profile()


def test_activations_that_overflow_are_no_absence_of_sinks(tmp_path: Path) -> None:
    handle = planted(tmp_path, PLANTS[1])
    handle.model.model.language_model.layers[1].mlp.down_proj.weight.data[[7, 30], 0] *= 3000
    handle.model.to(torch.float16)
    work = tmp_path / "work"
    with pytest.raises(ValueError, match=r"In layer 2 of 000 .* not finite.*bfloat16 or float32"):
        find(handle, painted_samples(2), QUICK, work=work)
    assert not list(work.rglob("*.st"))


def test_order_and_batches_do_not_matter(model: ModelHandle) -> None:
    samples = [
        *painted_samples(4),
        Sample("two", tuple(s.images[0] for s in painted_samples(2, seed=9)), "What is here?"),
    ]
    plain = find(model, samples, QUICK)
    other = find(model, samples[::-1], replace(QUICK, batch_size=3))
    close = figures(plain), figures(other)
    assert plain.dims == other.dims == (7, 30) and plain.tau == other.tau
    assert len(close[0]) == len(close[1]) > 500
    torch.testing.assert_close(*map(torch.tensor, close), rtol=1e-6, atol=1e-6)


def figures(found: Findings) -> list[float]:
    """All values of the findings except settings and duration."""
    plain = {**found.as_dict(), "settings": None, "seconds": None}

    def walk(value: object) -> list[float]:
        if isinstance(value, dict):
            return [x for v in value.values() for x in walk(v)]
        if isinstance(value, list | tuple):
            return [x for v in value for x in walk(v)]
        return [float(value)] if isinstance(value, int | float) else []

    return walk(json.loads(json.dumps(plain)))


def test_goes_on_after_stop_and_trusts_no_damaged_file(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = painted_samples(5)
    whole = find(model, samples, QUICK)
    stop = threading.Event()
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int, text: str) -> None:
        reports.append((done, total))
        if done == 3:
            stop.set()

    with pytest.raises(Stopped) as stopped:
        find(model, samples, QUICK, work=tmp_path, on_progress=progress, stop=stop)
    assert (stopped.value.done, stopped.value.total) == (3, 5) and reports[-1] == (3, 5)
    files = sorted(tmp_path.rglob("*.st"))
    assert len(files) == 3
    flipped = bytearray(files[0].read_bytes())
    flipped[-1] ^= 1
    files[0].write_bytes(flipped)
    files[1].write_bytes(files[2].read_bytes())  # another sample's

    reports.clear()
    again = find(
        model, samples, QUICK, work=tmp_path, on_progress=lambda *p: reports.append((p[0], p[1]))
    )
    assert reports[0] == (1, 5) and reports[-1] == (5, 5)
    named = [note for note in again.notes if "was measured again" in note]
    assert len(named) == 2
    assert any("checksum" in note for note in named)
    assert any("another sample" in note for note in named)
    assert figures(again) == figures(whole)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(type(model.model), "forward", never)
    judged = find(model, samples, replace(QUICK, min_contrast=1000.0), work=tmp_path)
    assert judged.dims == ()  # other thresholds need no forward pass
    with pytest.raises(AssertionError, match="measured again"):
        find(model, samples, replace(QUICK, top_percent=5.0), work=tmp_path)


def test_samples_that_the_model_cannot_take_are_listed(model: ModelHandle) -> None:
    good = painted_samples(2)
    thin = Sample("thin", good[0].images, "too long " * 3000)
    found = find(model, [*good, thin], QUICK)
    assert [name for name, _ in found.skipped] == ["thin"] and found.sample_ids == ("000", "001")
    assert any("2 usable samples; 3 were asked for" in note for note in found.notes)
    assert any("With 2 samples" in note for note in found.notes)
    with pytest.raises(ValueError, match="The only sample cannot be used"):
        find(model, [thin], QUICK)
    with pytest.raises(ValueError, match=r"layers is \(9,\)"):
        find(model, good, replace(QUICK, layers=(9,)))
    with pytest.raises(ValueError, match="no images"):
        find(model, SampleSet((), (), 3, "nothing"), QUICK)


@pytest.mark.parametrize("tokens_by", ["after_image", "last_row"])
def test_other_ways_to_choose_find_the_same(model: ModelHandle, tokens_by: str) -> None:
    found = find(model, painted_samples(6), replace(QUICK, tokens_by=tokens_by))
    assert found.dims == (7, 30)


def test_by_norm_no_attention_is_needed(tmp_path: Path) -> None:
    unseen = planted(tmp_path, Plant((8,), seed=8, attended=False, layers=4))
    found = find(unseen, painted_samples(6), replace(QUICK, tokens_by="norm"))
    assert found.dims == (8,)


def test_layers_restrict_what_is_looked_at(model: ModelHandle) -> None:
    found = find(model, painted_samples(4), replace(QUICK, layers=(3, 1)))
    assert [layer.layer for layer in found.layers] == [1, 3]
    assert found.dims == ()  # layer 1 has none yet, and one layer is not a run of two
    assert find(model, painted_samples(4), replace(QUICK, layers=(3,))).dims == (7, 30)


def test_findings_survive_their_file_and_give_a_profile(model: ModelHandle, tmp_path: Path) -> None:
    found = find(model, painted_samples(4), QUICK)
    found.save(tmp_path / "f.json")
    assert Findings.open(tmp_path / "f.json") == found
    profile = found.profile("my/model", "A note.")
    assert (profile.dims, profile.tau, profile.hidden_size) == ((7, 30), found.tau, 64)
    assert profile.confidence == "low" and profile.note.startswith("A note. Dimensions 7 and 30")
    (tmp_path / "f.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="holds no findings"):
        Findings.open(tmp_path / "f.json")
    broken = {**found.as_dict(), "layers": [{}]}
    (tmp_path / "f.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="are damaged"):
        Findings.open(tmp_path / "f.json")


def test_findings_say_what_was_asked_and_older_ones_still_open(
    model: ModelHandle, tmp_path: Path
) -> None:
    asked = [
        replace(sample, prompt=f"Is it {sample.id}?", answer="no", where=f"line {n} of pope.jsonl")
        for n, sample in enumerate(painted_samples(4), 1)
    ]
    asked[0] = replace(asked[0], system="Be kind.", history=(("Hi", "Ho"),))
    found = find(model, asked, QUICK)
    path = tmp_path / "f.json"
    found.save(path)
    assert Findings.open(path) == found
    first, second = json.loads(path.read_text())["samples"][:2]
    assert first["question"] == "Is it 000?" and first["answer"] == "no"
    assert first["where"] == "line 1 of pope.jsonl"
    assert (first["system"], first["history"]) == ("Be kind.", [["Hi", "Ho"]])
    assert (second["system"], second["history"]) == (None, [])
    # Older files have only three keys per sample.
    old = found.as_dict()
    old["samples"] = [{k: s[k] for k in ("id", "fingerprint", "images")} for s in old["samples"]]
    path.write_text(json.dumps(old))
    opened = Findings.open(path)
    assert [s.id for s in opened.samples] == [s.id for s in found.samples]
    assert {s.question for s in opened.samples} == {""} and opened.dims == found.dims


def test_system_message_and_history_reach_the_model(
    model: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    plain = type(model).prepare

    def prepare(self: ModelHandle, *args: object, **options: object) -> object:
        prepared.append(plain(self, *args, **options))  # type: ignore[arg-type]
        return prepared[-1]

    monkeypatch.setattr(type(model), "prepare", prepare)
    (sample,) = painted_samples(1)
    find(model, [replace(sample, system="Be kind.", history=(("Say hi.", "hi"),))], QUICK)
    text = "".join(prepared[0].token_texts)
    assert "Be kind." in text
    assert text.index("Say hi.") < text.index("Describe the image.")


def test_samples_can_come_from_a_folder(model: ModelHandle, tmp_path: Path) -> None:
    for sample in painted_samples(3):
        sample.open_images()[0].save(tmp_path / f"{sample.id}.png")
    found = find(model, read_samples(tmp_path, 3), QUICK)
    assert found.dims == (7, 30)
    assert found.sample_ids == ("000.png", "001.png", "002.png")


def test_a_full_memory_names_the_levers(model: ModelHandle) -> None:
    class Full:
        name = "full"

        def run(self, task: object, items: object) -> Iterator[tuple[int, list[object]]]:
            raise torch.OutOfMemoryError("full")
            yield 0, []

    with pytest.raises(RunOutOfMemoryError, match=r"max_pixels; now 3136\).*batch_size; now 1"):
        find(model, painted_samples(1), replace(QUICK, max_pixels=3136), engine=Full())  # type: ignore[arg-type]
    fixed = replace(model, family=_Fixed(model.family))  # type: ignore[arg-type]
    with pytest.raises(RunOutOfMemoryError, match=r"smaller images, or fewer .*batch_size; now 1"):
        find(fixed, painted_samples(1), QUICK, engine=Full())  # type: ignore[arg-type]


class _Fixed:
    """A family whose images have one size."""

    pixel_bounds = False

    def __init__(self, family: object) -> None:
        self._family = family

    def __getattr__(self, name: str) -> object:
        return getattr(self._family, name)
