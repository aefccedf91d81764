"""The evidence can distinguish sinks from tokens that carry the answer: bundled model, drawn
scenes.

Each scene has one object and the question asks what it is, so the tokens on it ARE the answer. A
profile of dimensions that are large on objects must fail; the model's own profile passes.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from sinkscope.capture.probes.values import Values
from sinkscope.demo.questions import questions
from sinkscope.demo.scenes import Scene, scene
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sink_score import FIRST_LAYER
from sinkscope.models.sites import SiteSelection
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.validating.masking import answer_tokens, hidden_log_probabilities, read_answer
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validate import validate

pytestmark = pytest.mark.slow
SETTINGS = ValidateSettings(
    random_draws=2, dims_draws=2, min_samples=10, sweep_samples=2, taus=(5.0,), bootstrap=500
)


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, Sample]]:
    made = []
    for number in range(60):  # fewer leave the interval wider than the margin
        picture = scene((11, number), 168, 168, min_objects=1, max_objects=1, background="texture")
        asked = questions(picture, ["what"])[0]
        images = (Image.fromarray(picture.image),)
        made.append((picture, Sample(f"{number:02}", images, asked.prompt, asked.answer)))
    return made


def test_hiding_objects_hurts_and_hiding_sinks_does_not(
    handle: ModelHandle, drawn: list[tuple[Scene, Sample]]
) -> None:
    profile = handle.profile
    assert profile is not None
    samples = [one for _, one in drawn]
    own = validate(handle, profile, samples, SETTINGS, found_on=())
    changes = {one.name: one.change for one in own.hidden}
    assert own.verdict.word == "confirmed", own.verdict.text
    assert changes["sinks"].low > -SETTINGS.margin
    assert changes["image"].high < -1.0

    dim, tau = _object_dimension(handle, drawn[:4])
    decoy = dataclasses.replace(profile, dims=(dim,), tau=tau)
    # By attention only (1.5 times the average), a lower limit would accept these as sinks.
    lenient = dataclasses.replace(SETTINGS, min_lift=1.2)
    made = validate(handle, decoy, samples[4:], lenient)
    assert made.verdict.word == "contradicted", made.verdict.text
    assert made.contrasts["random"].high < -0.5
    assert next(one for one in made.hidden if one.name == "sinks").change.value < -1.0


def test_own_answers_come_without_their_end(
    handle: ModelHandle, drawn: list[tuple[Scene, Sample]]
) -> None:
    assert handle.profile is not None
    asked = [dataclasses.replace(one, answer=None) for _, one in drawn[:2]]
    made = validate(handle, handle.profile, asked, SETTINGS)
    ends = handle.processor.tokenizer.all_special_tokens
    for one in made.samples:
        assert one.own and one.answer and not any(end in one.answer for end in ends)


@pytest.mark.parametrize("from_queries", ["later", "after_image"])
def test_tokens_on_the_object_are_the_answer(
    handle: ModelHandle, drawn: list[tuple[Scene, Sample]], from_queries: str
) -> None:
    """From the drawing, without any dimension."""
    found = []
    for picture, one in drawn[:6]:
        inputs = handle.prepare(one.open_images(), one.prompt)
        vision = inputs.layout.vision_positions()
        on = _on_object(picture, inputs.layout.grids[0].boxes())
        others = (~on).nonzero()[:, 0]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
        hidden = torch.zeros(3, inputs.layout.length, dtype=torch.bool)
        hidden[1, vision[on]] = True
        hidden[2, vision[others[order[: int(on.sum())]]]] = True
        assert one.answer is not None
        scored = read_answer(handle, inputs, answer_tokens(handle, one.answer, 24))
        logs = hidden_log_probabilities(
            handle,
            scored,
            hidden,
            from_queries=from_queries,  # type: ignore[arg-type]
        )
        found.append((logs - logs[0]).mean(1))
    _, objects, random = torch.stack(found).mean(0).tolist()
    assert objects < -1.0 and objects < 10 * random - 1.0


def _on_object(picture: Scene, boxes: object) -> torch.Tensor:
    """bool (V,): more than a tenth of the cell is object."""
    cells = [[int(edge) for edge in box] for box in boxes]  # type: ignore[attr-defined]
    shares = [(picture.owner[y0:y1, x0:x1] > 0).mean() for x0, y0, x1, y1 in cells]
    return torch.tensor([share > 0.1 for share in shares])


def _object_dimension(handle: ModelHandle, drawn: list[tuple[Scene, Sample]]) -> tuple[int, float]:
    """The dimension of the highest contrast of objects against background, and a tau between."""
    sums = torch.zeros(2, handle.info.hidden_size)

    stream = Values(SiteSelection("block_in", tuple(range(FIRST_LAYER, handle.info.layers))))
    for picture, one in drawn:
        inputs = handle.prepare(one.open_images(), one.prompt)
        vision = inputs.layout.vision_positions()
        on = _on_object(picture, inputs.layout.grids[0].boxes())
        assert one.answer is not None
        answer = answer_tokens(handle, one.answer, 24)
        scored = read_answer(handle, inputs, answer, [stream])
        for hidden in scored.session[stream].values():
            states = hidden[0].float()[vision]
            size = states.abs() * torch.rsqrt(states.pow(2).mean(-1, keepdim=True))
            sums.add_(torch.stack([size[on].mean(0), size[~on].mean(0)]))
    inside, outside = sums / (len(drawn) * (handle.info.layers - FIRST_LAYER))
    contrast = torch.where(inside > 2.0, inside / outside, torch.zeros(()))
    dim = int(contrast.argmax())
    return dim, float((inside[dim] + outside[dim]) / 2)
