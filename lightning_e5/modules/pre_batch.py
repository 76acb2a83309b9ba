"""The pre-batch ablation: passages of earlier steps, as they were embedded then, are negatives beside the batch's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather
from lightning_e5.losses.matryoshka import check_dimensions, first_values
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.ranges import Count
from lightning_e5.training.chunks import concatenate
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme", check=check_dimensions)
class PreBatchModule(BiEncoderModule):
    """In-batch negatives plus a queue of past passages, without gradient.

    Args:
        encoder: the bi-encoder.
        queue_size: passages held (paper: 65,536), on every rank; at least those of a global batch, which are gathered to enter it
            with ``passages_of_ranks: ring``, too.
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
            queue_KD, text_K = self.queue.entries()
            queue_KD = first_values(queue_KD, queries_BD.shape[1])
            output = self.against_passages(batch, queries_BD, passages_ND, (queue_KD, text_K))
            return output._replace(logs={**self.embedding_logs(queries_BD, passages_ND), "queue": float(len(queue_KD))})

        step = self.cached_step(batch, texts, self.embed_chunk, self.at_dimensions(loss))
        # After the step, its passages enter the queue.
        passages_ND = step.embeddings_ND[len(batch.rows_B) :]
        self.queue.push(gather(passages_ND), gather(batch.passage_text_P))
