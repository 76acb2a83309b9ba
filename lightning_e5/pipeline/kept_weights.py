"""Which weights of a training its stage keeps: the last, the best by a validation, or a mixture with a general encoder's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_e5.errors import UserError
from lightning_e5.evaluation.validation_tasks import EvaluateOn
from lightning_e5.files.run_layout import VALIDATION
from lightning_e5.files.storage import write_text
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import TrainingRecord, start_of
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.validation import Validation, ValidationCallback, set_weights, weights_of
from lightning_e5.tracking.metrics_log import read_metrics_log
from lightning_e5.training.interpolation import Weights, interpolated

#: What chose the weights where held-out rows of the training data did.
HELD_OUT = "held-out rows of the training data"


class KeptWeights:
    """The weights that a training stage keeps of a model.

    Args:
        out: the stage's folder; gets ``validation.jsonl`` where there is a validation.
        model: the model before its training.
        validation: arguments of a `Validation`; None keeps the last weights.
        collections: name -> folder in BEIR layout, evaluated beside the validation's tasks, before them.
        keep_general: share of the general encoder in the weights that are kept (and validated).
        general: folder of the general encoder; by default the model as it is now.

    Raises:
        UserError: collections without ``validation``, a general encoder of another shape, or sets that cannot be read.
    """

    def __init__(
        self,
        out: Path,
        model: nn.Module,
        *,
        validation: Mapping[str, Any] | None,
        collections: Mapping[str, Path] | None = None,
        keep_general: float = 0.0,
        general: Path | None = None,
    ) -> None:
        if validation is None and collections:
            raise UserError("inputs.validation_collections: needs validation, too: when is validated, such as every_n_steps: 500")
        self.out, self.model, self.keep_general = out, model, keep_general
        self.general = _general(model, general) if keep_general else None
        self.callback: ValidationCallback | None = None
        self.tasks: list[Any] = []
        self.settings: Validation | None = None
        self.dimensions: Sequence[int] | None = None
        if validation is not None:
            self.settings = Validation(**validation)
            own = [EvaluateOn(collections=collections, max_length=self.settings.max_length)] if collections else []
            self.tasks = [*own, *self.settings.tasks]
            self.identities = {name: identity for task in self.tasks for name, identity in task.identities().items()}
            self.callback = ValidationCallback(self.settings, model, keep_general=keep_general, general=self.general, record=self._write)

    def attach(self, module: TrainingModule) -> TrainingModule:
        """Give a training scheme the tasks that it is validated on; what it trains is recorded with the weights."""
        module.validation_tasks = self.tasks
        self.dimensions = getattr(module, "dimensions", None)
        return module

    @property
    def hold_out(self) -> dict[str, int]:
        """What a data module is given beside its own arguments."""
        return {"hold_out": self.settings.hold_out} if self.settings is not None and self.settings.hold_out else {}

    @property
    def selected_on(self) -> str | None:
        """What chose the step of the kept weights, by content; None for the last step's."""
        if self.settings is None or self.callback is None or (self.settings.keep == "last" and self.settings.patience is None):
            return None
        return self.identities.get(self.callback.monitor.split("/")[1], HELD_OUT)

    def keep(self, metrics: dict[str, float]) -> dict[str, float]:
        """Give the model the weights that are kept; the training's metrics, with the pairs and tokens that these have seen."""
        if self.callback is None:
            if self.general is not None:
                set_weights(self.model, interpolated(self.general, weights_of(self.model), self.keep_general))
            return metrics
        callback, name = self.callback, self.callback.monitor
        set_weights(self.model, callback.best)
        seen = next((row for row in read_metrics_log(self.out) if row["step"] == callback.best_step), {"pairs": 0, "tokens": 0})
        found = {"best_step": callback.best_step, name: callback.value_at(callback.best_step), f"{name}_start": callback.value_at(0)}
        return metrics | {"pairs_seen": seen["pairs"], "tokens_seen": seen["tokens"]} | found

    def record(self, encoder: Path, stage: str, metrics: dict[str, float], texts: Iterable[str] | None) -> TrainingRecord:
        """The record of the kept weights: what ``encoder`` had seen, and this training, with what chose its step."""
        start = start_of(encoder)
        read, dimensions = (texts, self.dimensions) if metrics["pairs_seen"] else ((), start.dimensions)
        return start.after(stage, metrics, read, selected_on=self.selected_on, dimensions=dimensions)

    def _write(self, rows: Sequence[Mapping[str, float]]) -> None:
        write_text(self.out / VALIDATION, "".join(json.dumps(row) + "\n" for row in rows))


def with_hold_out(data: Callable[..., Any], hold_out: Mapping[str, int]) -> Mapping[str, int]:
    """``hold_out`` as an argument of a partial data module; UserError where it has one of its own."""
    if hold_out and getattr(data, "keywords", {}).get("hold_out"):
        raise UserError("validation.pairs.hold_out: data.hold_out holds rows out, too; give one of them")
    return hold_out


def _general(model: nn.Module, folder: Path | None) -> Weights:
    own = weights_of(model)
    if folder is None:
        return own
    found = weights_of(TextEncoder.from_pretrained(folder, training_start=True))
    interpolated(found, own, 0.0)  # refuses other shapes
    return found
