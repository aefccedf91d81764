"""Start the web app: python app.py (or: sinkscope app), then open http://127.0.0.1:7860.

The page opens at once and shows a precomputed run; the model loads in the background.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from sinkscope.config import (
        SECTIONS,
        AppSettings,
        ModelSettings,
        Settings,
        make_settings,
        read_tables,
    )
    from sinkscope.setting import Setting, user_settings
    from sinkscope.setting.serving import NO_TOKEN
    from sinkscope.setting.sources import Sources, from_environment
except ModuleNotFoundError as missing:
    if missing.name != "sinkscope":
        raise
    # Started as a script by a Python without the installed project (README, "Start").
    sys.exit("This Python does not know the package sinkscope; run: pip install -e . (or make run)")


def parse(arguments: list[str]) -> Settings:
    """Settings from the flags, over the environment, over `--settings FILE`, over the defaults."""
    return resolve(arguments).settings


@dataclass(frozen=True)
class Start:
    """The settings of a start, where each came from, and whether they are only to be printed."""

    settings: Settings
    sources: Sources
    only_print: bool = False

    @property
    def lines(self) -> list[str]:
        """Each setting with its value and source; secrets masked."""
        return [
            one.line
            for section in SECTIONS
            for one in self.sources.of(section, getattr(self.settings, section))
        ]


def resolve(arguments: list[str], environment: Mapping[str, str] | None = None) -> Start:
    """All settings of a start.

    Args:
        arguments: of the command line.
        environment: None: that of the process.
    """
    environment = os.environ if environment is None else environment
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="SinkScope: see where a vision-language model looked for each word it wrote.",
        epilog="Each flag is an environment variable too: --cache-dir is SINKSCOPE_CACHE_DIR.",
    )
    for cls in (ModelSettings, AppSettings):
        for one in user_settings(cls):
            _add_flag(parser, one)
    parser.add_argument(
        "--no-token", dest="token", action="store_const", const=NO_TOKEN, help="Same as token none."
    )
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="TOML file with the settings of config.py"
    )
    parser.add_argument(
        "--print-settings",
        action="store_true",
        help="Print each setting with its value and where it came from, and end.",
    )
    given = parser.parse_args(arguments)
    path = given.settings or Path(environment.get("SINKSCOPE_SETTINGS", ""))
    path = path if path != Path() else None
    try:
        sources = Sources(
            {"model": _given_flags(ModelSettings, given), "app": _given_flags(AppSettings, given)},
            from_environment(SECTIONS, environment),
            read_tables(path) if path else {},
            path,
        )
        merged = {section: sources.merged(section) for section in SECTIONS}
        return Start(make_settings(merged), sources, given.print_settings)
    except ValueError as error:
        parser.error(str(error))


def _given_flags(cls: type[Any], given: argparse.Namespace) -> dict[str, Any]:
    flags = {one.field: getattr(given, one.name) for one in user_settings(cls)}
    return {name: value for name, value in flags.items() if value is not None}


def _add_flag(parser: argparse.ArgumentParser, one: Setting) -> None:
    flag, words = f"--{one.name.replace('_', '-')}", one.words.replace("%", "%%")
    if one.kind == "switch":
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
        return
    kind = {"whole": int, "number": float}.get(one.kind, str)
    more: dict[str, Any] = {"metavar": one.metavar} if one.metavar else {}
    parser.add_argument(flag, type=kind, choices=one.choices or None, help=words, **more)


def main(arguments: list[str] | None = None) -> None:
    """Parse the flags (by default those of the command line), build the page, start the server and
    print its address."""
    start = resolve(sys.argv[1:] if arguments is None else arguments)
    if start.only_print:
        sys.stdout.write("\n".join(start.lines) + "\n")
        return
    settings = start.settings
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from sinkscope.web.server.temporary import keep_private, own_folder

    keep_private(settings.app.cache)
    own_folder(settings.app.cache)  # before the page is built, whose parts store the folder
    from sinkscope.web.launch import (
        launch,  # seconds of imports, which --help should not wait for
    )
    from sinkscope.web.page import build_app
    from sinkscope.web.server.access import token_for
    from sinkscope.web.server.logs import start_logging
    from sinkscope.web.shutdown import serve

    start_logging(settings.app)
    token = token_for(settings.app)
    app = build_app(settings)
    try:
        address = launch(app, wait=False, token=token)
    except OSError as error:
        sys.exit(unopened(settings.app, error))
    except ValueError as error:
        sys.exit(str(error))
    link = address.rstrip("/") + (f"/?token={token}" if token else "")
    sys.stdout.write(f"SinkScope listens on {link}\n")
    sys.stdout.flush()
    serve(app)


def unopened(settings: AppSettings, error: OSError) -> str:
    """Why the app cannot listen on the address, in one sentence."""
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
