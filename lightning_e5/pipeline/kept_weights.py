"""Which weights of a training its stage keeps: the last, the best by a validation, or a mixture with a general encoder's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.validation import ValidationCollection
from lightning_e5.files.run_layout import VALIDATION
from lightning_e5.files.storage import write_text
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import TrainingRecord, start_of
from lightning_e5.modules.validation import Validation, ValidationCallback, set_weights, weights_of
from lightning_e5.tracking.metrics_log import read_metrics_log
from lightning_e5.training.interpolation import Weights, interpolated


class KeptWeights:
    """The weights that a training stage keeps of an encoder.

    Args:
        out: the stage's folder; gets ``validation.jsonl`` where there is a validation.
        model: the encoder before its training.
        validate: when it is validated and what is kept; None keeps the last weights.
        validation: folder of the validation's collection, in BEIR's layout.
        keep_general: share of the general encoder in the weights that are kept (and validated).
        general: folder of the general encoder; by default the model as it is now.

    Raises:
        UserError: one of ``validate`` and ``validation`` without the other, a general encoder of another shape, or a
            collection that cannot be read.
    """

    def __init__(
        self, out: Path, model: TextEncoder, *, validate: Validation | None, validation: Path | None, keep_general: float, general: Path | None
    ) -> None:
        if (validate is None) != (validation is None):
            given, missing = ("inputs.validation", "validate") if validate is None else ("validate", "inputs.validation")
            raise UserError(f"{given}: needs {missing}, too: when is validated, and the collection (a folder in BEIR layout)")
        self.out, self.model, self.keep_general = out, model, keep_general
        self.general = _general(model, general) if keep_general else None
        self.callback: ValidationCallback | None = None
        self.selected_on: str | None = None
        if validate is not None and validation is not None:
            collection = ValidationCollection(validation, model, validate.max_length)
            self.callback = ValidationCallback(validate, model, collection, keep_general=keep_general, general=self.general)
            self.selected_on = collection.identity() if validate.keep == "best" else None

    def keep(self, metrics: dict[str, float]) -> dict[str, float]:
        """Give the model the weights that are kept; the training's metrics, with the pairs and tokens that these have seen."""
        if self.callback is None:
            if self.general is not None:
                set_weights(self.model, interpolated(self.general, weights_of(self.model), self.keep_general))
            return metrics
        callback, name = self.callback, self.callback.settings.monitor
        write_text(self.out / VALIDATION, "".join(json.dumps(row) + "\n" for row in callback.rows))
        set_weights(self.model, callback.best)
        seen = next((row for row in read_metrics_log(self.out) if row["step"] == callback.best_step), {"pairs": 0, "tokens": 0})
        found = {"best_step": callback.best_step, f"validation_{name}": callback.value_at(callback.best_step), f"validation_{name}_start": callback.value_at(0)}
        return metrics | {"pairs_seen": seen["pairs"], "tokens_seen": seen["tokens"]} | found

    def record(self, encoder: Path, stage: str, metrics: dict[str, float], texts: Iterable[str] | None) -> TrainingRecord:
        """The record of the kept weights: what ``encoder`` had seen, and this training, with the collection that chose its step."""
        read = texts if metrics["pairs_seen"] else ()
        return start_of(encoder).after(stage, metrics, read, selected_on=self.selected_on)


def _general(model: TextEncoder, folder: Path | None) -> Weights:
    own = weights_of(model)
    if folder is None:
        return own
    found = weights_of(TextEncoder.from_pretrained(folder, training_start=True))
    interpolated(found, own, 0.0)  # refuses other shapes
    return found
