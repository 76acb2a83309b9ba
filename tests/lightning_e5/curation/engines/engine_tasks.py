"""Functions that tests run in other processes."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.processes import answer, value_of
from lightning_e5.errors import UserError


@dataclass(frozen=True)
class Job:
    """A task with a name."""

    name: str
    number: int
    folder: Path
    deaths: int = 0


def square(job: Job) -> tuple[int, int]:
    """Write a file, return (number squared, process id); the first ones are the slowest; die ``deaths`` times before."""
    tries = len(list(job.folder.glob(f"try-{job.number}-*")))
    (job.folder / f"try-{job.number}-{os.getpid()}-{tries}").touch()
    if tries < job.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1 if job.number == 0 else 0.0)
    (job.folder / f"{job.number}.txt").write_text(str(job.number**2))
    return job.number**2, os.getpid()


def mistake(job: Job) -> None:
    """A user's mistake."""
    raise UserError(f"{job.name}: no such file")


def defect(job: Job) -> None:
    """Our own."""
    raise KeyError(job.name)


def full_disk(job: Job) -> None:
    """An error of the machine that names a file."""
    raise OSError(28, "No space left on device", "somewhere")


def visible_gpus(job: Job) -> str:
    """What a task sees."""
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def ray_node(job: Job) -> str:
    """The node of a Ray cluster that we run on."""
    import ray

    time.sleep(0.5)
    return str(ray.get_runtime_context().get_node_id())


def sleep_long(job: Job) -> None:
    """Say who we are and stay."""
    (job.folder / f"pid-{os.getpid()}").touch()
    time.sleep(60)


@dataclass(frozen=True)
class Tens:
    """Rows times ten, by a table that is loaded once; refuses the part that begins at ``refused``."""

    folder: Path
    refused: int = -1

    @cached_property
    def table(self) -> dict[int, int]:
        """What is loaded."""
        (self.folder / f"loaded-{os.getpid()}-{time.time_ns()}").touch()
        return {row: 10 * row for row in range(100)}

    def __call__(self, rows: slice, progress: Any) -> dict[str, list[int]]:
        """A part."""
        if rows.start == self.refused:
            raise UserError(f"tens {rows.start} to {rows.stop} is refused")
        return {"a": [self.table[row] for row in range(rows.start, rows.stop)]}


class Sent(Engine):
    """Every task is pickled, as on its way to another process, and computed here."""

    def map(self, function: Any, tasks: Sequence[Any], *, title: str, gpus_per_task: int = 0) -> Iterator[Any]:
        """See `Engine.map`."""
        for task in tasks:
            call, given = pickle.loads(pickle.dumps((function, task)))
            yield value_of(answer(call, given), title, task)
