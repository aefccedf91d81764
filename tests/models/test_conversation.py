"""Several turns of conversation: the roles of texts, and the ids of the whole prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.config import GenerationSettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.qwen2_5_vl import IMAGE_TOKEN

pytestmark = pytest.mark.tiny
TURNS = [("Describe the image.", "A red star."), ("Where is it?", "At the top <|im_end|> left.")]


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


def test_each_turn_is_a_segment_of_its_own(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo], "Is it big?", system="Be brief.", history=TURNS)
    decode = handle.processor.tokenizer.decode
    said = [
        (s.kind, decode(inputs.token_ids[s.start : s.stop]))
        for s in inputs.layout.segments
        if s.kind not in ("template", "image")
    ]
    assert said == [
        ("system", "Be brief."),
        ("user", "Describe the image."),
        ("assistant", "A red star."),
        ("user", "Where is it?"),
        ("assistant", "At the top <|im_end|> left."),
        ("user", "Is it big?"),
    ]
    kinds = [s.kind for s in inputs.layout.segments]
    assert kinds.index("image") < kinds.index("user")  # the images come with the first turn
    segments = inputs.layout.segments
    assert [s.start for s in segments] == [0, *(s.stop for s in segments[:-1])]
    assert segments[-1].stop == inputs.layout.length


def test_ids_are_those_of_the_rendered_conversation(
    handle: ModelHandle, photo: Image.Image
) -> None:
    inputs = handle.prepare([photo], "Is it big?", history=TURNS[:1])
    tokenizer = handle.processor.tokenizer
    rendered = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TURNS[0][0]}]},
            {"role": "assistant", "content": TURNS[0][1]},
            {"role": "user", "content": [{"type": "text", "text": "Is it big?"}]},
        ],
        chat_template=handle.processor.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    count = inputs.layout.vision_tokens
    rendered = rendered.replace(IMAGE_TOKEN, IMAGE_TOKEN * count)
    assert list(inputs.token_ids) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_the_shares_tell_the_turns_apart(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo], "Is it big?", history=TURNS)
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=2))
    answers = [i for i, s in enumerate(trace.layout.segments) if s.kind == "assistant"]
    assert len(answers) == 2
    assert (trace.shares[..., answers] > 0).all()
    assert trace.shares.shape[-1] == len(trace.layout.segments) + 1


def test_without_earlier_turns_nothing_changes(handle: ModelHandle, photo: Image.Image) -> None:
    plain = handle.prepare([photo], "Is it big?")
    assert handle.prepare([photo], "Is it big?", history=[]).token_ids == plain.token_ids


@pytest.mark.parametrize(
    "history, words",
    [
        ([("a", " ")], "history has an empty text"),
        ([("a" * 19_990, "b")], "The conversation has 20001 characters; at most 20000"),
    ],
)
def test_turns_that_cannot_be(
    handle: ModelHandle, photo: Image.Image, history: list[tuple[str, str]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        handle.prepare([photo], "Is it big?", history=history)
