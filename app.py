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
    from sinkscope.config import AppSettings, Settings, read_settings
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
    add = parser.add_argument
    add("--model", help="demo, a hub id such as Qwen/Qwen2.5-VL-3B-Instruct, or a folder")
    add("--revision", help="commit, tag or branch of a hub id")
    add("--device", help="auto, cpu, cuda, cuda:N or mps")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="number type")
    add("--min-pixels", type=int, help="smallest area of the resized image, in pixels")
    add("--max-pixels", type=int, help="largest area of the resized image, in pixels")
    add("--profile", metavar="FILE", help="sink profile to use instead of the model's own")
    add("--host", help="address to listen on; any but loopback needs --auth")
    add("--port", type=int, help="port (0: any free one)")
    add("--auth", help="user:password; or set SINKSCOPE_AUTH, which other users cannot see")
    add("--cache-dir", help="where runs are kept")
    add("--settings", type=Path, metavar="FILE", help="TOML file with the settings of config.py")
    given = parser.parse_args(arguments)
    try:
        settings = read_settings(given.settings) if given.settings else Settings()
        model = ("model", "revision", "device", "dtype", "min_pixels", "max_pixels", "profile")
        page = {name: getattr(given, name) for name in ("host", "port", "auth", "cache_dir")}
        page["auth"] = page["auth"] or os.environ.get("SINKSCOPE_AUTH")
        return dataclasses.replace(
            settings,
            model=_over(settings.model, {name: getattr(given, name) for name in model}),
            app=_over(settings.app, page),
        )
    except ValueError as error:
        parser.error(str(error))


def _over(settings: Any, values: dict[str, object]) -> Any:
    chosen = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(settings, **chosen)


def main(arguments: list[str] | None = None) -> None:
    """Parse the flags (those of the command line where none are given), build, listen, and say
    where."""
    settings = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
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
    why = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror or error
    return f"The page cannot be opened on {settings.host}, port {settings.port}: {why}."


if __name__ == "__main__":
    main()
