"""Which files a source reads: names and patterns, and what changes when the files do."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.streams import regular_file


def expand(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that names and glob patterns (``**`` goes into directories) stand for, each once, sorted per pattern.

    Raises:
        UserError: nothing is given, a name is no file, or a pattern matches no file.
    """
    found: dict[Path, None] = {}
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise UserError("paths: is empty; give at least one file or pattern")
    for item in given:
        path = Path(item).expanduser()
        if path.is_file():
            found[path] = None
            continue
        if not glob.has_magic(str(path)) or path.exists():
            if path.is_dir():
                raise UserError(f"{path}: is a directory; give files or a pattern")
            regular_file(path)
        matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise UserError(f"paths: the pattern {str(item)!r} matches no file")
        found.update(dict.fromkeys(matches))
    return list(found)


class FileParts:
    """What sources share that are read file by file: a part is a file, by its name."""

    _paths: Sequence[Path]

    def parts(self) -> list[str]:
        """The files."""
        return [str(path) for path in self._paths]


def file_fingerprint(paths: Sequence[Path]) -> list[list[Any]]:
    """[path, bytes, time of the last change in ns] of every file, which changes when a file does."""
    return [[str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in map(Path, paths)]
