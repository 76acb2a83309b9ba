"""What a cluster's job executes: one command, continued by a new job where the cluster takes its machine away."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from lightning_e5.ablation.launchers import sigterm_with_parent


class ClusterJob:
    """A command whose output is appended to a log; its call returns the exit code.

    Args:
        command: what is executed.
        log: file that gets the output of the job's first process.
        directory: where it is executed.
    """

    def __init__(self, command: list[str], log: str, directory: str) -> None:
        self.command, self.log, self.directory = command, log, directory
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Execute the command."""
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        with Path(self.log).open("ab") if first else Path(os.devnull).open("wb") as output:
            self._process = subprocess.Popen(
                self.command, cwd=self.directory, stdout=output, stderr=subprocess.STDOUT, preexec_fn=sigterm_with_parent
            )
            return self._process.wait()

    def checkpoint(self) -> Any:
        """Called by submitit where the job is preempted or out of time: the training saves, and a new job continues it."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        return submitit.helpers.DelayedSubmission(ClusterJob(self.command, self.log, self.directory))
