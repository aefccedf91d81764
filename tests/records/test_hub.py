"""Names of hub datasets, and the library's own reading of a dataset on the disk."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from sinkscope.records.hub import HubName, hub_name, hub_source
from sinkscope.records.pictures import picture
from sinkscope.records.sampling import RecordSample

CARD = """---
configs:
- config_name: {0}
  data_files: [{{split: val, path: {0}/*}}]
- config_name: {1}
  data_files: [{{split: val, path: {1}/*}}]
---
"""


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("hub:a/b", HubName("a/b", None, "train", None)),
        ("hub:a/b:test", HubName("a/b", None, "test", None)),
        ("hub:a/b:", HubName("a/b", None, "train", None)),
        ("hub:a-b/C.d_1:Counting:val", HubName("a-b/C.d_1", "Counting", "val", None)),
        ("hub:a/b:Counting:", HubName("a/b", "Counting", "train", None)),
        ("hub:a/b::test", HubName("a/b", None, "test", None)),
        ("hub:a/b@abc123", HubName("a/b", None, "train", "abc123")),
        ("hub:a/b@refs/pr/1:some:test", HubName("a/b", "some", "test", "refs/pr/1")),
    ],
)  # fmt: skip
def test_names(source: str, named: HubName) -> None:
    assert hub_name(source) == named


@pytest.mark.parametrize(
    "source", ["hub:", "hub:a", "hub:a/", "hub:/b", "hub:a/b/c", "hub:a/b:c:d:e", "hub:a/b@"]
)
def test_other_names_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"names no dataset; allowed: hub:owner/name\[@revision\]"):
        hub_name(source)


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner/name` with two configurations, laid out as on the hub; the library accepts a folder
    with that name instead."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "idx": datasets.Value("string"),
            "question": datasets.Value("string"),
            "image_1": datasets.Image(),
            "image_2": datasets.Image(),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    for start, name in ((0, "Counting"), (100, "Depth")):
        made = {
            "idx": [f"val_{name}_{i}" for i in range(6)],
            "question": [f"Is it {start + i}?" for i in range(6)],
            "image_1": [{"bytes": encoded(start + i), "path": None} for i in range(6)],
            "image_2": [None] * 6,
            "label": [1] * 6,
        }
        path = tmp_path / "owner" / "name" / name / "val-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_dict(made, features=features).to_parquet(path)
    (tmp_path / "owner" / "name" / "README.md").write_text(CARD.format("Counting", "Depth"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("dataset")
def test_a_configuration_is_read() -> None:
    source = hub_source("hub:owner/name:Depth:val", 3, 0)
    records = list(RecordSample(source, 3))
    assert sorted(r.question or "" for r in records) == [f"Is it {100 + i}?" for i in range(6)]
    assert {r.answer for r in records} == {"yes"}
    for record in records:
        assert record.id == f"val_Depth_{int(str(record.question)[6:-1]) - 100}"
        (image,) = record.images
        shade = int(str(record.question)[6:-1])
        assert picture(image, source.pictures, 10**6) == encoded(shade)
    assert [r.id for r in RecordSample(hub_source("hub:owner/name:Depth:val", 3, 1), 3)] != [
        r.id for r in records
    ]


@pytest.mark.usefixtures("dataset")
def test_what_a_dataset_does_not_have_is_named() -> None:
    for name, words in (
        ("hub:owner/name", "cannot be read: Config name is missing"),
        ("hub:owner/name:Nope:val", r"cannot be read: BuilderConfig 'Nope' not found.*Counting"),
        ("hub:owner/name:Depth:test", r"cannot be read: Bad split: test.*val"),
    ):
        with pytest.raises(ValueError, match=words):
            list(RecordSample(hub_source(name, 3, 0), 3))
