"""The run that is on screen before any model is loaded: made once, kept as files."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from sinkscope import attention_extractor
from sinkscope.config import AppSettings, GenerationSettings, VARSettings
from sinkscope.models.images import open_image
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import PROJECT
from sinkscope.web.store import Run, open_run, save_run

log = logging.getLogger(__name__)

EXAMPLE = PROJECT / "demo" / "example"
EXAMPLES = PROJECT / "demo" / "examples"


@dataclass(frozen=True)
class Example:
    """A picture with a question that the page offers."""

    image: Path
    prompt: str


def read_examples(folder: Path = EXAMPLES) -> list[Example]:
    """The pictures that `examples.json` lists, as [{"image": file name, "prompt": text}, ...].

    None if there is no such file.

    Raises:
        ValueError: the file is damaged or names a picture that is not there.
    """
    listing = folder / "examples.json"
    if not listing.is_file():
        return []
    try:
        made = [Example(folder / e["image"], e["prompt"]) for e in json.loads(listing.read_bytes())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{listing.name} of the examples is damaged: {error}.") from error
    for example in made:
        if not example.image.is_file():
            raise ValueError(f"The example picture {example.image.name} is missing.")
    return made


def make_example(
    handle: ModelHandle,
    path: Path = EXAMPLE,
    example: Example | None = None,
    max_new_tokens: int = 48,
) -> Run:
    """Run the model on an example, also with VAR where its sinks are known; save that to `path`.

    Raises:
        ValueError: there is no example picture.
    """
    if example is None:
        found = read_examples()
        if not found:
            raise ValueError("There are no example pictures to make the example run from.")
        example = found[0]
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


def load_example(path: Path = EXAMPLE) -> Run | None:
    """The saved example run; None where there is none or it is damaged (the log says why)."""
    if not (path / "run.json").is_file():
        return None
    try:
        return open_run(path)
    except ValueError as error:
        log.warning("the example run is not shown: %s", error)
        return None
