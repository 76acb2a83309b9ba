"""E5's pre-training scheme: InfoNCE against every other passage of the global batch."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, gather_with_grad, rank
from lightning_e5.losses.duplicates import DuplicateMask, OwnColumnMask, Siblings
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.base import TrainingModule, spread
from lightning_e5.ranges import Range, Temperature
from lightning_e5.training.chunks import concatenate
from lightning_e5.training.token_dropout import drop_inner_tokens
from lightning_e5.types import LossOutput, PairBatch, TokenBatch


@configurable("training scheme")
class InBatchModule(TrainingModule):
    """Contrastive training with in-batch negatives (and hard negatives, where the batch has them).

    Args:
        encoder: the bi-encoder.
        temperature: of InfoNCE.
        mask_duplicates: passages equal to a query's positive, and positives of equal queries, are no negatives of it.
            The paper does not say that it does so; equal texts as negatives teach nothing, so it is on by default.
        learn_temperature: make the temperature a parameter (not in E5).
        symmetric: add the loss from passage to query, half each (not in E5).
        query_negatives: the other queries are negatives too (not in E5).
        token_dropout: share of a text's inner tokens left out in training (ours: regularises small models).
        **training: see `TrainingModule`.

    Source: paper sections 3.2 and 4.1. Siblings: pre-batch and MoCo take negatives from a queue, distilled adds a teacher.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        temperature: Temperature = 0.01,
        mask_duplicates: bool = True,
        learn_temperature: bool = False,
        symmetric: bool = False,
        query_negatives: bool = False,
        token_dropout: Annotated[float, Range(0, 0.99)] = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(encoder, **training)
        self.encoder = encoder
        self.info_nce = InfoNCE(temperature, learned=learn_temperature)
        self.mask_duplicates, self.token_dropout = mask_duplicates, token_dropout
        self.symmetric, self.query_negatives = symmetric, query_negatives

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        texts = self.drop_tokens(concatenate([batch.queries, batch.passages]))
        self.cached_step(batch, texts, self.embed_chunk, lambda e_ND: self.batch_loss(batch, e_ND))

    def drop_tokens(self, texts: TokenBatch) -> TokenBatch:
        """The texts with some inner tokens left out; the prefix and the special tokens stay."""
        return drop_inner_tokens(texts, self.token_dropout, seed=self.step_seed(), keep_first=self.prefix_tokens)

    def text_places(self, texts: int, rows: int) -> Tensor:
        """The queries, then the passages (none where they have no gradient), row after row."""
        passages = torch.arange(texts - rows)
        return torch.cat([torch.arange(rows), passages // max(1, len(passages) // rows)])

    @property
    def prefix_tokens(self) -> int:
        """Tokens at the start of every text that are not the text's own: the special token and the prefix."""
        tokenizer = self.encoder.tokenizer
        return min(int(tokenizer.encode([""], kind)[1][0]) for kind in ("query", "passage")) - 1

    def embed_chunk(self, ids_T: Tensor, lengths: list[int]) -> Tensor:
        """Unit embeddings of one chunk."""
        return functional.normalize(self.encoder(ids_T, lengths), dim=1)

    def batch_loss(self, batch: PairBatch, embeddings_ND: Tensor) -> LossOutput:
        """The loss of this rank's queries, from the embeddings of its queries and passages."""
        queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
        self.measures |= {
            "temperature": self.info_nce.temperature, "std_query": spread(queries_BD), "std_passage": spread(passages_ND),
        }  # fmt: skip
        return self.contrastive_loss(batch, queries_BD, passages_ND)

    def contrastive_loss(self, batch: PairBatch, queries_BD: Tensor, passages_ND: Tensor) -> LossOutput:
        """InfoNCE over the global batch; positives are every G-th passage."""
        count = len(queries_BD)
        group = len(passages_ND) // count
        target_B = (torch.arange(count, device=queries_BD.device) + rank() * count) * group
        candidates_PD, texts_P = gather_with_grad(passages_ND), gather(batch.passage_text_P)
        queries_all_ND, query_texts_N = None, gather(batch.query_text_B)
        if self.query_negatives or self.symmetric:
            queries_all_ND = gather_with_grad(queries_BD)
        positive_texts_N = texts_P[::group]
        own_text_B = own_column_B = None
        if self.query_negatives:
            assert queries_all_ND is not None
            own_column_B = len(candidates_PD) + rank() * count + torch.arange(count, device=queries_BD.device)
            candidates_PD, texts_P = torch.cat([candidates_PD, queries_all_ND]), torch.cat([texts_P, query_texts_N])
            own_text_B = batch.query_text_B
        queue_KD, queue_text_K = self.queued()
        texts_C = texts_P if queue_text_K is None else torch.cat([texts_P, queue_text_K])
        positive_text_B = batch.passage_text_P[::group]
        mask: DuplicateMask | OwnColumnMask | None = None
        if self.mask_duplicates:
            siblings = Siblings(batch.query_text_B, query_texts_N, positive_texts_N)
            mask = DuplicateMask(texts_C, positive_text_B, target_B, siblings=siblings, own_text_Q=own_text_B)
        elif own_column_B is not None:  # a query among the candidates must still not be its own negative
            mask = OwnColumnMask(own_column_B)
        output = self.info_nce(queries_BD, candidates_PD, target_B, mask, queue_KD)
        if not self.symmetric:
            return output
        assert queries_all_ND is not None
        back = self._backward_direction(batch, passages_ND[::group], queries_all_ND, query_texts_N, positive_texts_N)
        return output._replace(loss=(output.loss + back.loss) / 2)

    def queued(self) -> tuple[Tensor | None, Tensor | None]:
        """Further candidates without gradient and their text ids; none here."""
        return None, None

    def _backward_direction(
        self, batch: PairBatch, positives_BD: Tensor, queries_ND: Tensor, query_texts_N: Tensor, positive_texts_N: Tensor
    ) -> LossOutput:
        """InfoNCE from each positive to the queries of the global batch."""
        count = len(positives_BD)
        target_B = torch.arange(count, device=positives_BD.device) + rank() * count
        if not self.mask_duplicates:
            return self.info_nce(positives_BD, queries_ND, target_B)
        own_positive_B = positive_texts_N[target_B]
        siblings = Siblings(own_positive_B, positive_texts_N, query_texts_N)
        return self.info_nce(positives_BD, queries_ND, target_B, DuplicateMask(query_texts_N, batch.query_text_B, target_B, siblings=siblings))
