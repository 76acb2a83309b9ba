"""Finished stages shared by runs: computed by one process, linked into the run directories of all others.

An entry is a stage's folder under the hash of all that decides its result. It appears by one rename, is checked against
its manifest whenever it is used, and shares the disk space of its files with the runs (hard links) where the file system
can. A lock per entry, which the kernel frees with its process, lets one process compute what others wait for.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import lightning_e5
from lightning_e5.config.experiment import Node, config_hash
from lightning_e5.errors import UserError
from lightning_e5.files.digests import FileDigests
from lightning_e5.files.storage import MANIFEST, TEMPORARY_SUFFIX, read_manifest, verify_manifest
from lightning_e5.pipeline.lock import locked

#: What of a stage's folder is a run's own.
_OWN = ("checkpoints", "wandb")


class StageCache:
    """The shared stages below one folder.

    Args:
        root: the folder, made when it is needed.
        say: called with messages for the user.
        digests: of the files' contents; a run's, which has hashed what it links to.
    """

    def __init__(self, root: Path, say: Callable[[str], None], digests: FileDigests | None = None) -> None:
        self.root, self.say, self.digests = root, say, digests or FileDigests()

    def key(self, stage: str, fingerprint: Node, threads: int, device: str) -> str:
        """An entry's name.

        The fingerprint, and what else decides bits: the stage's name (from which its seed is derived), the number of CPU
        threads, the kind of device, and this package's version.
        """
        facts = {"stage": stage, "threads": threads, "device": device, "version": lightning_e5.__version__}
        return f"{stage}-{config_hash({'fingerprint': fingerprint, **facts})[:32]}"

    def locked(self, key: str) -> AbstractContextManager[None]:
        """Hold the entry's lock, waiting for whoever holds it; a killed holder's lock is free at once."""
        return locked(self.root / f"{key}.lock", wait=True, held="another process computes this stage", say=self.say)

    def link(self, key: str, fingerprint: Node, out: Path) -> bool:
        """Put the entry in the place of ``out``; False where there is none. A damaged one is removed.

        To be called under the lock.
        """
        entry = self.root / key
        if not entry.is_dir():
            return False
        try:
            manifest = verify_manifest(entry, digest=self.digests.of)
            whole = config_hash(manifest.get("fingerprint")) == config_hash(fingerprint)
        except UserError as error:
            self.say(f"the shared stage is damaged, so it is computed again ({error})")
            whole = False
        if not whole:
            self._discard(entry)
            return False
        temporary = _temporary(out)
        _share(entry, temporary)
        if out.is_dir():
            (out / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(out)
        os.replace(temporary, out)
        return True

    def publish(self, key: str, out: Path) -> None:
        """Make the finished stage in ``out`` an entry, where there is none; needs no lock."""
        entry = self.root / key
        if entry.is_dir():
            return
        temporary = _temporary(entry)
        try:
            _share(out, temporary)
            os.replace(temporary, entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _discard(self, entry: Path) -> None:
        trash = _temporary(entry)
        os.replace(entry, trash)
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
        if number == str(os.getpid()) or not Path(f"/proc/{number}").exists():
            shutil.rmtree(orphan, ignore_errors=True)
    return path.with_name(f"{own}{os.getpid()}{TEMPORARY_SUFFIX}")


def _share(source: Path, target: Path) -> None:
    """Make ``target`` a folder with the files of ``source``: results by hard links, logs, which grow in place, by copies."""
    results = {*read_manifest(source)["files"], MANIFEST}
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
        if relative.as_posix() in results:
            _link_or_copy(path, made)
        else:
            shutil.copy2(path, made)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:  # another file system, one without hard links, or too many of them
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        shutil.copy2(source, target)
