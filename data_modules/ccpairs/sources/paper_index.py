"""Titles and abstracts of papers by id, on disk: what citations, which are pairs of ids, are joined with.

Rows are appended to SQLite tables and indexed afterwards, which sorts outside memory; both are sequential on the disk,
so 200 million papers need no memory for it. Look-ups are made for many ids at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, remove_temporaries, sha256_text, to_json
from lightning_e5.progress import progress
from lightning_e5.types import ReadReport

Field = Literal["titles", "abstracts"]
PaperId = int | str
#: (where the text belongs, the paper's id, the text) of one file of papers.
Rows = Callable[[Path, ReadReport], Iterator[tuple[Field, PaperId, str]]]

_APPENDED_AT_ONCE = 1000
_CACHE_KIB = 64 * 1024


def paper_id(value: Any) -> PaperId | None:
    """An id as the index holds it: a whole number, or a string that is none; None for anything else."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) <= 18 else value or None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


class PaperIndex:
    """Texts of papers by id; of papers given twice, the first text counts.

    Args:
        directory: where the index is made once, by whichever process comes first; it may be removed afterwards.
        files: the files of papers, in the order of their rows.
        key: what decides the index: a change of it makes another one.
        rows: reads a file.
    """

    def __init__(self, directory: Path, files: Sequence[Path], key: Any, rows: Rows) -> None:
        self.directory, self.files, self.rows = Path(directory), files, rows
        self.path = self.directory / f"papers-{sha256_text(to_json(key))[:24]}.sqlite"

    @contextmanager
    def opened(self) -> Iterator[OpenIndex]:
        """The index, made if it is not there yet."""
        self._make()
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            yield OpenIndex(connection)

    def _make(self) -> None:
        if self.path.is_file():
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"work_dir: {self.directory} is no directory") from None
        with (self.directory / "papers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.is_file():  # another process made it while this one waited
                return
            remove_temporaries(self.directory)
            with (
                atomic_path(self.path) as temporary,
                closing(sqlite3.connect(temporary, isolation_level=None)) as connection,
            ):
                self._write(connection)

    def _write(self, connection: sqlite3.Connection) -> None:
        report = ReadReport()
        # Nothing is lost with a crash: an unfinished file is thrown away.
        for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{_CACHE_KIB}"):
            connection.execute(f"PRAGMA {setting}")
        for field in ("titles", "abstracts"):
            connection.execute(f"CREATE TABLE {field} (id, text)")  # a column without a type holds ids as they are
        with progress(sum(path.stat().st_size for path in self.files), "index of papers", "B") as done:
            for path in self.files:
                held: dict[str, list[tuple[PaperId, str]]] = {"titles": [], "abstracts": []}
                for field, key, text in self.rows(path, report):
                    held[field].append((key, text))
                    if len(held[field]) == _APPENDED_AT_ONCE:
                        _append(connection, field, held[field])
                for name, rows in held.items():
                    _append(connection, name, rows)
                done(path.stat().st_size)
        with _temporaries_in(self.directory):
            for field in ("titles", "abstracts"):
                connection.execute(f"CREATE INDEX {field}_by_id ON {field} (id)")
        connection.execute("CREATE TABLE report (json)")
        connection.execute("INSERT INTO report VALUES (?)", [json.dumps(report.as_json())])


def _append(connection: sqlite3.Connection, field: str, rows: list[tuple[PaperId, str]]) -> None:
    connection.execute("BEGIN")
    connection.executemany(f"INSERT INTO {field} VALUES (?, ?)", rows)
    connection.execute("COMMIT")
    rows.clear()


@contextmanager
def _temporaries_in(directory: Path) -> Iterator[None]:
    """Have SQLite sort in ``directory``: /tmp is often memory."""
    before = os.environ.get("SQLITE_TMPDIR")
    os.environ["SQLITE_TMPDIR"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SQLITE_TMPDIR"]
        else:
            os.environ["SQLITE_TMPDIR"] = before


class OpenIndex:
    """An index that can be asked."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def texts(self, field: Field, ids: Iterable[PaperId]) -> dict[PaperId, str]:
        """id -> text of those of ``ids`` that have one."""
        wanted = list(dict.fromkeys(ids))
        found: dict[PaperId, str] = {}
        for start in range(0, len(wanted), _APPENDED_AT_ONCE):
            some = wanted[start : start + _APPENDED_AT_ONCE]
            marks = ",".join("?" * len(some))
            for key, text in self._connection.execute(
                f"SELECT id, text FROM {field} WHERE id IN ({marks}) ORDER BY rowid", some
            ):
                found.setdefault(key, text)
        return found

    def report(self) -> ReadReport:
        """What reading the papers for the index gave; counts are named ``index: ...``."""
        [(kept,)] = self._connection.execute("SELECT json FROM report")
        read = ReadReport.of_json(json.loads(kept))
        read.counts = Counter({f"index: {name}": number for name, number in read.counts.items()})
        read.first = {f"index: {name}": place for name, place in read.first.items()}
        return read
