"""What the endpoints of the API do (`web.api.routes` gives them their components)."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from sinkscope.attention_extractor import Comparison, RunOutOfMemoryError
from sinkscope.attention_processor import token_indices
from sinkscope.capture.run import checkpoint_decoding
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.run_values import answer_values, comparison_values, run_values
from sinkscope.drawing.view import make_side, map_of, sinks_of
from sinkscope.jobs.job import Stopped
from sinkscope.methods.explain import listed
from sinkscope.setting import read_all
from sinkscope.web.api.selection import ExportChoice, Selection
from sinkscope.web.explore.export_files import kept_maps, make_files, sides_of_view
from sinkscope.web.explore.exporting import EXPORT
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.explore.model_events import model_wanted
from sinkscope.web.runs.job_values import UNFORESEEN, session_hash_of
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.request import Request
from sinkscope.web.runs.store import Run
from sinkscope.web.server.temporary import scratch

log = logging.getLogger(__name__)

MAP_PIXELS = 1200  # width of the picture that `map` returns
MODEL = ("id", "revision", "device", "dtype", "layers", "heads", "hidden_size", "note")


def with_clear_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Report user mistakes and unexpected errors to the caller as one sentence."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except gr.Error:
            raise
        except (ValueError, RunOutOfMemoryError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            log.exception("%s failed", function.__name__)
            raise gr.Error(UNFORESEEN, print_exception=False) from error

    return call


class Api:
    """The endpoints. Each app has one such object."""

    def __init__(self, handlers: Handlers, offered: Sequence[str]) -> None:
        self._handlers, self._offered = handlers, offered

    def load(self, **setting_values: Any) -> dict[str, Any]:
        """Load a model (`demo`, a hub id or a folder) and wait for it. It serves everyone.

        Gives its id, revision, device, dtype, layers, heads, a note on its checkpoint, the sink
        dimensions and tau that are known for it (null where none are), and what its own
        generation_config.json would do.
        """
        loaded, settings = self._handlers.loaded, self._handlers.settings
        setting_values["revision"] = (
            setting_values.get("revision") or None
        )  # None: the start's, for its model
        if not loaded.load(model_wanted(settings, self._offered, setting_values)):
            raise ValueError("Another model is being loaded; wait until it is there.")
        seen, state = loaded.wait(-1, 0)
        while state.phase == "loading":
            seen, state = loaded.wait(seen, 30)
        handle = state.working
        if state.phase == "failed" or handle is None:
            raise ValueError(state.message)
        profile = handle.profile
        return {
            **{name: getattr(handle.info, name, None) for name in MODEL},
            "sink_dims": None if profile is None else list(profile.dims),
            "tau": None if profile is None else profile.tau,
            "decoding": checkpoint_decoding(handle).about(),
        }

    def generate(
        self,
        image: str | None,
        prompt: str,
        image_2: str | None = None,
        image_3: str | None = None,
        image_4: str | None = None,
        request: gr.Request = None,  # type: ignore[assignment]  # filled in by Gradio
        **setting_values: Any,
    ) -> dict[str, Any]:
        """Answer a prompt about an image, or up to four of them in this order, and keep the
        attention behind each token.

        With `decoding` "checkpoint" tokens are chosen as the model's own generation_config.json
        says, and temperature, top_p, top_k and repetition_penalty must be left out.

        Gives the run's id (`run`), its model, layers, heads and images, and under `baseline` the
        answer with text, probability, image share and sink share of each token.
        """
        run_request = Request(
            image, prompt, values=setting_values, more=(image_2, image_3, image_4)
        )
        return about_run(self._run(run_request, request))

    def compare(
        self,
        image: str | None,
        prompt: str,
        same_text: bool = False,
        image_2: str | None = None,
        image_3: str | None = None,
        image_4: str | None = None,
        request: gr.Request = None,  # type: ignore[assignment]  # filled in by Gradio
        **setting_values: Any,
    ) -> dict[str, Any]:
        """The same without and with VAR. Without `tau` and `dims`, those of the model's profile.

        Gives what `generate` gives, under `baseline` and `var`; where the texts part
        (`first_difference`), the change of each common token's
        log-probability, and VAR's own report.
        """
        more = (image_2, image_3, image_4)
        run_request = Request(image, prompt, True, same_text, values=setting_values, more=more)
        run = self._run(run_request, request)
        both = run.traces["baseline"], run.traces["var"]
        # Both are there, checked above.
        pair = Comparison(*both, run.same_text, prefix=None)  # type: ignore[arg-type]
        return {**about_run(run), **comparison_values(pair)}

    def map(
        self, run: str, variant: str = "baseline", **setting_values: Any
    ) -> tuple[dict[str, Any], str]:
        """The map of some tokens (`4`, or `3-5, 8`: their mean), over some layers and heads.

        Gives `values` (rows x columns, null where one is missing) with `unit` and `normalisation`,
        the values at both ends of the colours (`limits`), the raw `image_share` and `sink_share`,
        the `sinks` as [row, column], the `methods` that there are with why this run cannot give
        one (null where it can), and a PNG of the map over the image. A method that reads the model
        gives what was computed on the page for just these tokens.
        """
        run_found = self._kept_run(run)
        if variant not in run_found.traces:
            raise ValueError(f"variant is {variant!r}; allowed: {', '.join(run_found.traces)}.")
        selection = Selection(**read_all(Selection, setting_values))
        view = selection.view(run_found.first)
        side = make_side("", run_found.traces[variant], view.part)
        chosen = selection.tokens or (0,)
        token_indices(side.rows, chosen)
        kept = self._handlers.explained
        given = kept_maps(run_found, view, chosen, kept, [variant])
        if given is not None:
            view = dataclasses.replace(view, method=given)
        panel = Painter([side], view, MAP_PIXELS).panels(chosen)[0]
        patches = map_of(side, chosen, view)
        mass, held = side.shares(chosen, view)
        columns = patches.grid.columns
        about = {
            "values": _plain(patches.values),
            "unit": patches.unit,
            "normalisation": patches.normalisation,
            "label": patches.label,
            "methods": {
                m.method.name: None
                if kept.has((run_found.id, variant, tuple(chosen), m.method.name))
                else m.why_not
                for m in listed(side.trace, passes=False)
            },
            "scale": panel.words,
            "limits": None if panel.scale is None else [panel.scale.low, panel.scale.high],
            "rows": patches.grid.rows,
            "columns": columns,
            "image_share": mass,
            "sink_share": held,
            "sinks": [list(divmod(cell, columns)) for cell in sinks_of(side.rows, view)],
            "tokens": [{"index": t, "text": side.rows.tokens[t].text} for t in chosen],
        }
        with scratch() as folder:
            path = Path(folder) / f"map-{chosen[0]}.png"
            Image.fromarray(panel.pixels).save(path)
            return about, self._kept(path, run_found)

    def export(
        self,
        run: str,
        request: gr.Request = None,  # type: ignore[assignment]  # filled in by Gradio
        **setting_values: Any,
    ) -> list[str]:
        """Files of a run: pdf, png, svg (a figure of some tokens), gif, mp4 (over the tokens), csv
        (shares), html (a page that works alone), trace (safetensors, one for each answer).

        Without `tokens` a figure is of the first one, and an animation of all. `window`, `seconds`
        and `width` are an animation's. `difference` holds where there are two sides.
        """
        run_found = self._kept_run(run)
        wanted = ExportChoice(**read_all(ExportChoice, setting_values)).wanted(run_found.first)
        sides_of_view(run_found, wanted)
        with scratch() as folder:
            session = session_hash_of(request)
            job = self._handlers.runner.job(session, EXPORT)
            try:
                paths = self._handlers.runner.result(
                    job,
                    lambda job: make_files(
                        run_found,
                        wanted,
                        Path(folder),
                        **job.hooks,
                        drawn_by=self._handlers.drawing,
                        kept=self._handlers.explained,
                    ),
                    waits=False,
                )
            except Stopped as stopped:
                raise ValueError(f"{job.ended_by}; no file was made.") from stopped
            return [self._kept(path, run_found) for path in paths]

    def stop(self, request: gr.Request) -> None:
        """End all that this client has under way or waiting: its run after the token that is being
        made, its region test after the boxes that are being passed, files; a run is kept with what
        it has, of a test nothing is."""
        self._handlers.runner.stop(request.session_hash or "")

    def _kept(self, path: Path, run: Run) -> str:
        """Copy the file to where Gradio serves files from; it stays there as long as the run."""
        assert self._handlers.component is not None
        kept = save_file_to_cache(path, self._handlers.component.GRADIO_CACHE)
        self._handlers.store.keep_copies(run, Path(kept))
        return str(kept)

    def _kept_run(self, run_id: str) -> Run:
        run = find_run(self._handlers.store, run_id)
        if run is None:
            raise ValueError(EXPIRED)
        return run

    def _run(self, run_request: Request, request: gr.Request | None) -> Run:
        """Wait for the requested run."""
        session = session_hash_of(request)
        value: dict[str, Any] = {}
        for value in self._handlers.generate(run_request, session):  # noqa: B007
            pass
        if value.get("phase") == "error":
            raise ValueError(value["message"])
        return self._kept_run(value["run"])


def _plain(values: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers as JSON values; NaN becomes None."""
    return [[None if np.isnan(x) else float(x) for x in row] for row in values]


def about_run(run: Run) -> dict[str, Any]:
    """A run in plain values: its id, what made it, and each answer with its tokens."""
    values = run_values(run.first)
    model = {name: values["model"][name] for name in MODEL}
    answers = {name: answer_values(trace) for name, trace in run.traces.items()}
    return {"run": run.id, **values, "model": model, **answers}
