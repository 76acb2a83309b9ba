"""The pre-batch ablation: passages of earlier steps, as they were embedded then, are negatives beside the batch's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.ranges import Count
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme")
class PreBatchModule(InBatchModule):
    """In-batch negatives plus a queue of past passages, without gradient.

    Args:
        encoder: the bi-encoder.
        queue_size: passages held (paper: 65,536).
        **training: see `InBatchModule`.

    Source: paper table 8, after Lee et al. 2021 (DensePhrases). How the authors filled the queue is not published; here
    every passage of a step enters it after the step, and the oldest leave.
    """

    def __init__(self, encoder: TextEncoder, *, queue_size: Count = 65536, **training: Any) -> None:
        super().__init__(encoder, **training)
        self.queue = NegativeQueue(queue_size, encoder.width)
        self._passages_PD: Tensor | None = None

    def queued(self) -> tuple[Tensor | None, Tensor | None]:
        return self.queue.entries() if self.queue.filled else (None, None)

    def contrastive_loss(self, batch: PairBatch, queries_BD: Tensor, passages_ND: Tensor) -> LossOutput:
        self._passages_PD = passages_ND.detach()
        self.measures["queue"] = float(self.queue.filled)
        return super().contrastive_loss(batch, queries_BD, passages_ND)

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        assert self._passages_PD is not None
        self.queue.push(gather(self._passages_PD), gather(batch.passage_text_P))
        self._passages_PD = None
