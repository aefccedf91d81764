"""The run that is shown before any model is loaded: made once, stored as files."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from sinkscope import attention_extractor
from sinkscope.attention_processor import patch_map
from sinkscope.config import AppSettings, GenerationSettings, VARSettings
from sinkscope.drawing.scale import percent
from sinkscope.models.images import open_image
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import PROJECT
from sinkscope.web.runs.store import Run, open_run, save_run

log = logging.getLogger(__name__)

EXAMPLE = PROJECT / "demo" / "example"
EXAMPLES = PROJECT / "demo" / "examples"


@dataclass(frozen=True)
class Example:
    """A picture with a question that the page offers."""

    image: Path
    prompt: str


def read_examples(folder: Path = EXAMPLES) -> list[Example]:
    """The pictures listed in `examples.json`, as [{"image": file name, "prompt": text}, ...].

    Empty if there is no such file.

    Raises:
        ValueError: the file is damaged or names a picture that does not exist.
    """
    listing = folder / "examples.json"
    if not listing.is_file():
        return []
    try:
        examples = [
            Example(folder / e["image"], e["prompt"]) for e in json.loads(listing.read_bytes())
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{listing.name} of the examples is damaged: {error}.") from error
    for example in examples:
        if not example.image.is_file():
            raise ValueError(f"The example picture {example.image.name} is missing.")
    return examples


def make_example(
    handle: ModelHandle,
    path: Path = EXAMPLE,
    example: Example | None = None,
    max_new_tokens: int = 48,
) -> Run:
    """Run the model on an example, also with VAR if its sinks are known; save the run to `path`.

    Raises:
        ValueError: there is no example picture.
    """
    if example is None:
        examples = read_examples()
        if not examples:
            raise ValueError("There are no example pictures to make the example run from.")
        example = examples[0]
    inputs = handle.prepare([open_image(example.image)], example.prompt)
    settings = GenerationSettings(
        max_new_tokens=max_new_tokens, prompt_rows=AppSettings.prompt_rows, reference=True
    )
    if handle.profile is None:
        traces = {"baseline": attention_extractor.generate(handle, inputs, settings)}
    else:
        var = VARSettings(dims=handle.profile.dims, tau=handle.profile.tau)
        pair = attention_extractor.compare(handle, inputs, settings, var)
        traces = {"baseline": pair.baseline, "var": pair.var}
    run = Run(traces, kind="example")
    save_run(run, path)
    return run


def what_to_look_at(run: Run) -> tuple[int, str] | None:
    """The word where VAR moves the strongest patch of the map away from a sink, and a sentence
    about it. If there are several, the one whose new strongest patch stands out most.

    Read from the mean maps of both answers over all layers and heads, up to where their texts first
    differ. None if there is no such word, or the run has one answer.
    """
    if list(run.traces) != ["baseline", "var"]:
        return None
    baseline, var = run.traces.values()
    cells = baseline.layout.cells_at()
    sinks = {c for layer in baseline.sinks for p in layer.positions for c in cells.get(p, ())}
    best: tuple[float, int, str] | None = None
    for index, (one, other) in enumerate(zip(baseline.tokens, var.tokens, strict=False)):
        if one.id != other.id:
            break
        if sum(letter.isalpha() for letter in one.text) < 3 or one.text.startswith("<"):
            continue
        maps = [patch_map(trace, index, normalise=True).values for trace in (baseline, var)]
        (before, share), (after, share_with) = ((int(m.argmax()), float(m.max())) for m in maps)
        if before not in sinks or after in sinks:
            continue
        if best is None or share_with > best[0]:
            columns = maps[0].shape[1]
            sink, strongest = (f"row {i // columns}, column {i % columns}" for i in (before, after))
            best = (
                share_with,
                index,
                f"Look at \u201c{one.text.strip()}\u201d: without VAR, the strongest patch of the "
                f"mean map is the sink at {sink}, with {percent(share)} of the image\u2019s "
                f"attention. With VAR it has {percent(float(maps[1].flat[before]))}, and the "
                f"strongest patch is {strongest}, with {percent(share_with)}. The linear scale "
                "shows it best.",
            )
    return best and best[1:]


def load_example(path: Path = EXAMPLE) -> Run | None:
    """The saved example run, with what to look at in it; None if there is none or it is damaged
    (the log says why)."""
    if not (path / "run.json").is_file():
        return None
    try:
        run = open_run(path)
        hint = what_to_look_at(run)
        about = {} if hint is None else {"look_at": hint[0], "remarks": [hint[1]]}
        return replace(run, about=about)
    except ValueError as error:
        log.warning("the example run is not shown: %s", error)
        return None
