"""What a cluster's job executes: one command, continued by the same job where the cluster takes its machine away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_e5.ablation.launchers import sigterm_with_parent
from lightning_e5.interrupts import exit_code

#: Seconds in which SLURM ends a job that it has asked to stop.
_END_SECONDS = 600.0


class ClusterJob:
    """A command whose output is appended to a log; its call returns the exit code.

    Args:
        command: what is executed.
        log: file that gets the output of the job's first process.
        directory: where it is executed.
        stopped: file that is there where `ablate` itself cancelled the job.
    """

    def __init__(self, command: list[str], log: str, directory: str, stopped: str) -> None:
        self.command, self.log, self.directory, self.stopped = command, log, directory, stopped
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Execute the command."""
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        with Path(self.log).open("ab") if first else nullcontext() as output:  # what others say is kept by submitit, a file per task
            self._process = subprocess.Popen(
                self.command, cwd=self.directory, stdout=output, stderr=subprocess.STDOUT, preexec_fn=sigterm_with_parent
            )
            code = self._process.wait()
        if code in (exit_code(signal.SIGTERM), -signal.SIGTERM, -signal.SIGUSR1) and "SLURM_JOB_ID" in os.environ:
            self._await_end()
        return code

    def _await_end(self) -> None:
        """Wait for SLURM, which asked the command to stop, to end this process.

        Returning would say that the run has ended, where SLURM preempts the job and requeues it; and a job that ends by itself in the
        time that a preemption grants it is not requeued.
        """
        until = time.monotonic() + _END_SECONDS
        while not Path(self.stopped).exists() and time.monotonic() < until:
            time.sleep(0.2)

    def checkpoint(self) -> Any:
        """Called by submitit where the job is preempted or out of time: the training saves, and the requeued job continues it."""
        import submitit

        if self._process is not None and not _ended(self._process.pid):
            os.kill(self._process.pid, signal.SIGTERM)
            while not _ended(self._process.pid):
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(ClusterJob(self.command, self.log, self.directory, self.stopped))


def _ended(process: int) -> bool:
    """Whether a child has ended; without ``Popen``, whose lock `ClusterJob.__call__`, which a signal interrupts, holds while it waits."""
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
