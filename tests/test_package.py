"""The package `sinkscope`: its public names, the content of its wheel, and where it writes
files."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

import sinkscope
from sinkscope import utils

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "demo" / "examples" / "four_things.png"


def python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_said_alike_three_times() -> None:
    tree = ast.parse((ROOT / "src" / "sinkscope" / "__init__.py").read_text(encoding="utf-8"))
    typed = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sinkscope."):
            for alias in node.names:
                typed[alias.name] = str(node.module).removeprefix("sinkscope.")
    assert typed == sinkscope._MODULES
    assert set(sinkscope.__all__) == set(typed)


def test_every_public_name_is_there() -> None:
    for name in sinkscope.__all__:
        assert getattr(sinkscope, name).__name__ == name
        assert name in dir(sinkscope)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sinkscope.nothing


def test_importing_it_loads_nothing_else() -> None:
    code = "import sys, sinkscope\nprint(sorted(m for m in sys.modules if m[:9] == 'sinkscope'))"
    assert python(code).strip() == "['sinkscope']"


def test_no_file_is_loaded_under_two_names() -> None:
    code = (
        "import importlib, json, pkgutil, sys, sinkscope\n"
        "names = [m.name for m in pkgutil.walk_packages(sinkscope.__path__, 'sinkscope.')]\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "loaded = {n: m.__file__ for n, m in sys.modules.items() if getattr(m, '__file__', None)}\n"
        "print(json.dumps([names, loaded]))"
    )
    names, loaded = json.loads(python(code).splitlines()[-1])
    assert len(names) > 100 and "sinkscope.app" in names
    assert not twice({name: Path(file) for name, file in loaded.items()})


def test_no_file_is_loaded_under_two_names_by_these_tests() -> None:
    files = {n: Path(f) for n, m in list(sys.modules.items()) if (f := getattr(m, "__file__", 0))}
    assert not twice(files)


def test_a_python_without_the_package_is_told_how_to_get_it(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "app.py", tmp_path / "app.py")
    done = subprocess.run([sys.executable, "-I", "-S", str(script)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install -e ." in done.stderr


def twice(files: dict[str, Path]) -> dict[Path, list[str]]:
    """The project's files that several modules were made of."""
    names = defaultdict(list)
    for name, file in files.items():
        if file.resolve().is_relative_to(ROOT) and "site-packages" not in file.parts:
            names[file.resolve()].append(name)
    return {file: found for file, found in names.items() if len(found) > 1}


def test_files_go_to_the_clone_or_to_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert utils.run_folder("cache") == Path("cache")
    monkeypatch.chdir(tmp_path)
    assert utils.run_folder("cache") == ROOT / "cache"
    monkeypatch.setattr(utils, "PROJECT", tmp_path / "site-packages" / "sinkscope")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    installed = utils.run_folder("outputs")
    assert installed.name == "outputs" and installed.parent.name == "sinkscope"
    assert not installed.is_relative_to(utils.PROJECT.parent)


# --- tier 3 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install PATH` would make, from a copy of the files tracked by git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("this copy of the project has no git, so its own files cannot be told")
    copy, made = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(made)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(made.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"sinkscope"} and len(tops) == 2
    inside = {name.removeprefix("sinkscope/") for name in names if name.startswith("sinkscope/")}
    for part in ("tests", "src", "cache", "outputs", ".ci"):
        assert not any(name.startswith(f"{part}/") for name in inside), part
    # All files tracked by git in each part: a missing data file is noticed here first.
    parts = {path.name for path in (ROOT / "src" / "sinkscope").iterdir() if path.is_dir()}
    listed = subprocess.run(
        ["git", "ls-files", "-z", *sorted(parts)], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    # Of a report the page shows only the text; benchmarks/on_gpu.sh needs the tests of a clone.
    wanted = {n for n in listed if n and (not n.startswith("docs/reports/") or n.endswith(".md"))}
    wanted.discard("benchmarks/on_gpu.sh")
    assert {"evaluation/report/page.css", "experiments/prompts.txt"} <= wanted
    assert len(wanted) > 300 and wanted <= inside, sorted(wanted - inside)


@pytest.mark.slow
def test_the_installed_package_works_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    shutil.copy(PHOTO, empty / "photo.png")
    home = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "home")}
    code = (
        "import sinkscope, sys\n"
        f"assert sinkscope.__file__.startswith({str(site)!r}), sinkscope.__file__\n"
        "handle = sinkscope.load_model('demo')\n"
        "print(handle.info.layers)\n"
        "from sinkscope.__main__ import main\n"
        "sys.argv = ['sinkscope', 'heatmap', 'photo.png', 'Describe the image.', '--output',"
        " 'a.png']\n"
        "main()"
    )
    assert python(code, empty, **home).startswith("6\n")
    assert (empty / "a.png").read_bytes()[1:4] == b"PNG"
    drawn = (
        "from pathlib import Path\n"
        "from sinkscope.web.runs.drawing_process import DrawingProcess\n"
        "from sinkscope.web.runs.example import load_example\n"
        "from sinkscope.web.explore.export_files import ExportRequest, make_files\n"
        "process = DrawingProcess(lambda trace: None)\n"
        f"(made,) = make_files(load_example(), ExportRequest('png'), Path({str(tmp_path)!r}),"
        " drawn_by=process)\n"
        "print(made.read_bytes()[1:4])"
    )
    assert python(drawn, empty, **home) == "b'PNG'\n"
    assert {path.name for path in empty.iterdir()} == {"photo.png", "a.png"}
    assert not list(site.glob("sinkscope/cache*")) and not list(site.glob("sinkscope/outputs*"))
