"""`python -m sinkscope.benchmarks NAME ...`: the benchmarks and nothing else.

Each is one module with a typer command; none imports torch before it runs.
"""

from __future__ import annotations

import typer

from sinkscope.benchmarks import (
    capture,
    evaluation,
    explorers,
    gpu,
    load,
    methods,
    page,
    sinks,
    startup,
    var,
)

app = typer.Typer(
    name="python -m sinkscope.benchmarks",
    help="The cost of SinkScope relative to plain generation, measured side by side in one run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # a bug gives Python's own traceback, without local values
)

for command in (
    capture.capture,
    var.var,
    sinks.sinks,
    gpu.gpu,
    page.page,
    evaluation.evaluation,
    methods.methods,
    explorers.explorers,
    load.load,
    startup.startup,
):
    app.command()(command)

if __name__ == "__main__":
    app()
