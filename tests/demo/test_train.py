"""Training: an interruption changes nothing, bad folders are reported first, the result loads."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sinkscope.demo import folder
from sinkscope.demo import train as module
from sinkscope.demo.checkpoint import CHECKPOINT, read_history
from sinkscope.demo.recipe import STAGES as RECIPE
from sinkscope.demo.recipe import SinkTeaching, Stage
from sinkscope.demo.speed import training_dtype
from sinkscope.demo.train import TrainSettings, train

SINKS = SinkTeaching(every_row=True, quiet=0.03, lead_in_map=(1.1, 1.4, 0.8), relieved=0.5)
STAGES = (
    Stage("see", 8, ((3, 3),), 2, (), (1e-3, 1e-4), batch=2),
    Stage("name", 8, ((3, 3), (3, 4)), 2, ("what", "where"), (1e-3, 1e-3), batch=2, asked=2),
    Stage("sink", 4, ((4, 3),), 2, ("what", "count"), (1e-3, 1e-4), sinks=SINKS, batch=2),
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def small(tokenizer):
    """One tokenizer (it is always the same), and the architecture with narrow layers."""

    def build_config(tokenizer):
        config = folder.build_config(tokenizer)
        text, vision = config.text_config, config.vision_config
        text.hidden_size, text.intermediate_size = 128, 96
        text.num_attention_heads, text.num_key_value_heads = 4, 2
        vision.hidden_size, vision.intermediate_size, vision.out_hidden_size = 64, 96, 128
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_tokenizer", lambda: tokenizer)
        patch.setattr(module, "build_config", build_config)
        yield patch


def settings(root: Path, **changes) -> TrainSettings:
    made = TrainSettings(root / "model", root / "work", device="cpu", stages=STAGES, save_every=1)
    return replace(made, **changes)


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "work" / CHECKPOINT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    reports = list(train(settings(root)))
    return root, reports


@pytest.mark.parametrize(("stops", "save_every"), [((2, 3), 1), ((5, 3), 2)])
def test_a_run_that_was_interrupted_gives_the_same_weights(
    uninterrupted, tmp_path, stops, save_every
):
    for stop in stops:
        run = train(settings(tmp_path, save_every=save_every))
        for _ in range(stop):
            next(run)
        run.close()
    list(train(settings(tmp_path, save_every=save_every)))
    expected, resumed = weights(uninterrupted[0]), weights(tmp_path)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)
    assert read_history(tmp_path / "work") == read_history(uninterrupted[0] / "work")


def test_reports_cover_every_step_and_stage(uninterrupted):
    reports = uninterrupted[1]
    assert [r.done for r in reports] == list(range(1, 11)) and reports[-1].total == 10
    assert [r.stage for r in reports] == ["see"] * 4 + ["name"] * 4 + ["sink"] * 2
    assert {"loss", "right", "hints", "sink_phi"} <= reports[-1].figures.keys()
    assert not list(uninterrupted[0].rglob("*.partial"))


def test_the_folder_loads_and_answers_like_a_published_checkpoint(uninterrupted):
    from PIL import Image

    from sinkscope.demo.scenes import scene
    from sinkscope.models.loading import load_model

    handle = load_model(str(uninterrupted[0] / "model"))
    inputs = handle.prepare(images=[Image.fromarray(scene(1, 168, 140).image)], prompt="Hello?")
    out = handle.model.generate(**inputs.tensors, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > inputs.tensors["input_ids"].shape[1]


def test_training_lowers_the_loss(tmp_path):
    stage = Stage("name", 40, ((3, 3),), 2, ("what", "where"), (1e-2, 1e-2), batch=2, asked=2)
    reports = list(train(settings(tmp_path, stages=(stage,), save_every=20)))
    losses = [r.figures["loss"] for r in reports]
    assert len(losses) == 20 and losses[-1] < losses[0] - 1


@pytest.mark.parametrize(
    ("steps", "shared"), [(None, [4, 4, 2]), (1, [1, 0, 0]), (5, [2, 2, 1]), (99, [4, 4, 2])]
)
def test_steps_are_shared_evenly_by_the_stages(tmp_path, steps, shared):
    made = settings(tmp_path, steps=steps)
    assert [made.stage_steps(stage) for stage in STAGES] == shared


def test_an_interruption_while_the_model_is_written_costs_nothing(
    uninterrupted, tmp_path, monkeypatch
):
    write, calls = module.write_folder, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == len(STAGES):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "write_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(train(settings(tmp_path)))
    monkeypatch.setattr(module, "write_folder", write)
    list(train(settings(tmp_path)))
    name = "model/model.safetensors"
    assert (tmp_path / name).read_bytes() == (uninterrupted[0] / name).read_bytes()
    # A finished run writes its folder again, also to another place.
    assert list(train(settings(tmp_path, output=tmp_path / "again"))) == []
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (uninterrupted[0] / name).read_bytes()


def test_another_recipe_seed_or_length_does_not_continue_a_run(uninterrupted):
    changed = (replace(STAGES[0], images=6), *STAGES[1:])
    for other in ({"stages": changed}, {"seed": 1}, {"steps": 3}):
        with pytest.raises(ValueError, match="another recipe, seed or number of steps"):
            next(train(settings(uninterrupted[0], **other)))


def test_a_run_goes_on_with_other_stages_after_those_it_has_begun(uninterrupted, tmp_path):
    """Three steps into "name": "sink" may still be decided, "name" and "see" may not."""
    first = train(settings(tmp_path, stages=STAGES[:2]))
    for _ in range(8):  # the checkpoint is that of the seventh step
        next(first)
    first.close()
    for begun in (0, 1):
        changed = list(STAGES)
        changed[begun] = replace(STAGES[begun], rate=(1e-3, 5e-4))
        with pytest.raises(ValueError, match="another recipe"):
            next(train(settings(tmp_path, stages=tuple(changed))))
    assert [r.stage for r in train(settings(tmp_path))] == ["name"] + ["sink"] * 2
    expected, grown = weights(uninterrupted[0]), weights(tmp_path)
    assert all(torch.equal(expected[k], grown[k]) for k in expected)


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        next(train(settings(tmp_path, output=tmp_path / "file" / "model")))
    assert not (tmp_path / "work" / CHECKPOINT).exists()


def test_a_full_disk_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ValueError, match="1 MB free: training needs 200 MB"):
        next(train(settings(tmp_path)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"save_every": 0}, "save_every is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_outside_their_range_are_refused(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        settings(tmp_path, **change)


@pytest.mark.slow
def test_the_command_trains_with_the_real_recipe(tmp_path, small):
    from sinkscope.cli.demo import app

    small.setattr(module, "build_config", folder.build_config)

    arguments = ["train", "--output", str(tmp_path / "m"), "--work", str(tmp_path / "w")]
    arguments += ["--steps", "20", "--device", "cpu", "--threads", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    history = read_history(tmp_path / "w")
    # Every stage of the recipe is run, with its own sizes, questions and losses.
    assert len(history) == 20 and {h["stage"] for h in history} == {s.name for s in RECIPE}
    assert all(math.isfinite(v) for h in history for v in h.values() if not isinstance(v, str))
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 20e6
    assert (tmp_path / "w" / "training.png").stat().st_size > 5000
    assert (tmp_path / "m" / "sink_profile.toml").exists()


def test_bfloat16_is_trained_in_where_it_is_computed_and_not_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 1.0] * 3 + [0.0, 57.0] * 3 + [0.0, 1.0] * 3 + [0.0, 0.5] * 3)
    monkeypatch.setattr("sinkscope.demo.speed.time.perf_counter", lambda: next(clock))
    assert training_dtype(torch.device("cpu")) == torch.float32
    assert training_dtype(torch.device("cpu")) == torch.bfloat16
    assert training_dtype(torch.device("cuda")) == torch.bfloat16
