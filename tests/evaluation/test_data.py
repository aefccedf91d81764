"""Sources of rows: layouts of folders, fingerprints, a hub's revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from sinkscope.evaluation.data import Data, Table, open_data
from sinkscope.evaluation.tasks.listed import task_named
from tests.evaluation.tasks.layouts import blink, picture, pope, text, write

ONE = Table(None, "val")
FEATURES = {"n": datasets.Value("int64"), "image": datasets.Image(), "word": text()}


def part(path: Path, *numbers: int) -> None:
    rows = [{"n": n, "image": picture("red"), "word": f"w{n}"} for n in numbers]
    write(path, rows, FEATURES)


def numbers(data: Data, table: Table = ONE) -> list[int]:
    return [row.values["n"] for row in data.rows(table)]


@pytest.mark.parametrize(
    "names",
    [
        ("data/val-00000-of-00002.parquet", "data/val-00001-of-00002.parquet"),
        ("val-00000-of-00002.parquet", "val-00001-of-00002.parquet"),
        ("default/val/0000.parquet", "default/val/0001.parquet"),
        ("val_0.parquet", "val_1.parquet"),
    ],
)
def test_layouts_of_a_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    part(tmp_path / names[0], 1, 2)
    part(tmp_path / names[1], 3)
    part(tmp_path / "data" / "test-00000-of-00001.parquet", 9)
    part(tmp_path / "data" / "validation-00000-of-00001.parquet", 8)
    data = open_data(str(tmp_path), None, [ONE])
    assert numbers(data) == [1, 2, 3]
    assert data.count([ONE]) == 3


def test_a_configuration_is_a_folder(tmp_path: Path) -> None:
    for start, name in enumerate(("one", "two")):
        part(tmp_path / name / "val-00000-of-00001.parquet", 10 * start)
    tables = [Table("one", "val"), Table("two", "val")]
    data = open_data(str(tmp_path), None, tables)
    assert [numbers(data, table) for table in tables] == [[0], [10]]
    with pytest.raises(ValueError, match=r"no three/val-.*\(2 tables are needed\)"):
        open_data(str(tmp_path), None, [tables[0], Table("three", "val")])


def test_images_are_opened_when_they_are_asked_for(tmp_path: Path) -> None:
    part(tmp_path / "val-00000-of-00001.parquet", 1)
    (row,) = open_data(str(tmp_path), None, [ONE]).rows(ONE)
    (found,) = row.images("image", "another")
    assert found().size == (64, 48)


def test_a_fingerprint_tells_two_downloads_apart(tmp_path: Path) -> None:
    for name, n in (("a", 1), ("b", 1), ("c", 2)):
        part(tmp_path / name / "val-00000-of-00001.parquet", n)
    found = [open_data(str(tmp_path / name), None, [ONE]).revision for name in "abc"]
    assert found[0] == found[1] != found[2]
    with pytest.raises(ValueError, match="its fingerprint is"):
        open_data(str(tmp_path / "c"), None, [ONE], revision=found[0])


def test_a_hubs_revision_is_resolved_and_its_rows_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library uses a folder of that name as the hub's dataset; the hub's answer to which commit
    is the newest is faked."""
    blink(tmp_path / "BLINK-Benchmark" / "BLINK")
    task = task_named("blink")
    lines = [
        f"- config_name: {table.configuration}\n"
        f"  data_files: [{{split: val, path: {table.configuration}/*}}]\n"
        for table in task.tables
    ]
    card = tmp_path / "BLINK-Benchmark" / "BLINK" / "README.md"
    card.write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    class Info:
        sha = "c0ffee" * 6 + "abcd"

    def dataset_info(self: Any, name: str, revision: str | None = None) -> Info:
        asked.append((name, revision))
        return Info()

    loaded: list[Any] = []
    load = datasets.load_dataset

    def noted(*names: str, **options: Any) -> Any:
        loaded.append(options.pop("revision"))
        return load(*names, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", noted)
    data = open_data(None, task.hub, task.tables[:2])
    assert asked == [("BLINK-Benchmark/BLINK", None)]
    assert data.revision == Info.sha
    found = list(task.read(data))
    assert [one.id for one in found] == [
        "val_Art_Style_1",
        "val_Art_Style_2",
        "val_Counting_1",
        "val_Counting_2",
    ]
    assert set(loaded) == {Info.sha}
    assert found[0].pictures[0]().size == (64, 48)  # type: ignore[union-attr]
    open_data("hub:other/copy@v2", task.hub, task.tables[:1])
    assert asked[-1] == ("other/copy", "v2")


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Any, name: str, revision: str | None = None) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", away)
    with pytest.raises(ValueError, match=r"cannot be found on the hub: no route.*Give a folder"):
        open_data(None, "a/b", [ONE])


def test_images_beside_a_hub_dataset_or_in_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_data(str(tmp_path), None, [ONE], images=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds its images itself"):
        open_data("hub:a/b", None, [ONE], images=tmp_path)


def test_one_file_of_a_dataset_is_enough(tmp_path: Path) -> None:
    pope(tmp_path)
    task = task_named("pope")
    file = next((tmp_path / "data").glob("*.parquet"))
    assert len(list(task.read(open_data(str(file), task.hub, task.tables)))) == 6


def test_gqas_questions_alone_are_refused(tmp_path: Path) -> None:
    from tests.evaluation.tasks.layouts import gqa

    gqa(tmp_path)
    file = next((tmp_path / "testdev_balanced_instructions").glob("*.parquet"))
    task = task_named("gqa")
    with pytest.raises(ValueError, match="GQA has two tables"):
        list(task.read(open_data(str(file), task.hub, task.tables)))
