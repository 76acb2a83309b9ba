"""An ablation's runs as jobs of SLURM: submitted as an array, asked about with ``squeue``, continued where they are preempted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.ablation.cluster_job import ClusterJob
from lightning_e5.errors import UserError
from lightning_e5.interrupts import exit_code

#: The signal at which submitit saves and requeues a job; SLURM sends it to all processes of the job, and at this one a training saves.
SIGNAL = "USR1"
#: How often a job may reach its time limit.
_TIME_LIMITS = 10_000
#: Seconds between two questions to SLURM; seconds in which a result may come late (a shared file system), before a job that SLURM
#: knows no more counts as lost.
_ASK_SECONDS, _LATE_SECONDS = 5.0, 20.0
#: States of a job that has a machine.
_AT_WORK = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")
#: Beside submitit's files: it was `ablate` that ended the jobs.
_STOPPED = "stopped"


class SlurmLauncher:
    """Jobs of SLURM, submitted by ``submitit``; a job that is preempted or out of time is requeued and continues.

    All that is started before the next look at what ended is one array.

    Args:
        folder: of submitit's files; all nodes see it under this path.
        gpus_per_job: of one node; a process each.
        parameters: of ``submitit.AutoExecutor``, such as slurm_partition or timeout_min; ``cluster`` names another executor.
        jobs: at the same time; None leaves that to SLURM.

    Raises:
        UserError: submitit is missing, no SLURM is here, or a parameter is wrong.
    """

    def __init__(self, folder: Path, gpus_per_job: int | None, parameters: Mapping[str, Any], jobs: int | None) -> None:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL  # for the jobs, which inherit it, and for submitit's import
        try:
            import submitit
        except ImportError:
            raise UserError("--launcher slurm needs the package submitit (python -m pip install submitit)") from None
        submitit.core.job_environment.JobEnvironment.USR_SIG = SIGNAL
        given = dict(parameters)
        cluster = given.pop("cluster", "slurm")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("--launcher slurm: there is no sbatch on this machine")
        if jobs is not None and jobs < 1:
            raise UserError(f"--jobs {jobs}: must be at least 1")
        self.slots = 10_000
        self._asks = cluster == "slurm"
        self._folder = folder
        self._new: dict[str, ClusterJob] = {}
        self._jobs: dict[str, Any] = {}
        self._logs: dict[str, Path] = {}
        self._states: dict[str, str] | None = None
        self._asked_at = float("-inf")
        self._lost_since: dict[str, float] = {}
        self._stopped = False
        gpus = {"gpus_per_node": gpus_per_job, "tasks_per_node": gpus_per_job} if gpus_per_job else {}
        slurm = {"slurm_array_parallelism": jobs or self.slots, "slurm_additional_parameters": {"requeue": True}} if self._asks else {}
        try:
            self._executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster, slurm_max_num_timeout=_TIME_LIMITS)
            self._executor.update_parameters(**{"name": folder.parent.name, "timeout_min": 24 * 60, **gpus, **slurm, **given})
        except (TypeError, ValueError, NameError, RuntimeError) as error:
            raise UserError(f"--slurm: {str(error).splitlines()[0]}") from None
        (folder / _STOPPED).unlink(missing_ok=True)

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Have a job submitted with the others that are started now."""
        self._logs[name] = log
        self._new[name] = ClusterJob(list(command), str(log), os.getcwd(), str(self._folder / _STOPPED))

    def ended(self) -> dict[str, int]:
        """Exit codes of the jobs that ended since the last call; a job that SLURM ended has 1.

        Raises:
            UserError: SLURM refuses the jobs.
        """
        if self._stopped:
            codes = dict.fromkeys(self._new, exit_code(signal.SIGTERM))
            self._new.clear()
        else:
            codes = {}
            self._submit()
        if self._jobs:
            self._ask()
        codes |= {name: code for name, job in self._jobs.items() if (code := self._code(name, job)) is not None}
        for name in codes:
            self._jobs.pop(name, None)
        return codes

    def queued(self) -> set[str]:
        """The jobs that have no machine, before they begin or after they were requeued."""
        if not self._asks:
            return set()
        return {*self._new, *(name for name, job in self._jobs.items() if (self._states or {}).get(job.job_id) not in _AT_WORK)}

    def stop(self, *, kill: bool = False) -> None:
        """Cancel the jobs: SLURM sends SIGTERM, at which a training saves a checkpoint, and later, or with ``kill`` now, SIGKILL."""
        self._stopped, self._asked_at = True, float("-inf")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / _STOPPED).touch()
        if not self._asks:
            for job in self._jobs.values():
                job.cancel(check=False)
        elif self._jobs:
            now = ["--signal=KILL"] if kill else []
            subprocess.run(["scancel", *now, *(job.job_id for job in self._jobs.values())], capture_output=True)

    def _submit(self) -> None:
        if not self._new:
            return
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        new, self._new = self._new, {}
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(job) for job in new.values()]
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"--launcher slurm: sbatch refuses the jobs ({lines[-1] if lines else error})") from None
        self._jobs |= zip(new, jobs, strict=True)

    def _ask(self) -> None:
        """Ask SLURM for the states of this user's jobs, where it is time to; None where it does not answer."""
        if not self._asks or time.monotonic() - self._asked_at < _ASK_SECONDS:
            return
        # Not of these jobs alone: of one that it knows no more squeue makes an error. Not sacct: many clusters keep no accounts.
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T"]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line.strip().partition("|") for line in done.stdout.splitlines()]
        self._states = {job: state for job, _, state in rows} if done.returncode == 0 else None
        self._asked_at = time.monotonic()

    def _code(self, name: str, job: Any) -> int | None:
        """The exit code of a job's first process, whose end is the run's; None as long as it has none."""
        first = job.task(0)
        if first.paths.result_pickle.exists() or (not self._asks and job.done()):
            return _exit_code(first)
        if self._states is None or job.job_id in self._states:
            self._lost_since.pop(name, None)
            return None
        if self._stopped:  # before it began
            return exit_code(signal.SIGTERM)
        if time.monotonic() - self._lost_since.setdefault(name, time.monotonic()) < _LATE_SECONDS:
            return None
        with self._logs[name].open("a", encoding="utf-8") as log:
            log.write(f"error: SLURM ended the job {job.job_id} of this run; see {first.paths.stderr}\n")
        return 1


def _exit_code(first: Any) -> int:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return abs(int(first.result()))
    except (FailedJobError, UncompletedJobError):
        return 1
