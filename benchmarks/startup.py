"""The start-up time of the command line, compared with Python importing torch and transformers.

Each variant is its own process; each round runs all of them. The result is the processor time of
the process, which other programs on the machine hardly change; wall time is given as well. A first
round, which brings the files into the system's cache, is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkscope.benchmarks.output import check_folder, write_result
from sinkscope.cli.common import clear_errors
from sinkscope.utils import PROJECT

REFERENCE = "import torch, transformers"
MODEL = "from transformers import Qwen2_5_VLForConditionalGeneration"
AIM = 1.3  # of REFERENCE, at most
WORDS = {
    REFERENCE: f'python -c "{REFERENCE}"',
    MODEL: f'python -c "{MODEL}"',
    "help": "sinkscope --help",
    "verb help": "sinkscope heatmap --help",
    "refusal": "sinkscope heatmap ... --colormap nonsense",
    "show": "sinkscope show TRACE",
    "show, picture": "sinkscope show TRACE -o sheet.png",
    "heatmap, to the model": "sinkscope heatmap, until a model is loaded",
    "heatmap, imports": "all that heatmap imports, the model's class too",
}
WIDE = max(map(len, WORDS.values()))
# Must be at most AIM times the reference; the last is compared with the import of the same class.
HELD = ("help", "verb help", "refusal", "show", "show, picture", "heatmap, to the model")


def startup(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds that count.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for the table and JSON.")] = None,
) -> None:
    """How long the command line takes to start."""
    with clear_errors():
        check_folder(output)
        result = measure(rounds)
        write_result(result, table(result), "startup", as_json, output)


def measure(rounds: int) -> dict[str, Any]:
    """Processor and wall seconds of each variant: median and smallest of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        variants = _commands(Path(folder))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            for name, (command, code) in variants.items():
                seconds = _run(command, code)
                if number:
                    times[name].append(seconds)
    unit = statistics.median(busy for busy, _ in times[REFERENCE])
    results = {
        name: {
            "processor": statistics.median(busy for busy, _ in all_of_them),
            "least": min(busy for busy, _ in all_of_them),
            "clock": statistics.median(clock for _, clock in all_of_them),
            "ratio": statistics.median(busy for busy, _ in all_of_them) / unit,
        }
        for name, all_of_them in times.items()
    }
    most = max(results[name]["ratio"] for name in HELD)
    return {"rounds": rounds, "aim": AIM, "most": most, "held": most <= AIM, "ways": results}


def _commands(folder: Path) -> dict[str, tuple[Sequence[str], int]]:
    """The command of each variant, and its expected exit code."""
    trace = folder / "run.safetensors"
    image = PROJECT / "demo" / "examples" / "four_things.png"
    python = (sys.executable, "-c")
    sinkscope = (sys.executable, "-m", "sinkscope")
    asked = ("heatmap", str(image), "What colour is the ring?", "-o", str(folder / "out.png"))
    process = subprocess.run(
        [*sinkscope, *asked, "--max-new-tokens", "6", "--save-trace", str(trace)],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise OSError(f"No run to show could be made: {process.stderr.strip().splitlines()[-1]}")
    to_the_model = (
        "import sys\n"
        "from sinkscope.cli import common\n"
        "common.load = lambda settings: sys.exit(0)\n"
        "from sinkscope.__main__ import main\n"
        f"sys.argv[1:] = {list(asked)!r}\n"
        "main()"
    )
    imports = (
        f"import sinkscope.attention_extractor, sinkscope.models.loading, sinkscope.cli.heatmap\n"
        f"import sinkscope.cli.drawing\n{MODEL}"
    )
    return {
        REFERENCE: ((*python, REFERENCE), 0),
        MODEL: ((*python, MODEL), 0),
        "help": ((*sinkscope, "--help"), 0),
        "verb help": ((*sinkscope, "heatmap", "--help"), 0),
        "refusal": ((*sinkscope, *asked, "--colormap", "nonsense"), 2),
        "show": ((*sinkscope, "show", str(trace)), 0),
        "show, picture": ((*sinkscope, "show", str(trace), "-o", str(folder / "s.png")), 0),
        "heatmap, to the model": ((*python, to_the_model), 0),
        "heatmap, imports": ((*python, imports), 0),
    }


def _environment() -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _run(command: Sequence[str], code: int) -> tuple[float, float]:
    """Processor and wall seconds of one process."""
    began = time.perf_counter()
    child = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    errors = child.stderr.read()
    # Its own usage; that of all children would include earlier ones.
    _, status, usage = os.wait4(child.pid, 0)
    clock = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode != code:
        last = (errors.strip().splitlines() or ["(nothing)"])[-1]
        raise OSError(f"{' '.join(command)} ended with {child.returncode}: {last}")
    return usage.ru_utime + usage.ru_stime, clock


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [
        f"Start-up, {result['rounds']} rounds: processor seconds, median (smallest), and wall "
        "seconds",
        "",
        f"{'':<{WIDE}}{'processor':>16}{'clock':>8}{'ratio':>8}",
    ]
    for name, one in result["ways"].items():
        busy = f"{one['processor']:.2f} ({one['least']:.2f})"
        lines.append(f"{WORDS[name]:<{WIDE}}{busy:>16}{one['clock']:>8.2f}{one['ratio']:>8.2f}")
    variants = result["ways"]
    import_ratio = variants["heatmap, imports"]["processor"] / variants[MODEL]["processor"]
    return "\n".join(
        [
            *lines,
            "",
            f"At most {result['aim']:g} times {WORDS[REFERENCE]}, all but the import of the "
            f"model's class: {'yes' if result['held'] else 'NO'} ({result['most']:.2f}).",
            f"All that heatmap imports is {import_ratio:.2f} times the model's class alone.",
        ]
    )
