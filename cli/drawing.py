"""From a trace to a picture file and a table of numbers, for `heatmap` and `show`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sinkscope.attention_processor import PatchMap, patch_map, rare_sink_cells, sink_cells
from sinkscope.capture.arrays import as_arrays
from sinkscope.capture.trace import GenerationTrace
from sinkscope.cli.tables import Column, print_table
from sinkscope.config import Reduce
from sinkscope.drawing.names import Photo
from sinkscope.drawing.text import visible
from sinkscope.methods.head_list import HeadsFrom, PickedHeads
from sinkscope.setting.heads import Heads
from sinkscope.utils import number_of

if TYPE_CHECKING:  # drawing code is imported when needed, so that `show` starts at once
    from sinkscope.drawing.overlay import OverlayStyle

# Why an answer was cut off, if its model did not end it.
CUT = {
    "length": "the most allowed",
    "time": "the checkpoint's max_time was over",
    "stop_string": "one of the checkpoint's stop strings",
}


@dataclass(frozen=True)
class Selection:
    """Which attention to draw. Layers and heads are indices in the model; None is all captured.

    `image` is the one to draw and to give shares of, counted from 0. `sinks` marks the cells that
    are a sink in at least one of these layers. `method` computes the maps; shares are always those
    of the raw attention. `photo` is the image under the map: dim, full or none. `heads_from` names
    single heads instead of layers and heads (`for_run` finds them).
    """

    token: str = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    reduce: Reduce = "mean"
    sinks: bool = True
    image: int = 0
    method: str = "attention"
    photo: Photo = "dim"
    heads_from: HeadsFrom | None = None
    picked: PickedHeads | None = None

    def for_run(self, trace: GenerationTrace) -> Selection:
        """The same, with the single heads of `heads_from`.

        Raises:
            ValueError: they are another model's, the run did not keep them, or has none.
        """
        if self.heads_from is None or self.picked is not None:
            return self
        return dataclasses.replace(self, picked=self.heads_from.heads_of(trace))

    @property
    def pairs(self) -> Heads | None:
        """The single heads as maps take them."""
        return None if self.picked is None else self.picked.pairs

    @property
    def shown_layers(self) -> tuple[int, ...] | None:
        """The layers that the map is made of; None: all."""
        return self.layers if self.picked is None else self.picked.layers


def draw(
    trace: GenerationTrace,
    selection: Selection,
    style: OverlayStyle,
    output: Path,
    *,
    as_figure: bool = False,
) -> None:
    """Write the picture: a sheet of all tokens, or one token's overlay on the image.

    Raises:
        ValueError: the answer is empty, or the trace lacks what was selected.
        OSError: the file cannot be written.
    """
    from sinkscope.drawing.figures import contact_sheet, figure, save
    from sinkscope.drawing.overlay import overlay, under_map

    selection = selection.for_run(trace)
    shares = token_shares(trace, selection)
    image = under_map(trace.images[selection.image], selection.photo)
    note = f"{trace.model.id} ({trace.model.revision}), prompt: {trace.prompt}"
    if selection.sinks:
        cells = sink_cells(trace, selection.shown_layers, selection.image)
        rare = rare_sink_cells(trace, selection.shown_layers, selection.image)
        style = dataclasses.replace(style, sinks=cells, rare=rare)
        note = f"{sink_words(trace, style.sinks)}. {note}"
    if selection.token == "all":
        maps = [_map(trace, t, selection) for t in range(len(trace.tokens))]
        if not maps:
            raise ValueError("The answer is empty, so there is nothing to draw.")
        words = [token.text for token in trace.tokens]
        which = maps[0].label.partition(", ")[2]  # without the token, which is on each picture
        if selection.picked is not None:
            which = f"{selection.reduce} over {selection.picked.words}"
        if maps[0].normalisation != "none":
            which += f"; {maps[0].normalisation}"
        note = f"{which}. {note}"
        title = trace.text.strip()
        save(contact_sheet(image, maps, words, shares, style, title=title, note=note), output)
        return
    tokens = find_tokens(trace, selection.token)
    chosen = _map(trace, tokens, selection)
    if as_figure or output.suffix.lower() != ".png":
        word = "".join(trace.tokens[t].text for t in tokens)
        share = sum(shares[t] for t in tokens) / len(tokens)
        titled = {"token": word, "prompt": trace.prompt}
        save(figure(image, chosen, style, **titled, share=share, note=note), output)
    else:
        if selection.sinks and not trace.sinks:  # plain pixels have no caption
            typer.echo(f"({sink_words(trace, ())})", err=True)
        save(overlay(image, chosen, style), output)


def print_answer(trace: GenerationTrace, selection: Selection, *, all_images: bool = False) -> None:
    """The answer, then a line for each token: how much of its attention was on the image, or with
    `all_images` on each of them."""
    selection = selection.for_run(trace)
    count = len(trace.layout.grids)
    shown = range(count) if all_images and count > 1 else [selection.image]
    shares = [token_shares(trace, dataclasses.replace(selection, image=k)) for k in shown]
    heads = [f"image {k}" for k in shown] if len(shown) > 1 else ["image"]
    typer.echo(answer_of(trace))
    typer.echo("")
    on_images = [Column(head, bar=True) for head in heads]
    print_table(
        [Column("token"), *on_images, Column("probability"), Column("text")],
        (
            (
                str(index),
                *(f"{share[index]:.1%}" for share in shares),
                f"{token.probability:.1%}",
                visible(token.text),
            )
            for index, token in enumerate(trace.tokens)
        ),
    )
    if count > 1 and not all_images:
        typer.echo(f"(of image {selection.image}; the prompt has {count}, from 0)", err=True)
    if trace.finish_reason in CUT:
        written = number_of(len(trace.tokens), "token")
        typer.echo(f"(stopped after {written}: {CUT[trace.finish_reason]})", err=True)


def answer_of(trace: GenerationTrace) -> str:
    """The answer for a terminal: without control characters."""
    text = trace.text.strip()
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def token_shares(trace: GenerationTrace, selection: Selection) -> list[float]:
    """Attention mass on the selected image, for each token: the mean over the layers and heads.

    Taken from the drawn maps, whose float16 is finer than the printed digits.

    Raises:
        ValueError: an image, layer or head that the trace does not hold.
    """
    selection = selection.for_run(trace)
    trace = as_arrays(trace)  # the same numbers for one run, from tensors or arrays
    chosen = (selection.layers, selection.heads)
    how: dict[str, Any] = {"image": selection.image, "pairs": selection.pairs}
    maps = (patch_map(trace, t, *chosen, **how) for t in range(len(trace.tokens)))
    return [float(patches.values.sum()) for patches in maps]


def sink_words(trace: GenerationTrace, cells: Sequence[int]) -> str:
    """What the marks mean, or why there are none."""
    if cells:
        return "boxed x: attention sink in at least one of the layers drawn"
    if trace.sinks:
        return "no attention sink found in the layers drawn"
    return "no sink dimensions are known for this model, so no sinks are marked"


def find_tokens(trace: GenerationTrace, wanted: str) -> list[int]:
    """The tokens that `--token` names: an index, or those that spell a word of the answer.

    A word that the tokenizer cut into pieces gives all of its tokens; of several places, the first.

    Raises:
        ValueError: there is no such token; the text says what there is.
    """
    if re.fullmatch(r"\d+", wanted):
        if int(wanted) >= len(trace.tokens):
            raise ValueError(f"token is {wanted}; the answer has {len(trace.tokens)}, from 0.")
        return [int(wanted)]
    text = "".join(token.text for token in trace.tokens)
    word = wanted.strip()
    place = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) if word else None
    if place is None:
        raise ValueError(f"token is {wanted!r}, which is not in the answer {trace.text.strip()!r}.")
    tokens, start = [], 0
    for index, token in enumerate(trace.tokens):
        stop = start + len(token.text)
        if start < place.end() and stop > place.start():
            tokens.append(index)
        start = stop
    return tokens


def _map(trace: GenerationTrace, tokens: int | Sequence[int], selection: Selection) -> PatchMap:
    chosen = (selection.layers, selection.heads, selection.reduce)
    how: dict[str, Any] = {"image": selection.image, "pairs": selection.pairs}
    if selection.method == "attention":  # the same map, of tensors or of arrays
        return patch_map(as_arrays(trace), tokens, *chosen, **how)
    from sinkscope.methods.explain import explain_map  # imported late: it needs torch

    return explain_map(trace, tokens, selection.method, *chosen, **how)
