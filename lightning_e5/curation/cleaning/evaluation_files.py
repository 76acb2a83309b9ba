"""Which files hold the evaluation texts that training pairs must not have."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError


@configurable("settings")
class EvaluationFiles:
    """Evaluation collections, by paths or patterns; which of their texts drop a training pair is the build's to say.

    Args:
        paths: folders in BEIR's layout, or JSONL, TSV, CSV and Parquet files (see `evaluation_texts`); ``*``, ``?`` and
            ``**`` stand for what they do in a shell.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._patterns = list(paths)

    def paths(self) -> list[Path]:
        """The folders and files, sorted within a pattern; UserError where a pattern matches nothing."""
        found: dict[Path, None] = {}
        for pattern in self._patterns:
            matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
            if not matches:
                raise UserError(f"decontaminate: nothing matches {pattern!r}")
            for match in matches:
                if not Path(match).exists():
                    raise UserError(f"decontaminate: {match}: no such file or directory")
                found[Path(match)] = None
        return list(found)

    def fingerprint(self) -> dict[str, Any]:
        """The files' names, sizes and times."""
        files = [p for path in self.paths() for p in (sorted(path.rglob("*")) if path.is_dir() else [path]) if p.is_file()]
        return {"files": [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]}
