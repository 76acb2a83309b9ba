"""E5's fine-tuning scheme: a cross-encoder's scores of each query's own passages, plus the contrastive loss."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.losses.distillation import distillation_loss, has_teacher
from lightning_e5.losses.matryoshka import check_dimensions
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.ranges import Weight
from lightning_e5.training.chunks import concatenate
from lightning_e5.types import LossOutput, PairBatch


@configurable("training scheme", check=check_dimensions)
class DistilledModule(BiEncoderModule):
    """``D_KL(p_ce || p_stu) + alpha * L_cont`` over 1 positive and N hard negatives per query.

    Rows without teacher scores contribute the contrastive loss only.

    Args:
        encoder: the bi-encoder, pre-trained.
        alpha: weight of the contrastive loss over all passages of the global batch (E5: 0.2).
        without_teacher: it is meant that no row at all has teacher scores; an experiment whose stages give none is else refused.
        **training: see `BiEncoderModule`.

    Source: paper section 3.3, equation 2.
    """

    def __init__(self, encoder: TextEncoder, *, alpha: Weight = 0.2, without_teacher: bool = False, **training: Any) -> None:
        super().__init__(encoder, **training)
        if alpha < 0:
            raise UserError(f"alpha: {alpha} is below 0")
        self.alpha, self.without_teacher = alpha, without_teacher

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        texts = self.drop_tokens(concatenate([batch.queries, batch.passages]))
        self.cached_step(batch, texts, self.embed_chunk, self.at_dimensions(partial(self.batch_loss, batch)))

    def batch_loss(self, batch: PairBatch, embeddings_ND: Tensor) -> LossOutput:
        """``D_KL + alpha * L_cont``, and both apart in the logs; a collective call.

        Args: see `BiEncoderModule.batch_loss`.
        """
        # L_cont: every passage of the global batch is a candidate, the hard negatives of all queries among them.
        contrastive = super().batch_loss(batch, embeddings_ND)
        if batch.teacher_BG is None:
            return contrastive._replace(loss=self.alpha * contrastive.loss)
        # D_KL: the query's own passages alone, the student's softmax against the teacher's.
        queries_BD, passages_ND = embeddings_ND.tensor_split([len(batch.rows_B)])
        passages_BGD = passages_ND.view(len(queries_BD), -1, passages_ND.shape[1])
        divergence = distillation_loss(queries_BD, passages_BGD, batch.teacher_BG, temperature=self.info_nce.temperature)
        # Its mean is over rows with a teacher; weighting by their share makes it the mean over the whole batch.
        share = has_teacher(batch.teacher_BG).float().mean()
        logs = {**contrastive.logs, "divergence": divergence.detach(), "contrastive": contrastive.loss.detach()}
        return contrastive._replace(loss=share * divergence + self.alpha * contrastive.loss, logs=logs)
