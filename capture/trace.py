"""GenerationTrace: the frozen record of one run.

Row convention (docs/method.md): generated token t (0-based) was predicted by the forward pass whose
last input was token t-1. `attention[t]` is the query row of THAT pass: row 0 is the last prompt
position at prefill, row t the decode step whose input was token t-1. It is what the model
attended to when it produced token t, not what token t attended to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sinkscope.models.family import PromptLayout
from sinkscope.models.info import ModelInfo
from sinkscope.utils import plain_values

if TYPE_CHECKING:  # a saved run is drawn without torch (`capture.arrays`)
    import torch

MEAN_HEAD = -1  # in `heads`: the mean over all captured heads


@dataclass(frozen=True)
class Alternative:
    """A token that the model considered at one step; `probability` before any sampling filter."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class GeneratedToken:
    """One token of the answer.

    Attributes:
        id, text: as generated; the texts of all tokens join to what the tokenizer decodes all ids
            to. A token that ends inside a character has the text "" and the token that completes
            the character has all of it; bytes that no token completes are U+FFFD.
        probability: of this token under the model's own distribution (softmax of the raw logits,
            temperature 1).
        rank: 0 if it was the most probable one.
        alternatives: the five most probable tokens at this step.
        piece: its bytes, such as "E7 8C", if it is one of several tokens that make a character
            (`models.token_bytes`); else "".
    """

    id: int
    text: str
    probability: float
    rank: int
    alternatives: tuple[Alternative, ...] = ()
    piece: str = ""


@dataclass(frozen=True)
class LayerSinks:
    """Sinks found at the input of one decoder layer at prefill: prompt positions and their scores
    phi."""

    layer: int
    positions: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class PromptToken:
    """One token of the prompt."""

    id: int
    text: str


@dataclass(frozen=True, repr=False)
class PromptTrace:
    """What some tokens of a prompt attended to. `attention_processor` takes it like a
    `GenerationTrace`.

    Row r is the query row AT prompt position `positions[r]`: what that token attended to. For the
    last position it is also row 0 of a `GenerationTrace`, which produced the first answer token.

    Attributes:
        positions: the R prompt positions, rising.
        tokens: the tokens at these positions.
        layout: roles of the prompt's positions.
        attention: float16 (R, L, H, V) on the CPU: softmax weight of each vision token; 0 for
            vision tokens that come after the position.
        layers, heads: indices in the model of the captured layers (L) and heads (H);
            heads is (MEAN_HEAD,) if only the mean over them was kept.
        shares: float32 (R, L, H, S + 1): attention mass on each segment; the last column, which an
            answer would have, is 0. Sums to 1.
        entropy: float32 (R, L, H): entropy in nats of the whole row.
        sinks: per layer; empty if no sink dimensions are known.
        model: the model that made it.
        prompt: the user's text.
    """

    positions: tuple[int, ...]
    tokens: tuple[PromptToken, ...]
    layout: PromptLayout
    attention: torch.Tensor
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    shares: torch.Tensor
    entropy: torch.Tensor
    sinks: tuple[LayerSinks, ...]
    model: ModelInfo
    prompt: str = ""

    def __repr__(self) -> str:
        return f"PromptTrace({short(self.prompt)}, {_sizes(self)})"


@dataclass(frozen=True, repr=False)
class GenerationTrace:
    """One answer and the attention behind each of its tokens.

    Attributes:
        tokens: the T generated tokens.
        layout: roles of the prompt's positions; `layout.grids` maps vision tokens to the images.
        images: the images, RGB.
        prompt: the user's text.
        prompt_tokens: text of each prompt token, cut like the answer's.
        attention: float16 (T, L, H, V) on the CPU: softmax weight of each vision token in row t
            (see the module's docstring), for the captured layers and heads.
        layers, heads: indices in the model of the captured layers (L of them) and heads (H);
            heads is (MEAN_HEAD,) if only the mean over them was kept.
        shares: float32 (T, L, H, S + 1): attention mass on each of the prompt's S segments, in the
            order of `layout.segments`, and on the answer so far. Sums to 1.
        entropy: float32 (T, L, H): entropy in nats of the whole row.
        sinks: per layer, sinks found at prefill; empty if no sink dimensions are known.
        applied: labels of the interventions that were active; empty for a plain run.
        var: report of VAR (`var_patch.VARReport`), or None.
        model, settings, seed: how it was made. `settings` are those of `GenerationSettings`.
        finish_reason: why the answer ended: "end" (the model ended it), "length" (max_new_tokens,
            or a lower limit of the checkpoint), "stopped" (by the user), and with `decoding`
            "checkpoint" also "time" (its max_time) or "stop_string" (the last token completed one
            of its stop_strings, which stays in the text).
        seconds: wall time of the run.
        prompt_rows: rows of the prompt's own tokens after the last image, of this run (under VAR as
            VAR changed them); None if they were not kept.
        reference: the last prompt row of the plain model reading a generic prompt on the same
            images (`methods.relative`); None if there is none, and then
            `extra["no_reference"]` may say why.
        extra: more about the run. `extra["decoding"]` says how tokens were chosen: `used` has the
            settings that acted, `checkpoint` those of the checkpoint's own generation_config.json,
            `words` the latter in words; `refused` and `notes` say what of the file cannot be
            followed, and what of it has no effect.

    `settings`, `var` and `extra` are held as JSON has them (lists, no tuples), so they are the same
    before a trace is saved and after it is opened.
    """

    tokens: tuple[GeneratedToken, ...]
    layout: PromptLayout
    images: tuple[Image.Image, ...]
    prompt: str
    prompt_tokens: tuple[str, ...]
    attention: torch.Tensor
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    shares: torch.Tensor
    entropy: torch.Tensor
    sinks: tuple[LayerSinks, ...]
    applied: tuple[str, ...]
    model: ModelInfo
    settings: Mapping[str, Any]
    seed: int
    finish_reason: str
    seconds: float
    var: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt_rows: PromptTrace | None = None
    reference: PromptTrace | None = None

    def __post_init__(self) -> None:
        for name in ("settings", "var", "extra"):
            object.__setattr__(self, name, plain_values(getattr(self, name), name))

    def __repr__(self) -> str:
        return f"GenerationTrace({short(self.text.strip())}, {_sizes(self)})"

    def _repr_html_(self) -> str:
        """In a notebook: the inspector (`show`)."""
        html: str = self.show()._repr_html_()
        return html

    def show(self, token: int | str | None = None, **look: Any) -> Any:
        """The page's inspector for the output of a notebook's cell (`web.runs.inline.inspector`).

        Args:
            token: which token is chosen at first: its index, or a word of the answer.
            look: `height` in pixels, `most_megabytes`.
        """
        import sinkscope  # the public API, because the page is above this part

        return sinkscope.inspector(self, token, **look)

    @property
    def text(self) -> str:
        """The whole answer, without the token that ended it."""
        shown = self.tokens[:-1] if self.finish_reason == "end" else self.tokens
        return "".join(token.text for token in shown)

    def save(self, path: Path | str) -> None:
        """Write the trace as one `.safetensors` file with its JSON inside (see
        `capture.storage`)."""
        from sinkscope.capture.storage import save_trace

        save_trace(self, Path(path))

    @staticmethod
    def open(path: Path | str) -> GenerationTrace:
        """Read a trace written by `save`.

        Raises:
            ValueError: the file is missing, damaged, not a trace, or of a newer format; the text
                says which.
        """
        from sinkscope.capture.storage import open_trace

        return open_trace(Path(path))


def first_difference(one: GenerationTrace, other: GenerationTrace) -> int | None:
    """Index of the first token in which two answers differ, also where one of them ended before;
    None if they are the same."""
    for index, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if a.id != b.id:
            return index
    shorter, longer = sorted((len(one.tokens), len(other.tokens)))
    return None if shorter == longer else shorter


def short(text: str, most: int = 48) -> str:
    """A text for one line: quoted and shortened."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[: most - 1]}…")


def _sizes(rows: GenerationTrace | PromptTrace) -> str:
    heads = "mean of the heads" if rows.heads == (MEAN_HEAD,) else f"{len(rows.heads)} heads"
    return (
        f"{len(rows.tokens)} tokens x {len(rows.layers)} layers x {heads} x "
        f"{rows.layout.vision_tokens} vision tokens, {rows.model.id}"
    )
