"""Sha256 of files that were hashed before, without reading them again: remembered by inode, size and time of change.

A file whose inode, size or time is another is read again, so that a start over finished work takes as long as listing its
files. What this cannot see is a bit that changes on the disk while size and time stay; ``verify`` reads everything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.storage import TEMPORARY_SUFFIX, read_checked, sha256_file, sha256_text, to_json, write_checked

#: The file in which a folder of runs remembers digests.
MEMORY = ".digests.json"
#: Above so many entries, those of files that nobody asked for any more are dropped.
MAX_ENTRIES = 100_000
_POLL_SECONDS = 0.5


class FileDigests:
    """Digests of files, remembered in one file for all runs beside each other.

    Args:
        memory: the file; None remembers nothing.
        verify: hash every file, whatever is remembered.
        patience: seconds to wait until another process has hashed a file and saved its digest, before this one hashes it.
    """

    def __init__(self, memory: Path | None = None, *, verify: bool = False, patience: float = 0.0) -> None:
        self.memory, self.verify, self.patience = memory, verify, patience
        self._known = self._read()
        self._own: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """Hex sha256 of a file's content; symbolic links are followed."""
        key = _key(path)
        if key in self._own:
            return self._own[key]
        if not self.verify:
            until = time.monotonic() + self.patience
            while key not in self._known and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                self._known, key = self._read(), _key(path)
            if key in self._known:
                self._own[key] = self._known[key]
                return self._known[key]
        digest = sha256_file(path)
        if _key(path) == key:  # else it was written to meanwhile
            self._own[key] = digest
        return digest

    def of_place(self, path: Path) -> str | None:
        """One digest of a file, or of a folder's files by name and content; None where nothing is there.

        Of a run's directory, which is named for the model that it made, only ``encoder/`` counts where it is there.
        """
        if path.is_dir():
            if (path / "config.yaml").is_file() and (path / "encoder").is_dir():
                path = path / "encoder"
            return sha256_text(to_json([[name, self.of(path / name)] for name in files_below(path)]))
        return self.of(path) if path.is_file() else None

    def save(self) -> None:
        """Keep what was asked for, beside what other runs keep; a folder that cannot be written to is left."""
        if self.memory is None or not self.memory.parent.is_dir():
            return
        from filelock import FileLock

        try:
            with FileLock(str(self.memory.with_suffix(".lock"))):
                known = self._read()
                if self._own.items() <= known.items():
                    return
                self._known = {**(known if len(known) + len(self._own) <= MAX_ENTRIES else {}), **self._own}
                write_checked(self.memory, {"files": self._known})
        except OSError:  # read-only, or full: hashed again the next time
            return

    def _read(self) -> dict[str, str]:
        if self.memory is None or not self.memory.is_file():
            return {}
        try:
            return dict(read_checked(self.memory)["files"])
        except (UserError, OSError, KeyError, TypeError, ValueError):
            return {}


def files_below(folder: Path) -> list[str]:
    """The files below a folder, sorted, as relative POSIX paths; linked folders are entered, temporary files left out."""
    return sorted(path.relative_to(folder).as_posix() for path in _walk(folder, ()))


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), (*above, here))
            elif entry.is_file() and not (entry.name.startswith(".") and entry.name.endswith((TEMPORARY_SUFFIX, ".lock"))):
                yield Path(entry.path)


def _key(path: Path) -> str:
    """What tells a file from its other states, the same under every name and on every machine that shares the disk."""
    facts = path.stat()
    return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"
