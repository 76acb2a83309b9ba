"""Cross-encoders that others released: sequence classifiers with one label, query and passage as a pair of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_e5.errors import UserError
from lightning_e5.models.precision import Precision, runs_in_bf16

#: Pairs tokenised and sorted together.
_PAIRS_AT_ONCE = 16384


class SequenceClassifier(nn.Module):
    """Relevance logits of (query, passage) texts, without E5's prefixes.

    Args:
        model: a Hugging Face model for sequence classification with one label.
        tokenizer: its tokenizer.
        max_length: tokens of a pair; the longer text is cut first. None: as the tokenizer says, at most the model's positions.
        passage_format: how a passage is written, with ``{passage}`` in it; SimLM's re-ranker was trained on
            ``title: contents`` with ``-`` for no title, so ``-: {passage}`` fits passages whose title is part of the text.
        precision: of the model; logits are float32.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_length: int | None = None, passage_format: str = "{passage}", precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        if model.config.num_labels != 1:
            raise UserError(f"teacher: a model with {model.config.num_labels} labels gives no relevance logit; the rule is 1 label")
        if passage_format.count("{passage}") != 1:
            raise UserError(f"passage_format: {passage_format!r} does not hold {{passage}} once")
        self.model, self.tokenizer, self.passage_format, self.precision = model, tokenizer, passage_format, precision
        limit = int(getattr(model.config, "max_position_embeddings", None) or 512)
        if getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
            limit -= 2  # these count positions from 2 on
        self.max_length = max_length or min(limit, int(tokenizer.model_max_length))
        if self.max_length > limit:
            raise UserError(f"max_length: {self.max_length} is above the model's {limit} positions")

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, max_length: int | None = None, passage_format: str = "{passage}", precision: Precision = "fp32"
    ) -> SequenceClassifier:
        """Load a folder or a hub name; UserError where it is not there, not fetchable, or no such model."""
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        local = Path(name).is_dir()
        if not local and (Path(name).is_absolute() or str(name).startswith(".") or str(name).count("/") != 1):
            raise UserError(f"{name}: no such model folder")
        logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(str(name))
            if not any("ForSequenceClassification" in a for a in config.architectures or []):
                raise UserError(f"{name}: no cross-encoder (its config.json names {config.architectures or 'no architecture'}, no sequence classifier)")
            model = AutoModelForSequenceClassification.from_pretrained(str(name), config=config)
            tokenizer = AutoTokenizer.from_pretrained(str(name))
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if local else "the model hub cannot be reached or has no such model"
            raise UserError(f"{name}: cannot be loaded ({reason}); give the folder of a model that is here") from None
        return cls(model.float(), tokenizer, max_length=max_length, passage_format=passage_format, precision=precision).eval()

    @torch.inference_mode()
    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        chunk_tokens: int = 8192,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """float32 ``[N]`` logits of (query, passage) texts, in evaluation mode; pairs of like lengths run together."""
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries for {len(passages)} passages")
        training = self.training
        self.eval()
        device = next(self.parameters()).device
        logits_N = torch.empty(len(queries))
        for first in range(0, len(queries), _PAIRS_AT_ONCE):
            texts = [self.passage_format.replace("{passage}", p) for p in passages[first : first + _PAIRS_AT_ONCE]]
            encoded = self.tokenizer(list(queries[first : first + _PAIRS_AT_ONCE]), texts, truncation=True, max_length=self.max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            for rows in _chunks(lengths, chunk_tokens):
                padded = self.tokenizer.pad({k: [v[r] for r in rows] for k, v in encoded.items()}, return_tensors="pt").to(device)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=runs_in_bf16(self.precision, device)):
                    logits = self.model(**padded).logits
                logits_N[first + torch.tensor(rows)] = logits.float().squeeze(1).cpu()
                if progress is not None:
                    progress(len(rows))
        self.train(training)
        return logits_N


def _chunks(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows by rising length, cut so that a padded chunk has at most ``tokens`` (one row may have more)."""
    chunks: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not chunks or (len(chunks[-1]) + 1) * lengths[row] > tokens:
            chunks.append([])
        chunks[-1].append(row)
    return chunks
