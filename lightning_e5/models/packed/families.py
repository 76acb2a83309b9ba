"""Which encoders run without padding, and by which class."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning_e5.models.packed.bert import PackedBert
from lightning_e5.models.packed.distilbert import PackedDistilBert
from lightning_e5.models.packed.encoder import PackedEncoder
from lightning_e5.models.packed.modernbert import PackedModernBert
from lightning_e5.models.packed.mpnet import PackedMPNet
from lightning_e5.models.packed.roberta import PackedRoberta

#: Class of a backbone -> its padding-free view.
FAMILIES: dict[str, type[PackedEncoder]] = {
    "BertModel": PackedBert,
    "RobertaModel": PackedRoberta,
    "XLMRobertaModel": PackedRoberta,
    "MPNetModel": PackedMPNet,
    "DistilBertModel": PackedDistilBert,
    "ModernBertModel": PackedModernBert,
}
#: ``model_type`` of a ``config.json`` -> the class of its backbone.
MODEL_TYPES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "mpnet": "MPNetModel",
    "distilbert": "DistilBertModel",
    "modernbert": "ModernBertModel",
}


def packed_encoder(backbone: Any) -> PackedEncoder | None:
    """The padding-free view of a Hugging Face encoder; None where there is none, or none for its configuration."""
    family = FAMILIES.get(type(backbone).__name__)
    return family(backbone) if family is not None and family.unsupported(backbone.config) is None else None


def why_padded(config: Mapping[str, Any]) -> str | None:
    """Why an encoder of this ``config.json`` is padded; None where it is not."""
    kind = str(config.get("model_type", "a model without model_type"))
    family = FAMILIES.get(MODEL_TYPES.get(kind, ""))
    if family is None:
        return kind
    reason = family.unsupported(SimpleNamespace(**config))
    return None if reason is None else f"{kind} with {reason}"
