"""Texts that lie in a file and are read when they are asked for: a list of any length in the memory of one block.

Two files: the texts one after another in UTF-8, and an int64 for where each ends. They are read by ``pread``, so a process
holds nothing of them; what fits into the system's cache is read at the speed of memory.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from lightning_e5.files.scratch import blocks, mapped, release

#: Texts read at once.
_BLOCK = 1024


class TextWriter:
    """Writes texts for `StoredTexts`, in a ``with`` block.

    Args:
        path: of the texts; their ends go to ``<path>.ends``.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self._end = path, 0, 0

    def __enter__(self) -> TextWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._texts, self._ends = self.path.open("wb"), _ends_path(self.path).open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._texts.close()
        self._ends.close()

    def extend(self, texts: Iterable[str]) -> None:
        """Append texts."""
        raw = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = self._end + np.cumsum([len(one) for one in raw], dtype="<i8")
        self._texts.write(b"".join(raw))
        ends.tofile(self._ends)
        self._end = int(ends[-1]) if len(ends) else self._end
        self.rows += len(raw)


class StoredTexts(Sequence[str]):
    """What a `TextWriter` wrote, as a sequence of texts; a slice is one of these, too.

    Args:
        path: of the texts.
        rows: which of them and in which order, int64; may be mapped. All in their order by default.
        owner: of the files, which must not end before this does.
    """

    def __init__(self, path: Path, rows: NDArray[np.int64] | range | None = None, owner: object = None) -> None:
        self._owner = owner
        self.path = Path(path)
        self._rows: NDArray[np.int64] | range = range(_ends_path(self.path).stat().st_size // 8) if rows is None else rows
        self._files: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> StoredTexts: ...
    def __getitem__(self, place: int | slice) -> str | StoredTexts:
        if isinstance(place, slice):
            return StoredTexts(self.path, self._rows[place], self._owner)
        return self._read(int(self._rows[place]), 1)[0]

    def __iter__(self) -> Iterator[str]:
        for block in blocks(len(self), _BLOCK):
            rows = self._rows[block]
            if isinstance(rows, range) and rows.step == 1:
                yield from self._read(rows.start, len(rows))
                continue
            numbers = np.asarray(rows)
            low, high = int(numbers.min()), int(numbers.max())
            if high - low < 2 * len(numbers):  # close together: read at once, with what lies between them
                near = self._read(low, high - low + 1)
                yield from (near[row - low] for row in numbers.tolist())
            else:
                yield from (self._read(row, 1)[0] for row in numbers.tolist())

    def of(self, rows: NDArray[np.int64]) -> StoredTexts:
        """Texts of this sequence by their places in it."""
        own = self._rows
        return StoredTexts(self.path, rows if isinstance(own, range) and own == range(len(own)) else np.asarray(own)[rows], self._owner)

    @property
    def ends_path(self) -> Path:
        """The file of where the texts end."""
        return _ends_path(self.path)

    def not_empty(self) -> NDArray[np.int64] | range:
        """The places of the texts that are not empty, of a whole file; where all are, a range."""
        ends = mapped(self.ends_path, "<i8")
        empty = [part.start + np.flatnonzero(np.diff(ends[part], prepend=ends[part.start - 1] if part.start else 0) == 0) for part in blocks(len(ends))]
        release(ends)
        if not any(map(len, empty)):
            return range(len(ends))
        kept = np.ones(len(ends), dtype=bool)
        kept[np.concatenate(empty)] = False
        return np.flatnonzero(kept)

    def _read(self, first: int, count: int) -> list[str]:
        if self._files is None:
            self._files = os.open(self.path, os.O_RDONLY), os.open(_ends_path(self.path), os.O_RDONLY)
        texts, ends = self._files
        before = 8 if first else 0  # the first text begins at 0
        places = np.frombuffer(_whole(ends, 8 * count + before, 8 * first - before), dtype="<i8").tolist()
        places = places if before else [0, *places]
        raw = _whole(texts, places[-1] - places[0], places[0])
        return [raw[a - places[0] : b - places[0]].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(places)]

    def __reduce__(self) -> tuple[Any, ...]:
        """On the way to a worker: the path and the rows, not the texts."""
        rows = self._rows if isinstance(self._rows, range) else np.array(self._rows)
        return StoredTexts, (self.path, rows)

    def __del__(self) -> None:
        for file in getattr(self, "_files", None) or ():
            os.close(file)


def _ends_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.ends")


def _whole(file: int, count: int, at: int) -> bytes:
    """``count`` bytes; one call reads at most 2 GiB."""
    parts = []
    while count:
        part = os.pread(file, count, at)
        if not part:
            raise OSError(f"a file of stored texts ends {count:,} bytes early")
        parts.append(part)
        count, at = count - len(part), at + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
