"""Where many samples are worked on: in this process, or on a Ray cluster with one model a worker.

Both engines are one thing to their caller: a map of a task over items, whose results come as they
are done. The task is a pure function of (model, item), so where it runs and in which order cannot
change a result. Ray is optional and imported only when it is asked for.

    engine = LocalEngine(handle)
    for index, result in engine.run(task, items):
        ...
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sinkscope.config import ModelSettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.source import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")

ENGINES = ("local", "ray")
RAY_REQUIREMENTS = "requirements-ray.txt"
AHEAD = 2  # items that a worker holds, the one it works on included, so that it never waits


class Engine(Protocol):
    """A map over items by a model."""

    name: str

    def run(
        self, task: Callable[[ModelHandle, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Apply `task` to each item.

        Args:
            task: a function at the top of a module, or a `functools.partial` of one with plain
                arguments: it may travel to another process. What it raises is raised here.
            items: what it is applied to; they may travel too.

        Yields:
            (index of the item, its result), in the order in which they are done. An iterator that
            is closed before its end ends the work; at most the items under way are lost.
        """
        ...


def check_engine(name: str, workers: int | None = None) -> None:
    """Refuse, before a model is loaded, an engine that cannot be made.

    Raises:
        ValueError: another name, Ray is not installed, or a number of workers below 1.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; allowed: {', '.join(ENGINES)}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; allowed: 1 or more.")
    if name == "ray":
        _import_ray()


def make_engine(
    name: str,
    handle: ModelHandle,
    settings: ModelSettings,
    workers: int | None = None,
    replaced: int = 0,
) -> Engine:
    """The engine of a name, for a model that is loaded here.

    Args:
        name: `local` or `ray`.
        handle: the model. Ray's workers load it again, in the same dtype and revision.
        settings: what it was loaded by.
        workers: of `ray`; None: as many as there is room for.
        replaced: of `ray`; how many workers that die are replaced.

    Raises:
        ValueError: another name, or Ray is not installed.
    """
    check_engine(name, workers)
    if name == "local":
        return LocalEngine(handle)
    same = dataclasses.replace(settings, dtype=handle.info.dtype)  # type: ignore[arg-type]
    return RayEngine(same, handle.info.revision, workers, replaced)


class LocalEngine:
    """One item after the other, in this process, with a model that is loaded already."""

    name = "local"

    def __init__(self, handle: ModelHandle) -> None:
        self._handle = handle

    def run(
        self, task: Callable[[ModelHandle, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        for index, item in enumerate(items):
            yield index, task(self._handle, item)


class RayEngine:
    """One model a worker on a Ray cluster: each on its own GPU, or on the CPU where there is none.

    The cluster is the one at `RAY_ADDRESS`, else one that runs on this machine, else one that is
    started for this run. Its machines need this project at the same path, its requirements, and the
    model and data where the settings and items say they are.

    A worker's model computes with the dtype and the number of CPU threads of this process, so that
    its numbers are those of `LocalEngine`.

    Args:
        settings: which model the workers load. With device `auto` or `cuda` on the GPU that Ray
            gives them, where the cluster has any.
        revision: what the model's revision has to be on every worker; None takes any.
        workers: how many; None: as many as the cluster has room for, and no more than items.
        replaced: how many workers that die are replaced by new ones, which do again what was under
            way; then a worker's death costs its time only.

    Raises:
        ValueError: Ray is not installed, or a number of workers below 1.
    """

    name = "ray"

    def __init__(
        self,
        settings: ModelSettings,
        revision: str | None = None,
        workers: int | None = None,
        replaced: int = 0,
    ) -> None:
        check_engine(self.name, workers)
        self._ray = _import_ray()
        self._settings, self._revision, self._workers = _absolute(settings), revision, workers
        self._replaced = replaced

    def run(
        self, task: Callable[[ModelHandle, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """As `Engine.run`.

        Raises:
            ModelError: a worker cannot load the model, or loads another revision.
            ChildProcessError: a worker ended, mostly for want of memory, and none takes its place;
                or one item ended two workers.
        """
        if not items:
            return
        ray = self._ray
        ours = not ray.is_initialized()
        if ours:
            _start(ray)
        spread = _Spread(ray, task, self._replaced)
        try:
            make, count = self._maker(len(items))
            yield from spread.run(make, count, items)
        finally:
            for worker in spread.workers:
                ray.kill(worker)
            if ours:
                ray.shutdown()

    def _maker(self, most: int) -> tuple[Callable[[], Any], int]:
        """What makes one worker, and how many there are to be."""
        threads, gpus = self._needs()
        free = self._ray.available_resources()
        room = free.get("GPU", 0) // gpus if gpus else free.get("CPU", 1) // threads
        count = min(most, self._workers or max(1, int(room)))
        settings = self._settings
        if gpus:  # the worker sees the one that Ray gives it, and no other
            settings = dataclasses.replace(settings, device="cuda:0")
        elif settings.device == "auto":
            settings = dataclasses.replace(settings, device="cpu")
        remote = self._ray.remote(num_cpus=threads, num_gpus=gpus)(_Worker)
        arguments = (settings, self._revision, torch.get_num_threads())
        return lambda: remote.remote(*arguments), count

    def _needs(self) -> tuple[int, int]:
        """CPUs and GPUs that Ray keeps for one worker."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wants_gpu = self._settings.device.partition(":")[0] in ("auto", "cuda")
        if wants_gpu and any(node.get("GPU", 0) >= 1 for node in nodes):
            return 1, 1
        largest = max((int(node.get("CPU", 1)) for node in nodes), default=1)
        return max(1, min(torch.get_num_threads(), largest)), 0


class _Worker:
    """Lives in a process of its own, as a Ray actor, with its model."""

    def __init__(self, settings: ModelSettings, revision: str | None, threads: int) -> None:
        self._settings, self._revision, self._threads = settings, revision, threads
        self._handle: ModelHandle | None = None

    def do(self, task: Callable[[ModelHandle, Any], Any], item: Any) -> Any:
        if self._handle is None:  # here, for Ray hands on the errors of a task, not of `__init__`
            self._handle = self._load()
        return task(self._handle, item)

    def _load(self) -> ModelHandle:
        torch.set_num_threads(self._threads)  # sums in another order differ in their last bits
        handle = load_model(self._settings)
        if self._revision not in (None, handle.info.revision):
            raise ModelError(
                f"A worker loaded {self._settings.model} at {handle.info.revision}, but "
                f"{self._revision} is needed; the machines of the cluster have different copies."
            )
        return handle


class _Spread:
    """Gives every worker its next item as soon as it has done one.

    Args:
        ray: the library.
        task: what is done with an item.
        replaced: how many workers that die are replaced.

    Attributes:
        workers: those that are alive.
    """

    def __init__(
        self, ray: Any, task: Callable[[ModelHandle, Any], Any], replaced: int = 0
    ) -> None:
        self._ray, self._task, self._replaced = ray, ray.put(task), replaced
        self.workers: list[Any] = []
        self._under_way: dict[Any, tuple[int, Any, Any]] = {}  # result -> index, item, worker
        self._again: deque[tuple[int, Any]] = deque()
        self._ended_one: set[int] = set()  # indices of items whose worker died

    def run(
        self, make: Callable[[], Any], count: int, items: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as they are done."""
        waiting = iter(enumerate(items))
        self.workers += [make() for _ in range(count)]
        for _ in range(AHEAD):
            for worker in self.workers:
                self._give(worker, waiting)
        while self._under_way:
            # A short wait lets Ctrl-C through between two.
            for done in self._ray.wait(list(self._under_way), timeout=1.0)[0]:
                if done not in self._under_way:
                    continue  # of a worker that died in this very round
                index, _, worker = self._under_way[done]
                try:
                    result = self._ray.get(done)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from error  # as it would have been raised here
                except self._ray.exceptions.RayActorError as error:
                    self._bury(worker, error)
                    self.workers.append(new := make())
                    for _ in range(AHEAD):
                        self._give(new, waiting)
                    continue
                del self._under_way[done]
                self._give(worker, waiting)
                yield index, result

    def _give(self, worker: Any, waiting: Iterator[tuple[int, Any]]) -> None:
        following = self._again.popleft() if self._again else next(waiting, None)
        if following is not None:
            index, item = following
            self._under_way[worker.do.remote(self._task, item)] = (index, item, worker)

    def _bury(self, worker: Any, error: Exception) -> None:
        """Take back what a dead worker had.

        Raises:
            ChildProcessError: it is not to be replaced, or what it was at has ended one before.
        """
        lost = {ref: had for ref, had in self._under_way.items() if had[2] is worker}
        first = next(iter(lost.values()))[0]  # the one it was at: items are done in turn
        if not self._replaced or first in self._ended_one:
            raise ChildProcessError(
                "A worker of the Ray cluster ended before its work was done, mostly for want of "
                f"memory: {str(error).strip().splitlines()[0]}"
            ) from error
        self._replaced -= 1
        self._ended_one.add(first)
        self.workers.remove(worker)
        for ref in lost:
            del self._under_way[ref]
        self._again.extend(sorted((index, item) for index, item, _ in lost.values()))


def _start(ray: Any) -> None:
    # Read when Ray starts: without it, Ray reports its use over the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError(
            "engine is 'ray', but Ray is not installed; install it with pip install -r "
            f"{RAY_REQUIREMENTS}, or leave the engine at 'local'."
        ) from error
    return ray


def _absolute(settings: ModelSettings) -> ModelSettings:
    """Folders and files by their whole path, for a worker starts elsewhere."""

    def whole(name: str) -> str:
        place = Path(name).expanduser()
        return str(place.resolve()) if name != "demo" and place.exists() else name

    profile = None if settings.profile is None else whole(settings.profile)
    return dataclasses.replace(settings, model=whole(settings.model), profile=profile)
