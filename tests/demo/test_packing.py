"""Packing: a packed question equals the prompt that the model sees in use, in every token and
number."""

import numpy as np
import pytest
import torch

from sinkscope.demo.folder import CELL, build_config, patches, preprocessor_settings, words
from sinkscope.demo.packing import IGNORE, Packer
from sinkscope.demo.questions import ABSENT, AMBIGUOUS, TRAINING_KINDS, questions
from sinkscope.demo.scenes import SHAPES, scene
from sinkscope.demo.speed import faster_training


@pytest.fixture(scope="module")
def model(tokenizer):
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(build_config(tokenizer)).eval()


def plain_prompt(tokenizer, question, tokens):
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    return tokenizer.encode(text + question.answer + "<|im_end|>\n", add_special_tokens=False)


def test_each_word_of_the_scenes_is_one_token_and_any_text_survives(tokenizer):
    for word in words():
        assert len(tokenizer.encode(word)) == 1, word
    text = "Schöne Grüße, 東京! <b>x</b>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_patches_are_the_image_processors():
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as library

    settings = preprocessor_settings()
    settings.pop("image_processor_type")
    processor = library.Qwen2VLImageProcessorPil(**settings)
    image = scene(1, 168, 196).image
    done = processor(images=image, return_tensors="np")
    assert done["image_grid_thw"].tolist() == [[1, 14, 12]]
    np.testing.assert_allclose(done["pixel_values"], patches(image), atol=1e-6)


def test_packed_rows_are_the_prompts_of_the_chat_template(tokenizer):
    drawn = scene(4, 168, 140, max_objects=4)
    asked = questions(drawn, TRAINING_KINDS)
    batch = Packer(tokenizer).pack([asked], 5, 6)
    for number, question in enumerate(asked, 1):
        seen = (batch.block[0] == 0) | (batch.block[0] == number)
        assert batch.ids[0][seen].tolist() == plain_prompt(tokenizer, question, 30)
        answer = batch.labels[0][seen]
        said = tokenizer.decode(answer[answer != IGNORE])
        assert said == question.answer + "<|im_end|>"


def test_named_and_counted_words_are_marked(tokenizer):
    drawn = scene(2, 84, 84, max_objects=5, repeat=1.0)
    shapes = {tokenizer.encode(f" {s}")[0]: s for s in SHAPES}
    for seed in range(10):
        asked = questions(drawn, TRAINING_KINDS, seed)
        batch = Packer(tokenizer).pack([asked], 3, 3)
        for token, index in zip(batch.ids[0].tolist(), batch.named[0].tolist(), strict=True):
            if index >= 0:
                assert drawn.objects[index].shape == shapes[token]
            assert index in (AMBIGUOUS, ABSENT) or token in shapes
        wanted = [q.count for q in asked if q.count >= 0]
        assert batch.counts[0][batch.counts[0] != IGNORE].tolist() == wanted


def test_the_second_name_of_a_comparison_is_marked_with_the_other_object(tokenizer):
    drawn = scene(8, 168, 140, min_objects=4, max_objects=4)
    asked = questions(drawn, ["left", "what", "left", "count", "left"])
    batch = Packer(tokenizer).pack([asked], 5, 6)
    left = [q for q in asked if q.kind == "left"]
    marked = (batch.compared[0] != IGNORE).nonzero()[:, 0].tolist()
    assert len(marked) == len(left) >= 2
    for position, question in zip(marked, left, strict=True):
        other = drawn.objects[int(batch.compared[0][position])].shape
        second = tokenizer.decode(batch.ids[0][position]).strip()
        assert question.prompt == f"Which is further left, the {other} or the {second}?"


@torch.no_grad()
def test_a_packed_question_gets_the_logits_that_it_gets_alone(tokenizer, model):
    drawn = scene(4, 168, 140, max_objects=4)
    pixels = torch.from_numpy(patches(drawn.image))
    grid = torch.tensor([[1, 10, 12]])
    asked = questions(drawn, ("what", "describe", "colour"))
    batch = Packer(tokenizer).pack([asked], 5, 6)
    added = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, -1e9)
    model.set_attn_implementation("eager")
    packed = model.model(
        input_ids=batch.ids,
        pixel_values=pixels,
        image_grid_thw=grid,
        attention_mask={"full_attention": added},
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    for number, question in enumerate(asked, 1):
        ids = torch.tensor([plain_prompt(tokenizer, question, 30)])
        kinds = (ids == model.config.image_token_id).long()
        alone = model.model(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=kinds,
            use_cache=False,
        ).last_hidden_state
        seen = (batch.block[0] == 0) | (batch.block[0] == number)
        torch.testing.assert_close(packed[0][seen], alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "cols"), [(6, 6), (5, 7), (9, 6)])
def test_the_faster_training_computes_the_same_and_leaves_nothing_behind(
    tokenizer, model, rows, cols
):
    drawn = scene(3, cols * CELL, rows * CELL)
    batch = Packer(tokenizer).pack([questions(drawn, ("what", "colour"))], rows, cols)
    inputs = {
        "input_ids": batch.ids,
        "pixel_values": torch.from_numpy(patches(drawn.image)),
        "image_grid_thw": torch.tensor([[1, rows * 2, cols * 2]]),
        "position_ids": batch.positions,
        "use_cache": False,
        "attention_mask": {
            "full_attention": torch.zeros(batch.mask.shape).masked_fill(~batch.mask, -1e9)
        },
    }
    model.set_attn_implementation("eager")
    classes = {type(m): type(m).forward for m in model.modules()}
    with torch.no_grad():
        before = model.model(**inputs).last_hidden_state
        with pytest.raises(RuntimeError), faster_training(model):
            raise RuntimeError
        with faster_training(model):
            during = model.model(**inputs).last_hidden_state
        after = model.model(**inputs).last_hidden_state
    torch.testing.assert_close(before, during, atol=2e-5, rtol=1e-4)
    assert torch.equal(before, after)
    assert {type(m): type(m).forward for m in model.modules()} == classes
    assert not any("forward" in vars(m) for m in model.modules())


def test_answers_know_the_word_that_their_question_is_about(tokenizer):
    drawn = scene(4, 84, 84, max_objects=4)
    asked = questions(drawn, TRAINING_KINDS)
    batch = Packer(tokenizer).pack([asked], 3, 3)
    for number, question in enumerate(asked, 1):
        rows = (batch.block[0] == number) & batch.predicting[0]
        word = batch.focus[0][rows].unique().tolist()
        if question.kind in ("describe", "list"):
            assert word == [-1]
            continue
        assert len(word) == 1
        text = tokenizer.decode(batch.ids[0, word[0]]).strip()
        if question.kind == "count":
            assert text in question.prompt and text.endswith("s")
        else:
            assert question.prompt.endswith(f" {text}?")
    assert not (batch.focus[0][~batch.predicting[0]] >= 0).any()
