"""Trainings whose checkpoints a thread writes: the steps go on, every checkpoint is of its step, and the end waits for the last one."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.callbacks import PeriodicCheckpoint
from lightning_e5.modules.fit import fit
from lightning_e5.training.background_writer import HostCopy
from lightning_e5.training.checkpointing import checkpoint_path, latest_checkpoint, load_checkpoint
from lightning_e5.training.optimizer import AdamWConfig
from tests.lightning_e5.modules.scheme_run import CASES, STEPS, RandomPairs, encoder
from tests.lightning_e5.training.test_background_writer import SlowDisk


class EachStep:
    """A log that does something in a step."""

    def __init__(self, action: Callable[[int], object] = lambda step: None) -> None:
        self.action, self.losses = action, dict[int, float]()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.losses[step] = metrics["loss"]
        self.action(step)


def train(directory: Path, log: EachStep, *, background: bool = True, every: int = 2) -> TrainingModule:
    scheme, negatives, options = CASES["pre_batch-1"]
    module = scheme(encoder(), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-2), max_steps=STEPS, **options).double()
    fit(
        module, RandomPairs(negatives), checkpoints=directory, title="run", accelerator="cpu", devices=1, checkpoint_steps=every,
        chunk_tokens=64, graph_tokens=200, logs=[log], background_checkpoints=background,
    )  # fmt: skip
    assert not [t for t in threading.enumerate() if t.name in ("checkpoint", "batches")]
    return module


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], dict[int, float]]:
    """A training that writes its checkpoints itself: their directory, its last weights, the losses of its steps."""
    directory, log = tmp_path_factory.mktemp("direct"), EachStep()
    return directory, train(directory, log, background=False).state_dict(), log.losses


def unequal(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict):
        return [] if one.keys() == other.keys() == set() else [n for k in one for n in unequal(one[k], other[k], f"{name}.{k}")]
    if isinstance(one, list | tuple):
        return [n for i, (a, b) in enumerate(zip(one, other, strict=True)) for n in unequal(a, b, f"{name}[{i}]")]
    return [] if one == other else [name]


def held_up(directory: Path, disk: SlowDisk) -> dict[str, Any]:
    """The checkpoint of step 2, of which the disk takes nothing before step 4 is done."""

    def in_step(step: int) -> None:
        if step == STEPS:
            assert disk.reached.wait(30.0) and not checkpoint_path(directory, 2).exists(), "steps 3 and 4 went on meanwhile"
            threading.Timer(0.2, disk.gate.set).start()

    log = EachStep(in_step)
    train(directory, log)
    assert list(log.losses) == [1, 2, 3, 4]
    return load_checkpoint(checkpoint_path(directory, 2))


def test_steps_go_on_and_the_checkpoint_is_of_its_step(tmp_path: Path, direct: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = held_up(tmp_path / "thread", SlowDisk(monkeypatch))
    expected = load_checkpoint(checkpoint_path(direct[0], 2))
    assert found["global_step"] == 2 and unequal(expected, found) == []
    monkeypatch.setattr(HostCopy, "take", lambda self, state: (dict(state), []))  # the control
    differing = unequal(expected, held_up(tmp_path / "control", SlowDisk(monkeypatch)))
    assert ".state_dict.queue.embeddings_KD" in differing and any(name.startswith(".optimizer_states[0].state") for name in differing)


def test_a_resume_from_it_ends_as_the_direct_ones_do(tmp_path: Path, direct: Any) -> None:
    _, weights, losses = direct
    whole, first = train(tmp_path, EachStep()), EachStep()
    rest = train(tmp_path, first)
    assert list(first.losses) == [3, 4] and first.losses == {step: losses[step] for step in (3, 4)}
    assert unequal(weights, whole.state_dict()) == unequal(weights, rest.state_dict()) == []


def test_a_full_disk_ends_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def full(handle: int, data: Any) -> int:
        if threading.current_thread().name == "checkpoint":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    def in_step(step: int) -> None:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()

    monkeypatch.setattr(os, "write", full)
    log = EachStep(in_step)
    with pytest.raises(OSError, match=r"the checkpoint could not be written \(no space left.*step-00000002"):
        train(tmp_path, log)
    assert list(log.losses) == [1, 2, 3] and latest_checkpoint(tmp_path) is None and not list(tmp_path.iterdir())


def test_an_exception_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)

    def in_step(step: int) -> None:
        if step == 3:
            threading.Timer(0.2, disk.gate.set).start()
            raise RuntimeError("of the training")

    with pytest.raises(RuntimeError, match="of the training"):
        train(tmp_path, EachStep(in_step))
    assert not [t for t in threading.enumerate() if t.name in ("checkpoint", "batches")]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.step == 2


def test_a_signal_ends_the_writing_and_then_saves_the_last_step(tmp_path: Path, direct: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)

    def in_step(step: int) -> None:
        if step == 3:
            assert disk.reached.wait(30.0)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            threading.Timer(0.2, disk.gate.set).start()

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, EachStep(in_step))
    assert stopped.value.code == 143 and sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["step-00000002.ckpt", "step-00000003.ckpt"]
    latest, log = latest_checkpoint(tmp_path), EachStep()
    assert latest is not None and latest.step == 3
    rest = train(tmp_path, log)
    assert list(log.losses) == [4] and unequal(direct[1], rest.state_dict()) == []


def test_a_step_that_is_given_up_leaves_the_checkpoint_that_was_being_written(tmp_path: Path, direct: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step before is the last one, and its checkpoint is the one that the disk is slow with: it is not written twice."""
    disk, renamed, replace = SlowDisk(monkeypatch), list[str](), os.replace

    def replaced(old: Any, new: Any) -> None:
        renamed.append(Path(new).name)
        replace(old, new)

    def at_chunk(self: Any, ids_T: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        if self.global_step == 2 and not disk.gate.is_set():
            assert disk.reached.wait(30.0)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            threading.Timer(0.2, disk.gate.set).start()
        return embed(self, ids_T, lengths)

    scheme = CASES["pre_batch-1"][0]
    embed = scheme.embed_chunk  # type: ignore[attr-defined]
    monkeypatch.setattr(scheme, "embed_chunk", at_chunk)
    monkeypatch.setattr(os, "replace", replaced)
    log = EachStep()
    with pytest.raises(SystemExit):
        train(tmp_path, log)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.step == 2 and list(log.losses) == [1, 2]
    assert renamed == ["step-00000002.ckpt", "step-00000002.json"]
    assert unequal(load_checkpoint(checkpoint_path(direct[0], 2)), load_checkpoint(latest.path)) == []


def test_how_often_and_who_writes_follow_the_device(tmp_path: Path) -> None:
    class Trainer:
        strategy = type("", (), {"checkpoint_io": None})

    def chosen(device: str, **given: Any) -> tuple[Any, Any]:
        callback = PeriodicCheckpoint(tmp_path, **given)
        callback.on_train_start(Trainer(), type("", (), {"device": torch.device(device)})())  # type: ignore[arg-type]
        return callback.every_seconds, callback.background

    assert chosen("cpu") == (60.0, False) and chosen("cuda")[0] == 600.0
    assert chosen("cuda", every_seconds=5.0, background=False) == (5.0, False)
