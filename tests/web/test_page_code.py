"""A linter (oxlint: ESLint's rules) checks the page's scripts.

The files of one component share one scope, so they are checked as one text. Two rules are off in
`oxlint.json`: `x * 0` is used on purpose to keep NaN, and control characters are searched for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sinkscope.web.components.assets import STATIC

CONFIG = Path(__file__).with_name("oxlint.json")
GIVEN = "element, props, trigger, watch, server, upload"  # by Gradio, to a component's script
SAVED = "standalone"  # no component: it goes around one, and hands on `replay`
COMPONENTS = sorted({file.parent.name for file in STATIC.glob("*/*.js")} - {SAVED})


def findings(folder: Path, name: str, code: str) -> str:
    """The linter's findings for a script; empty if it finds nothing."""
    (folder / name).write_text(code, encoding="utf-8")
    linter = Path(sys.executable).with_name("oxlint")
    asked = [str(linter), "-c", str(CONFIG), "--format", "unix", name]
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True, env=os.environ)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def joined(name: str) -> str:
    files = sorted((STATIC / name).glob("*.js"))
    return "\n".join(f"// {file.name}\n{file.read_text(encoding='utf-8')}" for file in files)


def component(name: str) -> str:
    return f"(async ({GIVEN}) => {{\n{joined(name)}\n}})();\n"


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_linter_finds_nothing_in_a_component(name: str, tmp_path: Path) -> None:
    assert not findings(tmp_path, f"{name}.js", component(name))


def test_the_linter_finds_nothing_in_single_scripts(tmp_path: Path) -> None:
    for file in sorted(STATIC.glob("*.js")):
        assert not findings(tmp_path, file.name, file.read_text(encoding="utf-8"))
    assert not findings(tmp_path, f"{SAVED}.js", f"{joined(SAVED)}\nexport {{ replay }};\n")


def test_the_linter_would_see_a_fault(tmp_path: Path) -> None:
    code = component(COMPONENTS[0]).replace("\n})();\n", "\nif (props.a == 1) missing();\n})();\n")
    said = findings(tmp_path, "fault.js", code)
    assert "no-undef" in said and "eqeqeq" in said
