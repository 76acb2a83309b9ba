"""What tests ask of other processes, and give to those that they start."""

from __future__ import annotations

import os
from pathlib import Path

#: What the launcher of a job of several processes sets.
_RANKS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "SUBMITIT_")


def outside_of_jobs() -> dict[str, str]:
    """The environment without what says that a process belongs to a job: one that gets it is the first of its own."""
    return {name: value for name, value in os.environ.items() if name not in _RANKS and not name.startswith(_LAUNCHERS)}


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and is not waited for does not, and the first process of a container may never wait for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
