"""Rows in the exact layouts in which data sets are shared, and the question read from each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinkscope.records.formats import FORMATS, record_of
from sinkscope.records.record import Record, RecordError, Reference
from sinkscope.records.sources import FILES
from sinkscope.records.values import plain

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "data.md"


def read(row: dict[str, Any]) -> Record:
    record = record_of(json.loads(json.dumps(row)))
    assert record is not None
    return record


def files(record: Record) -> list[str]:
    assert all(image.encoding == "file" for image in record.images)
    return [str(image.value) for image in record.images]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_each_format_reads_its_own_example_and_no_earlier_one_does(form: Any) -> None:
    row = json.loads(form.example)
    first = next(one for one in FORMATS if one.read(plain(row)) is not None)
    assert first is form
    record = read(row)
    assert record.images and record.answer
    assert (record.question is None) == record.caption == (form.name == "Captions")


def test_the_documents_have_a_row_for_each_format_and_kind_of_file() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for form in FORMATS:
        example = form.example.replace("|", "\\|")
        assert f"| {form.name} | {form.keys} | `{example}` |" in text, form.name
    for kind in FILES:
        assert f"| {', '.join(f'`{s}`' for s in kind.suffixes)} | {kind.what} |" in text, kind


# --- as the data sets are shared -----------------------------------------------------------------

LLAVA = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "It is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."},
    ],
}
VQA = [
    {"answer": a, "answer_confidence": "yes", "answer_id": i}
    for i, a in enumerate(["ab", "b", "a", "b"])
]


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        (
            {
                "question_id": 1,
                "image": "COCO_val2014_000000310196.jpg",
                "text": "Is there a snowboard in the image?",
                "label": "yes",
            },
            "Is there a snowboard in the image?",
            "yes",
        ),
        (LLAVA, "What are the colors of the bus in the image?", "It is white and red."),
        (  # LLaVA's own evaluation files
            {"question_id": 0, "image": "001.jpg", "text": "What is it?", "category": "conv"},
            "What is it?",
            None,
        ),
        (  # ms-swift
            {
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": "<image>What is it?"},
                    {"role": "assistant", "content": "A kitten."},
                ],
                "images": ["/xxx/x.jpg"],
            },
            "What is it?",
            "A kitten.",
        ),
        (  # ms-swift's ShareGPT
            {
                "system": "Be short.",
                "conversation": [{"human": "<image>What?", "assistant": "A cat."}],
                "images": ["x.jpg"],
            },
            "What?",
            "A cat.",
        ),
        (  # GRPO: no answer in the messages, the solution beside them
            {"messages": [{"role": "user", "content": "<image>How many?"}], "images": ["x.jpg"],
             "solution": 3},
            "How many?",
            "3",
        ),
        (  # LLaMA-Factory's preferences
            {
                "conversations": [{"from": "human", "value": "<image>What?"}],
                "chosen": {"from": "gpt", "value": "A cat."},
                "rejected": {"from": "gpt", "value": "A dog."},
                "images": ["x.jpg"],
            },
            "What?",
            "A cat.",
        ),
        (  # KTO: whether the answer is liked, and no answer itself
            {
                "messages": [
                    {"role": "user", "content": "<image>What?"},
                    {"role": "assistant", "content": "A cat."},
                ],
                "label": False,
                "images": ["x.jpg"],
            },
            "What?",
            "A cat.",
        ),
        (  # Alpaca
            {"instruction": "Answer.", "input": "What?", "output": "A cat.", "images": ["x.jpg"]},
            "Answer.\nWhat?",
            "A cat.",
        ),
        (  # TRL
            {
                "prompt": [
                    {"role": "user", "content": [{"type": "image"}, {"text": "What?"}]},
                ],
                "completion": [{"role": "assistant", "content": "A cat."}],
                "images": ["x.jpg"],
            },
            "What?",
            "A cat.",
        ),
        ({"image": "x.jpg", "question": "What?", "answers": VQA}, "What?", "b"),
        ({"image": "x.jpg", "question": "What?", "answers": ["b", "a", "a"]}, "What?", "a"),
        ({"image": "x.jpg", "query": "What?", "label": ["14", "14"]}, "What?", "14"),
        ({"imgname": "x.png", "query": "How many?", "label": "14"}, "How many?", "14"),
        ({"image": "x.jpg", "prompt": "What?", "response": "A cat."}, "What?", "A cat."),
        ({"image": "x.jpg", "problem": "What?", "solution": "4"}, "What?", "4"),
        ({"image": "x.jpg", "question": "Is it?", "answer": True}, "Is it?", "yes"),
        ({"image": "x.jpg", "question": "Is it?", "answer": False}, "Is it?", "no"),
        ({"image": "x.jpg", "question": "How many?", "answer": 0}, "How many?", "0"),
        ({"image": "x.jpg", "question": "How far?", "answer": 2.5}, "How far?", "2.5"),
        ({"image": "x.jpg", "question": "What?", "answer": "", "label": "x"}, "What?", "x"),
        ({"image": "x.jpg", "Question": "What?", "Correct Answer": "x"}, "What?", "x"),
    ],
)  # fmt: skip
def test_questions_and_answers(row: dict[str, Any], question: str, answer: str | None) -> None:
    record = read(row)
    assert (record.question, record.answer) == (question, answer)
    assert "<image>" not in (record.prompt() or "")


def test_keys_that_hold_nothing_are_not_there() -> None:
    row = {
        "image": "x.jpg",
        "prompt": None,
        "question": "What?",
        "answer": float("nan"),
        "hint": "",
    }
    record = record_of({**row, "label": float("inf"), "choices": []})
    assert record is not None and record.question == "What?" and record.answer is None


WHICH = "Which?\nA. dog\nB. cat"

# --- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        (  # VLMEvalKit
            {"index": 241, "hint": "See.", "question": "Which?", "A": "dog", "B": "cat", "C": "",
             "answer": "B", "category": "x", "split": "dev"},
            "See.\nWhich?\nA. dog\nB. cat",
            "B",
        ),
        ({"question": "Which?", "choices": ["dog", "cat"], "answer": 1}, WHICH, "B"),
        ({"question": "Which?", "choices": ["2", "3"], "answer": 3}, "Which?\nA. 2\nB. 3", "3"),
        ({"question": "Which?", "options": "['dog', 'cat']", "answer": "A"}, WHICH, "A"),
        ({"question": "Which?", "options": {"A": "dog", "B": "cat"}, "answer": "A"}, WHICH, "A"),
        ({"Question": "Open?", "Options": "(a) Open (b) Closed", "Correct Answer": "(a)"},
         "Open?\n(a) Open (b) Closed", "(a)"),
        # SAT: the right one of `answers` by its index
        ({"question": "Which?", "answers": ["dog", "cat"], "correct_answer_idx": 1}, WHICH, "B"),
        # BLINK: the prompt has its choices already
        ({"idx": "val_1", "question": "Which?", "prompt": "Which?\n(A) dog\n(B) cat",
          "choices": ["dog", "cat"], "answer": "(B)"}, "Which?\n(A) dog\n(B) cat", "(B)"),
        ({"question": "Which?", "choices": ["(A) dog", "(B) cat"], "answer": "A"}, WHICH, "A"),
        ({"question": "Where?", "choices": ["U.S. coast", "U.K. coast"], "answer": 0},
         "Where?\nA. U.S. coast\nB. U.K. coast", "A"),
    ],
)  # fmt: skip
def test_multiple_choice(row: dict[str, Any], prompt: str, answer: str) -> None:
    record = read({"image": "x.jpg", **row})
    assert (record.prompt(), record.answer) == (prompt, answer)


# --- where images are named ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "names"),
    [
        *(
            ({key: "x.jpg"}, ["x.jpg"])
            for key in ("image", "img", "image_path", "img_path", "path")
        ),
        ({"images": ["x.jpg", "y.jpg"]}, ["x.jpg", "y.jpg"]),
        ({"images": [{"path": "x.jpg", "bytes": None}]}, ["x.jpg"]),
        ({"image_1": "x.jpg", "image_2": "y.jpg", "image_3": None}, ["x.jpg", "y.jpg"]),
        ({"image_10": "k.jpg", "image_2": "b.jpg"}, ["b.jpg", "k.jpg"]),
        ({"image": None, "images": [], "path": "x.jpg"}, ["x.jpg"]),
        ({"image_file_name": "x.jpg"}, ["x.jpg"]),
        ({"left_file_name": "x.jpg"}, ["x.jpg"]),
        ({"images": "['x.jpg', 'y.jpg']"}, ["x.jpg", "y.jpg"]),
    ],
)
def test_names_of_images(row: dict[str, Any], names: list[str]) -> None:
    assert files(read({"question": "What?", **row})) == names


def test_images_in_messages() -> None:
    uri = "data:image/png;base64,iVBORw0KGgo="
    for parts in (
        [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What?"}],
        [{"type": "image_url", "image_url": uri}, {"type": "text", "text": "What?"}],
        [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": "What?"}],
        [{"type": "image", "image": uri}, {"type": "text", "text": "What?"}],
        [{"type": "image", "image": uri, "text": None}, {"type": "text", "text": "What?"}],
        [{"image": uri}, {"text": "What?"}],
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": uri}},
         {"type": "text", "text": "What?"}],
    ):  # fmt: skip
        record = read({"messages": [{"role": "user", "content": parts}]})
        assert (record.question, record.images) == ("What?", (Reference("base64", uri),))
        assert not record.image_after_text
        behind = read({"messages": [{"role": "user", "content": parts[::-1]}]})
        assert behind.question == "What?" and behind.image_after_text


def test_a_mark_says_where_an_image_goes_and_is_never_text() -> None:
    def record_of(text: str, images: int = 1) -> Record:
        return read({"images": [f"{i}.jpg" for i in range(images)], "question": text})

    for text in (
        "<image>What?",
        "<image>\nWhat?",
        "What?\n<image>",
        "What?<image>",
        " <image> What?",
    ):
        assert record_of(text).question == "What?"
    assert record_of("Look at <image> and say").question == "Look at and say"
    assert record_of("One\n<image>\ntwo").question == "One\ntwo"
    assert [record_of(t).image_after_text for t in ("<image>\nx", "x\n<image>", "x")] == [
        False,
        True,
        False,
    ]
    # Those beyond the marks belong to later turns; without marks all are shown.
    assert files(record_of("<image><image>Which?", 3)) == ["0.jpg", "1.jpg"]
    assert files(record_of("Which?", 3)) == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(RecordError, match=r"has 2 image marks in its question, but 1 image$"):
        record_of("<image><image>Which?", 1)
    # A numbered mark says which image is meant.
    record = record_of("Is <image 1> like <image_2>?", 2)
    assert record.question == "Is image 1 like image 2?" and len(record.images) == 2
    # In time linear in the text's length.
    gaps = " " * 200_000
    assert record_of(f"a{gaps}<image>{gaps}b{gaps}c").question == f"a b{gaps}c"
    assert record_of("a <image> <image> b", 2).question == "a b"
    assert record_of("a <image>\n<image> b", 2).question == "a\nb"
    with pytest.raises(RecordError, match="has 200000 image marks"):
        record_of("a<image>" * 200_000)
    assert record_of("a < b <b>?").question == "a < b <b>?"


def test_the_first_pair_that_shows_an_image_is_asked_with_what_was_said_before() -> None:
    assert read(LLAVA).later_turns == 1 and read(LLAVA).history == ()
    late = read(
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi!"},
                {"role": "user", "content": "<image>What?"},
                {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": "<image>And this?"},
                {"role": "assistant", "content": "A dog."},
            ],
            "images": ["x.jpg", "y.jpg"],
        }
    )
    assert (late.question, late.answer, files(late)) == ("What?", "A cat.", ["x.jpg"])
    assert late.history == (("Hello", "Hi!"),) and late.system == "Be kind."
    assert late.later_turns == 1
    swift = read(
        {
            "query": "And now?",
            "response": "B",
            "history": [["<image>First?", "A"], ["Then?", "C"]],
            "system": "Be kind.",
            "images": ["x.jpg"],
        }
    )
    assert (swift.question, swift.answer, swift.system) == ("And now?", "B", "Be kind.")
    assert swift.history == (("First?", "A"), ("Then?", "C"))
    # Consecutive messages of one speaker are one turn.
    split = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A cat."},
    ]
    record = read({"messages": split, "image": "x.jpg"})
    assert (record.question, record.answer, record.later_turns) == ("What?", "A cat.", 0)


def test_tools_behind_the_answer_are_passed_over_and_before_it_refused() -> None:
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    tool = {"from": "observation", "value": "{}"}
    assert read({"image": "x.jpg", "conversations": [*said, tool, *said]}).answer == "A cat."
    with pytest.raises(RecordError, match="the speaker 'observation'; allowed: user, human"):
        read({"image": "x.jpg", "conversations": [said[0], tool, said[1]]})


# --- captions, and what has none -----------------------------------------------------------------


def test_the_text_of_an_image_folder_is_a_caption_unless_it_has_an_answer() -> None:
    assert read({"file_name": "x.png", "text": "A dog."}).caption
    assert read({"file_name": "x.png", "text": "A dog."}).answer == "A dog."
    pope = read({"file_name": "x.png", "text": "Is it?", "label": "yes"})
    assert (pope.question, pope.answer, pope.caption) == ("Is it?", "yes", False)
    assert read({"image": "x.png", "caption": ["A dog.", "One dog."]}).answer == "A dog."


@pytest.mark.parametrize(
    "row", [{"question": "x"}, {"image": None, "text": "x"}, {"images": []}, {}]
)
def test_rows_without_a_picture_are_no_records(row: dict[str, Any]) -> None:
    assert record_of(row) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 3}, "has prompt that is not text: 3; allowed: a text"),
        ({"question": {"en": "x"}}, r"has question that is not text: \{'en': 'x'\}"),
        ({"question": "x", "answer": [["a"]]}, r"that is not an answer: \['a'\]; allowed: a"),
        ({"question": "x", "answer": b"x"}, "has answer that is not an answer"),
        ({"image": 3}, "has no image that can be read: image is 3; allowed: a path"),
        ({"image": {"width": 3}}, "has no image that can be read: image is"),
        ({"image": "https://a.b/c.jpg"}, "names its image by an address .*nothing is fetched"),
        ({"image": {"url": "http://169.254.169.254/x"}}, "by an address"),
        ({"image": "s3://bucket/x.png"}, "by an address"),
        ({"image": ["x.jpg"] * 1_000_000}, "has 1000000 images; allowed: at most 100"),
        ({"query": "x", "response": "y", "history": [["a"]]}, r"has history with \['a'\]"),
        ({"query": "x", "response": "y", "history": "a"}, "has history that is not a list: 'a'"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "type 'video'; allowed"),
        ({"messages": [{"content": "x"}]}, "allowed: from and value, or role and content"),
        ({"conversations": ["x"]}, "has conversations with 'x'; allowed: messages"),
        ({"conversations": [{"from": "human", "value": 3}]}, "content 3; allowed: texts and"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError, match=words) as error:
        record_of({"image": "x.jpg", **row})
    assert len(str(error.value)) < 400


def test_half_characters_become_replacement_characters() -> None:
    record = read({"image": "x.jpg", "question": "a\ud800b", "answer": "\udc00", "id": "\ud83d"})
    assert (record.question, record.answer, record.id) == ("a\ufffdb", "\ufffd", "\ufffd")
    record.content().encode()


NAMES = (
    "image images image_1 path question text prompt answer answers A B label choices options "
    "conversations messages query history response from role value content type url image_url "
    "bytes system caption file_name id instruction input texts user assistant answer_idx hint "
    "source data human gpt"
)
KEYS = st.sampled_from(NAMES.split())
WORDS = st.sampled_from(
    (
        *("", " ", "a.png", "What?", "<image>", "<image>x<image 2>", "user", "human", "gpt"),
        *("system", "data:", "http://a/b", "[1, 2]", "['a']", "[[[", "\ud800", "\0", "image", "B"),
    )
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | WORDS | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
PARTS = st.lists(st.dictionaries(KEYS, ANY, max_size=3) | WORDS | ANY, max_size=3)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "system", "tool"))},
    optional={"content": WORDS | PARTS | ANY, "value": WORDS | ANY},
)
ROW = st.dictionaries(KEYS, ANY, max_size=5) | st.fixed_dictionaries(
    {"image": st.just("a.png")},
    optional={
        "messages": st.lists(TURN | ANY, max_size=4),
        "history": st.lists(TURN | st.lists(WORDS, min_size=2, max_size=2) | ANY, max_size=3),
        "query": WORDS | ANY,
        "answer": ANY,
        "choices": st.lists(WORDS | ANY, max_size=3) | ANY,
        "question": WORDS | ANY,
    },
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(ROW)
def test_any_row_is_a_record_or_one_sentence(row: dict[str, Any]) -> None:
    try:
        record = record_of(row)
    except RecordError as error:
        assert 10 < len(str(error)) < 700 and "\n" not in str(error)
        return
    if record is not None:
        assert record.images and "<image>" not in (record.question or "")
        record.name().encode("utf-8", "surrogatepass")
        for text in (record.prompt(), record.answer, record.id, *sum(record.history, ())):
            assert text is None or text.encode() is not None
