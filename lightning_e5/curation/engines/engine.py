"""Where a data stage's tasks run: processes of this machine, or a Ray cluster. One interface, the same bytes from both.

A task writes its own files and returns a small record; results come back in the order of the tasks, so nothing that is
made from them depends on how many workers there were or which of them was faster.
"""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from lightning_e5.configurable import configurable
from lightning_e5.curation.engines.processes import (
    Processes,
    Result,
    Task,
    TaskFailed,
    WorkerDied,
    answer,
    task_name,
    value_of,
)
from lightning_e5.distributed.devices import visible_gpus
from lightning_e5.errors import UserError, suggestion
from lightning_e5.progress import progress, say
from lightning_e5.ranges import Range, Workers, WorkersOrZero

#: Packages that tasks are made of, which the nodes of a cluster need.
CODE = ("lightning_e5", "data_modules")


@configurable("engine")
class Engine(ABC):
    """Runs one function on many tasks."""

    @abstractmethod
    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], *, title: str, gpus_per_task: int = 0
    ) -> Iterator[Result]:
        """The results in the order of ``tasks``, with a progress bar.

        Args:
            function: importable by name; may be called twice with one task, where a worker died in between.
            tasks: picklable; their ``name``, where they have one, is what messages call them.
            title: of the progress bar and of messages.
            gpus_per_task: GPUs that each task sees, and no other task at the same time.

        Raises:
            UserError: raised by a task, or the engine cannot give what is asked.
            WorkerDied: a task's worker died on every try.
            TaskFailed: a task raised another exception.
        """


@configurable("engine")
class LocalEngine(Engine):
    """Processes on this machine.

    Args:
        workers: how many; None for one per core. With ``gpus_per_task`` there are as many as the GPUs allow.
    """

    def __init__(self, workers: Workers | None = None) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"engine.workers: {workers} is not >= 1, or null for one per core")
        self.workers = workers or len(os.sched_getaffinity(0))

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], *, title: str, gpus_per_task: int = 0
    ) -> Iterator[Result]:
        tasks = list(tasks)
        if gpus_per_task:
            groups = _gpu_groups(gpus_per_task)[: self.workers]
            environments = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
        else:
            # A task sees no GPU: one per core would fill the memory of the first.
            environments = [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "CUDA_VISIBLE_DEVICES": ""}] * self.workers
            if gpus := visible_gpus():
                say(f"{title}: tasks compute on the CPU; the {gpus} GPUs that are visible are for tasks of a stage with gpus_per_task: 1 or more")
        with progress(len(tasks), title, "task") as bar:
            pool = Processes(function, environments[: len(tasks)], title)
            try:
                yield from _ordered(pool.results(tasks), bar)
            finally:
                pool.end()


@configurable("engine")
class RayEngine(Engine):
    """Tasks of a Ray cluster, whose nodes see the run's and the data's folders under the same paths.

    Args:
        address: None starts Ray on this machine; ``auto`` joins the cluster that this machine is part of; ``host:port``
            or ``ray://host:port`` joins another.
        workers: most tasks at once; None for as many as the cluster has room for.
        gpus_per_task: GPUs of each task, where the stage asks for none itself.
        retries: how often a task whose worker died is tried again.
    """

    def __init__(
        self, address: str | None = None, workers: Annotated[int, Range(1, 2**20)] | None = None, gpus_per_task: WorkersOrZero = 0, retries: Annotated[int, Range(0, 1000)] = 3
    ) -> None:
        if retries < 0 or gpus_per_task < 0 or (workers is not None and workers < 1):
            raise UserError(f"engine: retries ({retries}), gpus_per_task ({gpus_per_task}) or workers ({workers}) is too small")
        self.address, self.workers, self.gpus_per_task, self.retries = address, workers, gpus_per_task, retries

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], *, title: str, gpus_per_task: int = 0
    ) -> Iterator[Result]:
        tasks = list(tasks)
        ray, ours = self._connect()
        gpus = gpus_per_task or self.gpus_per_task
        try:
            if gpus > ray.cluster_resources().get("GPU", 0):
                raise UserError(f"engine: {title} needs {gpus} GPUs per task; the Ray cluster has {ray.cluster_resources().get('GPU', 0):g}")
            remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=self.retries, scheduling_strategy="SPREAD")(answer)
            with progress(len(tasks), title, "task") as bar:
                yield from _ordered(self._results(ray, remote, function, tasks, title), bar)
        finally:
            if ours:
                ray.shutdown()

    def _connect(self) -> tuple[Any, bool]:
        """The ``ray`` module, connected, and whether the connection is ours to end."""
        try:
            import ray
        except ImportError:
            raise UserError("engine: Ray is not installed; pip install -r requirements-cluster.txt") from None
        if ray.is_initialized():
            return ray, False
        here: dict[str, Any] = {} if self.address else {"num_cpus": self.workers, "include_dashboard": False}
        try:
            ray.init(address=self.address or "local", runtime_env=_runtime_environment(), log_to_driver=False, logging_level=logging.WARNING, **here)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"engine.address: {self.address!r} is no Ray cluster that can be joined ({str(error).splitlines()[0]})") from None
        return ray, True

    def _results(
        self, ray: Any, remote: Any, function: Callable[[Task], Result], tasks: list[Task], title: str
    ) -> Iterator[tuple[int, Result]]:
        waiting = deque(enumerate(tasks))
        # A window, not all: the scheduler is then quick whatever the number of tasks.
        window = self.workers or max(64, 4 * int(ray.cluster_resources().get("CPU", 1)))
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < window:
                    number, task = waiting.popleft()
                    running[remote.remote(function, task)] = number
                for done in ray.wait(list(running), timeout=1.0)[0]:
                    number = running.pop(done)
                    try:
                        reply = ray.get(done)
                    except ray.exceptions.RayError as error:
                        raise self._failure(ray, error, f"{title}: the worker of {task_name(tasks[number])}") from None
                    yield number, value_of(reply, title, tasks[number])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _failure(self, ray: Any, error: Exception, who: str) -> RuntimeError:
        """What a task's failure to run at all is: its worker's death, or a worker that could not be made ready."""
        what = (str(error).splitlines() or [type(error).__name__])[0]
        known = ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError")
        if isinstance(error, tuple(getattr(ray.exceptions, name) for name in known)):
            return WorkerDied(f"{who} died on {f'{self.retries + 1} tries' if self.retries else 'its only try'} ({what})")
        return TaskFailed(f"{who} could not run it:\n{error}")


ENGINES: dict[str, Callable[[], Engine]] = {"local": LocalEngine, "ray": RayEngine}


def make_engine(spec: Engine | str | None) -> Engine:
    """An engine from its short name (``local``, ``ray``); an engine stays what it is, None is ``local``."""
    if isinstance(spec, Engine):
        return spec
    name = "local" if spec is None else spec
    if name not in ENGINES:
        raise UserError(f"engine: {name!r} is no engine{suggestion(name, ENGINES)}")
    return ENGINES[name]()


def _ordered(numbered: Iterator[tuple[int, Result]], bar: Callable[[int], object]) -> Iterator[Result]:
    early: dict[int, Result] = {}
    wanted = 0
    for number, result in numbered:
        bar(1)
        early[number] = result
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1


def _gpu_groups(size: int) -> list[list[str]]:
    """The GPUs that this process may use, in groups of ``size``."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        gpus = [str(number) for number in range(visible_gpus())]
    else:
        gpus = [name for name in named.split(",") if name.strip()]
    if len(gpus) < size:
        raise UserError(f"engine: a task needs {size} GPUs and this machine shows {len(gpus)}")
    return [gpus[first : first + size] for first in range(0, len(gpus) - size + 1, size)]


def _runtime_environment() -> dict[str, Any]:
    """What gives Ray's workers this process's code: its import path on this machine, a copy of it on others."""
    root = Path(__file__).resolve().parents[3]
    paths = [os.path.abspath(p) for p in sys.path if not os.path.abspath(p).startswith(sys.prefix)]
    modules = [str(root / name) for name in CODE if (root / name).is_dir()]
    return {"py_modules": modules, "env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, str(root)]))}}
