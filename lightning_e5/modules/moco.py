"""The MoCo ablation: keys from a momentum encoder, negatives from a queue of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather
from lightning_e5.errors import UserError
from lightning_e5.losses.matryoshka import check_dimensions, first_values
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed.encoder import held_weights
from lightning_e5.modules.bi_encoder import BiEncoderModule, own_positives
from lightning_e5.ranges import Count, Share
from lightning_e5.training.momentum import momentum_copy, momentum_update
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.types import LossOutput, PairBatch


def _check(arguments: Mapping[str, Any]) -> None:
    """UserError for arguments that do not go together."""
    check_dimensions(arguments)
    if arguments.get("passages_of_ranks") == "ring":
        raise UserError(
            "passages_of_ranks: ring: MoCo's candidates are a queue of keys that every rank holds whole, and the keys of all ranks are gathered "
            "to enter it, so there is nothing to save; leave it out, or take InBatchModule or PreBatchModule"
        )


@configurable("training scheme", check=_check)
class MoCoModule(BiEncoderModule):
    """Queries against their keys and a queue of keys; only the query side has a gradient.

    The passages of the global batch are embedded by the momentum encoder and enter the queue; each query's candidates
    are the queue with them in it. The momentum encoder follows the encoder after every step.

    Args:
        encoder: the bi-encoder; it is what is saved and evaluated.
        queue_size: keys held (paper: 130,000).
        momentum: of the key encoder; the paper does not give its value, 0.999 is that of He et al. 2020.
        **training: see `BiEncoderModule`.

    Source: paper table 8; He et al. 2020, "Momentum Contrast".
    """

    def __init__(self, encoder: TextEncoder, *, queue_size: Count = 131072, momentum: Share = 0.999, **training: Any) -> None:
        _check(training)
        super().__init__(encoder, **training)
        if not 0.0 <= momentum <= 1.0:
            raise UserError(f"momentum: {momentum} is not in [0, 1]")
        self.momentum = momentum
        self.momentum_encoder = momentum_copy(encoder)
        self.queue = NegativeQueue(queue_size, encoder.width)

    def train(self, mode: bool = True) -> MoCoModule:
        super().train(mode)
        self.momentum_encoder.eval()
        return self

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        # k = f_k(passage): the keys of all ranks, without gradient, enter the queue.
        with held_weights(self.momentum_encoder):
            keys_PD = gather(self.grad_cache.embed(batch.passages, self.key_chunk))
        text_P = gather(batch.passage_text_P)
        with self.queue.pushing(keys_PD, text_P) as positions_P:
            queue_KD, queue_text_K = self.queue.entries()
            target_B = positions_P[own_positives(batch)]

            def loss(queries_BD: Tensor) -> LossOutput:
                mask = self.false_negatives(batch, queue_text_K, target_B)
                entries_KD, own_PD = (first_values(rows, queries_BD.shape[1]) for rows in (queue_KD, keys_PD))
                output = self.info_nce(queries_BD, entries_KD[:0], target_B, mask, entries_KD)
                return output._replace(logs={**self.embedding_logs(queries_BD, own_PD), "queue": float(len(queue_KD))})

            # q = f_q(query), against the queue.
            texts = self.drop_tokens(batch.queries)
            self.cached_step(batch, texts, self.embed_chunk, self.at_dimensions(loss), without_gradient=batch.passages)
        # theta_k <- m theta_k + (1 - m) theta_q; the momentum encoder is whole on every rank.
        with self.whole_parameters():
            momentum_update(self.momentum_encoder, self.encoder, self.momentum)

    def key_chunk(self, ids_T: Tensor, lengths: list[int]) -> Tensor:
        """Unit embeddings of one chunk by the momentum encoder."""
        return functional.normalize(self.momentum_encoder(ids_T, lengths), dim=1)
