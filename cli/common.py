"""Shared code of the verbs: error messages, loading a model, forecasts; `cli.options` has
options."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.jobs.job import Job, Stopped

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.config import GenerationSettings, ModelSettings
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle

MISTAKE = 2  # exit code
INTERRUPTED = 130  # exit code
MEMORY = (
    "Memory is full. What helps: a smaller image (--max-pixels, where the model takes it), "
    "fewer new tokens (--max-new-tokens), less of the attention (--layers, --heads), or a smaller "
    "model."
)

ImageFile = Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, GIF, BMP or TIFF.")]
Prompt = Annotated[str, typer.Argument(help="The question about it.")]
FurtherImages = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", help="Another image of the same question, after IMAGE; may be repeated."
    ),
]
PICTURES = (".png", ".pdf", ".svg")


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the verb with one sentence instead of a traceback if the user can fix the error."""
    try:
        yield
    except (ValueError, OSError) as error:
        _end(str(error))
    except MemoryError:
        _end(MEMORY)
    except RuntimeError as error:
        if (sentence := _out_of_memory(error)) is None:
            raise
        _end(sentence)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _out_of_memory(error: RuntimeError) -> str | None:
    """The sentence for a full device, also before a run has begun; None for any other error."""
    import torch  # imported late: a refusal does not need it

    from sinkscope.attention_extractor import RunOutOfMemoryError

    if isinstance(error, RunOutOfMemoryError):
        return str(error)
    full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return MEMORY if full else None


def _end(sentence: str) -> None:
    typer.secho(f"Error: {' '.join(sentence.split())}", fg="red", err=True)
    raise typer.Exit(MISTAKE)


def check_profile(settings: ModelSettings) -> None:
    """Read the sink profile that the settings name, if any, before any model is loaded.

    Raises:
        ValueError: it cannot be read, or is not a profile.
    """
    if settings.profile is not None:
        from sinkscope.models.profiles import read_profile

        read_profile(Path(settings.profile))


def check_output(path: Path, *inputs: Path) -> None:
    """Refuse, before any work, an output that cannot be written or would destroy an input.

    Raises:
        ValueError: its folder is missing, it is a folder itself, or it is one of the inputs.
    """
    if not path.parent.is_dir():
        raise ValueError(f"The folder {path.parent} of the output {path.name} does not exist.")
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder; give the name of a file.")
    if path.exists() and any(i.exists() and path.samefile(i) for i in inputs):
        raise ValueError(f"The output {path} is the input itself; choose another name.")


def check_ending(output: Path, *endings: str) -> None:
    """Refuse an output of another kind, before heavy imports.

    Raises:
        ValueError: naming the endings that are allowed.
    """
    if output.suffix.lower() not in endings:
        raise ValueError(
            f"output is {str(output)!r}; allowed: a file ending in {', '.join(endings)}."
        )


@contextmanager
def progress(label: str, length: int) -> Iterator[Any]:
    """A progress bar (click's) on standard error; standard output is for the answer alone."""
    with typer.progressbar(length=length, label=label, file=sys.stderr, show_eta=False) as bar:
        yield bar


@contextmanager
def job(label: str, length: int, kept: str, seconds: float | None = None) -> Iterator[Job]:
    """A long run of the command line: a bar on standard error, and Ctrl-C as its Stop.

        with common.job("Finding sinks", len(samples), "Nothing is kept.") as job:
            found = find(handle, samples, **job.hooks)

    The first Ctrl-C ends it after the current step, says what remains and ends the verb; a second
    one ends the verb at once.

    Args:
        label: text before the bar.
        length: steps in all.
        kept: a sentence on what is left of a run that was stopped.
        seconds: a time limit.
    """
    running = Job(seconds=seconds, on_progress=lambda done, *_: bar.update(done - bar.pos))
    with stoppable(running, kept), progress(label, length) as bar:
        yield running


@contextmanager
def stoppable(running: Job, kept: str) -> Iterator[Job]:
    """The same for a verb with its own bar: the job, with Ctrl-C as its Stop.

    Args:
        running: the job, which begins here.
        kept: a sentence on what is left of a run that was stopped.
    """
    try:
        with interrupted(running), running:
            yield running
    except Stopped as stopped:
        left = f"; {stopped.total - stopped.done} remain" if stopped.total else ""
        of = f" of {stopped.total}" if stopped.total else ""
        typer.echo(
            f"{running.ended_by} after {stopped.done}{of} {stopped.what}{left}. {kept}", err=True
        )
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def interrupted(running: Job) -> Iterator[None]:
    """Ctrl-C is the job's Stop in here; a second one ends the verb at once."""
    asked = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        running.stop()
        typer.echo("\nStopping after the current step; Ctrl-C again stops at once.", err=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say_forecast(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, answers: int = 1
) -> None:
    """One line on standard error, before a run: its cost if it uses all of its new tokens.

    Raises:
        ValueError: a layer or head that this model does not have.
    """
    from sinkscope.attention_extractor import forecast

    expected = forecast(handle, inputs, settings, answers=answers)
    typer.echo(
        f"Forecast, for {settings.max_new_tokens} new tokens: about {expected.seconds:.2g} s, "
        f"{answers * expected.payload_bytes / 1e6:.3g} MB "
        f"of attention ({expected.vision_tokens} vision tokens)",
        err=True,
    )


def say_decoding(handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings) -> None:
    """One line on standard error, before a run, if the checkpoint has its own settings.

    Raises:
        ValueError: they should be used, and cannot be.
    """
    from sinkscope.capture.decoding import in_words, unused_words
    from sinkscope.capture.run import decoding_for

    about = decoding_for(handle, settings, inputs.layout.length).about
    if settings.decoding == "checkpoint":
        typer.echo(f"Decoding as the checkpoint says: {in_words(about['used'])}.", err=True)
    elif unused := unused_words(about):
        typer.echo(
            f"Not used: the checkpoint's own generation_config.json, {unused} --decoding "
            "checkpoint follows it.",
            err=True,
        )


def say_stage(text: str) -> None:
    """Report on standard error why the next token takes long."""
    typer.echo(f"{text}.", err=True)


def say_engine(trace: GenerationTrace) -> None:
    """One line on standard error, after a run, if another engine than requested was used."""
    from sinkscope.capture.decoding import engine_words

    if words := engine_words(trace):
        typer.echo(f"Note: the answer was {words}.", err=True)


def load(settings: ModelSettings) -> ModelHandle:
    """Load a model with a progress bar, and report what its checkpoint lacks."""
    with progress("Loading the model", 100) as bar:
        bar.render_progress()  # the imports alone take seconds
        from transformers.utils import logging

        from sinkscope.models.loading import load_model

        if settings.model == "demo" or Path(settings.model).is_dir():
            logging.disable_progress_bar()  # our bar is enough; a download's own counts bytes

        def report(text: str, fraction: float) -> None:
            bar.label = text
            bar.update(round(100 * fraction) - bar.pos)

        handle = load_model(settings, on_progress=report)
    if handle.info.note:
        typer.echo(f"Note: {handle.info.note}", err=True)
    return handle
