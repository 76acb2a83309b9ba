"""What the contrastive schemes share: how texts are embedded, where a query's positive stands, and false-negative masking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.distributed.collectives import gather, gather_with_grad, rank
from lightning_e5.distributed.devices import without_autocast
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask
from lightning_e5.losses.info_nce import TEMPERATURE, InfoNCE
from lightning_e5.losses.matryoshka import Matryoshka, check_dimensions
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.base import TrainingModule
from lightning_e5.progress import say
from lightning_e5.ranges import Range, Size, Temperature
from lightning_e5.training.grad_cache import EmbeddingLoss
from lightning_e5.training.reciprocal_rank import reciprocal_ranks
from lightning_e5.training.token_dropout import drop_inner_tokens
from lightning_e5.types import LossOutput, PairBatch, TokenBatch

#: Of a dimension in the sum of the losses.
DimensionWeight = Annotated[float, Range(0, 1e6, above=True)]


class BiEncoderModule(TrainingModule):
    """Contrastive training of a bi-encoder; each scheme says where the negatives come from.

    Args:
        encoder: the bi-encoder; it is what is saved and evaluated.
        temperature: of InfoNCE.
        mask_duplicates: passages equal to a query's positive, and positives of duplicate queries, are masked as false negatives.
            The paper does not say that it does so; equal texts as negatives teach nothing, so it is on by default.
        learn_temperature: make the temperature a parameter (not in E5).
        token_dropout: share of a text's inner tokens left out in training (ours: regularises small models).
        dimensions: the whole loss is that of the first values of an embedding, summed over these numbers of them, so that each beginning
            can be used alone (``truncate_dim``; see `Matryoshka`; not in E5); None for that of whole embeddings.
        dimension_weights: of each in the sum; 1 by default.
        **training: see `TrainingModule`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        temperature: Temperature = TEMPERATURE,
        mask_duplicates: bool = True,
        learn_temperature: bool = False,
        token_dropout: Annotated[float, Range(0, 0.99)] = 0.0,
        dimensions: Sequence[Size] | None = None,
        dimension_weights: Sequence[DimensionWeight] | None = None,
        **training: Any,
    ) -> None:
        super().__init__(encoder, **training)
        self.encoder = encoder
        check_dimensions({"dimensions": dimensions, "dimension_weights": dimension_weights}, encoder.width)
        self.dimensions = None if dimensions is None else tuple(dimensions)
        self.dimension_weights = dimension_weights
        if self.dimensions is not None and max(self.dimensions) < encoder.width:
            say(f"dimensions: the values of an embedding behind the first {max(self.dimensions)} of {encoder.width} are in no loss, so whole embeddings are not trained")
        self.info_nce = InfoNCE(temperature, learned=learn_temperature)
        self.mask_duplicates, self.token_dropout = mask_duplicates, token_dropout
        self._held_out: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def drop_tokens(self, texts: TokenBatch) -> TokenBatch:
        """The texts with some inner tokens left out; the prefix and the special tokens stay."""
        tokenizer = self.encoder.tokenizer
        prefix = min(int(tokenizer.encode([""], kind)[1][0]) for kind in ("query", "passage")) - 1
        return drop_inner_tokens(texts, self.token_dropout, seed=self.step_seed(), keep_first=prefix)

    def embed_chunk(self, ids_T: Tensor, lengths: list[int]) -> Tensor:
        """Unit embeddings of one chunk."""
        return functional.normalize(self.encoder(ids_T, lengths), dim=1)

    def at_dimensions(self, loss: EmbeddingLoss) -> EmbeddingLoss:
        """The loss as it is summed over the scheme's dimensions; itself where there are none."""
        return loss if self.dimensions is None else Matryoshka(loss, self.dimensions, self.dimension_weights)

    def batch_loss(self, batch: PairBatch, embeddings_ND: Tensor) -> LossOutput:
        """InfoNCE of the queries against every passage of the global batch; a collective call.

        Validation takes this loss, without the queues of the schemes that have one: its negatives are the same at every step.

        Args:
            batch: of this rank.
            embeddings_ND: unit embeddings of its queries, then of its passages.

        Source: paper equation 1.
        """
        queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
        # Candidates are the passages of all ranks; their gradients flow back to the rank that embedded them.
        passages_PD, text_P = gather_with_grad(passages_ND), gather(batch.passage_text_P)
        target_B = own_positives(batch)
        mask = self.false_negatives(batch, text_P, target_B, text_P)
        output = self.info_nce(queries_BD, passages_PD, target_B, mask)
        return output._replace(logs=self.embedding_logs(queries_BD, passages_ND))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._held_out = []

    def held_out_values(self, batch: PairBatch) -> Mapping[str, float | Tensor]:
        """Loss and accuracy against the passages of the batch, and the parts of the loss; the embeddings are kept for the pool."""
        queries_BD, passages_ND = (self.encoder.embed_tokens(texts) for texts in (batch.queries, batch.passages))
        with without_autocast(self.device):
            output = self.at_dimensions(partial(self.batch_loss, batch))(torch.cat([queries_BD, passages_ND]))
        own = (queries_BD, passages_ND, batch.query_text_B, batch.passage_text_P)
        # They stay on the device, where all of them are compared: 10,000 pairs of width 768 take 61 MB.
        self._held_out.append(tuple(gather(tensor) for tensor in own))  # type: ignore[arg-type]
        parts = {name: value for name, value in output.logs.items() if name not in ("temperature", "std_query", "std_passage")}
        return {"loss": output.loss, "accuracy": output.accuracy, **parts}

    def held_out_pool_values(self) -> dict[str, float]:
        """``mrr@10``, the mean reciprocal rank of the positives among all held-out passages, and the spread of the embeddings."""
        queries_MD, passages_PD, *texts = (torch.cat(parts) for parts in zip(*self._held_out, strict=True))
        self._held_out = []
        spread = {"std_query": float(embedding_std(queries_MD)), "std_passage": float(embedding_std(passages_PD))}
        return {"mrr@10": float(reciprocal_ranks(queries_MD, passages_PD, *texts).mean()), **spread}

    def false_negatives(
        self, batch: PairBatch, candidate_text_C: Tensor, target_B: Tensor, text_P: Tensor, *, own_text_B: Tensor | None = None
    ) -> FalseNegativeMask | None:
        """The mask of candidates whose text is that of the query's positive or of a duplicate query's; a collective call.

        Args:
            batch: of this rank.
            candidate_text_C: text id of every candidate, in the order of the loss's columns.
            target_B: column of each query's positive.
            text_P: text id of every passage of the global batch.
            own_text_B: further text id per query that is left out.
        """
        if not self.mask_duplicates:
            return None
        group = passages_per_query(batch)
        duplicates = DuplicateQueries(batch.query_text_B, gather(batch.query_text_B), text_P[::group])
        return FalseNegativeMask(candidate_text_C, batch.passage_text_P[::group], target_B, duplicates=duplicates, own_text_Q=own_text_B)

    def embedding_logs(self, queries_ND: Tensor, passages_ND: Tensor) -> dict[str, float | Tensor]:
        """What every contrastive scheme logs beside its loss."""
        return {"temperature": self.info_nce.temperature, "std_query": embedding_std(queries_ND), "std_passage": embedding_std(passages_ND)}

    def text_places(self, texts: int, rows: int) -> Tensor:
        """The queries, then the passages (none where they have no gradient), row after row."""
        passages = torch.arange(texts - rows, device=self.device)
        return torch.cat([torch.arange(rows, device=self.device), passages // max(1, len(passages) // rows)])


def passages_per_query(batch: PairBatch) -> int:
    """G: the positive and its hard negatives."""
    return len(batch.passage_text_P) // len(batch.rows_B)


def own_queries(batch: PairBatch) -> Tensor:
    """int64 ``[B]``: where this rank's queries stand among those of all ranks."""
    count = len(batch.rows_B)
    return torch.arange(count, device=batch.rows_B.device) + rank() * count


def own_positives(batch: PairBatch) -> Tensor:
    """int64 ``[B]``: where this rank's positives stand among the passages of all ranks: the first of each query's G."""
    return own_queries(batch) * passages_per_query(batch)


def embedding_std(embeddings_ND: Tensor) -> Tensor:
    """Standard deviation of unit vectors over a batch, averaged over dimensions and times sqrt(D): 0 = collapsed, 1 = uniform."""
    if len(embeddings_ND) < 2:
        return embeddings_ND.new_zeros(())
    return embeddings_ND.detach().std(0).mean() * embeddings_ND.shape[1] ** 0.5
