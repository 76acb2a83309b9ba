"""Validation within a training: before its first step, every so many steps, and after its last; the best weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightning_e5.configurable import configurable
from lightning_e5.ranges import Count, Length
from lightning_e5.training.interpolation import Weights, interpolated


@configurable("validation")
@dataclass(frozen=True, slots=True)
class Validation:
    """When a training is validated, and which of its weights are kept.

    Args:
        every_n_steps: steps between two validations; step 0 and the last step are validated, too.
        keep: ``best`` keeps the weights of the step with the highest value, the start (step 0) among them, of equal ones the
            earliest; ``last`` those of the last step.
        monitor: the metric.
        max_length: tokens of a validated text, where that is less than the encoder reads.
    """

    every_n_steps: Count
    keep: Literal["best", "last"] = "best"
    monitor: Literal["ndcg@10"] = "ndcg@10"
    max_length: Length | None = None


class ValidationCallback(L.Callback):
    """Validates the model in training, on one device; it changes neither the training's weights nor its random numbers.

    What was found and the best weights are in the training's checkpoints, so that a training that was killed goes on with them.

    Args:
        settings: when, and what is kept.
        model: what is validated and kept; a part of the training scheme.
        evaluate: query -> the monitored metric of the model's weights as they are.
        keep_general: share of ``general`` in the weights that are validated and kept.
        general: see `interpolated`; by default the model's weights now.
    """

    def __init__(
        self, settings: Validation, model: nn.Module, evaluate: Callable[[], Mapping[str, float]], *, keep_general: float = 0.0, general: Weights | None = None
    ) -> None:
        self.settings, self.model, self.evaluate = settings, model, evaluate
        self.keep_general, self.general = keep_general, general if general is not None else weights_of(model)
        #: One row per validation: ``step`` and the metric.
        self.rows: list[dict[str, float]] = []
        self.best_step = 0
        self.best: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.rows:  # else the training was resumed
            self._validate(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step > self.rows[-1]["step"] and (step % self.settings.every_n_steps == 0 or step == trainer.max_steps):
            self._validate(step)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best_step": self.best_step, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best_step, self.best = list(state_dict["rows"]), state_dict["best_step"], dict(state_dict["best"])

    def value_at(self, step: int) -> float:
        """The metric after a step that was validated."""
        return next(row[self.settings.monitor] for row in self.rows if row["step"] == step)

    def _validate(self, step: int) -> None:
        trained = weights_of(self.model)
        kept = interpolated(self.general, trained, self.keep_general)
        if self.keep_general:
            set_weights(self.model, kept)
        try:
            values = self.evaluate()
        finally:
            if self.keep_general:
                set_weights(self.model, trained)
        value = sum(values.values()) / len(values)
        better = not self.rows or self.settings.keep == "last" or value > self.value_at(self.best_step)
        self.rows.append({"step": step, self.settings.monitor: value})
        if better:
            self.best_step, self.best = step, kept


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's parameters in the memory of the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Give the model's parameters the values of ``weights``."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
