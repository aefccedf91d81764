"""`python -m sinkscope.benchmarks explorers`: how much a running job slows the requests of others.

Requests of the page are timed while nothing runs, while a job runs in the server that answers them,
and while the same job runs in a second process. The last is what remains if the model has a
separate process: both compute on the same cores, but share no interpreter lock. Each round has all
states, so other programs on the machine affect all of them equally.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkscope.benchmarks.options import AsJson, Switch
from sinkscope.benchmarks.output import check_folder, write_result

# (what runs, in which process): "here" serves the requests, "beside" is the second process.
STATES = (
    ("idle", "here"),
    ("answer", "here"),
    ("answer", "beside"),
    ("sinks", "here"),
    ("sinks", "beside"),
    ("file", "here"),
    ("file", "beside"),
)
WORDS = {"answer": "answers", "sinks": "sinks", "file": "an animation"}
SETTLE_SECONDS = 0.3
API = "/gradio_api"


def explorers(
    rounds: Annotated[int, typer.Option(min=1, max=99, help="Rounds of all states.")] = 4,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="CPU threads of torch. 0: the app's.")
    ] = 0,
    switch: Switch = 0,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for explorers.json and explorers.txt.")
    ] = None,
) -> None:
    """Requests of the page while a job runs, compared with the same without one."""
    from sinkscope.cli.common import clear_errors

    with clear_errors():
        check_folder(output)
        result = measure(rounds, threads, switch)
        write_result(result, table(result), "explorers", as_json, output)


def measure(
    rounds: int, threads: int = 0, switch: float = 0, requests: dict[str, int] | None = None
) -> dict[str, Any]:
    """All measurements, as plain values.

    Args:
        rounds: of all states, each in another order.
        threads: of torch; 0 leaves what the app has.
        switch: the interpreter's switch interval in milliseconds; 0 likewise.
        requests: how many of each kind in one state of one round; by default `REQUESTS`.
    """
    requests = requests or REQUESTS
    times: dict[str, dict[str, list[list[float]]]] = {
        _name(*state): {kind: [] for kind in requests} for state in STATES
    }
    with _server(threads, switch) as busy_server, _server(threads, switch) as beside:
        servers = {"here": busy_server, "beside": beside}
        for kind in requests:  # the set-up of a first request is not measured
            ASK[kind](busy_server)
        for number in range(rounds):
            turn = number % len(STATES)
            for what, where in (*STATES[turn:], *STATES[:turn]):
                for place, server in servers.items():
                    server.turn(what if place == where else "idle")
                time.sleep(SETTLE_SECONDS)
                for kind, count in requests.items():
                    busy_times: list[float] = []
                    for _ in range(count):
                        began = time.perf_counter()
                        ASK[kind](busy_server)
                        busy_times.append(time.perf_counter() - began)
                    times[_name(what, where)][kind].append(busy_times)
        about = busy_server.about
    return {
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": about["threads"],
        "switch_ms": about["switch_ms"],
        "device": about["device"],
        "rounds": rounds,
        "states": {
            state: {kind: _spread(given, times["idle"][kind]) for kind, given in kinds.items()}
            for state, kinds in times.items()
        },
    }


def _name(what: str, where: str) -> str:
    return what if what == "idle" else f"{what} {where}"


def _spread(times: list[list[float]], idle: list[list[float]]) -> dict[str, float]:
    """Over all rounds; `ratio` is the median over rounds of the round's median divided by the idle
    one."""
    ordered = sorted(one for rounds in times for one in rounds)
    by = [
        statistics.median(busy) / statistics.median(still)
        for busy, still in zip(times, idle, strict=True)
    ]
    return {
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "ratio": statistics.median(by),
        "count": len(ordered),
    }


@dataclass
class _Server:
    """One app in its own process."""

    process: subprocess.Popen[str]
    about: dict[str, Any]
    endpoints: dict[str, Any] = field(default_factory=dict)

    def turn(self, what: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline().strip() != "begun":
            raise RuntimeError("the server of the benchmark has ended")

    def send(self, method: str, path: str, content: Any = None) -> bytes:
        """The whole body of an answer.

        Raises:
            RuntimeError: the server refuses the request.
        """
        address = urllib.parse.urlsplit(self.about["url"])
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
        body = None if content is None else json.dumps(content)
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
        return data

    def ask(self, function: str, question: dict[str, Any]) -> dict[str, Any]:
        """A question of the inspector, which does not queue."""
        content = {
            "component_id": self.about["inspector"],
            "fn_name": function,
            "data": {"run": self.about["run"], **question},
            "session_hash": "explorer",
        }
        answer = json.loads(self.send("POST", f"{API}/component_server/", content))
        if not isinstance(answer, dict) or "error" in answer:
            raise RuntimeError(f"{function}: {answer}")
        return answer

    def call(self, endpoint: str, **given: Any) -> None:
        """An endpoint of the API, which waits in Gradio's queue; other arguments keep defaults."""
        path = f"{API}/call/{endpoint}"
        if not self.endpoints:
            self.endpoints = json.loads(self.send("GET", f"{API}/info"))["named_endpoints"]
        wanted = self.endpoints[f"/{endpoint}"]["parameters"]
        data = [given.get(p["parameter_name"], p.get("parameter_default")) for p in wanted]
        event = json.loads(self.send("POST", path, {"data": data}))["event_id"]
        body = self.send("GET", f"{path}/{event}").decode()
        if "event: complete" not in body:
            raise RuntimeError(f"{endpoint}: {body[-300:]}")


@contextmanager
def _server(threads: int, switch: float) -> Iterator[_Server]:
    module = "sinkscope.benchmarks.explorers_server"
    command = [sys.executable, "-m", module, str(threads), str(switch)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield _Server(process, json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()  # it ends by itself


def _page(server: _Server) -> None:
    server.send("GET", "/")


def _open(server: _Server) -> None:
    value = server.ask("open_run", {})
    server.send("GET", f"/{value['data']['url']}")


def _heads(server: _Server) -> None:
    server.ask("token_maps", {"variant": "baseline", "start": 0, "stop": 1, "whole": True})


def _map(server: _Server) -> None:
    server.call("map", run=server.about["run"])


def _figure(server: _Server) -> None:
    server.call("export", run=server.about["run"], kind="png")


ASK: dict[str, Callable[[_Server], None]] = {
    "page": _page,
    "open": _open,
    "heads": _heads,
    "map": _map,
    "figure": _figure,
}
REQUESTS = {"page": 10, "open": 10, "heads": 10, "map": 5, "figure": 2}
ABOUT = {
    "page": "load the page",
    "open": "open a run",
    "heads": "single heads of a token",
    "map": "map (API)",
    "figure": "figure, PNG (API)",
}


def table(result: dict[str, Any]) -> str:
    """The whole result for a terminal."""
    states = result["states"]
    lines = [
        f"Requests of the page during a job: bundled model, {result['device']}, "
        f"{result['threads']} torch threads, switch interval {result['switch_ms']:g} ms, "
        f"{result['processors']} processors, {result['rounds']} rounds, load {result['load']:.1f} "
        "at the end",
        "",
        f"{'':<26}{'median':>10}{'95 %':>10}{'× idle':>9}",
    ]
    for kind in states["idle"]:
        still = states["idle"][kind]
        lines.append(f"{ABOUT[kind]}  ({still['count']} each)")
        for state, kinds in states.items():
            what, _, where = state.partition(" ")
            words = "nothing runs" if what == "idle" else f"{WORDS[what]} {where}"
            times = kinds[kind]
            lines.append(
                f"  {words:<24}{1000 * times['median']:>7.0f} ms{1000 * times['p95']:>7.0f} ms"
                f"{times['ratio']:>9.2f}"
            )
    lines += [
        "",
        "here: in the server that answers; beside: in another process on the same cores",
        "× idle: median over the rounds of the round's median divided by the idle one's",
    ]
    return "\n".join(lines)
