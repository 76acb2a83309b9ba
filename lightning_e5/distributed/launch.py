"""The processes of one job: who is first, and who waits for whom."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, parent_process

#: Environment variable with the number of the process that started this machine's other ranks.
STARTER = "LIGHTNING_E5_STARTER"


def is_first_process() -> bool:
    """Whether this is the job's first process, by what a launcher put into the environment (before any process group)."""
    numbers = [os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")]
    return all(number in ("", "0") for number in numbers)


def started_by() -> int:
    """The process that started this one, which may have ended before this one could ask who it is."""
    own_launcher = STARTER in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
    return int(os.environ[STARTER]) if own_launcher else os.getppid()


def several_started() -> bool:
    """Whether a launcher started several processes (torchrun, SLURM's srun, one command per node)."""
    tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    return any(number.isdigit() and int(number) > 1 for number in (os.environ.get("WORLD_SIZE", "1"), tasks)) or "NODE_RANK" in os.environ


def job_identity() -> list[str]:
    """What tells this job's processes from those of an earlier one on the same directory."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return [os.environ.get(name, "") for name in names]


def own_name() -> str:
    """What messages of other processes call this one."""
    number = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK", "?")
    node = os.environ.get("NODE_RANK", "") if "RANK" not in os.environ else ""
    return f"rank {number}{f' of node {node}' if node not in ('', '0') else ''} on {socket.gethostname()}"


def on_one_machine() -> bool:
    """Whether all processes of the job run on this machine."""
    if "SLURM_PROCID" in os.environ:
        return os.environ.get("SLURM_JOB_NUM_NODES", os.environ.get("SLURM_NNODES", "")) == "1"
    if "LOCAL_WORLD_SIZE" in os.environ:
        return os.environ["LOCAL_WORLD_SIZE"] == os.environ.get("WORLD_SIZE")
    return "NODE_RANK" not in os.environ


def wait_for(done: Callable[[], bool], *, every: float = 0.5) -> bool:
    """Wait until ``done``; False where the process that started this one, or the job's first process, ended before."""
    from lightning_e5.distributed.ranks import first_ended

    parent = started_by()
    while not done():
        if os.getppid() != parent or first_ended():
            return done()
        time.sleep(every)
    return True


def leave_after_first(seconds: float = 10.0) -> None:
    """In any process but the first: wait a moment for the first to end, so that its message and exit code are the job's."""
    if not is_first_process():
        until = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > until)


def end_with_parent() -> None:
    """In a Python worker: end it at once when the process that started it ends, however that happens (a command gets SIGTERM instead:
    `lightning_e5.ablation.launchers.sigterm_with_parent`)."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
