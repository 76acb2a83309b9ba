"""A training that is told to stop, runs out of memory, meets a value that is not finite, or loses a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.training.checkpointing import latest_checkpoint, load_checkpoint
from tests.processes import alive, outside_of_jobs

ROOT = Path(__file__).resolve().parents[3]
CASE = "in_batch-1"


def start(out: Path, ranks: int, case: str = CASE, **settings: object) -> subprocess.Popen[str]:
    script = ROOT / "tests/lightning_e5/modules/scheme_run.py"
    environment = outside_of_jobs() | {f"SCHEME_{k.upper()}": str(v) for k, v in settings.items()} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script), str(out), str(ranks), case], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def wait_until(done: Callable[[], object], seconds: float = 240) -> Any:
    until = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)
    return found


def wait_for_checkpoint(out: Path) -> None:
    wait_until(lambda: list((out / CASE).glob("step-*.json")))


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in path.read_text().split()] if path.exists() else []


def result(out: Path, ranks: int, case: str = CASE) -> dict[str, Any]:
    return dict(torch.load(out / f"ranks-{ranks}.pt", weights_only=True)[case])


def state(out: Path, ranks: int, case: str = CASE) -> dict[str, torch.Tensor]:
    return dict(result(out, ranks, case)["state"])


@pytest.mark.parametrize(
    ("ranks", "told", "number"),
    [
        (1, [0], signal.SIGTERM),
        pytest.param(2, [1], signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(2, [0], signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(2, [0, 1], signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(2, [1, 0], signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_or_all_ranks_stops_all_after_a_checkpoint(tmp_path: Path, ranks: int, told: list[int], number: int) -> None:
    process = start(tmp_path, ranks, steps=100_000)
    wait_for_checkpoint(tmp_path)
    pids = [process.pid, *children(process.pid)]
    assert len(pids) == ranks
    for rank in told:
        os.kill(pids[rank], number)
    sent = time.monotonic()
    code, errors = finish(process)
    assert code == 143, errors[-2000:]
    assert time.monotonic() - sent < 30
    wait_until(lambda: not any(map(alive, pids)), 20)
    reached = latest_checkpoint(tmp_path / CASE)
    assert reached is not None and load_checkpoint(reached.path)["global_step"] == reached.step


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    steps = 30
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert finish(start(tmp_path / "whole", 1, steps=steps))[0] == 0
    process = start(tmp_path / "stopped", 1, steps=steps)
    wait_for_checkpoint(tmp_path / "stopped")
    process.terminate()
    assert finish(process)[0] == 143
    assert finish(start(tmp_path / "stopped", 1, steps=steps))[0] == 0
    whole, stopped = state(tmp_path / "whole", 1), state(tmp_path / "stopped", 1)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_out_of_memory_changes_no_gradient(tmp_path: Path, ranks: int) -> None:
    for fault in ("", "oom"):
        (tmp_path / fault).mkdir(exist_ok=True)
        code, errors = finish(start(tmp_path / fault, ranks, fault=fault))
        assert code == 0, errors[-2000:]
        assert ("out of memory" in errors) == (fault == "oom")
    plain, halved = result(tmp_path, ranks), result(tmp_path / "oom", ranks)
    for ours, theirs in zip(plain["rows"], halved["rows"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-12)
        assert theirs["masked_fraction"] == pytest.approx(ours["masked_fraction"])
    for name, gradient in plain["gradients"].items():
        assert torch.allclose(gradient, halved["gradients"][name], rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_a_rank_that_leaves_the_ring_ends_the_job(tmp_path: Path) -> None:
    process = start(tmp_path, 2, case="ring_in_batch-1", fault="ring", steps=100_000)
    wait_until(lambda: children(process.pid))
    pids = [process.pid, *children(process.pid)]
    code, errors = finish(process, seconds=90)
    assert code not in (0, 143) and "planted" in errors
    wait_until(lambda: not any(map(alive, pids)), 30)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_value_that_is_not_finite_stops_all_ranks_before_the_step(tmp_path: Path, ranks: int) -> None:
    code, errors = finish(start(tmp_path, ranks, fault="nan", steps=50))
    assert code not in (0, 143)
    assert "is not finite" in errors and "rows of this rank's batch" in errors
    named = set(re.findall(r"rows whose embeddings are not finite: ([\d, ]+);", errors))
    rows = {int(row) for row in ", ".join(named).split(", ")}
    step = int(re.findall(r"step (\d+): loss", errors)[0])
    last_ranks = range(8 * step + 8 - 8 // ranks, 8 * step + 8)
    assert len(named) == 1 and 0 < len(rows) < len(last_ranks) and rows <= set(last_ranks), "every rank names the culprits, not all rows"
    good = latest_checkpoint(tmp_path / CASE)
    if good is not None:
        assert all(bool(torch.isfinite(v).all()) for v in load_checkpoint(good.path)["state_dict"].values())
    assert not (tmp_path / f"ranks-{ranks}.pt").exists()


@pytest.mark.parametrize("victim", ["first rank", pytest.param("second rank", marks=pytest.mark.slow), pytest.param("data worker", marks=pytest.mark.slow)])
def test_a_dead_process_ends_the_job(tmp_path: Path, victim: str) -> None:
    process = start(tmp_path, 1 if victim == "data worker" else 2, steps=100_000, workers=int(victim == "data worker"))
    wait_for_checkpoint(tmp_path)
    pids = [process.pid, *children(process.pid)]
    os.kill(pids[0] if victim == "first rank" else pids[-1], signal.SIGKILL)
    sent = time.monotonic()
    code, _ = finish(process)
    wait_until(lambda: not any(map(alive, pids)), 30)
    assert code != 0 and time.monotonic() - sent < 30
