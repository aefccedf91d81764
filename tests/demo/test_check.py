"""The check: teacher forcing gives the same verdict as generation; planted cases are counted."""

import json
import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from sinkscope.config import VARSettings
from sinkscope.demo import check as module
from sinkscope.demo.card import suggested, table
from sinkscope.demo.check import CheckSettings, check
from sinkscope.demo.folder import write_folder
from sinkscope.demo.measure import held_out_scenes, load_subject, observe
from sinkscope.demo.questions import KINDS


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, tokenizer):
    from transformers import Qwen2_5_VLForConditionalGeneration

    from sinkscope.demo.card import write_profile
    from sinkscope.demo.folder import build_config
    from sinkscope.demo.recipe import SinkTeaching

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer))
    folder = tmp_path_factory.mktemp("untrained")
    write_folder(folder, model, tokenizer)
    write_profile(folder, 256, 6, SinkTeaching())
    return folder


def test_the_held_out_scenes_are_not_those_of_the_training():
    assert {s.seed[0] for s in held_out_scenes(0, 5)} == {2}
    assert len({s.image.shape for s in held_out_scenes(0, 5)}) == 5


@pytest.fixture(scope="module")
def figures(untrained):
    return check(CheckSettings(untrained, 10))


def test_an_untrained_model_scores_nothing_and_has_no_sinks(figures):
    assert suggested(figures) == [] and figures["answers"]["together"]["exact"] == 0
    assert figures["sinks"]["images_with_sinks"] == 0
    assert 0.03 < figures["looking"]["chance"] < 0.15
    assert all(row["share_of_tokens"] == 0 for row in figures["sinks"]["layers"])
    assert figures["changed"] == {} and "10 held-out scenes" in table(figures)


def test_planted_sinks_are_counted(untrained):
    """Two tokens are made sinks in the recorded states and receive half the image's attention."""
    subject = load_subject(untrained)
    seen = next(observe(subject, held_out_scenes(0, 1), ("what",)))
    vision, size = seen.batch.vision, seen.batch.vision_tokens
    free = (~module._covered(seen.scenes[0], seen)).nonzero()[:2, 0] + vision.start
    for states in seen.states[2:]:
        states[0, free] = 0.01
        states[0, free, 17] = 5.0
    for weights in seen.attentions:
        weights[..., vision] = 0.5 / (size - 2)
        weights[..., free] = 0.25
    counted = module._Sinks(CheckSettings(untrained, 5), subject)
    counted.add(seen)
    figures = counted.figures()
    assert figures["images_with_sinks"] == 1
    for row in figures["layers"][2:]:
        assert row["tokens"] == 2 and row["on_object"] == 0
        assert math.isclose(row["held"], 0.5, rel_tol=1e-4)
        assert math.isclose(row["times_uniform"], 0.5 * size / 2, rel_tol=1e-4)
        assert row["control_share_of_tokens"] == 0 and row["control_times_uniform"] < 3
    assert figures["layers"][0]["tokens"] == 0


def test_planted_looking_is_found(untrained):
    """All heads look away except one, which looks at the named object."""
    subject = load_subject(untrained)
    looking = module._TargetAttention()
    for seen in observe(subject, held_out_scenes(0, 5), ("what", "describe")):
        for i, drawn in enumerate(seen.scenes):
            boxes = [
                module._inside(drawn, j, seen.rows, seen.cols) for j in range(len(drawn.objects))
            ]
            away = int((~torch.stack(boxes).any(0)).nonzero()[0])
            for layer, weights in enumerate(seen.attentions):
                weights[i] = 0
                for row in range(weights.shape[2] - 1):
                    index = int(seen.batch.named[i, row + 1])
                    for head in range(weights.shape[1]):
                        target = away
                        if (layer, head) == (3, 5) and index >= 0:
                            target = int(boxes[index].nonzero()[-1])
                        weights[i, head, row, seen.batch.vision.start + target] = 1
        looking.add(seen)
    assert looking.best_head() == (3, 5)
    figures = looking.figures((3, 5))
    assert figures["best_head"]["pointing"] == figures["best_head"]["share_in_box"] == 1
    assert figures["mean_map_pointing"] == 0
    assert math.isclose(figures["mean_of_heads_pointing"], 1 / 48, rel_tol=1e-5)


def test_verdicts_are_counted_by_what_a_change_does_to_them(untrained):
    """One change makes two of three answers right, and another makes a right one wrong."""
    subject = load_subject(untrained)
    seen = next(observe(subject, held_out_scenes(0, 1), ("what", "describe", "exist")))
    before, after = torch.zeros_like(seen.right), torch.zeros_like(seen.right)
    before[seen.batch.block == 3] = True
    after[(seen.batch.block == 1) | (seen.batch.block == 2)] = True
    compared = module._Compared()
    compared.add(replace(seen, right=before), replace(seen, right=after))
    wanted = {"questions": 3, "wrong_before": 2, "mended": 2, "broken": 1}
    assert compared.figures() == wanted


def test_each_grid_is_measured_on_scenes_of_its_own(figures):
    grids = figures["describe_by_grid"]
    assert list(grids) == ["5 x 5", "7 x 7", "8 x 8", "7 x 13", "10 x 10"]
    assert all(row == {"scenes": 5, "exact": 0.0} for row in grids.values())
    drawn = held_out_scenes(0, 2, sizes=((364, 196),))
    assert [s.owner.shape for s in drawn] == [(196, 364)] * 2


def test_var_and_its_control_take_from_the_tokens_they_name(untrained):
    """Rows after the image, layers 2 .. L-2: VAR lowers the planted sinks, the control others."""
    from sinkscope.cli.demo import var_rows

    subject = load_subject(untrained)
    seen = next(observe(subject, held_out_scenes(0, 2, sizes=((140, 140),)), ("what",)))
    vision = seen.batch.vision
    for states in seen.states:
        states[:, vision.start + 3] = 0.01
        states[:, vision.start + 3, 17] = 5.0
    for control in ("none", "random"):
        settings = VARSettings(dims=(17, 101), tau=6.0, control=control, min_image_mass=0.0)
        change = var_rows(settings, 6)(seen.batch, seen.states)
        weights = seen.attentions[2]
        assert torch.equal(change(1, weights), weights) and torch.equal(change(5, weights), weights)
        changed = change(2, weights)
        assert torch.equal(changed[:, :, : vision.stop], weights[:, :, : vision.stop])
        fell = (changed < weights - 1e-7)[:, :, vision.stop :].any(1).any(1)[:, vision]
        assert fell.sum(-1).tolist() == [1, 1]
        assert fell[:, 3].all() == (control == "none")


def test_settings_outside_their_range_are_refused(untrained, tmp_path):
    for change, said in (({"scenes": 4}, "scenes is 4"), ({"first_seed": -1}, "first_seed is -1")):
        with pytest.raises(ValueError, match=said):
            CheckSettings(untrained, **change)
    with pytest.raises(ValueError, match="holds no model"):
        check(CheckSettings(tmp_path))


def test_the_command_prints_json_with_var_and_writes_the_card(untrained):
    from sinkscope.cli.demo import app

    done = CliRunner().invoke(
        app, ["check", "--model", str(untrained), "--scenes", "5", "--json", "--card"]
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures == json.loads((untrained / "check.json").read_text())
    # No sinks, nothing to redistribute: VAR changes no figure.
    assert list(figures["changed"]) == ["VAR", "VAR, keep 0", "random tokens"]
    assert all(c["answers"] == figures["answers"] for c in figures["changed"].values())
    card = (untrained / "README.md").read_text()
    assert "The sinks were trained in." in card
    assert all(f"| {kind} |" in card for kind in KINDS)


@pytest.mark.slow
def test_teacher_forcing_gives_the_verdict_of_generation():
    from sinkscope.cli.demo import BUNDLED
    from sinkscope.demo.folder import patches

    subject = load_subject(BUNDLED)
    plain = load_subject(BUNDLED).model
    plain.set_attn_implementation("eager")
    tokenizer, verdicts = subject.tokenizer, []
    for seen in observe(subject, held_out_scenes(77, 10), ("describe", "where", "count")):
        scene_of = {
            id(q): s
            for s, asked in zip(seen.scenes, seen.question_sets, strict=True)
            for q in asked
        }
        for question, verdict in seen.verdicts():
            chat = [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": question.prompt}],
                }
            ]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            text = text.replace("<|image_pad|>", "<|image_pad|>" * seen.batch.vision_tokens)
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            out = plain.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == plain.config.image_token_id).long(),
                pixel_values=torch.from_numpy(patches(scene_of[id(question)].image)),
                image_grid_thw=torch.tensor([[1, seen.rows * 2, seen.cols * 2]]),
                max_new_tokens=64,
                do_sample=False,
            )
            answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            assert (answer == question.answer) == verdict, (question, answer)
            verdicts.append(verdict)
    assert sum(verdicts) > 15
