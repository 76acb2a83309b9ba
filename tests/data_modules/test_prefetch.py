"""Batches that a thread makes ahead of the steps: the same ones in the same order, no more than were asked for, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.base import StepDataModule
from data_modules.prefetch import Prefetcher
from lightning_e5.errors import UserError
from lightning_e5.types import PairBatch, TokenBatch

STEPS = 8


class Numbered(StepDataModule):
    """Step s has row s alone; how long a batch takes, and which fails, can be said."""

    def __init__(self, prefetch: int, seconds: float = 0.0, fails: int | None = None) -> None:
        super().__init__(batch_size=2, max_steps=STEPS, seed=0, prefetch=prefetch)
        self.seconds, self.fails, self.made = seconds, fails, list[int]()

    def rows_batch(self, rows: Any) -> PairBatch:
        number = torch.from_numpy(rows)
        return PairBatch(TokenBatch(number, number), TokenBatch(number, number), number, number, number)

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        time.sleep(self.seconds)
        if step == self.fails:
            raise UserError(f"row {step}: has no text")
        self.made.append(step)
        return self.rows_batch(np.array([step]))


class Trained(L.LightningModule):
    """Its steps record what they get, and may fail."""

    def __init__(self, fails: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps, self.waits, self.fails = list[int](), list[float](), fails

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        if int(batch.rows_B) == self.fails:
            raise RuntimeError("of the step")
        time.sleep(0.01)
        self.steps.append(int(batch.rows_B))
        self.waits.append(self.trainer.datamodule.data_seconds)  # type: ignore[attr-defined]
        self.optimizers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer() -> L.Trainer:
    return L.Trainer(
        max_steps=STEPS, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


def steps_of(batches: Any) -> list[int]:
    return [int(batch.rows_B) for batch in batches]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "batches"]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 20])
def test_the_same_batches_in_the_same_order(prefetch: int) -> None:
    torch.manual_seed(7)
    loader = Numbered(prefetch).train_dataloader()
    assert len(loader) == STEPS and steps_of(loader) == list(range(STEPS)) == steps_of(loader)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    list(torch.utils.data.DataLoader([0])), list(torch.utils.data.DataLoader([0]))  # each of which draws a seed
    assert torch.equal(drawn, torch.rand(1)) and threads() == []


def test_no_more_are_made_than_there_is_room_for() -> None:
    data = Numbered(3)
    batches = iter(data.train_dataloader())
    next(batches)
    until = time.monotonic() + 10.0
    while len(data.made) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert data.made == [0, 1, 2, 3, 4], "one taken, three in the queue, one in the thread's hands"
    del batches
    gc.collect()
    assert threads() == [], "who takes none any more needs no thread"


def test_a_training_does_not_wait_for_what_can_be_made_meanwhile() -> None:
    waits = {}
    for prefetch in (0, 2):
        module = Trained()
        trainer().fit(module, datamodule=Numbered(prefetch, seconds=0.005))
        assert module.steps == list(range(STEPS)) and threads() == []
        waits[prefetch] = min(module.waits)  # a busy machine makes any one wait
    assert waits[0] >= 0.005 > waits[2]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_comes_in_its_step_with_its_own_words(prefetch: int) -> None:
    module = Trained()
    with pytest.raises(UserError, match=r"^row 3: has no text$"):
        trainer().fit(module, datamodule=Numbered(prefetch, fails=3))
    assert module.steps == [0, 1, 2] and threads() == []


def test_a_training_begins_its_loader_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning asks whether something can be gone through by doing so, which starts the data workers; but a `DataLoader` it knows."""
    begun, begin = [], Prefetcher.__iter__
    monkeypatch.setattr(Prefetcher, "__iter__", lambda self: begun.append(self) or begin(self))
    trainer().fit(Trained(), datamodule=Numbered(2))
    assert len(begun) == 1


def test_an_error_of_a_step_leaves_no_thread() -> None:
    module = Trained(fails=2)
    with pytest.raises(RuntimeError, match="of the step") as raised:
        trainer().fit(module, datamodule=Numbered(1))
    assert threads() == [] and raised.value is not None and module.steps == [0, 1]


def test_a_resume_takes_what_was_not_trained(tmp_path: Any) -> None:
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "step.ckpt")
                trainer.should_stop = True

    module, data = Trained(), Numbered(4)
    first = trainer()
    first.callbacks.append(Stops())  # type: ignore[attr-defined]
    first.fit(module, datamodule=data)
    assert module.steps == [0, 1, 2] and len(data.made) > 3 and threads() == []
    again = Trained()
    trainer().fit(again, datamodule=Numbered(4), ckpt_path=tmp_path / "step.ckpt", weights_only=True)
    assert again.steps == list(range(3, STEPS))
