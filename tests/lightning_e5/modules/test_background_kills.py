"""SIGKILL while a thread writes a checkpoint, and at other times: what is left is whole, and a resume ends where an uninterrupted training does.

The trainings are forks of this process, which save the imports; `benchmarks/kill_loop.py` does the same to processes of their own.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.modules.fit import fit
from lightning_e5.training.checkpointing import latest_checkpoint, load_checkpoint
from lightning_e5.training.optimizer import AdamWConfig
from tests.lightning_e5.modules.scheme_run import CASES, RandomPairs, encoder

STEPS, KILLS, EVERY = 30, 20, 3


def train(directory: Path, *, background: bool) -> None:
    """A training of `STEPS` steps on a disk that takes a millisecond for each write; its last state lands in ``final.pt``."""
    torch.set_num_threads(1)
    write = os.write

    def slow(handle: int, data: Any) -> int:
        if threading.current_thread().name == "checkpoint":
            time.sleep(0.001)
        return write(handle, data)

    os.write = slow  # of this process, which does nothing else
    scheme, negatives, options = CASES["pre_batch-1"]
    module = scheme(encoder(), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=STEPS, **options).double()
    data = RandomPairs(negatives)
    data.max_steps = STEPS
    fit(
        module, data, checkpoints=directory, title="run", accelerator="cpu", devices=1, checkpoint_steps=EVERY,
        chunk_tokens=64, graph_tokens=200, background_checkpoints=background,
    )  # fmt: skip
    torch.save({"module": module.state_dict(), "optimizer": module.optimizers().optimizer.state_dict()}, directory / "final.pt")  # type: ignore[union-attr]


def forked(directory: Path, *, background: bool) -> int:
    """The number of a new process that trains."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(directory.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            train(directory, background=background)
            code = 0
        finally:
            os._exit(code)
    return child


def whole_run(directory: Path, *, background: bool) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(os.waitpid(forked(directory, background=background), 0)[1])
    assert code == 0, directory.with_suffix(".log").read_text()[-2000:]
    return torch.load(directory / "final.pt", weights_only=True)  # type: ignore[no-any-return]


def killed(directory: Path, draw: random.Random, *, writing: bool) -> bool:
    """Train until the moment comes, then SIGKILL; False where the training ended before."""
    child, begun = forked(directory, background=True), latest_checkpoint(directory)
    until = time.monotonic() + draw.uniform(0.0, 0.3)
    while (latest_whole(directory) <= (begun.step if begun else 0)) or time.monotonic() < until:  # some progress at least
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.01)
    while writing and not any(directory.glob(".step-*.tmp")):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def latest_whole(directory: Path) -> int:
    """The step of the newest checkpoint with a record, by its name; nothing is read or removed while the training goes on."""
    return max((int(path.stem[5:]) for path in directory.glob("step-*.json")), default=0)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a fork has no GPU")
def test_many_kills_half_of_them_within_the_writing(tmp_path: Path) -> None:
    expected, draw = whole_run(tmp_path / "direct", background=False), random.Random(0)
    counts = {True: 0, False: 0}
    left_behind, rounds = 0, 0
    while sum(counts.values()) < KILLS:
        rounds += 1
        assert rounds < 10 * KILLS
        directory = tmp_path / f"killed-{rounds}"
        while sum(counts.values()) < KILLS:
            writing = counts[True] <= counts[False]
            if not killed(directory, draw, writing=writing):
                break
            counts[writing] += 1
            left_behind += any(directory.glob(".step-*.tmp"))
            latest = latest_checkpoint(directory)
            assert latest is not None and load_checkpoint(latest.path)["global_step"] == latest.step
        ended = whole_run(directory, background=True)
        for part in ("module", "optimizer"):
            assert differing(expected[part], ended[part]) == []
    assert counts == {True: KILLS // 2, False: KILLS // 2} and left_behind >= KILLS // 2, "half of them left half a file"


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict):
        return [n for k in one for n in differing(one[k], other[k], f"{name}.{k}")]
    if isinstance(one, list):
        return [n for i, (a, b) in enumerate(zip(one, other, strict=True)) for n in differing(a, b, f"{name}[{i}]")]
    return [] if one == other else [name]
