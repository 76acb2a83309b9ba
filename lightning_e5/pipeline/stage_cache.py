"""Finished stages shared by runs: computed by one process, linked into the run directories of all others.

An entry is a stage's folder under the hash of all that decides its result. It appears by one rename, is checked against
its manifest whenever it is used, and shares the disk space of its files with the runs (hard links) where the file system
can. A lock per entry, which the kernel frees with its process, lets one process compute what others wait for. A folder
that cannot be read or written costs a run nothing but one sentence: it computes all of its stages.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.config.experiment import STAGE_CACHE, Node, config_hash
from lightning_e5.errors import UserError
from lightning_e5.files.digests import FileDigests
from lightning_e5.files.run_layout import TIMING
from lightning_e5.files.storage import MANIFEST, TEMPORARY_SUFFIX, read_json, read_manifest, verify_manifest
from lightning_e5.pipeline.lock import is_dead, locked
from lightning_e5.pipeline.stage import mark_reused

#: What of a stage's folder is a run's own.
_OWN = ("checkpoints", "wandb")
#: Bytes that an entry of the default folder may copy where the file system makes no hard links; a folder that was named takes all.
COPIED_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a shared stage was computed: the run, and when (as ISO 8601; None where it is not known)."""

    run: str
    made: str | None

    @classmethod
    def of(cls, folder: Path) -> Origin:
        """What the record of time in a stage's folder says."""
        try:
            found = read_json(folder / TIMING)
            return cls(str(found.get("computed_by") or "another run"), found.get("computed_at"))
        except (UserError, OSError, AttributeError):
            return cls("another run", None)

    def __str__(self) -> str:
        return self.run + (f" (made {self.made[:10]})" if self.made else "")


class StageCache:
    """The shared stages below one folder.

    Args:
        root: the folder, made when it is needed.
        say: called with messages for the user.
        digests: of the files' contents; a run's, which has hashed what it links to.
    """

    def __init__(self, root: Path, say: Callable[[str], None], digests: FileDigests | None = None) -> None:
        self.root, self.say, self.digests = root, say, digests or FileDigests()
        self._told: set[str] = set()

    def key(self, stage: str, fingerprint: Node, facts: Node) -> str:
        """An entry's name: of the fingerprint, of the stage's name (from which its seed is derived), and of `result_facts`."""
        return f"{stage}-{config_hash({'fingerprint': fingerprint, 'stage': stage, 'facts': facts})[:32]}"

    def run_label(self, directory: Path) -> str:
        """What messages of other runs call a run: its place below the folder in which the shared stages lie, else its name."""
        place, above = directory.absolute(), self.root.absolute().parent
        return place.relative_to(above).as_posix() if place.is_relative_to(above) else directory.name

    @contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Hold the entry's lock, waiting for whoever holds it; a killed holder's lock is free at once.

        False inside where there can be no lock, as in a folder that cannot be written to.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.root / f"{key}.lock", wait=True, held="another process computes this stage", say=self.say))
                held = True
            except (OSError, UserError) as error:
                self._tell_once(f"{self.root}: no stages are shared with other runs there ({_reason(error)})")
                held = False
            yield held

    def link(self, key: str, fingerprint: Node, out: Path) -> Origin | None:
        """Put the entry in the place of ``out``; None where there is none that can be read. A damaged one is removed.

        To be called under the lock.
        """
        entry, temporary = self.root / key, None
        if not entry.is_dir():
            return None
        try:
            if not self._is_whole(entry, fingerprint):
                self._discard(entry)
                return None
            temporary = _temporary(out)
            _share(entry, temporary)
            origin = Origin.of(entry)
            mark_reused(temporary, origin.run)
            os.utime(entry)  # used now
        except OSError as error:
            self.say(f"the shared stage cannot be used, so it is computed ({_reason(error)})")
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            return None
        if out.is_dir():
            (out / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(out)
        os.replace(temporary, out)
        return origin

    def publish(self, key: str, out: Path) -> None:
        """Make the finished stage in ``out`` an entry, where there is none; needs no lock. What hinders it ends no run."""
        entry = self.root / key
        if entry.is_dir():
            return
        limit = COPIED_BYTES if self.root.name == STAGE_CACHE else None
        temporary = None
        try:
            temporary = _temporary(entry)
            _share(out, temporary, limit)
            os.replace(temporary, entry)
        except _TooLarge:
            self.say(
                f"not kept for other runs: this file system makes no hard links, and more than {COPIED_BYTES >> 20} MB would be copied "
                f"to {self.root}; stage_cache=FOLDER takes copies of any size"
            )
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was faster
                self._tell_once(f"{self.root}: no stages are shared with other runs there ({_reason(error)})")
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def replace(self, key: str, out: Path) -> None:
        """Make a stage that was computed in spite of an entry the entry, where it differs from it, and say so.

        To be called under the lock.
        """
        entry = self.root / key
        if not entry.is_dir():
            return self.publish(key, out)
        try:
            before, now = (read_manifest(folder)["files"] for folder in (entry, out))
        except (UserError, OSError):
            before, now = {}, {"manifest.json": ""}
        differing = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if not differing:
            return None
        shown = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
        self.say(f"not equal to what {Origin.of(entry)} shared, which is replaced (it differs in {shown}); runs that took it keep it")
        try:
            self._discard(entry)
        except OSError as error:
            return self._tell_once(f"{self.root}: cannot be written to ({_reason(error)})")
        return self.publish(key, out)

    def _is_whole(self, entry: Path, fingerprint: Node) -> bool:
        try:
            manifest = verify_manifest(entry, digest=self.digests.of)
            return config_hash(manifest.get("fingerprint")) == config_hash(fingerprint)
        except UserError as error:
            self.say(f"the shared stage is damaged, so it is computed again ({error})")
            return False

    def _discard(self, entry: Path) -> None:
        remove_entry(entry)

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(text)


def remove_entry(entry: Path) -> None:
    """Take an entry away by one rename, then its files; to be called under its lock."""
    trash = _temporary(entry)
    try:
        os.replace(entry, trash)
    except FileNotFoundError:  # by another process
        return
    shutil.rmtree(trash)


def unshare(folder: Path) -> None:
    """Give the folder files of its own, so that what writes into them changes no other run's."""
    for path in [p for p in folder.rglob("*") if not p.is_symlink() and p.is_file() and p.stat().st_nlink > 1]:
        temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        shutil.copy2(path, temporary)
        os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    """An unused name beside ``path``; what killed processes left under such a name is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{path.name}.{platform.node()}."  # the folder may be shared by machines, process numbers are not
    for orphan in path.parent.glob(f"{own}*{TEMPORARY_SUFFIX}"):
        number = orphan.name.removeprefix(own).removesuffix(TEMPORARY_SUFFIX)
        if number == str(os.getpid()) or (number.isdigit() and is_dead(int(number))):
            shutil.rmtree(orphan, ignore_errors=True)
    return path.with_name(f"{own}{os.getpid()}{TEMPORARY_SUFFIX}")


class _TooLarge(Exception):
    """More would be copied than may be."""


def _share(source: Path, target: Path, limit: int | None = None) -> None:
    """Make ``target`` a folder with the files of ``source``: results by hard links, logs, which grow in place, by copies.

    Raises:
        _TooLarge: results cannot be linked, and have more bytes than ``limit``.
    """
    results = {*read_manifest(source)["files"], MANIFEST}
    copied = 0
    target.mkdir()
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if path.is_symlink():  # to data of the user's, which no run owns
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            (target / relative).symlink_to(path.readlink())
            continue
        if relative.parts[0] in _OWN or not path.is_file() or path.name.endswith(TEMPORARY_SUFFIX):
            continue
        made = target / relative
        made.parent.mkdir(parents=True, exist_ok=True)
        if relative.as_posix() not in results:
            shutil.copy2(path, made)
        elif not _linked(path, made):
            copied += path.stat().st_size
            if limit is not None and copied > limit:
                raise _TooLarge
            shutil.copy2(path, made)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:  # another file system, one without hard links, or too many of them
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
