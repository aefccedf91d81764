"""Start the web app: python app.py (or: sinkscope app), then open http://127.0.0.1:7860.

The page opens at once and shows a precomputed run; the model loads behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import Any

try:
    from sinkscope.config import AppSettings, ModelSettings, Settings, read_settings
    from sinkscope.setting import Setting, offered
except ModuleNotFoundError as missing:
    if missing.name != "sinkscope":
        raise
    # Started as a script by a Python that the project was not installed for (README, "Start").
    sys.exit("This Python does not know the package sinkscope; run: pip install -e . (or make run)")


def parse(arguments: list[str]) -> Settings:
    """Settings from the flags, over those of `--settings FILE`, over the defaults."""
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="SinkScope: see where a vision-language model looked for each word it wrote.",
    )
    for cls in (ModelSettings, AppSettings):
        for one in offered(cls):
            _add_flag(parser, one)
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="TOML file with the settings of config.py"
    )
    given = parser.parse_args(arguments)
    try:
        settings = read_settings(given.settings) if given.settings else Settings()
        given.auth = given.auth or os.environ.get("SINKSCOPE_AUTH")
        return dataclasses.replace(
            settings,
            model=_over(settings.model, given),
            app=_over(settings.app, given),
        )
    except ValueError as error:
        parser.error(str(error))


def _add_flag(parser: argparse.ArgumentParser, one: Setting) -> None:
    flag, words = f"--{one.name.replace('_', '-')}", one.words.replace("%", "%%")
    if one.kind == "switch":
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
        return
    kind = {"whole": int, "number": float}.get(one.kind, str)
    more: dict[str, Any] = {"metavar": one.metavar} if one.metavar else {}
    parser.add_argument(flag, type=kind, choices=one.choices or None, help=words, **more)


def _over(settings: Any, given: argparse.Namespace) -> Any:
    flags = {one.field: getattr(given, one.name) for one in offered(type(settings))}
    return dataclasses.replace(settings, **{k: v for k, v in flags.items() if v is not None})


def main(arguments: list[str] | None = None) -> None:
    """Parse the flags (those of the command line where none are given), build, listen, and say
    where."""
    settings = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from sinkscope.web.temporary import keep_private, own_folder

    keep_private(settings.app.cache)
    own_folder(settings.app.cache)  # before Gradio is imported, which reads where it is
    from sinkscope.web.launch import launch  # seconds of imports, which --help need not wait for
    from sinkscope.web.page import build_app

    app = build_app(settings)
    try:
        address = launch(app, wait=False)
    except OSError as error:
        sys.exit(unopened(settings.app, error))
    sys.stdout.write(f"SinkScope listens on {address.rstrip('/')}\n")
    sys.stdout.flush()
    app.blocks.block_thread()


def unopened(settings: AppSettings, error: OSError) -> str:
    """Why the address cannot be listened on, in one sentence."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {settings.port} of {settings.host} is in use; choose another with --port "
            "(0 takes any free one)."
        )
    number = error.errno or 0
    why = os.strerror(number) if number > 0 else error.strerror or error
    return f"The page cannot be opened on {settings.host}, port {settings.port}: {why}."


if __name__ == "__main__":
    main()
