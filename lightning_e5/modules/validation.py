"""Validation within a training: before its first step, every so many steps, and after its last; the best weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError, suggestion
from lightning_e5.modules.validated import ValidatedModule, ValidationTask
from lightning_e5.ranges import ArgumentsOf, Count, Length
from lightning_e5.training.interpolation import Weights, interpolated

#: The value of held-out pairs by which weights are chosen where no task says otherwise.
PAIRS_METRIC = "val/mrr@10"
#: Values of which the lower is the better, by the last part of their name.
LOWER = ("loss", "divergence", "contrastive")


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """``hold_out``: rows of the training data that are never trained on; their loss at the training's batch size, and the rank of each
    positive among all of them, are values of a validation."""

    hold_out: Count


@configurable("validation")
@dataclass(frozen=True, slots=True)
class Validation:
    """When a training is validated, on what, and which of its weights are kept.

    Args:
        every_n_steps: steps between two validations; step 0 and the last step are validated, too.
        pairs: held-out rows of the training data.
        tasks: evaluated in every validation, as ``val/<name>/<metric>``.
        monitor: the value that chooses; by default the first task's main metric, else ``val/mrr@10`` of the held-out pairs.
        keep: ``best`` keeps the weights of the step with the best value, the start (step 0) among them, of equal ones the
            earliest; ``last`` those of the last step.
        patience: validations without a better value after which the training ends; None never ends it.
        max_length: tokens of a text that a task evaluates, where that is less than the encoder reads.
    """

    every_n_steps: Count = 500
    pairs: Annotated[Mapping[str, Any], ArgumentsOf(HeldOutPairs, ("hold_out",))] | None = None
    tasks: Sequence[ValidationTask] = ()
    monitor: str | None = None
    keep: Literal["best", "last"] = "best"
    patience: Count | None = None
    max_length: Length | None = None

    @property
    def hold_out(self) -> int:
        """Rows of the training data that are held out."""
        return int(self.pairs["hold_out"]) if self.pairs else 0


#: What a YAML's ``validation`` may hold.
ValidationArguments = Annotated[
    Mapping[str, Any], ArgumentsOf(Validation, ("every_n_steps", "pairs", "tasks", "monitor", "keep", "patience", "max_length"))
]


def lower_is_better(metric: str) -> bool:
    """Whether the lower of two values of a metric is the better one."""
    return metric.rsplit("/", 1)[-1].partition("@")[0] in LOWER  # ``loss@256`` is one at that dimension


class ValidationCallback(L.Callback):
    """Validates a `ValidatedModule` within `fit`; it changes neither the training's weights nor its random numbers.

    The values and the best weights are in the training's checkpoints, so that a training that was killed goes on with them. It runs
    Lightning's validation loop itself, before the other callbacks of the step: Lightning's own places lie after the step's checkpoint,
    and neither before the first step nor after the last.

    Args:
        settings: when, and what is kept.
        model: whose weights are kept; a part of the training scheme.
        keep_general: share of ``general`` in the weights that are validated and kept.
        general: see `interpolated`; by default the model's weights now.
        record: called with all rows after each validation.
    """

    def __init__(
        self,
        settings: Validation,
        model: nn.Module,
        *,
        keep_general: float = 0.0,
        general: Weights | None = None,
        record: Callable[[Sequence[Mapping[str, float]]], object] = lambda rows: None,
    ) -> None:
        self.settings, self.model, self.record = settings, model, record
        self.keep_general, self.general = keep_general, general if general is not None or not keep_general else weights_of(model)
        #: Called with the row of each validation that is made now.
        self.found: Callable[[Mapping[str, float]], object] = lambda row: None
        #: One row per validation: ``step``, ``pairs`` seen, and the values by name.
        self.rows: list[dict[str, float]] = []
        self.monitor, self.best_step = settings.monitor or "", 0
        self.best: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.keep_general and getattr(pl_module, "make_shards", None) is not None:
            raise UserError("keep_general: mixes whole weights, so strategy: fsdp on several devices cannot be validated with it")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ValidatedModule)
        step = trainer.global_step
        pl_module.last_validation, pl_module.monitored = _values(self.rows[-1]) if self.rows else {}, self.monitor
        # Not yet, where a training was stopped in the validation of the step that it goes on after.
        if not self.rows or (self.rows[-1]["step"] < step and step % self.settings.every_n_steps == 0):
            self._validate(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self.exhausted

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, ValidatedModule)
        step = trainer.global_step
        if step > self.rows[-1]["step"] and (step % self.settings.every_n_steps == 0 or step == trainer.max_steps):
            self._validate(trainer, pl_module)
            trainer.should_stop = trainer.should_stop or self.exhausted

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.validating:  # what is saved now is the training before the validation
            assert isinstance(pl_module, ValidatedModule)
            self._leave(trainer, pl_module)
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best_step": self.best_step, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best_step, self.best = list(state_dict["rows"]), state_dict["best_step"], dict(state_dict["best"])
        self._choose_monitor()
        self.record(self.rows)

    @property
    def exhausted(self) -> bool:
        """Whether there were as many validations without a better value as the settings have patience for."""
        patience = self.settings.patience
        return patience is not None and sum(row["step"] > self._best_of_rows() for row in self.rows) >= patience

    def value_at(self, step: int) -> float:
        """The monitored value after a step that was validated."""
        return next(row[self.monitor] for row in self.rows if row["step"] == step)

    def _best_of_rows(self) -> float:
        sign = -1.0 if lower_is_better(self.monitor) else 1.0
        return max(self.rows, key=lambda row: sign * row[self.monitor])["step"]  # of equal ones the first

    def _validate(self, trainer: L.Trainer, module: ValidatedModule) -> None:
        """One run of Lightning's validation loop; the row of its values, and the weights where they are the best."""
        loop: Any = trainer.fit_loop.epoch_loop.val_loop
        connector: Any = trainer._logger_connector
        first = connector._first_loop_iter
        trainer.validating, trainer.limit_val_batches, loop.restarting = True, 1.0, False
        last_step = trainer.global_step >= trainer.max_steps  # a checkpoint after it is not gone on from
        module.give_up_validation = (lambda: False) if last_step else module.grad_cache.told_to_stop
        if self.keep_general:
            assert self.general is not None
            self._trained = weights_of(self.model)
            set_weights(self.model, interpolated(self.general, self._trained, self.keep_general))
        loop.run()
        self._leave(trainer, module)
        connector._first_loop_iter = first

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ValidatedModule)
        values = pl_module.last_validation
        step, pairs = trainer.global_step, getattr(pl_module, "trained_pairs", 0)
        self.rows.append({"step": step, "pairs": pairs, **values})
        self._choose_monitor()
        pl_module.monitored = self.monitor
        if self.settings.keep == "last" or self._best_of_rows() == step:
            self.best_step, self.best = step, weights_of(self.model)
        if trainer.is_global_zero:
            self.record(self.rows)
            self.found(self.rows[-1])

    def _leave(self, trainer: L.Trainer, module: ValidatedModule) -> None:
        module.give_validation_up()
        if self._trained is not None:
            set_weights(self.model, self._trained)
            self._trained = None
        trainer.limit_val_batches, trainer.training = 0, True

    def _choose_monitor(self) -> None:
        """The monitor of the settings, or the default; UserError where a validation gives no such value."""
        values = _values(self.rows[0])
        if not values:
            raise UserError("validation: nothing to validate on; give pairs: {hold_out: N} or tasks")
        if self.settings.monitor is None:
            self.monitor = next((name for name in values if name.count("/") > 1), PAIRS_METRIC)
        elif self.monitor not in values:
            raise UserError(f"validation.monitor: {self.monitor!r} is none of the values ({', '.join(values)}){suggestion(self.monitor, values)}")


def _values(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("step", "pairs")}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's parameters in the memory of the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Give the model's parameters the values of ``weights``."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
