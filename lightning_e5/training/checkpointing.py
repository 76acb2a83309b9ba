"""Checkpoints that are whole or refused, and the search for the newest whole one.

``step-00000400.ckpt`` is written to a temporary file in the same directory, hashed as it is written, fsynced and renamed; then,
last, ``step-00000400.json`` with its sha256. A checkpoint without that record, or whose bytes differ from it, is refused and
the one before it is used. They are loaded with ``weights_only=True``, so a checkpoint cannot run code.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, read_checked, remove_temporaries, sha256_file, write_checked

_NAME = re.compile(r"step-(\d{8,})\.ckpt")
#: What a write gives where there is no room: the disk's, the user's share of it, or a limit on the size of files.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpoint(NamedTuple):
    """A verified checkpoint: optimizer steps done, and its file."""

    step: int
    path: Path


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps lies."""
    return directory / f"step-{step:08d}.ckpt"


def save_checkpoint(path: Path, state: Mapping[str, Any], *, keep: int | None = None) -> None:
    """Write ``state`` atomically, its sha256 record last; then remove all but the newest ``keep`` checkpoints."""
    with atomic_path(path) as temporary:
        file = _HashedFile(temporary)
        try:
            torch.save(dict(state), cast("IO[bytes]", file))  # which calls these methods alone
        finally:
            file.close()
        if file.error is not None:
            full = file.error.errno in _NO_ROOM
            why = "the checkpoint could not be written (no space left on the disk, or a limit on the size of files)" if full else file.error.strerror
            raise OSError(file.error.errno, why, str(path)) from file.error
    write_checked(path.with_suffix(".json"), {"file": path.name, "sha256": file.sha256.hexdigest(), "bytes": file.bytes})
    if keep is not None:
        for old in _checkpoints(path.parent)[keep:]:
            old.path.with_suffix(".json").unlink(missing_ok=True)
            old.path.unlink(missing_ok=True)


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint after verifying it.

    Raises:
        UserError: the file, its record or its bytes are not what was written, or it holds more than data.
    """
    reason = _fault(path)
    if reason:
        raise UserError(f"{path}: refused, {reason}")
    try:
        return dict(torch.load(path, map_location=map_location, weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: refused, not a checkpoint of data ({str(error).splitlines()[0]})") from None


def latest_checkpoint(directory: Path, warn: Callable[[str], None] = lambda message: None) -> Checkpoint | None:
    """The newest checkpoint that verifies; older ones are tried where it does not, with a message each."""
    if not directory.is_dir():
        return None
    remove_temporaries(directory)
    for checkpoint in _checkpoints(directory):
        reason = _fault(checkpoint.path)
        if reason is None:
            return checkpoint
        warn(f"{checkpoint.path}: refused, {reason}; trying the one before")
    return None


class _HashedFile:
    """A new file for ``torch.save``, which writes from its first byte to its last; it is hashed on the way.

    The first error of a write is kept, not raised: what an exception becomes in torch's writer, which is C++, has no errno.
    """

    def __init__(self, path: Path) -> None:
        self.sha256, self.bytes = hashlib.sha256(), 0
        self.error: OSError | None = None
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        size = len(rest)
        try:
            while rest and self.error is None:
                written = os.write(self._handle, rest)
                self.sha256.update(rest[:written])
                self.bytes += written
                rest = rest[written:]
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        pass  # nothing is kept back

    def close(self) -> None:
        os.close(self._handle)


def _checkpoints(directory: Path) -> list[Checkpoint]:
    found = [(m, p) for p in directory.iterdir() if (m := _NAME.fullmatch(p.name))]
    return sorted((Checkpoint(int(m.group(1)), p) for m, p in found), reverse=True)


def _fault(path: Path) -> str | None:
    """Why a checkpoint cannot be used; None where it can."""
    record_path = path.with_suffix(".json")
    if not path.is_file():
        return "no such file"
    if not record_path.is_file():
        return f"it has no {record_path.name}, so its writing did not end"
    try:
        record = read_checked(record_path)
        size, digest = record["bytes"], record["sha256"]
    except (UserError, KeyError, TypeError):
        return f"its record {record_path.name} is damaged"
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes where {size} were written"
    if sha256_file(path) != digest:
        return "its sha256 is not the one that was written"
    return None
