"""The processes of one job, before and after they form a process group: who is first, and who waits for whom."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def is_first_process() -> bool:
    """Whether this is the job's first process, by what a launcher put into the environment (before any process group)."""
    numbers = [os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")]
    return all(number in ("", "0") for number in numbers)


def wait_for(done: Callable[[], bool], *, every: float = 0.5) -> bool:
    """Wait until ``done``; False where the process that started this one ended before."""
    parent = os.getppid()
    while not done():
        if os.getppid() != parent:
            return done()
        time.sleep(every)
    return True


def leave_after_first(seconds: float = 10.0) -> None:
    """In any process but the first: wait a moment for the first to end, so that its message and exit code are the job's."""
    if not is_first_process():
        until = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > until)
