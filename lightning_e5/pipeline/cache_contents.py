"""What lies among the shared stages, who uses it, and what may go.

A stage that runs share is one file on the disk under several names, so an entry costs space of its own only when no run
has it any more. Then `prune` frees it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.storage import MANIFEST, TEMPORARY_SUFFIX
from lightning_e5.pipeline.lock import held_if_free, holder_of, is_dead
from lightning_e5.pipeline.stage import STARTED, cache_key_of
from lightning_e5.pipeline.stage_cache import Origin, remove_entry

_ENTRY = re.compile(r"(.+)-[0-9a-f]{32}")
#: ``.<entry>.<host>.<process>.tmp``
_TEMPORARY = re.compile(rf"\.(.+-[0-9a-f]{{32}})\.(.+)\.(\d+){re.escape(TEMPORARY_SUFFIX)}")
#: Seconds after which an unfinished folder of another machine's process counts as left behind.
_FOREIGN_SECONDS = 7 * 86400.0
#: Where the stages of runs lie below a folder of runs: of single ones, and of ablations' ones.
_PLACES = ("*/stages/*", "ablations/*/*/stages/*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A shared stage.

    ``size``: bytes of its files; ``own``: those of them that no run has, which its removal frees; ``used``: seconds since the
    epoch at which a run last took it or left it; ``runs``: the runs that have it, those elsewhere counted in ``elsewhere``.
    """

    path: Path
    stage: str
    origin: Origin
    size: int
    own: int
    used: float
    runs: tuple[str, ...]
    elsewhere: int

    @property
    def is_used(self) -> bool:
        """Whether any run has it."""
        return bool(self.runs) or self.elsewhere > 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` removed, or would: entries and folders left behind, the bytes that this frees, and which entry who holds."""

    entries: list[Entry]
    leftovers: list[Path]
    freed: int
    held: dict[str, str]


def cache_entries(root: Path, runs_dir: Path) -> list[Entry]:
    """The shared stages, those used last first.

    Args:
        root: the folder of shared stages.
        runs_dir: where the runs lie whose names are wanted.
    """
    folders = [p for p in _listed(root) if _ENTRY.fullmatch(p.name) and (p / MANIFEST).is_file()]
    files = {folder: list(_files(folder)) for folder in folders}
    links = Counter(identity for found in files.values() for identity, _, _ in found)
    runs = _runs_by_key(runs_dir)
    found = []
    for folder in folders:
        size = sum(size for _, size, _ in files[folder])
        own = sum(size for identity, size, names in files[folder] if names <= links[identity])
        known = tuple(runs.get(folder.name, ()))
        others = max(0, (folder / MANIFEST).stat().st_nlink - 1 - len(known))
        stage = folder.name.rpartition("-")[0]
        found.append(Entry(folder, stage, Origin.of(folder), size, own, folder.stat().st_mtime, known, others))
    return sorted(found, key=lambda entry: (-entry.used, entry.path.name))


def own_bytes(root: Path) -> int:
    """Bytes of the shared stages that no run has any more."""
    found = [facts for folder in _listed(root) for facts in _files(folder)]
    links = Counter(identity for identity, _, _ in found)
    return sum({identity: size for identity, size, names in found if names <= links[identity]}.values())


def prune(
    root: Path, runs_dir: Path, *, older_than: float = 0.0, larger_than: int = 0, used: bool = False, dry_run: bool = False
) -> Pruned:
    """Remove the shared stages that no run has, and what killed processes left.

    Args:
        root, runs_dir: as for `cache_entries`.
        older_than: only those that no run took or left in so many seconds.
        larger_than: only those of more bytes.
        used: also those that runs have; their files stay with the runs, and no further run takes them.
        dry_run: remove nothing.
    """
    now = time.time()
    wanted = [e for e in cache_entries(root, runs_dir) if (used or not e.is_used) and now - e.used >= older_than and e.size > larger_than]
    removed, held = list[Entry](), dict[str, str]()
    for entry in wanted:
        if dry_run or _removed(entry.path):
            removed.append(entry)
        else:
            held[entry.path.name] = holder_of(entry.path.with_name(f"{entry.path.name}.lock"))
    leftovers = [path for path in _listed(root) if _is_left_behind(path)]
    freed = sum(entry.own for entry in removed) + sum(size for path in leftovers for _, size, names in _files(path) if names == 1)
    if not dry_run:
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        _remove_locks(root)
    return Pruned(removed, leftovers, freed, held)


def _removed(entry: Path) -> bool:
    """Whether the entry could be removed; not where another process holds its lock."""
    lock = entry.with_name(f"{entry.name}.lock")
    with held_if_free(lock) as held:
        if held:
            remove_entry(entry)
            lock.unlink(missing_ok=True)
        return held


def _remove_locks(root: Path) -> None:
    """Remove the locks of entries that are not there, but those that a process holds: it is computing them."""
    for lock in _listed(root):
        entry = lock.name.removesuffix(".lock")
        if lock.name.endswith(".lock") and _ENTRY.fullmatch(entry) and not (root / entry).is_dir():
            with held_if_free(lock) as held:
                if held:
                    lock.unlink(missing_ok=True)


def _is_left_behind(path: Path) -> bool:
    """Whether a folder is what a killed process left half-made."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    if match[2] == platform.node():
        return int(match[3]) != os.getpid() and is_dead(int(match[3]))
    return time.time() - path.stat().st_mtime > _FOREIGN_SECONDS


def _runs_by_key(runs_dir: Path) -> Mapping[str, list[str]]:
    """Name of an entry -> the runs that have it."""
    found: dict[str, list[str]] = {}
    for place in _PLACES:
        for out in sorted(runs_dir.glob(place)):
            if (out / STARTED).is_file() and (out / MANIFEST).is_file() and (key := cache_key_of(out)) is not None:
                found.setdefault(key, []).append(out.parent.parent.relative_to(runs_dir).as_posix())
    return found


def _listed(root: Path) -> list[Path]:
    """What lies in the folder; nothing where there is none. UserError for one that cannot be read."""
    try:
        return sorted(root.iterdir()) if root.exists() else []
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from None


def _files(folder: Path) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Each file below a folder: what tells it from others, its bytes, and under how many names it lies on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                facts = os.lstat(os.path.join(place, name))
            except OSError:  # removed meanwhile
                continue
            if stat.S_ISREG(facts.st_mode):
                yield (facts.st_dev, facts.st_ino), facts.st_size, facts.st_nlink
