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


app.command("capture")(capture.capture)
app.command("var")(var.var)
app.command("sinks")(sinks.sinks)
app.command("gpu")(gpu.gpu)
app.command("page")(page.page)
app.command("evaluation")(evaluation.evaluation)
app.command("methods")(methods.methods)
app.command("explorers")(explorers.explorers)
app.command("load")(load.load)
app.command("startup")(startup.startup)

if __name__ == "__main__":
    app()
