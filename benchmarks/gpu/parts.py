"""The parts in their order, and how one is run: each row is saved when it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.correctness import correctness, resume, stages
from benchmarks.gpu.inference import encode, filter_ranks
from benchmarks.gpu.size import Size
from benchmarks.gpu.training import checkpoint, real_run, train_step

#: Name -> what yields its rows, of which a later one of a name is for an earlier one; the cheap and decisive ones first, so that a cut
#: takes the least.
PARTS: dict[str, Callable[[Size], Iterator[dict[str, Any]]]] = {
    "correctness": correctness,
    "stages": stages,
    "resume": resume,
    "train_step": train_step,
    "encode": encode,
    "filter": filter_ranks,
    "checkpoint": checkpoint,
    "run": real_run,
}


def run_part(name: str, size: Size, out: Path) -> None:
    """Append each row of a part to a file of lines."""
    with out.open("a", encoding="utf-8") as file:
        for row in PARTS[name](size):
            file.write(json.dumps(row) + "\n")
            file.flush()
