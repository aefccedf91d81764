"""Files of a run for download: the report, its tables, the answers, or all of them.

A run's folder also contains the names of the machine and the process, the server's command line,
and the path of the copy of an upload. These are private to the owner of the server, so downloads
are made without them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sinkscope.evaluation.report.write import make_report
from sinkscope.evaluation.run_folder import CONFIG, PROVENANCE, RECORDS, SUMMARY, read_run
from sinkscope.evaluation.statistics.settings import CompareSettings
from sinkscope.web.server.temporary import scratch

PRIVATE = ("command", "name", "process")  # keys in provenance.json and records
MEDIA = ("report.html", "differences.csv", RECORDS, "all.zip")


def file_of(folder: Path, what: object) -> bytes:
    """One file of a run.

    Args:
        folder: folder of the run.
        what: one of `MEDIA`.

    Raises:
        ValueError: `what` is not one of these, or the folder contains no run.
    """
    if what not in MEDIA:
        raise ValueError(f"The file is {what!r}; allowed: {', '.join(MEDIA)}.")
    with scratch() as temporary:
        copy = Path(temporary) / folder.name
        _copy(folder, copy)
        if what == RECORDS:
            return without_folder((copy / RECORDS).read_bytes(), folder)
        seed = read_run(copy).config.run.seed
        report = make_report([copy], statistics=CompareSettings(seed=seed)).files
        if what == "all.zip":
            contents = {path.name: path.read_bytes() for path in sorted(copy.iterdir())}
            texts = {name: text.encode("utf-8", "replace") for name, text in report.items()}
            return _zipped(
                {name: without_folder(data, folder) for name, data in (contents | texts).items()}
            )
        return without_folder(report[str(what)].encode("utf-8", "replace"), folder)


def without_folder(text: bytes, folder: Path) -> bytes:
    """The text without the paths of this run's folder and of its upload."""
    tops = {str(folder.parent), str(folder.parent.absolute()), str(folder.parent.resolve())}
    for top in sorted(tops, key=len, reverse=True):
        for before in (top, top.replace("\\", "\\\\")):  # as JSON and TOML escape it
            for sign in ("/", "\\\\", "\\"):
                text = text.replace(f"{before}{sign}".encode(), b"")
            text = text.replace(before.encode(), b"")
    return text


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return buffer.getvalue()


def _copy(folder: Path, copy: Path) -> None:
    """Copy the folder without its private parts."""
    copy.mkdir()
    shutil.copyfile(folder / CONFIG, copy / CONFIG)
    _changed(folder / PROVENANCE, copy / PROVENANCE, _public)
    _changed(folder / SUMMARY, copy / SUMMARY, lambda values: values)
    with (copy / RECORDS).open("w", encoding="utf-8") as out:
        for record in read_run(folder).records():
            host = {key: value for key, value in record.host.items() if key not in PRIVATE}
            out.write(dataclasses.replace(record, host=host).line())


def _changed(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    if source.is_file():
        values = change(json.loads(source.read_bytes()))
        target.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _public(values: dict[str, Any]) -> dict[str, Any]:
    sessions = values.get("sessions", [])
    return {
        **values,
        "sessions": [
            {key: value for key, value in one.items() if key not in PRIVATE} for one in sessions
        ],
    }
