"""What a model's weights were trained on: a small file in its folder that goes wherever the folder goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.storage import MANIFEST, read_json, read_manifest, sha256_file, write_json

#: Between the names of several sets that chose weights together.
SEVERAL = ", "
#: The file, beside the weights of an encoder or of word vectors.
RECORD = "training_record.json"


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """One training: ``texts`` names what it read by content (see `texts_identity`), None where that is not known;
    ``tokens_seen`` is None where tokens were not counted; ``selected_on`` names by content what chose the step whose weights
    these are (see `lightning_e5.evaluation.tasks.task.items_identity`), None for the last step's; ``dimensions``: the numbers of first
    values of an embedding that its loss was summed over (see `lightning_e5.losses.matryoshka`), None for whole embeddings alone."""

    stage: str
    pairs_seen: int
    tokens_seen: int | None
    texts: tuple[str, ...] | None
    selected_on: str | None = None
    dimensions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """The trainings that the weights went through, in their order.

    ``known_start``: the first of them started from random weights; False where it started from a model of others, of
    which we do not know what it has seen.
    """

    stages: tuple[TrainedStage, ...] = ()
    known_start: bool = True

    @property
    def pairs_seen(self) -> int | None:
        """Pairs seen in all trainings, repetitions counted; None where the start is not known."""
        return sum(s.pairs_seen for s in self.stages) if self.known_start else None

    @property
    def tokens_seen(self) -> int | None:
        """Tokens seen in all trainings; None where a training or the start did not say."""
        counts = [s.tokens_seen for s in self.stages]
        return sum(c for c in counts if c is not None) if self.known_start and None not in counts else None

    @property
    def texts(self) -> frozenset[str] | None:
        """What was read in all trainings; None where a training or the start did not say."""
        if not self.known_start or any(s.texts is None for s in self.stages):
            return None
        return frozenset(name for s in self.stages for name in s.texts or ())

    @property
    def dimensions(self) -> tuple[int, ...] | None:
        """Those of the last training, None for whole embeddings alone; a training at whole embeddings leaves no beginning as it was."""
        return self.stages[-1].dimensions if self.stages else None

    @property
    def selected_on(self) -> frozenset[str]:
        """What chose the weights, in any of the trainings."""
        return frozenset(name for s in self.stages if s.selected_on is not None for name in s.selected_on.split(SEVERAL))

    def after(
        self,
        stage: str,
        metrics: Mapping[str, float],
        texts: Iterable[str] | None,
        *,
        selected_on: str | None = None,
        dimensions: Sequence[int] | None = None,
    ) -> TrainingRecord:
        """The record after one more training with these ``pairs_seen`` and ``tokens_seen``."""
        tokens = metrics.get("tokens_seen")
        named = None if texts is None else tuple(sorted(texts))
        known = None if dimensions is None else tuple(dimensions)
        trained = TrainedStage(stage, int(metrics["pairs_seen"]), None if tokens is None else int(tokens), named, selected_on, known)
        return replace(self, stages=(*self.stages, trained))

    def save(self, folder: Path) -> None:
        """Write the record into a model folder, atomically."""
        content = asdict(self)
        for stage in content["stages"]:
            for key in ("selected_on", "dimensions"):
                if stage[key] is None:
                    del stage[key]
        write_json(folder / RECORD, content)


#: Of a model that no training has seen.
UNTRAINED = TrainingRecord()
#: Of a model of others, before we train it.
UNKNOWN_START = TrainingRecord(known_start=False)


def read_record(folder: Path | str) -> TrainingRecord | None:
    """A model folder's record; None for a folder without one, such as a released model's.

    Raises:
        UserError: the file is no such record.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        lists = ("texts", "dimensions")
        stages = tuple(
            TrainedStage(**{**s, "texts": s["texts"], **{key: tuple(s[key]) for key in lists if s.get(key) is not None}}) for s in content["stages"]
        )
        return TrainingRecord(stages, bool(content["known_start"]))
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: not a record of a model's training ({error!r})") from None


def start_of(folder: Path | str) -> TrainingRecord:
    """What is known of the model that a training starts from."""
    return read_record(folder) or UNKNOWN_START


def record_of(model: Any) -> TrainingRecord | None:
    """What a model in memory says of its training: its ``training_record``; `UNTRAINED` where its class says ``TRAINED =
    False`` (BM25); None, unknown, for any other."""
    if getattr(model, "TRAINED", True) is False:
        return UNTRAINED
    record = getattr(model, "training_record", None)
    return record if isinstance(record, TrainingRecord) else None


def texts_of_tokens(tokens: Path) -> list[str] | None:
    """What a token cache was made of, by its manifest; None where that does not say."""
    digests = read_manifest(tokens).get("texts") if (tokens / MANIFEST).is_file() else None
    return [texts_identity(digests)] if isinstance(digests, dict) and digests else None


def texts_of_files(files: Path | Mapping[str, Path]) -> list[str]:
    """What one file of training texts, or several by name, are."""
    return [file_identity(path) for path in (files.values() if isinstance(files, Mapping) else [files])]


def texts_identity(digests: Mapping[str, str]) -> str:
    """The name by content of columns of texts, from each one's `texts_digest`."""
    return "texts " + " ".join(f"{column}={digests[column]}" for column in sorted(digests))


def file_identity(path: Path) -> str:
    """The name by content of a file."""
    return f"file {sha256_file(path)}"
