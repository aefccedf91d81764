"""The console command `sinkscope` (also `python -m sinkscope`): the verbs, and the page."""

from __future__ import annotations

import typer

from sinkscope.cli.main import app


@app.command(
    "app",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def page(context: typer.Context) -> None:
    """Open the page; `sinkscope app --help` lists its flags."""
    from sinkscope.app import main as run_page

    run_page(context.args)


@app.command(
    "settings",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def settings(context: typer.Context) -> None:
    """Print the page's settings: each value, and what set it (a flag, a variable, a file)."""
    from sinkscope.app import main as run_page

    run_page([*context.args, "--print-settings"])


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
