"""A map over items, in this process and on a Ray cluster: the same numbers, the same errors."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.config import ModelSettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.source import ModelError
from sinkscope.sinks.engine import LocalEngine, RayEngine, make_engine

pytestmark = pytest.mark.tiny
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (requirements-ray.txt)"
)


def logits(handle: ModelHandle, item: tuple[Image.Image, str], scale: float) -> torch.Tensor:
    """A task: the logits of a prompt's last position, times a number."""
    inputs = handle.prepare([item[0]], item[1])
    with torch.inference_mode():
        return handle.model(**inputs.tensors).logits[0, -1] * scale


def refuse(handle: ModelHandle, item: int) -> int:
    if item == 2:
        raise ValueError("item is 2; allowed: others.")
    return item


@pytest.fixture(scope="module")
def settings(tiny_folder: Path) -> ModelSettings:
    return ModelSettings(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def handle(settings: ModelSettings) -> ModelHandle:
    return load_model(settings)


@pytest.fixture(scope="module")
def items(photo: Image.Image) -> list[tuple[Image.Image, str]]:
    return [(photo.resize((84 + 28 * i, 84)), f"What is {i}?") for i in range(5)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray cluster for all tests here, so that only the first one waits for its start."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_local_goes_in_order_and_stops_where_it_is_closed(handle: ModelHandle) -> None:
    seen: list[int] = []

    def task(model: ModelHandle, item: int) -> int:
        assert model is handle
        seen.append(item)
        return 10 * item

    running = LocalEngine(handle).run(task, [3, 1, 2])
    assert [next(running), next(running)] == [(0, 30), (1, 10)]
    running.close()  # type: ignore[attr-defined]
    assert seen == [3, 1]
    assert list(LocalEngine(handle).run(task, [])) == []


def test_local_errors_are_the_tasks_own(handle: ModelHandle) -> None:
    with pytest.raises(ValueError, match="item is 2; allowed: others"):
        list(LocalEngine(handle).run(refuse, [1, 2, 3]))


def test_what_is_no_engine(handle: ModelHandle, settings: ModelSettings) -> None:
    assert make_engine("local", handle, settings).name == "local"
    with pytest.raises(ValueError, match="engine is 'spark'; allowed: local, ray"):
        make_engine("spark", handle, settings)
    with pytest.raises(ValueError, match="workers is 0"):
        RayEngine(settings, workers=0)


def test_without_ray_it_says_what_to_install(
    handle: ModelHandle, settings: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Ray is not installed.*requirements-ray\.txt"):
        make_engine("ray", handle, settings)


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_ray_has_the_numbers_of_one_process(
    handle: ModelHandle, settings: ModelSettings, items: list[tuple[Image.Image, str]]
) -> None:
    task = partial(logits, scale=2.0)
    local = dict(LocalEngine(handle).run(task, items))
    far = dict(make_engine("ray", handle, settings, workers=2).run(task, items))
    assert sorted(far) == [0, 1, 2, 3, 4]
    for index, expected in local.items():
        assert torch.equal(far[index], expected)


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_errors_of_a_worker_arrive_as_they_are(settings: ModelSettings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="item is 2; allowed: others") as refused:
        list(RayEngine(settings, workers=1).run(refuse, [1, 2, 3]))
    assert type(refused.value) is ValueError
    elsewhere = ModelSettings(str(tmp_path / "nowhere"), device="cpu")
    with pytest.raises(ModelError, match="There is no model folder"):
        list(RayEngine(elsewhere, workers=1).run(refuse, [1]))
    with pytest.raises(ModelError, match="different copies"):
        list(RayEngine(settings, revision="another", workers=1).run(refuse, [1]))


def out_of_time(handle: ModelHandle, item: int) -> int:
    if item == 2:
        raise TimeoutError("the disk does not answer")
    return item


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_a_timeout_of_a_task_is_no_wait_for_it(settings: ModelSettings) -> None:
    with pytest.raises(TimeoutError, match="the disk does not answer"):
        list(RayEngine(settings, workers=1).run(out_of_time, [1, 2, 3]))


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_a_sentence(settings: ModelSettings) -> None:
    import os

    with pytest.raises(ChildProcessError, match="A worker of the Ray cluster ended before"):
        list(RayEngine(settings, workers=1).run(lambda handle, item: os._exit(1), [1]))


def end_once(handle: ModelHandle, item: int, mark: str) -> int:
    """A task that ends its process the first time it receives 2."""
    import os

    if item == 2 and not Path(mark).exists():
        Path(mark).touch()
        os._exit(1)
    return 10 * item


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_replaced_and_its_items_are_done(
    settings: ModelSettings, tmp_path: Path
) -> None:
    task = partial(end_once, mark=str(tmp_path / "ended"))
    items = [0, 1, 2, 3, 4, 5, 6]
    done = list(RayEngine(settings, workers=2, replaced=1).run(task, items))
    assert (tmp_path / "ended").exists()
    assert sorted(done) == [(n, 10 * n) for n in items]


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_an_item_that_ends_two_workers_ends_the_run(settings: ModelSettings) -> None:
    import os

    running = RayEngine(settings, workers=1, replaced=5).run(
        lambda handle, item: os._exit(1) if item == 1 else item, [0, 1, 2]
    )
    with pytest.raises(ChildProcessError, match="ended before"):
        list(running)
