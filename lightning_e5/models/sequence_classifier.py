"""Cross-encoders that others released: sequence classifiers with one label, query and passage as a pair of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_e5.distributed.cores import map_on_cores
from lightning_e5.distributed.devices import Precision, own_attention, runs_in_bf16
from lightning_e5.errors import UserError
from lightning_e5.models.packed.encoder import inference
from lightning_e5.models.padded import usable_positions
from lightning_e5.models.pretrained import (
    check_vocabulary,
    load_config,
    load_tokenizer,
    load_weights,
    quiet_transformers,
)
from lightning_e5.models.reference import model_folder
from lightning_e5.text import check_texts, encodable, literal_backend
from lightning_e5.training.chunks import inference_tokens

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
        self, model: Any, tokenizer: Any, *, max_length: int | None = None, passage_format: str = "{passage}", precision: Precision = "bf16-gpu"
    ) -> None:
        super().__init__()
        if model.config.num_labels != 1:
            raise UserError(f"teacher: a model with {model.config.num_labels} labels gives no relevance logit; the rule is 1 label")
        if passage_format.count("{passage}") != 1:
            raise UserError(f"passage_format: {passage_format!r} does not hold {{passage}} once")
        self.model, self.tokenizer, self.passage_format, self.precision = model, tokenizer, passage_format, precision
        limit = usable_positions(model.base_model)
        stored = int(tokenizer.model_max_length)
        self.max_length = max_length or min(limit or 512, stored)
        if limit is not None and self.max_length > limit:
            raise UserError(f"max_length: {self.max_length} is above the model's {limit} positions")
        # A special token's name in a text is text (see `TextTokenizer`).
        self._backend = literal_backend(tokenizer.backend_tokenizer)
        self._backend.no_padding()
        self._backend.enable_truncation(self.max_length, strategy="longest_first", direction=tokenizer.truncation_side)

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, max_length: int | None = None, passage_format: str = "{passage}", precision: Precision = "bf16-gpu"
    ) -> SequenceClassifier:
        """Load a folder or a hub name (see `model_folder`); UserError where it is not there, not fetchable, damaged, or no such model."""
        from transformers import AutoModelForSequenceClassification

        directory = model_folder(name)
        if not (directory / "config.json").is_file():
            raise UserError(f"{name}: no model folder (has no config.json)")
        with quiet_transformers():
            config = load_config(directory)
            if not any("ForSequenceClassification" in str(a) for a in config.architectures or []):
                raise UserError(f"{name}: no cross-encoder (its config.json names {config.architectures or 'no architecture'}, no sequence classifier)")
            model = load_weights(name, directory, AutoModelForSequenceClassification, config)
            tokenizer = load_tokenizer(name, directory)
        check_vocabulary(name, tokenizer.backend_tokenizer, model)
        return cls(model, tokenizer, max_length=max_length, passage_format=passage_format, precision=precision).eval()

    @torch.inference_mode()
    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        chunk_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """float32 ``[N]`` logits of (query, passage) texts, in evaluation mode; pairs of like lengths run together."""
        check_texts(queries)
        check_texts(passages)
        if len(queries) != len(passages):
            raise UserError(f"{len(queries)} queries for {len(passages)} passages")
        device = next(self.parameters()).device
        logits_N = torch.empty(len(queries), device="cpu")
        with inference(self):
            for first in range(0, len(queries), _PAIRS_AT_ONCE):
                texts = [self.passage_format.replace("{passage}", p) for p in passages[first : first + _PAIRS_AT_ONCE]]
                encoded = self._tokens(queries[first : first + _PAIRS_AT_ONCE], texts)
                lengths = [len(ids) for ids in encoded["input_ids"]]
                chunks = _chunks(lengths, chunk_tokens or inference_tokens(self.precision, device))
                logits: list[Tensor] = []
                for rows, logits_B in zip(chunks, map_on_cores(partial(self._logits, encoded), chunks, device), strict=True):
                    logits.append(logits_B)
                    if progress is not None:
                        progress(len(rows))
                # One copy: a GPU would be waited for after each chunk.
                logits_N[first + torch.tensor([r for rows in chunks for r in rows], device="cpu")] = torch.cat(logits).cpu()
        return logits_N

    def _logits(self, encoded: dict[str, list[list[int]]], rows: list[int]) -> Tensor:
        """float32 ``[B]`` logits of some of the pairs, padded to the longest of them."""
        device = next(self.parameters()).device
        padded = self.tokenizer.pad({k: [v[r] for r in rows] for k, v in encoded.items()}, return_tensors="pt").to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=runs_in_bf16(self.precision, device)), own_attention(device):
            logits_B1: Tensor = self.model(**padded).logits
        return logits_B1.float().squeeze(1)

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """What the model takes of each pair, without padding."""
        encoded = self._backend.encode_batch([(encodable(q), encodable(p)) for q, p in zip(queries, passages, strict=True)])
        inputs = {"input_ids": [e.ids for e in encoded], "attention_mask": [e.attention_mask for e in encoded]}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = [e.type_ids for e in encoded]
        return inputs


def _chunks(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows by rising length, cut so that a padded chunk has at most ``tokens`` (one row may have more)."""
    chunks: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not chunks or (len(chunks[-1]) + 1) * lengths[row] > tokens:
            chunks.append([])
        chunks[-1].append(row)
    return chunks
