"""Long computations over rows in blocks that are kept as they are done, so that a killed one continues."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, remove_temporaries

Arrays = Mapping[str, NDArray[Any]]


class KeptBlocks:
    """A folder of finished blocks. It belongs to one computation: its stage's folder is emptied for another one.

    Args:
        folder: made where it is not there; what a killed writer left unfinished in it is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)

    def run(self, name: str, rows: int, size: int, compute: Callable[[slice], Arrays], done: Callable[[int], object] = lambda rows: None) -> Iterator[dict[str, NDArray[Any]]]:
        """The blocks of ``name`` in order, each computed where it is not there yet.

        Args:
            name: of the computation within the folder.
            rows: how many there are.
            size: rows of a block.
            compute: rows -> arrays of that many rows.
            done: called with the rows of a block that was there already; what is computed reports for itself.
        """
        for number, first in enumerate(range(0, rows, size)):
            part = slice(first, min(rows, first + size))
            path = self._path(name, number)
            if path.is_file():
                block = _read(path)
                done(part.stop - part.start)
            else:
                block = {key: np.asarray(values) for key, values in compute(part).items()}
                write_block(path, block)
            if any(len(values) != part.stop - part.start for values in block.values()):
                raise UserError(f"{path}: does not hold {part.stop - part.start} rows; remove {self.folder} and start again")
            yield block

    def missing(self, name: str, rows: int, size: int) -> list[tuple[Path, slice]]:
        """File and rows of each block of ``name`` that is not there yet, for tasks that compute them elsewhere."""
        parts = [slice(first, min(rows, first + size)) for first in range(0, rows, size)]
        return [(path, part) for number, part in enumerate(parts) if not (path := self._path(name, number)).is_file()]

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:05d}.npz"

    def remove(self) -> None:
        """Remove the folder, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_block(path: Path, block: Arrays) -> None:
    """Write a finished block, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **block)  # type: ignore[arg-type]


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


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it and start again") from None
