"""Work kept part by part: each part is one named file, written whole, so that a killed run goes on behind the finished ones.

All long work is done by `run_parts`: embeddings, searches, ranks, a cross-encoder's scores, the parts and shards of a pool
of pairs. A part's file is either the arrays that its function returned (``.npz``, ``.parquet``; the folder belongs to one
computation, and a file that is there is finished), or a record (``.json``) of the files that its function wrote: the record is
written last and holds the key of everything that decided them and their digests, so a part is made again exactly when those
do not fit.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.engine import Engine, make_engine
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import atomic_path, read_json, remove_temporaries, sha256_file, write_json
from lightning_e5.memory import peak_gb
from lightning_e5.progress import progress

#: Seconds in which a part that another machine wrote must be seen here.
LATE_SECONDS = 60.0
Arrays = dict[str, NDArray[Any]]
Progress = Callable[[int], object]
#: (work of a part, called with the steps done) -> its arrays by name, or its record with ``files``: name -> sha256.
Function = Callable[[Any, Progress], Mapping[str, Any]]


@dataclass(frozen=True)
class Part:
    """One part of a long computation.

    Args:
        name: for messages.
        path: its file; the suffix says what it holds.
        work: what its function is given; picklable where an engine runs it.
        rows: of each of its arrays.
        steps: of the progress bar.
        key: of a record: of everything that decides the part's content.
        folder: that the files of a record lie in.
    """

    name: str
    path: Path
    work: Any
    rows: int = 0
    steps: int = 1
    key: str = ""
    folder: Path = Path()

    @property
    def is_record(self) -> bool:
        """Whether its function writes files of its own."""
        return self.path.suffix == ".json"


class MadeWhenUsed:
    """A part's work that would fill the memory for all parts at once: made where the part is computed here, or sent to a worker."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.make(),)


def _made(work: Any) -> Any:
    return work


def parts_of(
    stem: Path, rows: int, size: int, work: Callable[[slice], Any] = lambda rows: rows, *,
    suffix: str = ".npz", what: str | None = None, steps: Callable[[slice], int] = lambda rows: rows.stop - rows.start,
) -> list[Part]:  # fmt: skip
    """Rows ``0`` to ``rows`` in parts of ``size``: ``<stem>-00000.npz`` and so on.

    Args:
        stem: folder and beginning of the files' names.
        work: rows -> what the function is given; the rows themselves by default.
        what: the rows are, for messages; the stem's name by default.
        steps: rows -> steps of the progress bar.
    """
    parts = []
    for number, first in enumerate(range(0, rows, size)):
        own = slice(first, min(rows, first + size))
        path = stem.with_name(f"{stem.name}-{number:05d}{suffix}")
        parts.append(Part(f"{what or stem.name} {own.start} to {own.stop}", path, work(own), own.stop - own.start, steps(own)))
    return parts


def run_parts(
    function: Function, parts: Sequence[Part], *, title: str, unit: str = "row", engine: Engine | str | None = None, gpus_per_task: int = 0
) -> Iterator[dict[str, Any]]:
    """The arrays (or the record) of each part in order; what is not finished is computed and kept.

    Args:
        function: importable and picklable where an engine runs it. What it loads it may keep as an attribute: each worker has one.
        parts: of one kind; what a killed writer left unfinished in their folders is removed.
        title, unit: of the progress bar, here one of ``unit``, on an engine one of tasks.
        engine: where the parts are computed; None for here, one after the other.
        gpus_per_task: GPUs that each part sees, with an engine.

    Raises:
        UserError: a file cannot be read, or holds another number of rows; and what the engine raises.
    """
    for folder in {part.path.parent for part in parts}:
        remove_temporaries(folder)
    # Whether a record's files are as they were written is for the workers to find out: it takes reading them.
    missing = [part for part in parts if part.is_record or not part.path.is_file()]
    if engine is not None and missing:
        call = f"{os.getpid()} {time.time_ns()}"
        tasks = [_Task(part.name, function, part, call) for part in missing]
        found = make_engine(engine).map(_compute_in_worker, tasks, title=title, gpus_per_task=gpus_per_task)
        for part, _ in zip(missing, found, strict=True):
            _wait_for(part.path)
            if part.is_record:
                yield read_json(part.path)
        if missing[0].is_record:
            return
        missing = []
    wanted = {part.path for part in missing}
    with progress(sum(part.steps for part in missing), title, unit) as bar:
        for part in parts:
            result = _compute(function, part, bar) if part.path in wanted else read_arrays(part.path)
            if not part.is_record and any(len(values) != part.rows for values in result.values()):
                raise UserError(f"{part.path}: does not hold {part.rows} rows; remove {part.path.parent} and start again")
            yield result


def _wait_for(path: Path) -> None:
    """Wait until a finished part can be seen here: files are the only way that results take, and a network's file system may show
    them late."""
    until = time.monotonic() + LATE_SECONDS
    while not path.is_file():
        if time.monotonic() > until:
            raise UserError(f"{path}: a task has written it, but it is not there; all nodes of the engine must see {path.parent} as one shared folder")
        time.sleep(0.2)
        os.scandir(path.parent).close()  # NFS asks its server anew


class _Task(NamedTuple):
    """A part on its way to a worker; ``call`` tells one call of `run_parts` from another."""

    name: str
    function: Function
    part: Part
    call: str


_served: tuple[str, Function] | None = None


def _compute_in_worker(task: _Task) -> None:
    """Compute a part; the result stays in its file. A worker's parts of one call share the function, and with it a loaded model."""
    global _served
    if _served is None or _served[0] != task.call:
        _served = task.call, task.function
    _compute(_served[1], task.part, lambda steps: None)


def _compute(function: Function, part: Part, bar: Progress) -> dict[str, Any]:
    done = 0

    def report(steps: int) -> None:
        nonlocal done
        done += steps
        bar(steps)

    if part.is_record:
        result = _finished_record(part) or _make_record(function, part, report)
    else:
        work = part.work.make() if isinstance(part.work, MadeWhenUsed) else part.work
        result = {name: np.asarray(values) for name, values in function(work, report).items()}
        _write(part.path, result)
    bar(part.steps - done)
    return result


def _write(path: Path, arrays: Arrays) -> None:
    if path.suffix == ".parquet":
        write_parquet(path, arrays)
        return
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> Arrays:
    """The arrays of a part's file; UserError for one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            return {name: table[name].to_numpy() for name in table.column_names}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it and start again") from None


def _make_record(function: Function, part: Part, report: Progress) -> dict[str, Any]:
    part.path.unlink(missing_ok=True)  # of another key, or damaged: it must not stand beside new files
    began = time.perf_counter()
    record = {**function(part.work, report), "key": part.key}
    record |= {"seconds": time.perf_counter() - began, "peak_memory_gb": peak_gb()}
    write_json(part.path, record)
    return record


def _finished_record(part: Part) -> dict[str, Any] | None:
    """The record of a part that is finished with its key and whose files are as they were written, or None."""
    try:
        record: dict[str, Any] = read_json(part.path)
        files = [(part.folder / name, digest) for name, digest in record["files"].items()]
        same = record["key"] == part.key and all(path.is_file() and sha256_file(path) == digest for path, digest in files)
    except (UserError, AttributeError, KeyError, TypeError):  # absent, or damaged
        return None
    return record if same else None


def read_array(path: Path, mode: Literal["r", "c"]) -> NDArray[Any]:
    """A ``.npy`` file as a memory map, read-only or copied where it is written to; UserError for a damaged one.

    Like all that a run reads it holds numbers alone: no pickled object, which could run code.
    """
    try:
        found = np.load(path, mmap_mode=mode, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("several arrays")
        return found
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {path.parent} and start again") from None
