"""The region test for `gradio_client` and other programs: `/region` (docs/api.md)."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sinkscope.experiments.boxes import Box
from sinkscope.experiments.region import RegionSettings, region_test
from sinkscope.jobs.job import Job, Stopped
from sinkscope.web.endpoints import plainly
from sinkscope.web.handlers import EXPIRED, Handlers
from sinkscope.web.pairs import find_run
from sinkscope.web.region import REGION, LastTested
from sinkscope.web.request import parse_indices
from sinkscope.web.slot import why_no_model


class RegionApi:
    """The endpoint; `last` is shared with the page."""

    def __init__(self, handlers: Handlers, last: LastTested) -> None:
        self._handlers, self._last = handlers, last

    def region(
        self,
        run: str,
        rows: str,
        columns: str,
        image: float = 0,
        variant: str = "baseline",
        how: str = "cut",
        random_boxes: float = 64,
        seed: float = 0,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """Does a box of the image matter for an answer? `rows` and `columns` such as `0-2`.

        Gives for each token its log-probability, its change without the box, the percentile of that
        among other boxes of the same size, and a verdict; the same for the answer in all.
        """
        found = find_run(self._handlers.store, run)
        if found is None:
            raise ValueError(EXPIRED)
        if variant not in found.traces:
            raise ValueError(f"variant is {variant!r}; allowed: {', '.join(found.traces)}.")
        (row, height), (column, width) = _stretch("rows", rows), _stretch("columns", columns)
        box = Box(row, column, height, width, _whole("image", image))
        settings = RegionSettings(
            how,  # type: ignore[arg-type]
            _whole("random_boxes", random_boxes),
            _whole("seed", seed),
        )

        def work(job: Job) -> dict[str, Any]:
            handle = self._handlers.slot.handle
            if handle is None:
                raise ValueError(why_no_model(self._handlers.slot.state))
            asked, prefix = self._last.of(handle, found, variant, settings.how == "cut")
            return region_test(handle, asked, box, settings, prefix=prefix, **job.hooks).to_json()

        runner = self._handlers.runner
        job = runner.job((request.session_hash if request else "") or "", REGION)
        try:
            made: dict[str, Any] = runner.result(job, work)
        except Stopped as stopped:
            raise ValueError(f"{job.ended_by} before there was a result.") from stopped
        return made


def build_region_api(handlers: Handlers, last: LastTested) -> None:
    """Add the endpoint to the page that is open."""
    api = RegionApi(handlers, last)
    with gr.Column(visible=False):
        texts = [gr.Textbox(max_length=200, label=name) for name in ("run", "rows", "columns")]
        more = [
            gr.Number(0, label="image"),
            gr.Textbox("baseline", max_length=40, label="variant"),
            gr.Textbox("cut", max_length=40, label="how"),
            gr.Number(64, label="random_boxes"),
            gr.Number(0, label="seed"),
        ]
        gr.Button(visible=False).click(
            plainly(api.region),
            [*texts, *more],
            gr.JSON(label="value"),
            api_name="region",
            concurrency_id="gpu",
            concurrency_limit=handlers.settings.app.queue_size + 8,  # they wait in the runner
        )


def _stretch(name: str, text: str) -> tuple[int, int]:
    """First and how many, of "2-5" or "2"."""
    there = sorted(parse_indices(name, text) or ())
    if not there or there != list(range(there[0], there[-1] + 1)):
        raise ValueError(f"{name} is {text!r}; allowed: one number or a range, such as 2-5.")
    return there[0], len(there)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number.")
    return int(value)
