"""Whichever process of a job ends, and however, the others end soon with a sentence, under every launcher's environment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import outside_of_jobs

ROOT = Path(__file__).resolve().parents[3]
#: What a process of a job does: joins, says so, then waits for what never comes, as others wait for the first one.
PROCESS = """
import sys, time
from pathlib import Path
from lightning_e5.distributed import ranks
from lightning_e5.cli.ending import ending
from lightning_e5.errors import UserError
from lightning_e5.interrupts import ending_on_signals
from lightning_e5.distributed.launch import wait_for
directory, deed = Path(sys.argv[1]), sys.argv[2]
ranks.GRACE_SECONDS = 1.0

def verb(arguments):
    with ranks.together(directory / "run"):
        (directory / f"joined-{sys.argv[3]}").touch()
        if not wait_for(lambda: (directory / "go").exists(), every=0.05):
            raise ranks.TrainingStopped(ranks.loss() or "the first process ended")
        if deed == "raise":
            raise UserError("data.jsonl: a mistake")
        if deed == "hang":
            time.sleep(1000)
        if deed == "wait":
            wait_for(lambda: False, every=0.05)
            raise ranks.TrainingStopped(ranks.loss() or "the first process ended")
    return 0

with ending_on_signals():
    sys.exit(ending(lambda: verb(None)))
"""
LAUNCHERS = {
    "torchrun": lambda rank: {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "x"},
    "slurm": lambda rank: {"SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}", "SLURM_NTASKS": "3", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"},
    "several nodes": lambda rank: {"SLURM_PROCID": f"{rank}", "SLURM_NTASKS": "3", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"},
}


class Job:
    """Three processes, each with something to do once all have joined."""

    def __init__(self, directory: Path, launcher: str, *deeds: str) -> None:
        self.directory = directory
        self.processes = [
            subprocess.Popen([sys.executable, "-c", PROCESS, str(directory), deed, str(rank)], cwd=ROOT, env={**outside_of_jobs(), **LAUNCHERS[launcher](rank)}, stderr=subprocess.PIPE, text=True)
            for rank, deed in enumerate(deeds)
        ]
        until = time.monotonic() + 60
        while len(list(directory.glob("joined-*"))) < len(deeds):
            assert time.monotonic() < until and all(p.poll() is None for p in self.processes), [p.poll() for p in self.processes]
            time.sleep(0.05)
        time.sleep(0.2)

    def go(self) -> None:
        (self.directory / "go").touch()

    def ends(self, seconds: float = 20.0) -> list[tuple[int, str]]:
        until = time.monotonic() + seconds
        ended = [(p.communicate(timeout=max(0.1, until - time.monotonic()))[1], p.returncode) for p in self.processes]
        assert not list(self.directory.glob(".*.json")) or self.processes[0].returncode == -9, "the address is gone with the first process"
        return [(code, errors) for errors, code in ended]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[list[Job]]:
    made: list[Job] = []
    yield made
    for job in made:
        for process in job.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_the_death_of_the_first_process(tmp_path: Path, jobs: list[Job], launcher: str) -> None:
    jobs.append(job := Job(tmp_path, launcher, "wait", "wait", "hang"))
    job.processes[0].kill()
    (_, _), *others = job.ends()
    for code, errors in others:
        assert code == 1 and errors == "stopped: the first process (rank 0) ended without a word: it was killed, or its machine is gone\n"


def test_an_error_of_the_first_process(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "slurm", "raise", "wait", "hang"))
    job.go()
    (code, errors), *others = job.ends()
    assert (code, errors) == (2, "error: data.jsonl: a mistake\n")
    for code, errors in others:
        assert code == 1 and errors == "stopped: the first process (rank 0) failed (UserError: data.jsonl: a mistake)\n"


def test_the_death_of_another_ends_all(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "torchrun", "hang", "wait", "wait"))
    job.go()
    job.processes[2].kill()
    for code, errors in job.ends()[:2]:
        assert code == 1 and errors.startswith("stopped: rank 2 on ") and errors.count("\n") == 1


def test_a_signal_to_one_stops_all(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "slurm", "hang", "wait", "wait"))
    job.go()
    job.processes[1].terminate()
    assert job.ends() == [(143, "stopped; the same command continues\n")] * 3


def test_the_end_of_the_work_is_no_failure(tmp_path: Path, jobs: list[Job]) -> None:
    """The control: one that is done leaves, and those that go on do so in peace."""
    jobs.append(job := Job(tmp_path, "torchrun", "work", "work", "work"))
    job.processes[1].send_signal(signal.SIGSTOP)  # silence is no failure either
    time.sleep(1.5)
    assert [p.poll() for p in job.processes] == [None] * 3
    job.go()
    time.sleep(0.5)
    job.processes[1].send_signal(signal.SIGCONT)
    assert job.ends() == [(0, "")] * 3


def test_a_stranger_is_not_let_in(tmp_path: Path, jobs: list[Job]) -> None:
    import json
    import socket

    jobs.append(job := Job(tmp_path, "torchrun", "work", "work", "work"))
    address = json.loads((path := tmp_path / ".run.ranks.json").read_text())
    assert path.stat().st_mode & 0o077 == 0, "the token is this user's"
    for said in (b'{"token": "x", "name": "y"}\n', b"[]\n", b"GET / HTTP/1.1\n\n", b""):
        with socket.create_connection(("127.0.0.1", address["port"]), timeout=20) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""
    job.go()
    assert job.ends() == [(0, "")] * 3
