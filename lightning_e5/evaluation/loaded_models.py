"""The models that an evaluation judges, with what must be known to read their figures: prefixes, length limit, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.distributed.devices import Precision, runs_in_bf16
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.word_vectors import WordVectors
from lightning_e5.memory import inference_device
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.folder import stored_settings
from lightning_e5.models.training_record import TrainingRecord, read_record, record_of
from lightning_e5.text import Prefixes, TextTokenizer
from lightning_e5.types import Kind, compares_by_cosine


@dataclass(frozen=True)
class Judged:
    """A model to judge.

    ``model``: has ``embed`` or ``retrieve``; ``training``: what its weights were trained on, None where that is not known;
    ``ablated``: whether other prefixes were put before the texts than the model's own.
    """

    model: Any
    training: TrainingRecord | None = None
    ablated: bool = False

    @property
    def seen(self) -> dict[str, int | None]:
        """``pairs_seen`` and ``tokens_seen`` in all trainings of the weights; None where that is not known."""
        if self.training is None:
            return {"pairs_seen": None, "tokens_seen": None}
        return {"pairs_seen": self.training.pairs_seen, "tokens_seen": self.training.tokens_seen}

    @property
    def embeds(self) -> bool:
        """Whether tasks beside retrieval can judge it."""
        return hasattr(self.model, "embed")

    def facts(self, texts: Mapping[Kind, Sequence[str]]) -> dict[str, Any]:
        """What a row says of how the texts were read.

        Args:
            texts: the texts embedded as queries and as passages.

        Returns:
            ``prefix`` (kind -> prefix), ``max_length`` (tokens), ``truncated`` (share of the texts that are longer),
            ``precision`` (fp32 or bf16, what ran); each None where the model knows no such thing. ``prefix_ablation`` and
            ``similarity`` (dot) only where it is so.
        """
        if not isinstance(self.model, TextEncoder):
            return {"prefix": None, "max_length": None, "truncated": None, "precision": "fp32" if self.embeds else None}
        tokenizer = self.model.tokenizer
        longer = {kind: _longer(tokenizer, part, kind) for kind, part in texts.items()}
        total = sum(len(part) for part in texts.values())
        device = next(self.model.parameters()).device
        facts = {
            "prefix": {kind: tokenizer.prefixes.of(kind) for kind in texts}, "max_length": tokenizer.max_length,
            "truncated": sum(longer.values()) / total if total else 0.0,
            "precision": "bf16" if runs_in_bf16(self.model.precision, device) else "fp32",
        }  # fmt: skip
        facts |= {} if compares_by_cosine(self.model) else {"similarity": "dot"}
        return facts | ({"prefix_ablation": True} if self.ablated else {})


def load_models(
    encoders: Mapping[str, Path],
    word_vectors: Path | None,
    baselines: Mapping[str, Any],
    *,
    precision: Precision = "fp32",
    prefixes: Mapping[str, str] | None = None,
    max_length: int | None = None,
    prefix_ablation: bool = False,
) -> dict[str, Judged]:
    """The models by name, baselines first.

    Args:
        encoders: name -> model folder, or a folder that holds one as ``encoder``.
        word_vectors: folder of the averaged word vectors.
        baselines: name -> an object with ``retrieve``.
        precision: of the encoders.
        prefixes: ``query`` and ``passage``, put before all encoders' texts instead of what their folders store.
        max_length: tokens per text instead of what the folders store.
        prefix_ablation: allow prefixes other than a folder's own.

    Raises:
        UserError: no model, a folder that is none, or prefixes other than those stored.
    """
    models = {name: Judged(baseline, record_of(baseline)) for name, baseline in baselines.items()}
    if word_vectors is not None:
        stored = word_vectors / "word_vectors"
        models["word-vectors"] = Judged(WordVectors.load(stored), read_record(stored))
    given = _prefixes(prefixes)
    for name, folder in encoders.items():
        directory = folder / "encoder" if (folder / "encoder").is_dir() else folder
        models[name] = load_encoder(
            directory, precision=precision, prefixes=given, max_length=max_length, prefix_ablation=prefix_ablation
        )
    if not models:
        raise UserError("evaluate: no model to judge (give encoders, word_vectors or baselines)")
    return models


def load_encoder(
    directory: Path,
    *,
    precision: Precision = "fp32",
    prefixes: Prefixes | None = None,
    max_length: int | None = None,
    prefix_ablation: bool = False,
) -> Judged:
    """A model folder, with its own prefixes unless others are asked for; UserError as `load_models`."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model folder")
    own = stored_settings(directory).prefixes
    differs = prefixes is not None and own is not None and prefixes != own
    if differs and not prefix_ablation:
        assert prefixes is not None and own is not None
        raise UserError(
            f"{directory}: the model stores the prefixes {own.query!r} and {own.passage!r}, not {prefixes.query!r} and "
            f"{prefixes.passage!r}; its figures would not be its own (prefix_ablation allows it and labels the rows)"
        )
    encoder = TextEncoder.from_pretrained(directory, prefixes=prefixes, max_length=max_length, precision=precision)
    return Judged(encoder.to(inference_device()), read_record(directory), differs)


def _prefixes(given: Mapping[str, str] | None) -> Prefixes | None:
    if given is None:
        return None
    if set(given) != {"query", "passage"}:
        raise UserError(f"prefixes: needs the keys query and passage, not {', '.join(map(str, given)) or 'none'}")
    return Prefixes(given["query"], given["passage"])


def _longer(tokenizer: TextTokenizer, texts: Sequence[str], kind: Kind) -> int:
    """How many texts have more tokens than the limit: those that fill one token more."""
    wider = tokenizer.cut_at(tokenizer.max_length + 1)
    step = 32768
    return sum(int((wider.encode(texts[i : i + step], kind)[1] > tokenizer.max_length).sum()) for i in range(0, len(texts), step))
