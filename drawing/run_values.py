"""Runs as plain values for JSON: what `compare --json`, its .json file and the API give.

Both add values of their own (a format and version, a run's id); what describes a run is here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sinkscope.attention_extractor import Comparison
from sinkscope.attention_processor import image_share, sink_share
from sinkscope.capture.trace import GenerationTrace


@dataclass(frozen=True)
class TokenShares:
    """Shares of each token's rows, over all captured layers and heads.

    Attributes:
        image: attention mass on the images, 0 to 1.
        sinks: part of that mass that sinks hold, 0 to 1.
    """

    image: tuple[float, ...]
    sinks: tuple[float, ...]


def token_shares(trace: GenerationTrace) -> TokenShares:
    """Shares of every token's rows, from the true masses of whole rows."""
    mass = image_share(trace)  # (T, L, H)
    held = (mass * sink_share(trace)).mean(dim=(1, 2))
    image = mass.mean(dim=(1, 2))
    part = held / image.clamp_min(1e-12)
    return TokenShares(tuple(image.tolist()), tuple(part.tolist()))


def run_values(trace: GenerationTrace) -> dict[str, Any]:
    """What made a run: prompt, model, images, settings, and the layers and heads captured."""
    return {
        "prompt": trace.prompt,
        "model": dataclasses.asdict(trace.model),
        "layers": list(trace.layers),
        "heads": list(trace.heads),
        "images": [
            {
                "width": grid.original[1],
                "height": grid.original[0],
                "rows": grid.rows,
                "columns": grid.columns,
            }
            for grid in trace.layout.grids
        ],
        "settings": dict(trace.settings),
        "decoding": trace.extra.get("decoding"),
    }


def answer_values(trace: GenerationTrace) -> dict[str, Any]:
    """An answer with its tokens.

    `image_share` is the attention mass on the images, mean over the captured layers and heads;
    `sink_share` the part of that mass that sinks hold.
    """
    shares = token_shares(trace)
    return {
        "answer": trace.text,
        "finish": trace.finish_reason,
        "seconds": trace.seconds,
        "applied": list(trace.applied),
        "tokens": [
            {
                "index": index,
                "id": token.id,
                "text": token.text,
                "probability": token.probability,
                "rank": token.rank,
                "image_share": image,
                "sink_share": sinks,
            }
            for index, (token, image, sinks) in enumerate(
                zip(trace.tokens, shares.image, shares.sinks, strict=True)
            )
        ],
    }


def comparison_values(pair: Comparison) -> dict[str, Any]:
    """Both answers of a comparison, where they first differ, and what VAR did.

    `log_probability_change` (nats) ends where the answers differ; `report` is VAR's own.
    """
    return {
        "same_text": pair.same_text,
        "first_difference": pair.first_difference,
        "log_probability_change": list(pair.log_probability_change),
        "baseline": answer_values(pair.baseline),
        "var": answer_values(pair.var),
        "report": dict(pair.var.var or {}),
    }
