"""E5's pre-training scheme: InfoNCE against every other passage of the global batch."""

from __future__ import annotations

from functools import partial

from lightning_e5.configurable import configurable
from lightning_e5.losses.matryoshka import check_dimensions
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.training.chunks import concatenate
from lightning_e5.types import PairBatch


@configurable("training scheme", check=check_dimensions)
class InBatchModule(BiEncoderModule):
    """Contrastive training with in-batch negatives (and hard negatives, where the batch has them).

    Args: those of `BiEncoderModule`.

    Source: paper sections 3.2 and 4.1. Beside it: pre-batch and MoCo take negatives from a queue, distilled adds a teacher,
    symmetric adds what others add to the loss.
    """

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        texts = self.drop_tokens(concatenate([batch.queries, batch.passages]))
        self.cached_step(batch, texts, self.embed_chunk, self.at_dimensions(partial(self.batch_loss, batch)))
