"""Training of the teacher: a cross-encoder, listwise over a positive and its hard negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.losses.distillation import listwise_loss, positive_first
from lightning_e5.models.cross_encoder import CrossEncoder, join_pairs
from lightning_e5.modules.base import TrainingModule
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme")
class CrossEncoderModule(TrainingModule):
    """Softmax cross-entropy of the positive among 1 + N passages of each query.

    Args:
        cross_encoder: the teacher.
        **training: see `TrainingModule`.

    Source: paper section 3.3; listwise form from the authors' SimLM re-ranker.
    """

    def __init__(self, cross_encoder: CrossEncoder, **training: Any) -> None:
        super().__init__(cross_encoder, **training)
        self.cross_encoder = cross_encoder

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        # [CLS] query [SEP] passage [SEP], a query's G passages in a row, the positive first.
        pairs = join_pairs(batch.queries, batch.passages)

        def loss(logits_N1: Tensor) -> LossOutput:
            logits_BG = logits_N1.view(len(batch.rows_B), -1)
            accuracy = positive_first(logits_BG)
            return LossOutput(listwise_loss(logits_BG), accuracy, torch.zeros_like(accuracy))

        self.cached_step(batch, pairs, self.cross_encoder, loss)

    def held_out_values(self, batch: PairBatch) -> Mapping[str, float | Tensor]:
        """Loss, share of positives above all others, and the positive's mean reciprocal rank in its group (a tie counts against it)."""
        logits_BG = self.cross_encoder.score_tokens(join_pairs(batch.queries, batch.passages)).view(len(batch.rows_B), -1)
        rank_B = (logits_BG >= logits_BG[:, :1]).sum(1)
        return {"loss": listwise_loss(logits_BG), "accuracy": positive_first(logits_BG), "mrr@10": torch.where(rank_B <= 10, 1.0 / rank_B, 0.0).mean()}
