"""A cross-encoder from wherever it is: one of ours, or a released sequence classifier."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.distributed.devices import Precision
from lightning_e5.models.cross_encoder import HEAD, CrossEncoder
from lightning_e5.models.sequence_classifier import SequenceClassifier


def load_pair_scorer(
    name: Path | str, *, max_length: int | None = None, passage_format: str = "{passage}", precision: Precision = "bf16-gpu"
) -> CrossEncoder | SequenceClassifier:
    """The cross-encoder of a folder (or of ``cross_encoder/`` in it) or, for a released one, of a hub name.

    Args:
        name: folder or hub name.
        max_length: of ours: tokens of a query and of a passage, each; of a released one: of both together. As stored by default.
        passage_format: for a released one, see `SequenceClassifier`; ours read passages as they are.
        precision: of the model.

    Raises:
        UserError: not there, not fetchable, or no cross-encoder.
    """
    folder = Path(name)
    if (folder / "cross_encoder").is_dir():
        folder = folder / "cross_encoder"
    if (folder / HEAD).is_file():
        return CrossEncoder.from_pretrained(folder, max_length=max_length, precision=precision)
    place = folder if folder.is_dir() else name
    return SequenceClassifier.from_pretrained(place, max_length=max_length, passage_format=passage_format, precision=precision)
