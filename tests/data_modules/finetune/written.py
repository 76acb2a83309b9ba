"""Files of fine-tuning data as tests write them, and what a source reads of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_e5.types import RankedExample, ReadReport


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def read(source: Any) -> tuple[list[RankedExample], ReadReport]:
    report = ReadReport()
    found = list(source.read(report))
    assert found == list(source.read(ReadReport())), "a second reading gives the same"
    return found, report
