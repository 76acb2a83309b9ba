"""The MoCo ablation: keys from a momentum encoder, negatives from a queue of keys."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, rank
from lightning_e5.errors import UserError
from lightning_e5.losses.duplicates import DuplicateMask, Siblings
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.base import spread
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.ranges import Count, Share
from lightning_e5.training.chunks import Embeddings, sorted_chunks
from lightning_e5.training.momentum import momentum_copy, momentum_update
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.training.out_of_memory import is_out_of_memory, smaller_chunk
from lightning_e5.types import LossOutput, PairBatch, TokenBatch


@configurable("training scheme")
class MoCoModule(InBatchModule):
    """Queries against their keys and a queue of keys; only the query side has a gradient.

    The passages of the global batch are embedded by the momentum encoder and enter the queue; each query's candidates
    are the queue with them in it. The momentum encoder follows the encoder after every step.

    Args:
        encoder: the bi-encoder; it is what is saved and judged.
        queue_size: keys held (paper: 130,000).
        momentum: of the key encoder; the paper does not give its value, 0.999 is that of He et al. 2020.
        **training: see `InBatchModule`; ``symmetric`` and ``query_negatives`` have no meaning here.

    Source: paper table 8; He et al. 2020, "Momentum Contrast".
    """

    def __init__(self, encoder: TextEncoder, *, queue_size: Count = 131072, momentum: Share = 0.999, **training: Any) -> None:
        super().__init__(encoder, **training)
        if not 0.0 <= momentum <= 1.0:
            raise UserError(f"momentum: {momentum} is not in [0, 1]")
        if self.symmetric or self.query_negatives:
            raise UserError("MoCo: keys have no gradient, so symmetric and query_negatives have no meaning; leave them out")
        self.momentum = momentum
        self.momentum_encoder = momentum_copy(encoder)
        self.queue = NegativeQueue(queue_size, encoder.width)

    def train(self, mode: bool = True) -> MoCoModule:
        super().train(mode)
        self.momentum_encoder.eval()
        return self

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        keys_PD = gather(self.embed_keys(batch.passages))
        texts_P = gather(batch.passage_text_P)
        with self.queue.pushing(keys_PD, texts_P) as positions_P:
            self._queue_step(batch, keys_PD, texts_P, positions_P, started)
        with self.whole_parameters():  # the momentum encoder is whole on every rank
            momentum_update(self.momentum_encoder, self.encoder, self.momentum)

    def _queue_step(self, batch: PairBatch, keys_PD: Tensor, texts_P: Tensor, positions_P: Tensor, started: float) -> None:
        """The step of the queries against a queue that holds their keys at ``positions_P``."""
        queue_KD, queue_text_K = self.queue.entries()
        group = len(batch.passage_text_P) // len(batch.rows_B)
        first = rank() * len(batch.passage_text_P)
        target_B = positions_P[first : first + len(batch.passage_text_P) : group]

        siblings = Siblings(batch.query_text_B, gather(batch.query_text_B), texts_P[::group])

        def loss(queries_BD: Tensor) -> LossOutput:
            positive_text_B = batch.passage_text_P[::group]
            mask = DuplicateMask(queue_text_K, positive_text_B, target_B, siblings=siblings) if self.mask_duplicates else None
            self.measures |= {
                "temperature": self.info_nce.temperature, "std_query": spread(queries_BD), "std_passage": spread(keys_PD),
                "queue": float(len(queue_KD)),
            }  # fmt: skip
            return self.info_nce(queries_BD, queue_KD[:0], target_B, mask, queue_KD)

        texts = self.drop_tokens(batch.queries)
        self.cached_step(batch, texts, self.embed_chunk, loss, without_gradient=batch.passages, started=started)

    @torch.no_grad()
    def embed_keys(self, passages: TokenBatch) -> Tensor:
        """Unit embeddings of this rank's passages by the momentum encoder; StepGivenUp where a rank was told to stop."""
        keys_PD = self._own_keys(passages)
        self.grad_cache.go_on(keys_PD is None, self.device)
        assert keys_PD is not None
        return keys_PD

    def _own_keys(self, passages: TokenBatch) -> Tensor | None:
        """None where this rank was told to stop."""
        chunk_tokens = self.grad_cache.chunk_tokens
        while True:  # this rank's own affair: the ranks meet after the keys are made
            keys = Embeddings(len(passages.lengths_B))
            try:
                for chunk in sorted_chunks(passages, chunk_tokens):
                    if self.grad_cache.told_to_stop():
                        return None
                    keys.put(chunk, functional.normalize(self.momentum_encoder(chunk.ids_T, chunk.lengths), dim=1))
                return keys.all()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            chunk_tokens = smaller_chunk(chunk_tokens)
