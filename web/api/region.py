"""The region test for `gradio_client` and other programs: `/region` (docs/api.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sinkscope.experiments.boxes import Box
from sinkscope.experiments.region import region_test
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.jobs.job import Job, Stopped
from sinkscope.setting import check, explained, read_all, setting, user_settings
from sinkscope.web.api.arguments import argument, asking, inputs_of
from sinkscope.web.api.endpoints import with_clear_errors
from sinkscope.web.components.controls import LONGEST_TEXT
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.explore.region import REGION, LastTested
from sinkscope.web.runs.job_values import loaded_handle, session_hash_of
from sinkscope.web.runs.pairs import find_run


@explained
@dataclass(frozen=True)
class BoxChoice:
    """A box of cells on an image of a run."""

    rows: tuple[int, ...] | None = setting(
        None, "Rows of patches, such as 0-2.", left_out="none; it must be given"
    )
    columns: tuple[int, ...] | None = setting(
        None, "Columns of patches, such as 3-5.", left_out="none; it must be given"
    )
    image: int = setting(0, "Which image of the prompt, from 0.", low=0, high=9999)

    def __post_init__(self) -> None:
        check(self)

    def box(self) -> Box:
        """The box.

        Raises:
            ValueError: rows or columns are missing or have a gap.
        """
        row, rows = _stretch("rows", self.rows)
        column, columns = _stretch("columns", self.columns)
        return Box(row, column, rows, columns, self.image)


class RegionApi:
    """The endpoint. `last`, the most recent test, is shared with the page."""

    def __init__(self, handlers: Handlers, last: LastTested) -> None:
        self._handlers, self._last = handlers, last

    def region(
        self,
        run: str,
        variant: str = "baseline",
        request: gr.Request = None,  # type: ignore[assignment]  # filled in by Gradio
        **setting_values: Any,
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
        box = BoxChoice(**read_all(BoxChoice, setting_values)).box()
        settings = RegionSettings(**read_all(RegionSettings, setting_values))

        def work(job: Job) -> dict[str, Any]:
            handle = loaded_handle(self._handlers.loaded)
            asked, prefix = self._last.of(handle, found, variant, settings.how == "cut")
            return region_test(handle, asked, box, settings, prefix=prefix, **job.hooks).to_json()

        runner = self._handlers.runner
        job = runner.job(session_hash_of(request), REGION)
        try:
            values: dict[str, Any] = runner.result(job, work)
        except Stopped as stopped:
            raise ValueError(f"{job.ended_by} before there was a result.") from stopped
        return values


SETTINGS = (*user_settings(BoxChoice), *user_settings(RegionSettings))


def build_region_api(handlers: Handlers, last: LastTested) -> None:
    """Add the endpoint to the page that is being built."""
    with gr.Column(visible=False):
        inputs = {
            "run": gr.Textbox(max_length=LONGEST_TEXT, label="run"),
            "variant": argument("variant", "baseline", "Which answer: baseline or var."),
        }
        gr.Button(visible=False).click(
            with_clear_errors(asking(RegionApi(handlers, last).region, SETTINGS)),
            None,
            gr.JSON(label="value"),
            inputs_kwargs={**inputs, **inputs_of(SETTINGS)},
            api_name="region",
            concurrency_id="gpu",
            concurrency_limit=handlers.settings.app.queue_size + 8,  # the runner queues them
        )


def _stretch(name: str, cells: tuple[int, ...] | None) -> tuple[int, int]:
    """The first index and the number of indices."""
    indices = sorted(cells or ())
    if not indices or indices != list(range(indices[0], indices[-1] + 1)):
        given = ", ".join(map(str, indices))
        raise ValueError(f"{name} is {given!r}; allowed: one number or a range, such as 2-5.")
    return indices[0], len(indices)
