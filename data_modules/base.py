"""A LightningDataModule whose step ``s`` is a pure function of the configuration and ``s``; so it resumes exactly."""

from __future__ import annotations

import copy
import math
import signal
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data_modules.prefetch import Prefetcher
from lightning_e5.errors import UserError
from lightning_e5.types import PairBatch


class StepSampler(Sampler[int]):
    """The step numbers from ``first`` to the end; its length is the full epoch's, as Lightning needs for a resume."""

    def __init__(self, first: int, max_steps: int) -> None:
        self.first, self.max_steps = first, max_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.max_steps))

    def __len__(self) -> int:
        return self.max_steps


class StepDataset(Dataset[PairBatch]):
    """Step number -> this rank's part of the step's batch."""

    def __init__(self, module: StepDataModule, rank: int, world_size: int) -> None:
        self.module = _for_workers(module)
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> PairBatch:
        return self.module.batch(step, self.rank, self.world_size)


class HeldOutDataset(Dataset[PairBatch | None]):
    """Number -> this rank's part of a batch of held-out rows; one None where there are none, so that a validation has its one round."""

    def __init__(self, module: StepDataModule, rank: int, world_size: int) -> None:
        self.module = copy.copy(module)
        self.module.trainer = None
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return max(1, len(self.module.held_out) // max(1, self.module.held_out_batch_size))

    def __getitem__(self, number: int) -> PairBatch | None:
        size = self.module.held_out_batch_size
        if not size:
            return None
        share = size // self.world_size
        first = number * size + self.rank * share
        return self.module.rows_batch(self.module.held_out[first : first + share])


class StepDataModule(L.LightningDataModule):
    """Batches by step number.

    ``held_out``: the rows that are never trained on, int64; ``val_dataloader`` gives them in batches of the training's size (of all
    of them where they are fewer), and leaves out what does not fill one. ``test_dataloader`` gives the same.

    Args:
        batch_size: rows of the global batch, over all ranks.
        max_steps: optimizer steps of the training.
        seed: of the order.
        num_workers: data-loading processes per rank; 0 loads in the training process.
        prefetch: batches that a thread has ready ahead of the step (see `Prefetcher`); 0 makes each when its step begins.
    """

    def __init__(self, *, batch_size: int, max_steps: int, seed: int, num_workers: int = 0, prefetch: int = 2) -> None:
        super().__init__()
        if batch_size < 2:
            raise UserError(f"batch_size: {batch_size} leaves no in-batch negatives; the rule is >= 2")
        if max_steps < 1:
            raise UserError(f"max_steps: {max_steps} is not >= 1")
        self.batch_size, self.max_steps, self.seed, self.num_workers = batch_size, max_steps, seed, num_workers
        self.prefetch = prefetch
        self.first_step = 0
        self._batches: Prefetcher | None = None
        self.held_out: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def held_out_batch_size(self) -> int:
        """Rows of a global batch of held-out rows; 0 where there are none."""
        return min(self.batch_size, len(self.held_out))

    @abstractmethod
    def rows_batch(self, rows: NDArray[np.int64]) -> PairBatch:
        """Some rows as a batch."""

    @abstractmethod
    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        """The rows of ``rank`` in step ``step``."""

    def rank_slice(self, rank: int, world_size: int) -> slice:
        """The part of the global batch that a rank computes; UserError where it does not divide."""
        if self.batch_size % world_size:
            raise UserError(f"batch_size: {self.batch_size} is not a multiple of the {world_size} ranks")
        share = self.batch_size // world_size
        return slice(rank * share, (rank + 1) * share)

    @property
    def data_seconds(self) -> float | None:
        """How long the last step waited for its batch; None without one."""
        return None if self._batches is None else self._batches.waited

    def train_dataloader(self) -> Prefetcher:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self.rank_slice(rank, world_size)
        self._end_prefetch()
        self._batches = Prefetcher(
            StepDataset(self, rank, world_size),
            depth=self.prefetch,
            device=self.trainer.strategy.root_device if self.trainer else None,
            batch_size=None,
            sampler=StepSampler(self.first_step, self.max_steps),
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals_to_the_trainer,
            multiprocessing_context="spawn" if self.num_workers else None,
        )
        return self._batches

    def teardown(self, stage: str) -> None:
        self._end_prefetch()

    def on_exception(self, exception: BaseException) -> None:
        self._end_prefetch()

    def _end_prefetch(self) -> None:
        if self._batches is not None:
            self._batches.close()

    def val_dataloader(self) -> DataLoader[PairBatch | None]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.held_out_batch_size % world_size:
            raise UserError(f"hold_out: {self.held_out_batch_size} rows are not a multiple of the {world_size} ranks")
        # A generator of its own: a data loader draws a seed from the process's, of which validation must take nothing.
        return DataLoader(HeldOutDataset(self, rank, world_size), batch_size=None, generator=torch.Generator().manual_seed(0))

    def test_dataloader(self) -> DataLoader[PairBatch | None]:
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        return {"trained_steps": self.trainer.global_step if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first_step = int(state_dict["trained_steps"])


def _for_workers(module: StepDataModule) -> StepDataModule:
    """Without the trainer, whose model would else travel to every data worker, and without the thread that hears of them."""
    module = copy.copy(module)
    module.trainer = module._batches = None
    return module


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to the whole process group must not end a worker before the trainer has saved its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def check_duration(arguments: Mapping[str, Any]) -> None:
    """UserError unless exactly one of ``max_steps`` and ``epochs`` is given."""
    max_steps, epochs = arguments.get("max_steps"), arguments.get("epochs")
    if (max_steps is None) == (epochs is None):
        raise UserError(f"give either max_steps or epochs, not max_steps: {max_steps} and epochs: {epochs}")


def resolve_steps(max_steps: int | None, epochs: float | None, rows: int, batch_size: int, least_steps: int = 1) -> int:
    """Optimizer steps from either ``max_steps`` or ``epochs`` (rounded up, and at least ``least_steps``); UserError unless exactly one is given."""
    check_duration({"max_steps": max_steps, "epochs": epochs})
    if max_steps is not None:
        return max_steps
    assert epochs is not None
    if not epochs > 0:
        raise UserError(f"epochs: {epochs} is not above 0")
    return max(least_steps, math.ceil(epochs * rows / batch_size))
