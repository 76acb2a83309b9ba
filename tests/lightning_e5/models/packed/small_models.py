"""A small random model of each family that runs without padding, and of one that does not."""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers

#: Those with a padding-free view.
NAMES = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert")
#: A rate of its own for each kind of dropout, so that one in the place of another shows.
RATES = {
    "distilbert": {"dropout": 0.1, "attention_dropout": 0.2},
    "modernbert": {"embedding_dropout": 0.1, "attention_dropout": 0.2, "mlp_dropout": 0.3},
}


def small_model(name: str, vocabulary: int = 90, positions: int = 64, **changes: Any) -> Any:
    """Two layers of 32 values and 4 heads with dropout (see `RATES`), each parameter random, biases and norms too; ModernBERT's window is 4."""
    torch.manual_seed(1)
    rates = RATES.get(name, {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2})
    common: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": positions, **rates}
    like_bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, **common}
    model: Any
    if name == "bert":
        model = transformers.BertModel(transformers.BertConfig(**{**like_bert, **changes}), add_pooling_layer=False)
    elif name == "roberta":
        config = {**like_bert, "pad_token_id": 1, "type_vocab_size": 1, **changes}
        model = transformers.RobertaModel(transformers.RobertaConfig(**config), add_pooling_layer=False)
    elif name == "xlm-roberta":
        config = {**like_bert, "pad_token_id": 1, "type_vocab_size": 1, **changes}
        model = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**config), add_pooling_layer=False)
    elif name == "mpnet":
        model = transformers.MPNetModel(transformers.MPNetConfig(**{**like_bert, **changes}), add_pooling_layer=False)
    elif name == "distilbert":
        own = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        model = transformers.DistilBertModel(transformers.DistilBertConfig(**{**own, **common, **changes}))
    elif name == "modernbert":
        own = {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        model = transformers.ModernBertModel(transformers.ModernBertConfig(**{**like_bert, **own, **changes}))
    else:
        model = transformers.ElectraModel(transformers.ElectraConfig(**{**like_bert, "embedding_size": 16, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def modules_with_dropout() -> list[Any]:
    """Those of the padding-free encoders that call `lightning_e5.models.packed.dropout.dropped` by its name in them."""
    found = [module for name, module in sys.modules.items() if name.startswith("lightning_e5.models.packed.") and hasattr(module, "dropped")]
    assert len(found) >= 6
    return found
