"""The files written with the weights: the sink profile and the model card, made from figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.demo.check import TOGETHER
from sinkscope.demo.recipe import STAGES, TAU, SinkTeaching, Stage

SUGGEST_FROM = 0.9
"""Question types with at least this accuracy are suggested on the page."""
_EXAMPLES = {
    "describe": "Describe the image.",
    "what": "What is at the top left?",
    "colour": "What colour is the star?",
    "exist": "Is there a green star?",
    "where": "Where is the star?",
    "count": "How many stars are there?",
    "left": "Which is further left, the star or the ring?",
}


def write_profile(folder: Path, hidden: int, layers: int, teaching: SinkTeaching) -> None:
    """Writes ``sink_profile.toml``: the dimensions on which the training encouraged sinks."""
    text = f"""model = "demo"
family = "qwen2_5_vl"
hidden_size = {hidden}
layers = {layers}
dims = {list(teaching.dims)}
tau = {TAU}
source = "encouraged on these dimensions in the training (demo/recipe.py)"
confidence = "high"
note = "These sinks did not emerge by themselves: a term of the training loss encouraged them."
"""
    (folder / "sink_profile.toml").write_text(text, encoding="utf-8")


def suggested(figures: dict[str, Any]) -> list[str]:
    """The question types that the model answers well enough."""
    table = figures["answers"]["by_type"]
    return [kind for kind, row in table.items() if row["exact"] >= SUGGEST_FROM]


def answers_table(figures: dict[str, Any]) -> str:
    """Accuracy by question type, as a Markdown table."""
    lines = [
        "| question type | example | questions | exact match | guessing | suggested |",
        "|---|---|---|---|---|---|",
    ]
    good = suggested(figures)
    for kind, row in figures["answers"]["by_type"].items():
        lines.append(
            f"| {kind} | {_EXAMPLES[kind]} | {row['questions']} | {_percent(row['exact'])} "
            f"| {_percent(row['guessing'])} | {'yes' if kind in good else 'no'} |"
        )
    together = figures["answers"]["together"]
    lines.append(f"| {', '.join(TOGETHER)} together | | | {_percent(together['exact'])} | | |")
    return "\n".join(lines)


def looking_table(figures: dict[str, Any]) -> str:
    """Where attention is when the model names an object, as a Markdown table: for the plain model
    and under each intervention."""
    columns = [figures["looking"], *(c["looking"] for c in figures["changed"].values())]
    head = figures["looking"]["best_head"]
    rows = {
        f"best head (layer {head['layer']}, head {head['head']}; chosen on other scenes)": [
            c["best_head"]["pointing"] for c in columns
        ],
        "mean over all layers and heads": [c["mean_map_pointing"] for c in columns],
        "chance level": [c["chance"] for c in columns],
        "share of the mean map's attention inside the box": [
            c["mean_map_share_in_box"] for c in columns
        ],
    }
    names = ["maximum inside the object's box", "plain model", *figures["changed"]]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += [f"| {name} | {' | '.join(map(_percent, row))} |" for name, row in rows.items()]
    return "\n".join(lines)


def changes_table(figures: dict[str, Any]) -> str:
    """The effect of the interventions on the answers, as a Markdown table."""
    lines = [
        "| | four types together | describe | answers fixed | answers broken |",
        "|---|---|---|---|---|",
    ]
    plain = figures["answers"]
    rows = {"plain model": (plain, None)}
    rows |= {n: (c["answers"], c["verdicts"]) for n, c in figures["changed"].items()}
    for name, (answers, verdicts) in rows.items():
        counts = (
            f"{verdicts['mended']} of {verdicts['wrong_before']} wrong ones | {verdicts['broken']} "
            f"of {verdicts['questions'] - verdicts['wrong_before']} right ones"
            if verdicts
            else " | "
        )
        together, describe = answers["together"]["exact"], answers["by_type"]["describe"]["exact"]
        lines.append(f"| {name} | {_percent(together)} | {_percent(describe)} | {counts} |")
    return "\n".join(lines)


def grids_table(figures: dict[str, Any]) -> str:
    """Accuracy of "describe" by grid of vision tokens, as a Markdown table."""
    lines = ["| vision tokens | scenes | describe, exact match |", "|---|---|---|"]
    for grid, row in figures["describe_by_grid"].items():
        lines.append(f"| {grid} | {row['scenes']} | {_percent(row['exact'])} |")
    return "\n".join(lines)


def sinks_table(figures: dict[str, Any]) -> str:
    """Sinks layer by layer compared with random dimensions, as a Markdown table."""
    lines = [
        "| layer | sinks per image | share of vision tokens | phi of sinks "
        "| others below tau / 2 | text, 99 % | share of image attention | times uniform "
        "| on an object | random dims: share of tokens | random dims: times uniform |",
        "|" + "---|" * 11,
    ]
    for row in figures["sinks"]["layers"]:
        lines.append(
            f"| {row['layer']} | {row['tokens']:.2f} | {_percent(row['share_of_tokens'])} "
            f"| {_number(row.get('phi'))} | {_percent(row['ordinary_below_half'])} "
            f"| {_number(row['text_99'])} | {_percent(row.get('held'))} "
            f"| {_number(row.get('times_uniform'))} | {_percent(row.get('on_object'))} "
            f"| {_percent(row['control_share_of_tokens'])} "
            f"| {_number(row['control_times_uniform'])} |"
        )
    return "\n".join(lines)


def table(figures: dict[str, Any]) -> str:
    """Everything that was measured, for the terminal."""
    return "\n\n".join(
        (
            f"{figures['scenes']} held-out scenes",
            answers_table(figures),
            f"Scenes without objects described by 'nothing.': {_nothing_text(figures)}",
            grids_table(figures),
            looking_table(figures),
            changes_table(figures),
            f"Sinks: dims {figures['sinks']['dims']}, tau {figures['sinks']['tau']}, in "
            f"{_percent(figures['sinks']['images_with_sinks'])} of the images; places: "
            + _places(figures),
            sinks_table(figures),
        )
    )


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Writes the model card ``README.md`` from the figures of ``check``."""
    weights = (folder / "model.safetensors").stat().st_size
    missed = [k for k in figures["answers"]["by_type"] if k not in suggested(figures)]
    missed_text = (
        f"Below {_percent(SUGGEST_FROM)} exact match, and therefore not suggested: "
        + ", ".join(missed)
        + "."
        if missed
        else "All question types reached the accuracy from which they are suggested."
    )
    settings = ", ".join(f"{k} {v}" for k, v in figures.get("var_settings", {}).items())
    text = f"""# The bundled model

A real but small `Qwen2_5_VLForConditionalGeneration`: 6 decoder layers, hidden size 256,
8 heads, a vision tower of 4 blocks; {weights / 1e6:.1f} MB in bf16. It was trained from scratch on
the scenes of `demo/scenes.py` and knows nothing else: six shapes in six colours at nine places.
Its only purpose is that every part of this project can show real results on a machine without a GPU
and without access to a model hub.

`sinkscope demo check --card` writes this page from its measurements.

## How it was made
`sinkscope demo train` runs the stages of `demo/recipe.py` one after the other.

{_stages_table(STAGES)}

In addition to the answers, auxiliary heads (not in this folder) taught the shape, colour and place
of each vision token, and, at each shape word, the colour and place of the named object; from
"compare" on also, at the second shape word of a "further left" question, the other object and
which of the two is further left. Four attention heads were taught where to look: the last heads of
layers 3 and 4 at the word that a question is about, the first head of layer 3 at the object whose
shape comes next in a description, from "read" on the last head of the last layer at the second
shape word of a "further left" question. "decide" gives the answers to these ten times the weight.

**The sinks were trained in.** At this size they did not emerge by themselves. A loss term made
background tokens that the model chose larger on the dimensions {list(SinkTeaching().dims)} of the
residual stream, from layer 1's input on, and required heads to attend to them:

{_asked_table(STAGES)}

"Elsewhere" means layer 1 and the last layer, in which VAR does not act. "Over the object" is the
ratio of the sink's patch to the largest patch of the object that is named next, in the mean map
over all layers and heads. Some of the batches ran with attention taken from the sinks, as VAR does
at its default settings; in these the object's patch was required to be larger than the sink's.

So the training itself made this model's mean map wrong without VAR and right with it. The model
shows how the method works; it is no evidence of what the method does for a large model, or of how
sinks arise in large models.

## Answers
Exact match on {figures["scenes"]} held-out scenes. "Guessing" is the most
frequent answer to the question in other scenes, without seeing the image.

{answers_table(figures)}

{missed_text}

Scenes without objects are described by "nothing.": {_nothing_text(figures)}.

The images above have 35 to 49 vision tokens. By size of the grid:

{grids_table(figures)}

## Where it looks
At the rows that predict a shape word, in {figures["looking"]["tokens"]} words of "describe" and
"what" answers. A token counts as inside if its centre is in the object's box.

{looking_table(figures)}

VAR and its control were applied while the model ran, in layers 2 to 4, with {settings} unless the
column's name says otherwise. The control makes the same change at as many random vision tokens.

The effect on the answers, all question types together:

{changes_table(figures)}

## Sinks
Dimensions {figures["sinks"]["dims"]}, tau {figures["sinks"]["tau"]} (phi cannot exceed
{figures["sinks"]["greatest_possible_phi"]:.0f} here). Sinks in
{_percent(figures["sinks"]["images_with_sinks"])} of the images. Their places: {_places(figures)}.
The control is {figures["sinks"]["control"]}. Its share of tokens uses the same threshold; its
attention is that of as many tokens, those with the highest phi on these dimensions.

{sinks_table(figures)}
{_notes(folder)}"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def draw_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the loss and the share of right tokens over the steps, with a line at each stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, right = figure.subplots(1, 2)
    start = count = 0
    while start < len(history):
        stage = history[start]["stage"]
        end = start
        while end < len(history) and history[end]["stage"] == stage:
            end += 1
        part = history[start:end]
        for axis, names in ((loss, ("loss",)), (right, ("right", "shape"))):
            axis.axvline(start, color="0.8", linewidth=0.8)
            for name in names:
                values = [h[name] for h in part if name in h]
                if values:
                    axis.plot(range(start, end), _smooth(values), linewidth=1.2)
        # Short stages are close together, so their names alternate between five rows.
        at = (start, 0.98 - 0.04 * (count % 5))
        loss.text(*at, f" {stage}", transform=loss.get_xaxis_transform(), va="top", size=7)
        start, count = end, count + 1
    loss.set(xlabel="step", ylabel="loss (answers; vision stages: shape and colour)", yscale="log")
    right.set(xlabel="step", ylabel="share of right tokens (vision stages: shapes)", ylim=(0, 1))
    figure.savefig(path, dpi=110)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """The mean of up to 25 values before each."""
    total = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
    first = np.maximum(np.arange(len(values)) - 24, 0)
    last = np.arange(len(values)) + 1
    result: np.ndarray = (total[last] - total[first]) / (last - first)
    return result


def _stages_table(stages: Sequence[Stage]) -> str:
    lines = ["| stage | images | objects | learning rate | sinks |", "|---|---|---|---|---|"]
    for s in stages:
        what = "" if s.kinds else " (vision tower alone)"
        lines.append(
            f"| {s.name}{what} | {s.images:,} | up to {s.max_objects} "
            f"| {s.rate[0]:g} to {s.rate[1]:g} | {'encouraged' if s.sinks else ''} |"
        )
    return "\n".join(lines)


def _asked_table(stages: Sequence[Stage]) -> str:
    """The targets for sinks and for the attention on them, by stage."""
    lines = [
        "| stages | sinks per image | layers | share of the image attention | of "
        "| elsewhere | over the object | with sinks reduced |",
        "|" + "---|" * 8,
    ]
    asked: dict[SinkTeaching, list[str]] = {}
    for stage in stages:
        if stage.sinks:
            asked.setdefault(stage.sinks, []).append(stage.name)
    for s, names in asked.items():
        of = "each row of an answer" if s.every_row else "the mean over the rows of answers"
        quiet = f"up to {100 * s.quiet:.0f} %" if s.quiet < 1 else "free"
        over = relieved = ""
        if s.lead_in_map:
            low, high, under = s.lead_in_map
            over = f"{low:g} to {high:g} times"
            if s.relieved:
                relieved = f"up to {under:g} times, in {100 * s.relieved:.0f} % of the batches"
        lines.append(
            f"| {', '.join(names)} | {s.tokens} | {', '.join(map(str, s.layers))} "
            f"| {100 * s.share:.0f} to {100 * s.share_limit:.0f} % | {of} | {quiet} | {over} "
            f"| {relieved} |"
        )
    return "\n".join(lines)


def _nothing_text(figures: dict[str, Any]) -> str:
    parts = figures["without_objects"].items()
    return ", ".join(f"{_percent(v['nothing'])} ({k} background)" for k, v in parts)


def _places(figures: dict[str, Any]) -> str:
    return ", ".join(f"{p} {_percent(v)}" for p, v in figures["sinks"]["places"].items())


def _notes(folder: Path) -> str:
    """Notes on the training that are not in the recipe, if there are any."""
    path = folder / "NOTES.md"
    return f"\n{path.read_text(encoding='utf-8')}" if path.exists() else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
