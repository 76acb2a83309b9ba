"""What others add to the in-batch loss, and E5 does not: the direction from passage to query, and queries as negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, gather_with_grad
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask, OwnColumnMask
from lightning_e5.losses.info_nce_ring import info_nce_by_ring
from lightning_e5.losses.matryoshka import check_dimensions
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.bi_encoder import BiEncoderModule, own_positives, own_queries, passages_per_query
from lightning_e5.training.chunks import concatenate
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme", check=check_dimensions)
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
        texts, group = self.drop_tokens(concatenate([batch.queries, batch.passages])), passages_per_query(batch)

        def loss(embeddings_ND: Tensor) -> LossOutput:
            queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
            if self.ring is not None:
                return self.loss_by_ring(batch, queries_BD, passages_ND)
            passages_PD, text_P = gather_with_grad(passages_ND), gather(batch.passage_text_P)
            queries_QD, text_Q = gather_with_grad(queries_BD), gather(batch.query_text_B)
            # From each query to the passages of all ranks, and to their queries, where these are negatives; never to itself.
            target_B = own_positives(batch)
            mask: FalseNegativeMask | OwnColumnMask | None = None
            candidates_CD, text_C, own_text_B = passages_PD, text_P, None
            if self.query_negatives:
                candidates_CD, text_C = torch.cat([passages_PD, queries_QD]), torch.cat([text_P, text_Q])
                mask, own_text_B = OwnColumnMask(len(passages_PD) + own_queries(batch)), batch.query_text_B
            mask = self.false_negatives(batch, text_C, target_B, own_text_B=own_text_B) or mask
            output = self.info_nce(queries_BD, candidates_CD, target_B, mask)
            if self.symmetric:
                # From each positive to the queries of all ranks; queries of an equal positive are false negatives.
                target_B, positive_text_Q, mask = own_queries(batch), text_P[::group], None
                if self.mask_duplicates:
                    duplicates = DuplicateQueries(positive_text_Q[target_B], positive_text_Q, text_Q)
                    mask = FalseNegativeMask(text_Q, batch.query_text_B, target_B, duplicates=duplicates)
                back = self.info_nce(passages_ND[::group], queries_QD, target_B, mask)
                output = output._replace(loss=(output.loss + back.loss) / 2)
            return output._replace(logs=self.embedding_logs(queries_BD, passages_ND))

        self.cached_step(batch, texts, self.embed_chunk, self.at_dimensions(loss))

    def loss_by_ring(self, batch: PairBatch, queries_BD: Tensor, passages_ND: Tensor) -> LossOutput:
        """The same loss where the ranks' passages and queries come by one rank's block at a time; a collective call."""
        group, own_B = passages_per_query(batch), torch.arange(len(batch.rows_B), device=batch.rows_B.device)
        candidates_CD, text_C, mask, own_text_B = passages_ND, batch.passage_text_P, None, None
        if self.query_negatives:
            candidates_CD, text_C = torch.cat([passages_ND, queries_BD]), torch.cat([batch.passage_text_P, batch.query_text_B])
            mask, own_text_B = OwnColumnMask(len(passages_ND) + own_B), batch.query_text_B
        output = self.by_ring(batch, queries_BD, candidates_CD, text_C, mask=mask, own_text_B=own_text_B)
        if self.symmetric:
            back_mask = None
            if self.mask_duplicates:
                duplicates = self.duplicates(batch.passage_text_P[::group], batch.query_text_B)
                back_mask = FalseNegativeMask(batch.query_text_B, batch.query_text_B, own_B, duplicates=duplicates)
            assert self.ring is not None
            back = info_nce_by_ring(self.info_nce, passages_ND[::group], queries_BD, batch.query_text_B, own_B, self.ring, back_mask)
            output = output._replace(loss=(output.loss + back.loss) / 2)
        return output._replace(logs=self.embedding_logs(queries_BD, passages_ND))
