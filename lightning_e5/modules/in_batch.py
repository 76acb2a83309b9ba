"""E5's pre-training scheme: InfoNCE against every other passage of the global batch."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.distributed import gather, gather_with_grad, rank
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.base import TrainingModule, spread
from lightning_e5.training.chunks import concatenate
from lightning_e5.training.token_dropout import drop_inner_tokens
from lightning_e5.types import LossOutput, PairBatch, TokenBatch


class InBatchModule(TrainingModule):
    """Contrastive training with in-batch negatives (and hard negatives, where the batch has them).

    Args:
        encoder: the bi-encoder.
        temperature: of InfoNCE.
        mask_duplicates: passages equal to a query's positive, and positives of equal queries, are no negatives of it.
            The paper does not say that it does so; equal texts as negatives teach nothing, so it is on by default.
        token_dropout: share of a text's inner tokens left out in training (ours: regularises small models).
        **training: see `TrainingModule`.

    Source: paper sections 3.2 and 4.1. Siblings: pre-batch and MoCo take negatives from a queue, distilled adds a teacher.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        temperature: float = 0.01,
        mask_duplicates: bool = True,
        token_dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(encoder, **training)
        self.encoder = encoder
        self.info_nce = InfoNCE(temperature)
        self.mask_duplicates, self.token_dropout = mask_duplicates, token_dropout
        self.spreads: dict[str, Tensor] = {}

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        texts = concatenate([batch.queries, batch.passages])
        output, report = self.grad_cache.step(
            self.drop_tokens(texts), self.embed_chunk, lambda e_ND: self.batch_loss(batch, e_ND), seed=self.step_seed()
        )
        update = self.optimizer_step_with_guards(batch, output.loss)
        metrics = {"loss": output.loss, "accuracy": output.accuracy, "masked_fraction": output.masked_fraction}
        self.log_step({**metrics, **self.spreads, **update}, report, len(batch.rows_B), started)

    def drop_tokens(self, texts: TokenBatch) -> TokenBatch:
        """The texts with some inner tokens left out; the prefix and the special tokens stay."""
        return drop_inner_tokens(texts, self.token_dropout, seed=self.step_seed(), keep_first=self.prefix_tokens)

    @property
    def prefix_tokens(self) -> int:
        """Tokens at the start of every text that are not the text's own: the special token and the prefix."""
        tokenizer = self.encoder.tokenizer
        return min(int(tokenizer.encode([""], kind)[1][0]) for kind in ("query", "passage")) - 1

    def embed_chunk(self, ids_T: Tensor, lengths: list[int]) -> Tensor:
        """Unit embeddings of one chunk."""
        return functional.normalize(self.encoder(ids_T, lengths), dim=1)

    def batch_loss(self, batch: PairBatch, embeddings_ND: Tensor) -> LossOutput:
        """InfoNCE of this rank's queries against the passages of all ranks."""
        queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
        return self.contrastive_loss(batch, queries_BD, passages_ND)

    def contrastive_loss(self, batch: PairBatch, queries_BD: Tensor, passages_ND: Tensor) -> LossOutput:
        """InfoNCE over the global batch; positives are every G-th passage."""
        self.spreads = {"std_query": spread(queries_BD), "std_passage": spread(passages_ND)}
        group = len(passages_ND) // len(queries_BD)
        target_B = (torch.arange(len(queries_BD), device=queries_BD.device) + rank() * len(queries_BD)) * group
        passages_PD = gather_with_grad(passages_ND)
        if not self.mask_duplicates:
            return self.info_nce(queries_BD, passages_PD, target_B)
        return self.info_nce(queries_BD, passages_PD, target_B, gather(batch.passage_text_P), batch.query_text_B)
