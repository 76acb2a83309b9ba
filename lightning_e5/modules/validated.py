"""What every training scheme does in validation, as Lightning runs it: held-out rows, then tasks, then one row of ``val/`` values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import any_rank, rank_means
from lightning_e5.training.grad_cache import GradCache, StepGivenUp
from lightning_e5.types import PairBatch


@configurable("validation task")
class ValidationTask(Protocol):
    """What a model in training is evaluated on again and again, such as `lightning_e5.evaluation.validation_tasks.EvaluateOn`."""

    def values(self, model: Any) -> dict[str, float]:
        """``<set>/<metric>`` -> value of the model's weights as they are, the main one first; the same on every rank, and a collective call."""
        ...

    def identities(self) -> dict[str, str]:
        """Set -> the name by content of what is evaluated on."""
        ...


class ValidatedModule(L.LightningModule):
    """The validation loop of a training scheme; ``trainer.test`` does the same under ``test/``.

    Held-out rows come from the data module's ``val_dataloader`` in batches of one size (None where it holds no rows out).
    """

    #: What is trained, and evaluated by the tasks.
    model: nn.Module
    #: Its steps, which are told to stop.
    grad_cache: GradCache

    def __init__(self) -> None:
        super().__init__()
        #: Evaluated in every validation, after the held-out rows.
        self.validation_tasks: Sequence[ValidationTask] = ()
        #: The values of the last validation, by the names that are logged.
        self.last_validation: dict[str, float] = {}
        #: The one of them that chooses the weights, where one does.
        self.monitored = ""
        #: Whether a validation in a training is to be given up, since the training was told to stop.
        self.give_up_validation: Callable[[], bool] = lambda: False
        self._batches: list[dict[str, float]] = []
        self._whole = ExitStack()

    def whole_parameters(self) -> AbstractContextManager[None]:
        """The model's parameters are whole inside."""
        return nullcontext()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if isinstance(batch, PairBatch):  # the host cuts texts into chunks by their lengths: read from a GPU, it would wait for them
            queries, passages = (tokens._replace(lengths_B=own.lengths_B) for tokens, own in zip(moved[:2], batch[:2], strict=True))
            return moved._replace(queries=queries, passages=passages)
        return moved

    def held_out_values(self, batch: PairBatch) -> Mapping[str, float | Tensor]:
        """The values of one batch of held-out rows, this rank's part of it; a collective call."""
        raise NotImplementedError

    def held_out_pool_values(self) -> dict[str, float]:
        """Values of all held-out rows together; the same on every rank."""
        return {}

    def on_validation_start(self) -> None:
        self._whole.enter_context(self.whole_parameters())

    def on_validation_end(self) -> None:
        self._whole.close()

    def on_test_start(self) -> None:
        self.on_validation_start()

    def on_test_end(self) -> None:
        self.on_validation_end()

    def on_validation_epoch_start(self) -> None:
        self._batches = []

    def validation_step(self, batch: PairBatch | None, batch_idx: int) -> None:
        self._give_up_if_told()
        if batch is not None:
            values = self.held_out_values(batch)
            means = rank_means([float(value) for value in values.values()], self.device)
            self._batches.append(dict(zip(values, means, strict=True)))

    def on_validation_epoch_end(self) -> None:
        self._end("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: PairBatch | None, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._end("test")

    def give_validation_up(self) -> None:
        """Leave a validation that an exception ended."""
        self._whole.close()
        self._batches = []

    def _end(self, prefix: str) -> None:
        values: dict[str, float] = {}
        if self._batches:
            values = {name: sum(batch[name] for batch in self._batches) / len(self._batches) for name in self._batches[0]}
            values |= self.held_out_pool_values()
        for task in self.validation_tasks:
            self._give_up_if_told()
            with torch.no_grad():
                values |= task.values(self.model)
        self.last_validation = {f"{prefix}/{name}": value for name, value in values.items()}
        self.log_dict(self.last_validation, batch_size=1)

    def _give_up_if_told(self) -> None:
        if any_rank(self.give_up_validation(), self.device):
            raise StepGivenUp
