"""One writer at a time: a lock on a directory, with the host, process and time of its holder beside it.

The kernel frees a lock with the last process that holds it, however that ends, so a dead holder's is taken over at once.
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json

#: The lock in a directory; beside it lies the holder's record, with ``.json`` behind the name.
LOCK = ".lock"
_POLL_SECONDS = 0.2
_TELL_SECONDS = 60.0
#: Seconds that a new holder has for its record, before a waiter says that there is none.
_RECORD_SECONDS = 5.0
#: What a killed holder's children (data workers) and a holder between two files get before the lock counts as held.
_GRACE_SECONDS = 20.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(path: Path, *, wait: bool, held: str, hint: str = "", say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the lock ``path`` inside the block.

    Args:
        path: the lock's file, made where it is not there.
        wait: wait for the holder; else refuse at once, but for a holder that is dead or about to let go.
        held: what another holder does, for messages: "<held> (process 7 on host x since ...)".
        hint: what a user can do instead, appended to the refusal.
        say: called while waiting.

    Raises:
        UserError: another process holds it, or the file system has no locks.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_name(f"{path.name}.json")
    lock, began, told = FileLock(str(path), fallback_to_soft=False), time.monotonic(), float("-inf")
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            waited = time.monotonic() - began
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            raise UserError(f"{path}: this file system has no locks, so two processes could write here at once ({error})") from None
        holder = _Holder.read(record)
        if not wait and ((holder is not None and not holder.is_dead) or waited > _GRACE_SECONDS):
            raise UserError(f"{held} ({holder or 'by a process that left no record'}){hint}")
        if wait and waited - told >= _TELL_SECONDS and (holder is not None or waited >= _RECORD_SECONDS):
            say(f"{held} ({holder or 'it has just begun'}); waits for it" + (f" ({waited / 60:.0f} min)" if waited > 60 else ""))
            told = waited
        time.sleep(_POLL_SECONDS)
    try:
        write_json(record, {"host": platform.node(), "process": os.getpid(), "since": datetime.now().astimezone().isoformat(timespec="seconds")})
        yield
    finally:
        record.unlink(missing_ok=True)
        lock.release()


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock ``path`` inside the block, or not, at once: False where another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(path), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def holder_of(path: Path) -> str:
    """Who holds a lock, in words."""
    return str(_Holder.read(path.with_name(f"{path.name}.json")) or "a process that left no record")


def run_lock(directory: Path, *, wait: bool, say: Callable[[str], None] = print) -> AbstractContextManager[None]:
    """The run directory for one writing process at a time; UserError where another is at work and ``wait`` is not given."""
    held = f"{directory}: another process is at work there"
    hint = "; pass --wait to wait for it, give another name=..., or, where its machine is gone, remove the file .lock there"
    return locked(directory / LOCK, wait=wait, held=held, hint=hint, say=say)


def is_dead(process: int) -> bool:
    """Whether a process of this machine is known to have ended; so has one that is not waited for, as the first of a container may never do it."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[:1] == [b"Z"]
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False


class _Holder:
    """Who holds a lock, as its record says."""

    def __init__(self, host: str, process: int, since: str) -> None:
        self.host, self.process, self.since = host, process, since

    @classmethod
    def read(cls, record: Path) -> _Holder | None:
        """The record's; None where it is not there (yet, or any more) or is no record."""
        try:
            found = read_json(record)
            return cls(str(found["host"]), int(found["process"]), str(found["since"]))
        except (UserError, OSError, KeyError, TypeError, ValueError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended; of another machine's that cannot be known."""
        return self.host == platform.node() and is_dead(self.process)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"
