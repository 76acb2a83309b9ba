"""An experiment with a stage on two ranks: the first process does everything, the other takes part in that stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import alive, outside_of_jobs

ROOT = Path(__file__).resolve().parents[1]
LOST = "stopped: {}the first process (rank 0) ended without a word: it was killed, or its machine is gone"


@pytest.mark.slow  # modules/test_ranks.py compares every scheme on one rank and on two
def test_a_run_with_a_stage_on_two_ranks(smoke_run: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "two_ranks.yaml"
    experiment.write_text(
        f"extends: {ROOT / 'experiments' / 'smoke.yaml'}\nname: two_ranks\n"
        "stages:\n"
        "  noisy: {module: {token_dropout: 0.0}, trainer: {accelerator: cpu, devices: 2, backend: gloo}}\n"
        "  finetune: {trainer: {accelerator: cpu, devices: 2, backend: gloo}}\n"
    )
    command = [sys.executable, "-m", "lightning_e5", "run", str(experiment), f"runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=outside_of_jobs(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stderr == "", "no remark of DDP, gloo or Lightning, from either rank"
    assert done.stdout.count("[10/10] evaluate: done") == 1, "every stage is done once, by one process"
    alone, together = (json.loads((p / "metrics.json").read_text()) for p in (smoke_run, tmp_path / "two_ranks"))
    assert together["noisy/steps"] == alone["noisy/steps"] and together["noisy/pairs_seen"] == alone["noisy/pairs_seen"]
    rows = [json.loads(line) for line in (tmp_path / "two_ranks/stages/noisy/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))


def descendants(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(p) for p in path.read_text().split()] if path.exists() else []
    return [*own, *(d for child in own for d in descendants(child))]


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def wait_until(done: Callable[[], object], seconds: float) -> float:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, "did not happen in time"
        time.sleep(0.1)
    return time.monotonic() - began


def gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_the_first_process_is_killed_while_it_makes_data(tmp_path: Path, launcher: str) -> None:
    """The stage of pairs runs in the first process alone; the other waits for it, under SLURM until now for 24 hours."""
    run = ["-m", "lightning_e5", "run", str(ROOT / "experiments/smoke.yaml"), f"runs_dir={tmp_path}"]
    with (tmp_path / "errors.txt").open("w") as errors:
        if launcher == "torchrun":
            options = ["--nproc-per-node", "2", "--master-port", "0", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-backend", "c10d"]
            commands = [(["-m", "torch.distributed.run", *options, *run], {})]
        else:
            slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1"}
            commands = [(run, {**slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}) for rank in range(2)]
        started = [
            subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**outside_of_jobs(), **own}, stdout=subprocess.DEVNULL, stderr=errors)
            for command, own in commands
        ]
    address = tmp_path / ".smoke.ranks.json"
    began = tmp_path / "smoke/stages/pairs/started.json"
    wait_until(lambda: (address.exists() and began.exists()) or any(p.poll() is not None for p in started), 240)
    assert began.exists(), (tmp_path / "errors.txt").read_text()
    pids = [p for top in started for p in (top.pid, *descendants(top.pid))]
    name = "RANK" if launcher == "torchrun" else "SLURM_PROCID"
    first, other = (next(p for p in pids if f"\0{name}={rank}\0" in f"\0{environment_of(p)}\0") for rank in range(2))
    # Connected: a socket beside those of the standard streams.
    wait_until(lambda: any("socket:" in os.readlink(f) for f in Path(f"/proc/{other}/fd").iterdir()), 240)
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: gone([other]), 60) < 30
    assert started[-1].wait(timeout=60) != 0
    for process in started:
        process.wait(timeout=60)
    said = (tmp_path / "errors.txt").read_text()
    assert LOST.format("stage pairs: ") in said or LOST.format("") in said


@pytest.mark.slow
def test_the_first_process_is_killed_after_a_training_on_two_ranks(tmp_path: Path) -> None:
    experiment = tmp_path / "two_ranks.yaml"
    experiment.write_text(
        f"extends: {ROOT / 'experiments' / 'smoke.yaml'}\nname: two_ranks\n"
        "stages:\n  noisy: {module: {token_dropout: 0.0}, trainer: {accelerator: cpu, devices: 2, backend: gloo}}\n"
    )
    command = [sys.executable, "-u", "-m", "lightning_e5", "run", str(experiment), f"runs_dir={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, env=outside_of_jobs(), stdout=subprocess.PIPE, stderr=(tmp_path / "errors.txt").open("w"), text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "filter: starts" in line:
            break
    others = descendants(process.pid)
    assert others
    process.kill()
    assert wait_until(lambda: gone(others), 60) < 30
    assert LOST.format("stage filter: ") in (tmp_path / "errors.txt").read_text()


STAGES = ("pairs", "start", "noisy", "filter", "pretrain", "negatives", "teacher", "scores", "finetune", "evaluate")


@pytest.mark.slow
def test_told_to_end_in_every_stage_it_does_so_soon_and_goes_on_later(smoke_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "lightning_e5", "run", str(ROOT / "experiments/smoke.yaml"), f"runs_dir={tmp_path}"]
    for number, stage in enumerate(STAGES):
        sent, code, said = ((signal.SIGTERM, 143, "stopped"), (signal.SIGINT, 130, "interrupted"))[number % 2]
        process = subprocess.Popen(command, cwd=ROOT, env=outside_of_jobs(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if f"{stage}: starts" in line or f"{stage}: continues" in line:
                break
        time.sleep(0.5)
        pids = descendants(process.pid)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (code, f"{said}; the same command continues\n"), stage
        wait_until(lambda pids=pids: gone(pids), 20)
    done = subprocess.run(command, cwd=ROOT, env=outside_of_jobs(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "smoke" / "metrics.json").read_bytes() == (smoke_run / "metrics.json").read_bytes()
