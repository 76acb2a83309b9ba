"""Checkpoints that are whole or refused, and the search for the newest whole one.

``step-00000400.ckpt`` is written to a temporary file in the same directory, fsynced and renamed; then, last,
``step-00000400.json`` with its sha256. A checkpoint without that record, or whose bytes differ from it, is refused and
the one before it is used. They are loaded with ``weights_only=True``, so a checkpoint cannot run code.
"""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, read_checked, remove_temporaries, sha256_file, write_checked

_NAME = re.compile(r"step-(\d{8,})\.ckpt")


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
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # torch's own writer gives no errno, and words that say nothing to a user
            why = "the checkpoint could not be written (no space left on the disk, or a limit on the size of files)"
            raise OSError(errno.ENOSPC, why, str(path)) from error
        digest, size = sha256_file(temporary), temporary.stat().st_size
    write_checked(path.with_suffix(".json"), {"file": path.name, "sha256": digest, "bytes": size})
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
