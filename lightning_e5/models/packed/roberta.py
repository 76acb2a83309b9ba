"""RoBERTa and XLM-R without padding: BERT's layers, positions counted from behind the padding token's."""

from __future__ import annotations

from lightning_e5.models.packed.bert import PackedBert


class PackedRoberta(PackedBert):
    """A padding-free view of a ``RobertaModel`` or ``XLMRobertaModel``."""

    def first_position(self) -> int:
        """Row ``padding_idx`` of the position table is the padding's, and those before it are nobody's."""
        return int(self.backbone.embeddings.padding_idx) + 1
