"""The pre-batch ablation: passages of earlier steps, as they were embedded then, are negatives beside the batch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, gather_with_grad
from lightning_e5.losses.matryoshka import check_dimensions, first_values
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.bi_encoder import BiEncoderModule, own_positives
from lightning_e5.ranges import Count
from lightning_e5.training.chunks import concatenate
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme", check=check_dimensions)
class PreBatchModule(BiEncoderModule):
    """In-batch negatives plus a queue of past passages, without gradient.

    Args:
        encoder: the bi-encoder.
        queue_size: passages held (paper: 65,536).
        **training: see `BiEncoderModule`.

    Source: paper table 8, after Lee et al. 2021 (DensePhrases). How the authors filled the queue is not published; here
    every passage of a step enters it after the step, and the oldest leave.
    """

    def __init__(self, encoder: TextEncoder, *, queue_size: Count = 65536, **training: Any) -> None:
        super().__init__(encoder, **training)
        self.queue = NegativeQueue(queue_size, encoder.width)

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        texts = self.drop_tokens(concatenate([batch.queries, batch.passages]))

        def loss(embeddings_ND: Tensor) -> LossOutput:
            queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
            # Candidates: the passages of all ranks, as in-batch, then those of the queue (none in the first step).
            passages_PD, text_P = gather_with_grad(passages_ND), gather(batch.passage_text_P)
            queue_KD, queue_text_K = self.queue.entries()
            queue_KD = first_values(queue_KD, queries_BD.shape[1])
            target_B = own_positives(batch)
            mask = self.false_negatives(batch, torch.cat([text_P, queue_text_K]), target_B, text_P)
            output = self.info_nce(queries_BD, passages_PD, target_B, mask, queue_KD)
            return output._replace(logs={**self.embedding_logs(queries_BD, passages_ND), "queue": float(len(queue_KD))})

        step = self.cached_step(batch, texts, self.embed_chunk, self.at_dimensions(loss))
        # After the step, its passages enter the queue.
        passages_ND = step.embeddings_ND[len(batch.rows_B) :]
        self.queue.push(gather(passages_ND), gather(batch.passage_text_P))
