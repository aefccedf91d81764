"""App processes that write runs endlessly and report each: `test_kills` kills them.

    python -m tests.hostile.app

For each line it reads, the name of a folder, it starts one app on that folder as a fork, so that
the slow imports happen once. It prints `started PID`, then the id of each run at the time when the
page would know it, and `ended` when the process is gone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from sinkscope.web.runs.store import Run
from tests.hostile.readers import png
from tests.web.conftest import Site, start_site
from tests.web.raw_requests import file_of, outcome, post, send, upload
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair


def endpoints(site: Site) -> dict[str, list[Any]]:
    """Names of the API's endpoints, with the default of each argument."""
    _, text = send(site, "/gradio_api/info", method="GET", kind=None)
    named = json.loads(text)["named_endpoints"]
    return {
        name.strip("/"): [one.get("parameter_default") for one in about["parameters"]]
        for name, about in named.items()
    }


def tell(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def write_runs(folder: Path) -> None:
    example = Run(make_pair(), kind="example")
    site = start_site(folder, ScriptedEngine(), handle=fake_handle(), example=example)
    photo = file_of(upload(site, png()))
    data = [photo, "Hello", *endpoints(site)["compare"][2:]]
    while True:
        status, text = post(site, "/gradio_api/call/compare", {"data": data})
        assert status == 200, text
        said = outcome(site, "compare", json.loads(text)["event_id"])
        assert "event: complete" in said, said
        (made,) = json.loads(said.rsplit("data: ", 1)[1])
        tell(made["run"])


def main() -> None:
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            tell(f"started {os.getpid()}")
            write_runs(Path(line.strip()))
        os.waitpid(child, 0)
        tell("ended")


if __name__ == "__main__":
    main()
