"""What others add to the in-batch loss, and E5 does not: the direction from passage to query, and queries as negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, gather_with_grad, rank
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask, OwnColumnMask
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.bi_encoder import BiEncoderModule, batch_shape, own_positives
from lightning_e5.training.chunks import concatenate
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme")
class SymmetricModule(BiEncoderModule):
    """In-batch negatives in both directions (not in E5).

    Args:
        encoder: the bi-encoder.
        symmetric: add the loss from passage to query, half each.
        query_negatives: the other queries are negatives too.
        **training: see `BiEncoderModule`; ``learn_temperature`` makes it the loss of CLIP.

    Source: Radford et al. 2021 (CLIP) for the two directions; Li et al. 2023 (GTE) for queries as negatives.
    """

    def __init__(self, encoder: TextEncoder, *, symmetric: bool = True, query_negatives: bool = False, **training: Any) -> None:
        super().__init__(encoder, **training)
        self.symmetric, self.query_negatives = symmetric, query_negatives

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        texts = self.drop_tokens(concatenate([batch.queries, batch.passages]))

        def loss(embeddings_ND: Tensor) -> LossOutput:
            queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
            passages_PD, text_P = gather_with_grad(passages_ND), gather(batch.passage_text_P)
            queries_QD, text_Q = gather_with_grad(queries_BD), gather(batch.query_text_B)
            output = self.query_to_passage(batch, queries_BD, passages_PD, text_P, queries_QD, text_Q)
            if self.symmetric:
                back = self.passage_to_query(batch, passages_ND, text_P, queries_QD, text_Q)
                output = output._replace(loss=(output.loss + back.loss) / 2)
            return output._replace(logs=self.embedding_logs(queries_BD, passages_ND))

        self.cached_step(batch, texts, self.embed_chunk, loss)

    def query_to_passage(
        self, batch: PairBatch, queries_BD: Tensor, passages_PD: Tensor, text_P: Tensor, queries_QD: Tensor, text_Q: Tensor
    ) -> LossOutput:
        """InfoNCE from each query to the passages of the global batch and, where they are negatives, its queries behind them."""
        target_B = own_positives(batch)
        if not self.query_negatives:
            return self.info_nce(queries_BD, passages_PD, target_B, self.false_negatives(batch, text_P, target_B, text_P))
        candidates_CD, text_C = torch.cat([passages_PD, queries_QD]), torch.cat([text_P, text_Q])
        mask: FalseNegativeMask | OwnColumnMask | None = self.false_negatives(batch, text_C, target_B, text_P, own_text_B=batch.query_text_B)
        if mask is None:  # a query among the candidates must still not be its own negative
            mask = OwnColumnMask(len(passages_PD) + own_rows(batch))
        return self.info_nce(queries_BD, candidates_CD, target_B, mask)

    def passage_to_query(self, batch: PairBatch, passages_ND: Tensor, text_P: Tensor, queries_QD: Tensor, text_Q: Tensor) -> LossOutput:
        """InfoNCE from each positive to the queries of the global batch."""
        _, group = batch_shape(batch)
        target_B, positive_text_Q = own_rows(batch), text_P[::group]
        mask = None
        if self.mask_duplicates:  # queries of the same passage
            duplicates = DuplicateQueries(positive_text_Q[target_B], positive_text_Q, text_Q)
            mask = FalseNegativeMask(text_Q, batch.query_text_B, target_B, duplicates=duplicates)
        return self.info_nce(passages_ND[::group], queries_QD, target_B, mask)


def own_rows(batch: PairBatch) -> Tensor:
    """int64 ``[B]``: where this rank's queries stand among those of all ranks."""
    count = len(batch.rows_B)
    return torch.arange(count, device=batch.rows_B.device) + rank() * count
