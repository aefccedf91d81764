"""The word at which the example run is shown, and the sentence about it, come from its maps."""

from dataclasses import replace

import torch

from sinkscope.capture.trace import GenerationTrace
from sinkscope.web.runs.example import load_example, what_to_look_at
from sinkscope.web.runs.store import Run, save_run
from tests.web.synthetic import make_trace

WORDS = (" a", " red", " star", " here", ".")
ROWS, COLUMNS = 4, 5
SINK, THING, OTHER = 3, 11, 7


def looking(maps: list[tuple[float, float, float]], words: tuple[str, ...]) -> GenerationTrace:
    """A trace whose row t has these shares on the sink, the thing and another patch; rest 0."""
    trace = make_trace(words, ROWS, COLUMNS)
    start = trace.layout.vision_positions()[0].item()
    attention = torch.zeros_like(trace.attention)
    for t, (sink, thing, other) in enumerate(maps):
        attention[t, ..., SINK], attention[t, ..., THING] = sink, thing
        attention[t, ..., OTHER] = other
    sinks = tuple(replace(s, positions=(start + SINK,), scores=(9.0,)) for s in trace.sinks)
    tokens = tuple(replace(token, id=sum(token.text.encode())) for token in trace.tokens)
    return replace(trace, attention=attention, sinks=sinks, tokens=tokens)


def example(
    baseline: list[tuple[float, float, float]],
    var: list[tuple[float, float, float]],
    other_words: tuple[str, ...] = WORDS,
) -> Run:
    return Run(
        {"baseline": looking(baseline, WORDS), "var": looking(var, other_words)}, kind="example"
    )


BASELINE = [(0.5, 0.1, 0.1), (0.3, 0.2, 0.1), (0.5, 0.25, 0.05), (0.5, 0.1, 0.1), (0.5, 0.4, 0)]
VAR = [(0.1, 0.5, 0.1), (0.2, 0.3, 0.1), (0.25, 0.5, 0.05), (0.4, 0.1, 0.1), (0.1, 0.5, 0.1)]


def test_the_word_where_var_moves_the_strongest_patch_off_a_sink_to_one_that_stands_out():
    """At "star" more than at "red"; " a" and "." are not words; at "here" the sink stays ahead."""
    found = what_to_look_at(example(BASELINE, VAR))
    assert found is not None and found[0] == 2
    assert found[1] == (
        "Look at “star”: without VAR, the strongest patch of the mean map is the sink at row 0, "
        "column 3, with 62.5 % of the image’s attention. With VAR it has 31.3 %, and the strongest "
        "patch is row 2, column 1, with 62.5 %. The linear scale shows it best."
    )


def test_words_after_the_texts_part_are_not_compared():
    found = what_to_look_at(example(BASELINE, VAR, (" a", " red", " ring", " here", ".")))
    assert found is not None and found[0] == 1


def test_there_is_nothing_to_say_where_var_moves_no_strongest_patch():
    assert what_to_look_at(example(BASELINE, BASELINE)) is None
    only = Run({"baseline": looking(BASELINE, WORDS)}, kind="example")
    assert what_to_look_at(only) is None


def test_a_sink_that_keeps_nothing_is_no_error():
    nothing = [(0.0, 0.5, 0.0)] * 5
    found = what_to_look_at(example(BASELINE, nothing))
    assert found is not None and found[0] in (1, 2, 3)


def test_the_hint_comes_with_the_run_that_is_read(tmp_path):
    save_run(example(BASELINE, VAR), tmp_path / "a")
    read = load_example(tmp_path / "a")
    assert read is not None and read.about["look_at"] == 2
    assert read.about["remarks"][0].startswith("Look at “star”")
    save_run(example(BASELINE, BASELINE), tmp_path / "b")
    plain = load_example(tmp_path / "b")
    assert plain is not None and plain.about == {}
