"""What is measured: a stage's function, and what it needs beforehand. Imports nothing heavy, for the process that watches does not either."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Inputs(NamedTuple):
    """What a measured function is given.

    folder: of this number of pairs; holds ``pairs/`` (see `data_modules.pair_store.PairStore`) and, for each needed function, a folder of
    its name. rows: pairs. workers: processes or threads that may be used.
    """

    folder: Path
    rows: int
    workers: int

    @property
    def pairs(self) -> Path:
        """The folder of pairs."""
        return self.folder / "pairs"


#: (inputs, an empty folder for what it writes) -> figures to keep; ``rows`` among them replaces the number of pairs.
Function = Callable[[Inputs, Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Stage:
    """One row of `benchmarks.memory.table.STAGES`.

    Args:
        name: of the row, and of ``--stages``.
        measured: ``file:function`` (a `Function`) of this package; run in a process of its own, its imports done before the clock starts.
        buffers: what its memory is made of, as set here.
        needs: ``file:function`` (`Function`, too) of what it reads beside the pairs; made once for each number of pairs, not measured.
        parallel: its work is cut into parts that the cores of a machine, or several machines, share.
        streams: its memory is said not to grow with the pairs, so the ratio has to be at most `LARGEST_RATIO`.
    """

    name: str
    measured: str
    buffers: str
    needs: tuple[str, ...] = ()
    parallel: bool = False
    streams: bool = True


def function_of(name: str) -> Function:
    """``file:function`` of this package."""
    file, _, function = name.partition(":")
    found: Function = getattr(importlib.import_module(f"benchmarks.memory.{file}"), function)
    return found


def folder_of(name: str) -> str:
    """The folder that a needed function writes into."""
    return name.partition(":")[2]
