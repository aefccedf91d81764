"""Deleting is complete: served files of a run are removed with it, and none outlive the app."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sinkscope.web.runs.inspector import files_in
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.runs.store import Run, RunStore
from sinkscope.web.server.temporary import remove_abandoned
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cache")
    example = Run(make_pair(), kind="example")
    made = start_site(folder, ScriptedEngine(), handle=fake_handle(), example=example)
    yield made
    made.app.blocks.close(verbose=False)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def addresses(site: Site, run: Run) -> list[str]:
    """Served files of everything that the page and the API make from a run."""
    handlers = site.app.handlers
    value = handlers.value_of(run)
    made = [value["data"]["url"], *(image["url"] for image in value["images"])]
    made.append(handlers.page_file({"run": run.id})["url"])
    made.append(handlers.trace_file({"run": run.id, "variant": "var"})["url"])
    return [site.url + address for address in made]


def put(site: Site, text: str) -> Run:
    run = Run(make_pair((text, "b"), (text, "b")))
    site.app.handlers.store.put(run)
    return run


def test_the_addresses_of_a_deleted_run_are_gone(kept: Site) -> None:
    run, other = put(kept, "first"), put(kept, "second")
    mine, theirs = addresses(kept, run), addresses(kept, other)
    assert {status_of(url) for url in mine + theirs} == {200}
    assert set(mine) & set(theirs)  # the image: it also belongs to the other run
    kept.app.handlers.forget_run({"run": run.id})
    assert {status_of(url) for url in set(mine) - set(theirs)} <= {403, 404}
    assert {status_of(url) for url in theirs} == {200}
    kept.app.handlers.forget_run({"run": other.id})
    example = kept.app.handlers.store
    shown = {
        str(p)
        for run in example._runs.values()
        for p in files_in(kept.app.handlers.value_of(run))
        if run.kind == "example"
    }
    left = [url for url in theirs if url.partition("file=")[2] not in shown]
    assert left and {status_of(url) for url in left} <= {403, 404}
    assert all(Path(path).is_file() for path in shown)  # the example's own stay


def test_an_export_of_the_api_goes_with_its_run(kept: Site) -> None:
    from gradio_client import Client

    run = put(kept, "third")
    client = Client(kept.url, verbose=False, download_files=False)
    (file,) = client.predict(run=run.id, kind="csv", tokens="0", api_name="/export")
    client.close()
    url = file["url"]
    assert status_of(url) == 200
    kept.app.handlers.forget_run({"run": run.id})
    assert status_of(url) in (403, 404)


def test_a_run_that_falls_out_of_the_budget_takes_its_copies(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs", 1, 1)  # room for only the current run
    copies = []
    for n in range(3):
        run = Run(make_pair())
        store.put(run)
        copies.append(tmp_path / f"copy{n}" / "run.bin")
        copies[n].parent.mkdir()
        copies[n].write_bytes(b"x")
        store.keep_copies(run, copies[n])
        os.utime(tmp_path / "runs" / run.id, (n, n))
    assert [copy.exists() for copy in copies] == [False, False, True]
    assert not copies[0].parent.exists()


def test_copies_that_are_made_too_late_are_removed(tmp_path: Path) -> None:
    store, run, late = RunStore(tmp_path / "runs", 10**9), Run(make_pair()), tmp_path / "late.csv"
    store.put(run)
    store.delete(run.id)
    late.write_bytes(b"x")
    store.keep_copies(run, late)
    assert not late.exists()


def test_a_copy_of_two_runs_together_goes_with_either(tmp_path: Path) -> None:
    copies, path = ServedFiles(), tmp_path / "pair.html"
    path.write_bytes(b"x")
    copies.add(("a", "b"), [path])
    copies.add(("c",), [path])
    copies.drop("a")
    assert path.exists()  # now used only by c
    copies.drop("c")
    assert not path.exists()


def test_runs_go_when_they_are_too_old(tmp_path: Path) -> None:
    store = RunStore(tmp_path, 10**9)
    old, new = Run(make_pair(), created=time.time() - 3 * 86_400), Run(make_pair())
    example = Run(make_pair(), kind="example", created=1.0)
    store.put(old)
    store.put(new)
    store.put(example, keep_on_disk=False)
    assert RunStore(tmp_path, 10**9).get(old.id) is not None
    assert store.remove_older(2 * 86_400) == 1
    assert store.get(old.id) is None and not (tmp_path / old.id).exists()
    assert store.get(new.id) is not None and store.get(example.id) is not None


APP = """
import os, sys, time
from pathlib import Path
from sinkscope.web.server.temporary import keep_private, own_folder
keep_private(Path(sys.argv[1]))
folder = own_folder(Path(sys.argv[1]))
(folder / "photo.png").write_bytes(b"x")
assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
print(folder, flush=True)
if len(sys.argv) > 2:
    time.sleep(60)
"""


def own(cache: Path, *more: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    command = [sys.executable, "-c", APP, str(cache), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def reported_folder(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_the_temporary_folder_is_private_and_ends_with_its_app(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o755)
    runs.chmod(0o755)
    with own(tmp_path, "stay") as killed, own(tmp_path, "stay") as running:
        folders = reported_folder(killed), reported_folder(running)
        for path in (*folders, runs, folders[0] / "photo.png"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        killed.kill()
        killed.wait()
        with own(tmp_path) as third:
            last = reported_folder(third)
            third.wait()
        assert not folders[0].exists()  # killed: the next start removed it
        assert (folders[1] / "photo.png").exists()  # another app's, which runs
        assert not last.exists()  # ended by itself
        running.kill()
    assert remove_abandoned(tmp_path / "temporary") == 1


def test_app_writes_for_its_user_alone(tmp_path: Path) -> None:
    """`app.main` does all of this before Gradio has a folder."""
    code = (
        "import os, sys\nfrom pathlib import Path\nimport sinkscope.app as app\n"
        "import sinkscope.web.launch as launched\n"
        "def report(app, **more):\n"
        "    from gradio.utils import get_upload_folder\n"
        "    print('UMASK', oct(os.umask(0)), app.handlers.component.GRADIO_CACHE,"
        " get_upload_folder())\n"
        "    raise SystemExit\n"
        "launched.launch = report\n"
        "app.main(['--cache-dir', sys.argv[1], '--port', '0'])\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    done: Any = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    lines = [one for one in done.stdout.splitlines() if one.startswith("UMASK")]
    assert lines, done.stderr
    line = lines[0]
    _, mask, cache, folder = line.split()
    assert mask == "0o77"
    assert cache == folder and Path(folder).parent == tmp_path / "temporary"
