"""What tests ask of other processes."""

from __future__ import annotations

from pathlib import Path


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and is not waited for does not, and the first process of a container may never wait for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
