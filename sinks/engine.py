"""Where many samples are processed: in this process, or on a Ray cluster with one model per worker.

To the caller both engines work alike: they map a task over items and return results as they are
done. The task is a pure function of (model, item), so neither the place nor the order can change a
result. Ray is optional and imported only when it is requested.

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
            task: a function at the top level of a module, or a `functools.partial` of one with
                plain arguments, because it may be sent to another process. Its exceptions are
                raised here.
            items: the items; they may be sent too.

        Yields:
            (index of the item, its result), in the order in which they are done. Closing the
            iterator early ends the work; at most the items in progress are lost.
        """
        ...


def check_engine(name: str, workers: int | None = None) -> None:
    """Refuse an engine that cannot be made, before a model is loaded.

    Raises:
        ValueError: unknown name, Ray is not installed, or fewer than 1 worker.
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
    """Make the engine with this name, for a model that is loaded here.

    Args:
        name: `local` or `ray`.
        handle: the model. Ray's workers load it again, with the same dtype and revision.
        settings: the settings it was loaded with.
        workers: for `ray`; None: as many as the cluster has room for.
        replaced: for `ray`; how often each worker that dies is started again.

    Raises:
        ValueError: unknown name, or Ray is not installed.
    """
    check_engine(name, workers)
    if name == "local":
        return LocalEngine(handle)
    # Checked by the class.
    same = dataclasses.replace(settings, dtype=handle.info.dtype)  # type: ignore[arg-type]
    return RayEngine(same, handle.info.revision, workers, replaced)


class LocalEngine:
    """Processes items one after the other in this process, with a model that is already loaded."""

    name = "local"

    def __init__(self, handle: ModelHandle) -> None:
        self._handle = handle

    def run(
        self, task: Callable[[ModelHandle, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        for index, item in enumerate(items):
            yield index, task(self._handle, item)


class RayEngine:
    """One model per worker on a Ray cluster: each on its own GPU, or on the CPU if there is none.

    The cluster is the one at `RAY_ADDRESS`; otherwise one that runs on this machine; otherwise one
    that is started for this run. Its machines need this project at the same path, its requirements,
    and the model and data at the paths in the settings and items.

    A worker's model computes with the dtype and the number of CPU threads of this process, so that
    its results equal those of `LocalEngine`.

    Args:
        settings: the model that the workers load. With device `auto` or `cuda` they use the GPU
            that Ray assigns, if the cluster has GPUs.
        revision: the revision that the model must have on every worker; None: any.
        workers: number of workers; None: as many as the cluster has room for, at most one per item.
        replaced: how often Ray restarts a worker that dies. Its current item is then processed
            again, so a worker's death costs only time.

    Raises:
        ValueError: Ray is not installed, or fewer than 1 worker.
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
        """See `Engine.run`.

        Raises:
            ModelError: a worker cannot load the model, or loads another revision.
            ChildProcessError: a worker ended, usually because memory ran out, and is not restarted;
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
                    raise error.cause from error  # the original exception
                except TimeoutError:  # short waits, so that Ctrl-C works between them
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
        """The workers. Ray restarts a worker that dies and processes its item again."""
        threads, gpus = self._needs()
        free = self._ray.available_resources()
        room = free.get("GPU", 0) // gpus if gpus else free.get("CPU", 1) // threads
        count = min(most, self._workers or max(1, int(room)))
        settings = self._settings
        if gpus:  # the worker sees only the GPU that Ray assigns to it
            settings = dataclasses.replace(settings, device="cuda:0")
        elif settings.device == "auto":
            settings = dataclasses.replace(settings, device="cpu")
        again = {"max_restarts": self._replaced, "max_task_retries": min(self._replaced, 1)}
        remote = self._ray.remote(num_cpus=threads, num_gpus=gpus, **again)(_Worker)
        arguments = (settings, self._revision, torch.get_num_threads())
        return [remote.remote(*arguments) for _ in range(count)]

    def _needs(self) -> tuple[int, int]:
        """CPUs and GPUs that Ray reserves for one worker."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wants_gpu = self._settings.device.partition(":")[0] in ("auto", "cuda")
        if wants_gpu and any(node.get("GPU", 0) >= 1 for node in nodes):
            return 1, 1
        largest = max((int(node.get("CPU", 1)) for node in nodes), default=1)
        return max(1, min(torch.get_num_threads(), largest)), 0


class _Worker:
    """Runs with its model in a process of its own, as a Ray actor."""

    def __init__(self, settings: ModelSettings, revision: str | None, threads: int) -> None:
        self._settings, self._revision, self._threads = settings, revision, threads
        self._handle: ModelHandle | None = None

    def do(self, task: Callable[[ModelHandle, Any], Any], index: int, item: Any) -> Any:
        if self._handle is None:  # here: Ray passes on errors of tasks, not of `__init__`
            self._handle = self._load()
        return index, task(self._handle, item)

    def _load(self) -> ModelHandle:
        torch.set_num_threads(self._threads)  # sums in another order differ in the last bits
        handle = load_model(self._settings)
        if self._revision not in (None, handle.info.revision):
            raise ModelError(
                f"A worker loaded {self._settings.model} at {handle.info.revision}, but "
                f"{self._revision} is needed; the machines of the cluster have different copies."
            )
        return handle


def _start(ray: Any) -> None:
    # Read when Ray starts: without it, Ray sends usage reports over the network.
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
    """Make the paths of folders and files absolute, because a worker starts in another folder."""

    def whole(name: str) -> str:
        path = Path(name).expanduser()
        return str(path.resolve()) if name != "demo" and path.exists() else name

    profile = None if settings.profile is None else whole(settings.profile)
    return dataclasses.replace(settings, model=whole(settings.model), profile=profile)
