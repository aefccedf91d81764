"""`python -m sinkscope.benchmarks gpu`: every check that needs a GPU, in one run with one JSON.

`benchmarks/on_gpu.sh` makes the model folder and calls this. The file is written after each check;
a failing check is reported and the others still run; checks that no longer fit into the time are
left out and named. `--plan tiny` does the same on a CPU in a minute or two. Nothing here imports
torch before the command runs.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def gpu(
    output: Annotated[Path, typer.Option(help="The JSON file; written after each check.")],
    plan: Annotated[
        Literal["full", "tiny"], typer.Option(help="full: 3B and 7B shapes; tiny: for a test.")
    ] = "full",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cuda",
    folder: Annotated[
        Path | None, typer.Option(help="A model folder to load, ask, compare and search.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=600, help="Checks that do not fit into them are left out.")
    ] = 7.5,
    only: Annotated[str, typer.Option(help="Names of checks.", metavar="LIST")] = "",
) -> None:
    """All checks that need a GPU: both engines, VAR, comparing, finding, memory, exactness."""
    from sinkscope.cli.common import clear_errors

    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    with clear_errors():
        from sinkscope.benchmarks.gpu_checks import CHECKS, PLANS, Bench

        wanted = [name.strip() for name in only.split(",") if name.strip()]
        known = [check.name for check in CHECKS]
        if wrong := [name for name in wanted if name not in known]:
            raise ValueError(f"only has {', '.join(wrong)}; allowed: {', '.join(known)}.")
        if not output.resolve().parent.is_dir():
            raise ValueError(f"The folder of {output} does not exist.")
        bench = Bench(PLANS[plan], device, folder)
        result = _run(bench, [c for c in CHECKS if not wanted or c.name in wanted], minutes, output)
    typer.echo(_summary(result))
    if any("error" in entry for entry in result["checks"].values()):
        raise typer.Exit(1)


def _run(bench: Any, checks: list[Any], minutes: float, output: Path) -> dict[str, Any]:
    began = time.monotonic()
    result: dict[str, Any] = {"machine": bench.machine(), "plan": bench.plan.name, "checks": {}}
    result["judged"] = bench.judged
    for check in checks:
        left = minutes * 60 - (time.monotonic() - began)
        if bench.plan.name == "full" and left < check.seconds:
            entry: dict[str, Any] = {
                "skipped": f"{left:.0f} s are left and it takes about {check.seconds}"
            }
        else:
            typer.echo(f"{check.name}: {check.what}", err=True)
            started = time.monotonic()
            try:
                entry = check.run(bench)
            except Exception as error:  # a failing check must not stop the others
                entry = {"error": f"{type(error).__name__}: {error}"}
            bench.let_go()
            entry["seconds"] = time.monotonic() - started
        result["checks"][check.name] = entry
        result["seconds"] = time.monotonic() - began
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _summary(result: dict[str, Any]) -> str:
    """Each measurement with its target, one per line."""
    machine = result["machine"]
    lines = [
        f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{result['seconds']:.0f} s"
    ]
    if not result["judged"]:
        lines.append("Goals are for a GPU of the H100 class; they are not judged here.")
    for name, entry in result["checks"].items():
        if "error" in entry or "skipped" in entry:
            lines.append(
                f"{name:12} {'FAILED: ' if 'error' in entry else 'not run: '}"
                f"{entry.get('error', entry.get('skipped'))}"
            )
            continue
        lines.append(f"{name:12} {entry['seconds']:.0f} s")
        for goal in entry.get("goals", ()):
            met = "" if goal["met"] is None else "  met" if goal["met"] else "  NOT MET"
            lines.append(
                f"  {goal['what']:44} {goal['value']:>10.4g}   goal: {goal['most']:g}{met}"
            )
    return "\n".join(lines)
