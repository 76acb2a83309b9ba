"""What the contrastive schemes share: how texts are embedded, where a query's positive stands, and false-negative masking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.distributed.collectives import gather, gather_with_grad, rank
from lightning_e5.distributed.devices import without_autocast
from lightning_e5.distributed.ring import Ring
from lightning_e5.errors import UserError
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask, OwnColumnMask
from lightning_e5.losses.info_nce import TEMPERATURE, InfoNCE
from lightning_e5.losses.info_nce_ring import info_nce_by_ring
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
#: How the passages of all ranks become candidates; see `BiEncoderModule`.
PassagesOfRanks = Literal["gathered", "ring"]


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
        passages_of_ranks: of several ranks, ``gathered`` on each, with the gradient of all; or a ``ring``, in which they come by one rank's
            block at a time and take their gradient home, so that memory grows with a rank's own rows only. Loss and gradients are the
            same. Gathered is the default: it makes three products of queries and passages where the ring makes four, and at E5's batch of
            32,768 and width of 1,024 it takes 0.4 GB; the ring is for batches whose embeddings do not fit on each device.
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
        passages_of_ranks: PassagesOfRanks = "gathered",
        **training: Any,
    ) -> None:
        super().__init__(encoder, **training)
        self.encoder = encoder
        if passages_of_ranks not in ("gathered", "ring"):
            raise UserError(f"passages_of_ranks: {passages_of_ranks!r} is not one of gathered, ring")
        #: By which the passages of the ranks come by; None where they are gathered.
        self.ring = Ring() if passages_of_ranks == "ring" else None
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
        output = self.against_passages(batch, queries_BD, passages_ND)
        return output._replace(logs=self.embedding_logs(queries_BD, passages_ND))

    def against_passages(
        self, batch: PairBatch, queries_BD: Tensor, passages_ND: Tensor, queue: tuple[Tensor, Tensor] | None = None
    ) -> LossOutput:
        """InfoNCE of the queries against the passages of all ranks, then those of a queue; a collective call.

        Args:
            batch: of this rank.
            queries_BD, passages_ND: its unit embeddings.
            queue: embeddings ``[K, D]`` without gradient, and their text ids.
        """
        if self.ring is not None:
            return self.by_ring(batch, queries_BD, passages_ND, batch.passage_text_P, queue=queue)
        # Candidates are the passages of all ranks; their gradients flow back to the rank that embedded them.
        passages_PD, text_C = gather_with_grad(passages_ND), gather(batch.passage_text_P)
        queue_KD, text_K = (None, None) if queue is None else queue
        target_B = own_positives(batch)
        mask = self.false_negatives(batch, text_C if text_K is None else torch.cat([text_C, text_K]), target_B)
        return self.info_nce(queries_BD, passages_PD, target_B, mask, queue_KD)

    def by_ring(
        self,
        batch: PairBatch,
        queries_BD: Tensor,
        candidates_CD: Tensor,
        text_C: Tensor,
        *,
        mask: OwnColumnMask | None = None,
        own_text_B: Tensor | None = None,
        queue: tuple[Tensor, Tensor] | None = None,
    ) -> LossOutput:
        """InfoNCE of the queries against what each rank has as candidates, its passages first; a collective call.

        Args:
            batch: of this rank.
            queries_BD: its unit embeddings.
            candidates_CD, text_C: its candidates and their text ids.
            mask: in the place of that of false negatives, where these are not masked.
            own_text_B: see `false_negatives`.
            queue: see `against_passages`.
        """
        assert self.ring is not None
        target_B = positives_of_rank(batch)
        masked = self.false_negatives(batch, text_C, target_B, own_text_B=own_text_B) or mask
        return info_nce_by_ring(self.info_nce, queries_BD, candidates_CD, text_C, target_B, self.ring, masked, queue)

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
        self, batch: PairBatch, candidate_text_C: Tensor, target_B: Tensor, *, own_text_B: Tensor | None = None
    ) -> FalseNegativeMask | None:
        """The mask of candidates whose text is that of the query's positive or of a duplicate query's; a collective call.

        Args:
            batch: of this rank.
            candidate_text_C: text id of every candidate, in the order of the loss's columns.
            target_B: column of each query's positive.
            own_text_B: further text id per query that is left out.
        """
        if not self.mask_duplicates:
            return None
        positive_text_B = batch.passage_text_P[:: passages_per_query(batch)]
        duplicates = self.duplicates(batch.query_text_B, positive_text_B)
        return FalseNegativeMask(candidate_text_C, positive_text_B, target_B, duplicates=duplicates, own_text_Q=own_text_B)

    def duplicates(self, query_text_B: Tensor, positive_text_B: Tensor) -> DuplicateQueries:
        """The pairs of text ids of the global batch, or, by the ring, those of this rank's queries and their duplicates; a collective call."""
        if self.ring is None:
            return DuplicateQueries(query_text_B, gather(query_text_B), gather(positive_text_B))
        found = [
            pairs_B2.index_select(0, torch.isin(pairs_B2[:, 0], query_text_B).nonzero().squeeze(1))
            for (pairs_B2,) in self.ring.travelling(torch.stack([query_text_B, positive_text_B], 1))
        ]
        return DuplicateQueries(query_text_B, *torch.cat(found).unbind(1))

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


def positives_of_rank(batch: PairBatch) -> Tensor:
    """int64 ``[B]``: where this rank's positives stand among its own passages."""
    return torch.arange(len(batch.rows_B), device=batch.rows_B.device) * passages_per_query(batch)


def embedding_std(embeddings_ND: Tensor) -> Tensor:
    """Standard deviation of unit vectors over a batch, averaged over dimensions and times sqrt(D): 0 = collapsed, 1 = uniform."""
    if len(embeddings_ND) < 2:
        return embeddings_ND.new_zeros(())
    return embeddings_ND.detach().std(0).mean() * embeddings_ND.shape[1] ** 0.5
