"""Where an ablation's runs are executed: as processes of this machine, or as jobs of SLURM (`lightning_e5.ablation.slurm`)."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lightning_e5.errors import UserError

_PR_SET_PDEATHSIG = 1


class Launcher(Protocol):
    """Starts commands and tells how they ended."""

    slots: int

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a command; its output is appended to ``log``."""
        ...

    def ended(self) -> dict[str, int]:
        """Exit codes, by name, of the commands that ended since the last call (negative: by that signal)."""
        ...

    def queued(self) -> set[str]:
        """The names of the started commands that wait for a machine."""
        ...

    def stop(self, *, kill: bool = False) -> None:
        """Ask all commands to save what they have and end; ``kill``: end them now."""
        ...


class LocalLauncher:
    """Processes of this machine, each with GPUs of its own where there are any.

    Args:
        jobs: at the same time; None for as many as there are sets of GPUs, one without GPUs.
        gpus: identifiers for CUDA_VISIBLE_DEVICES; empty without GPUs.
        gpus_per_job: in each job's set.

    Raises:
        UserError: more GPUs are asked for than there are.
    """

    def __init__(self, jobs: int | None, gpus: Sequence[str], gpus_per_job: int) -> None:
        if gpus_per_job < 1:
            raise UserError(f"--gpus-per-job {gpus_per_job}: must be at least 1")
        if gpus and gpus_per_job > len(gpus):
            raise UserError(f"--gpus-per-job {gpus_per_job}: this machine shows {len(gpus)} GPUs")
        ends = range(gpus_per_job, len(gpus) + 1, gpus_per_job)
        sets: list[str | None] = [",".join(gpus[end - gpus_per_job : end]) for end in ends]
        self.slots = jobs if jobs is not None else len(sets) or 1
        if self.slots < 1:
            raise UserError(f"--jobs {self.slots}: must be at least 1")
        if sets and self.slots > len(sets):
            raise UserError(f"--jobs {self.slots}: {gpus_per_job} GPUs each are more than the {len(gpus)} of this machine")
        self._free = sets[: self.slots] or [None] * self.slots
        self._running: dict[str, tuple[subprocess.Popen[bytes], str | None]] = {}

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a command; it is asked to end where this process dies."""
        gpus = self._free.pop(0)
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None else {})
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
                preexec_fn=sigterm_with_parent,
            )
        self._running[name] = (process, gpus)

    def ended(self) -> dict[str, int]:
        """Exit codes of the commands that ended since the last call."""
        codes = {name: code for name, (process, _) in self._running.items() if (code := process.poll()) is not None}
        for name in codes:
            self._free.append(self._running.pop(name)[1])
        return codes

    def queued(self) -> set[str]:
        """None: a command begins when it is started."""
        return set()

    def stop(self, *, kill: bool = False) -> None:
        """SIGTERM, at which a training saves a checkpoint, or SIGKILL, to every command and what it started."""
        for process, _ in self._running.values():
            try:
                if kill:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.send_signal(signal.SIGTERM)
            except ProcessLookupError:
                continue


def sigterm_with_parent() -> None:
    """In a child, before its command: SIGTERM where its parent dies, however that happens (Linux)."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except AttributeError:
        return


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs that this process may use, found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run([program, "-L"], capture_output=True, text=True)
    return [str(n) for n, _ in enumerate(line for line in done.stdout.splitlines() if line.startswith("GPU "))]
