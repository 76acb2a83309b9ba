"""Runs a command and notes the most memory that it and all its descendants held at one time, sampled from /proc.

Two figures: ``rss`` is the resident set (VmRSS), with the pages of memory-mapped files, which the kernel takes back where it needs them;
``own`` is what it cannot take back, RssAnon + RssShmem. Both are summed over the processes, so a page that two of them share counts twice.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_SECONDS = 0.1
#: Between two looks for new processes, and at the folders.
_SLOWLY_SECONDS = 0.5


class Memory(NamedTuple):
    """Bytes at one time: see the module; ``highest`` is the most resident memory so far (VmHWM), of one process."""

    rss: int
    own: int
    highest: int


class Watched(NamedTuple):
    """rss, own: peaks in bytes; processes: the most at one time; cpu_seconds: of all; disk: the most bytes in the folders."""

    rss: int
    own: int
    processes: int
    cpu_seconds: float
    disk: int


def watch(command: Sequence[str], folders: Sequence[Path], environment: Mapping[str, str]) -> Watched:
    """Run it to its end.

    Args:
        command: its standard output and error are this process's error.
        folders: whose bytes are counted.
        environment: of the command.

    Raises:
        CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, env=dict(environment), stdout=2)
    rss = own = count = disk = 0
    known: set[int] = {process.pid}
    look_at = time.monotonic()
    try:
        while process.poll() is None:
            if time.monotonic() > look_at:
                known = _descendants(known)
                disk = max(disk, bytes_of(folders))
                look_at = time.monotonic() + _SLOWLY_SECONDS
            held = [memory_of(number) for number in known]
            # VmHWM misses no peak of a process between two samples.
            rss = max(rss, sum(m.rss for m in held), *(m.highest for m in held))
            own = max(own, sum(m.own for m in held))
            count = max(count, sum(m.rss > 0 for m in held))
            time.sleep(_SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Watched(rss, own, count, seconds, max(disk, bytes_of(folders)))


def memory_of(process: int | str) -> Memory:
    """Of one process, by its number or ``self``; zeros where it has ended."""
    found = dict.fromkeys(("VmRSS", "VmHWM", "RssAnon", "RssShmem"), 0)
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name in found:
            found[name] = 1024 * int(value.split()[0])
    return Memory(found["VmRSS"], found["RssAnon"] + found["RssShmem"], found["VmHWM"])


def bytes_of(folders: Sequence[Path]) -> int:
    """Bytes of all files in the folders; what is removed meanwhile counts nothing."""
    total = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(place, name)).st_size
                except OSError:
                    continue
    return total


def _descendants(known: set[int]) -> set[int]:
    """Those that still run of the processes known, and their children: one whose parent ended stays known."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
    found = {number for number in known if number in parents}
    while more := {number for number, parent in parents.items() if parent in found and number not in found}:
        found |= more
    return found
