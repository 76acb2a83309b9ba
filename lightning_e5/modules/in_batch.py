"""E5's pre-training scheme: InfoNCE against every other passage of the global batch."""

from __future__ import annotations

from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, gather_with_grad
from lightning_e5.modules.bi_encoder import BiEncoderModule, own_positives
from lightning_e5.training.chunks import concatenate
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme")
class InBatchModule(BiEncoderModule):
    """Contrastive training with in-batch negatives (and hard negatives, where the batch has them).

    Args: those of `BiEncoderModule`.

    Source: paper sections 3.2 and 4.1. Beside it: pre-batch and MoCo take negatives from a queue, distilled adds a teacher,
    symmetric adds what others add to the loss.
    """

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        texts = self.drop_tokens(concatenate([batch.queries, batch.passages]))

        def loss(embeddings_ND: Tensor) -> LossOutput:
            queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
            # Candidates are the passages of all ranks; their gradients flow back to the rank that embedded them.
            passages_PD, text_P = gather_with_grad(passages_ND), gather(batch.passage_text_P)
            target_B = own_positives(batch)
            mask = self.false_negatives(batch, text_P, target_B, text_P)
            output = self.info_nce(queries_BD, passages_PD, target_B, mask)  # paper, equation 1
            return output._replace(logs=self.embedding_logs(queries_BD, passages_ND))

        self.cached_step(batch, texts, self.embed_chunk, loss)
