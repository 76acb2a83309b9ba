"""Hugging Face encoders without a padding-free view: texts padded to the longest of their chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_e5.distributed.devices import sent
from lightning_e5.errors import UserError
from lightning_e5.training.chunks import gather_tokens


def padded_states(backbone: Any, ids_T: Tensor, lengths: Sequence[int], segments_T: Tensor | None = None) -> Tensor:
    """Last hidden states ``[T, D]`` of packed tokens, computed with padding; little of it where lengths are alike.

    ``segments_T``: token types, for a backbone that has more than one.
    """
    pieces = torch.split(ids_T, list(lengths))
    pad = int(getattr(backbone.config, "pad_token_id", 0) or 0)
    padded_BL = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True, padding_value=pad)
    longest = padded_BL.shape[1]
    lengths_B = sent(torch.tensor(lengths, device="cpu"), ids_T.device)
    mask_BL = torch.arange(longest, device=ids_T.device)[None, :] < lengths_B[:, None]
    types = {}
    if segments_T is not None and int(getattr(backbone.config, "type_vocab_size", 0) or 0) > 1:
        types["token_type_ids"] = nn.utils.rnn.pad_sequence(list(torch.split(segments_T, list(lengths))), batch_first=True)
    states_BLD: Tensor = backbone(input_ids=padded_BL, attention_mask=mask_BL.long(), **types).last_hidden_state
    starts_B = torch.arange(len(lengths), device=ids_T.device) * longest
    return gather_tokens(states_BLD.flatten(0, 1), starts_B, lengths_B, len(ids_T))  # a mask would have to be waited for on a GPU


def usable_positions(backbone: Any) -> int | None:
    """Tokens for which the model has positions; None where it sets no limit.

    RoBERTa and its kin count positions from ``padding_idx + 1`` on, so a table of 514 is for 512 tokens.
    """
    limit = getattr(backbone.config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return int(limit) if padding is None else int(limit) - padding - 1


def checkpoint_layers(model: nn.Module) -> None:
    """Let the backbone in ``model`` recompute its layers in the backward pass, with the same dropout.

    Raises:
        UserError: it cannot.
    """
    backbone: Any = getattr(model, "backbone", model)
    if not getattr(backbone, "supports_gradient_checkpointing", False):
        raise UserError(f"gradient_checkpointing: {type(backbone).__name__} cannot recompute its layers")
    backbone.gradient_checkpointing_enable({"use_reentrant": False})


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the backbone in ``model``, each of which is called as a module.

    Raises:
        UserError: which they are cannot be told.
    """
    count = getattr(getattr(getattr(model, "backbone", model), "config", None), "num_hidden_layers", None)
    found = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if found is None:
        raise UserError(f"strategy: fsdp2: {type(getattr(model, 'backbone', model)).__name__} has no list of num_hidden_layers layers; fsdp shards it as a whole")
    return list(found)
