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
        replaced: of `ray`; how often each worker that dies is started again.

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
        replaced: how often Ray starts a worker that dies again. What it was at is done once more;
            then a worker's death costs its time only.

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
        workers: list[Any] = []
        try:
            workers += self._started(len(items))
            pool, shared = ray.util.ActorPool(workers), ray.put(task)
            for item in enumerate(items):
                pool.submit(lambda worker, item: worker.do.remote(shared, *item), item)
            while pool.has_next():
                try:
                    done = pool.get_next_unordered(timeout=1.0)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error  # as it would have been raised here
                except TimeoutError:  # a short wait lets Ctrl-C through between two
                    continue
                yield done
        except ray.exceptions.RayActorError as error:
            raise ChildProcessError(
                "A worker of the Ray cluster ended before its work was done, mostly for want of "
                f"memory: {str(error).strip().splitlines()[0]}"
            ) from error
        finally:
            for worker in workers:
                ray.kill(worker)
            if ours:
                ray.shutdown()

    def _started(self, most: int) -> list[Any]:
        """The workers. One that dies is started again by Ray, and what it was at is done again."""
        threads, gpus = self._needs()
        free = self._ray.available_resources()
        room = free.get("GPU", 0) // gpus if gpus else free.get("CPU", 1) // threads
        count = min(most, self._workers or max(1, int(room)))
        settings = self._settings
        if gpus:  # the worker sees the one that Ray gives it, and no other
            settings = dataclasses.replace(settings, device="cuda:0")
        elif settings.device == "auto":
            settings = dataclasses.replace(settings, device="cpu")
        again = {"max_restarts": self._replaced, "max_task_retries": min(self._replaced, 1)}
        remote = self._ray.remote(num_cpus=threads, num_gpus=gpus, **again)(_Worker)
        arguments = (settings, self._revision, torch.get_num_threads())
        return [remote.remote(*arguments) for _ in range(count)]

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

    def do(self, task: Callable[[ModelHandle, Any], Any], index: int, item: Any) -> Any:
        if self._handle is None:  # here, for Ray hands on the errors of a task, not of `__init__`
            self._handle = self._load()
        return index, task(self._handle, item)

    def _load(self) -> ModelHandle:
        torch.set_num_threads(self._threads)  # sums in another order differ in their last bits
        handle = load_model(self._settings)
        if self._revision not in (None, handle.info.revision):
            raise ModelError(
                f"A worker loaded {self._settings.model} at {handle.info.revision}, but "
                f"{self._revision} is needed; the machines of the cluster have different copies."
            )
        return handle


def _start(ray: Any) -> None:
    # Read when Ray starts: without it, Ray reports its use over the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
        import ray.util
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
