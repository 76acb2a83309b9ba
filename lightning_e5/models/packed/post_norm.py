"""What follows the attention in a layer of BERT and its kin, compiled where that is asked for, and chunks of few sizes for it.

A compiled function is made for each number of tokens, so chunks are filled up with texts of no meaning to one of few; their states
are cut off, and they have no gradient. Attention stays outside of what is compiled: its kernels take the lengths of the texts, which
are other ones in each chunk, as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_e5.models.packed.layout import Layout

#: A chunk is filled up to its budget, or to this part of it.
_PART = 4


class PostNorm(NamedTuple):
    """The modules behind the attention: two blocks, each added to its input and normalised; the second widens and narrows again."""

    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    widen: nn.Linear
    activation: Callable[[Tensor], Tensor]
    narrow: nn.Linear
    norm: nn.LayerNorm


def compiled_post_norm(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """`post_norm` of tensors, compiled: bias, dropout, sum and normalisation become one operation each way."""

    def post_norm(
        attended_TD: Tensor, states_TD: Tensor, weights: tuple[Tensor, ...], epsilons: tuple[float, float], rates: tuple[float, float]
    ) -> Tensor:
        output, output_bias, scale, shift, widen, widen_bias, narrow, narrow_bias, last_scale, last_shift = weights
        mixed_TD = functional.dropout(functional.linear(attended_TD, output, output_bias), rates[0])
        states_TD = functional.layer_norm(mixed_TD + states_TD, scale.shape, scale, shift, epsilons[0])
        inner = activation(functional.linear(states_TD, widen, widen_bias))
        outer_TD = functional.dropout(functional.linear(inner, narrow, narrow_bias), rates[1])
        return functional.layer_norm(outer_TD + states_TD, last_scale.shape, last_scale, last_shift, epsilons[1])

    compiled: Any = torch.compile(post_norm, dynamic=False)
    return compiled  # type: ignore[no-any-return]


def filled(ids_T: Tensor, layout: Layout, budget: int) -> tuple[Tensor, Layout]:
    """A chunk filled up to one of few sizes by texts no longer than its longest.

    Args:
        ids_T: int64 ``[T]`` token ids.
        layout: of the texts.
        budget: tokens of a chunk; a text that is longer alone is filled up to the next multiple of it.
    """
    tokens = layout.tokens
    part = budget // _PART
    size = part if tokens <= part else budget * -(-tokens // budget)
    whole, rest = divmod(size - tokens, layout.longest)
    lengths = [r.length for r in layout.runs for _ in range(r.texts)] + [layout.longest] * whole + [rest] * (rest > 0)
    return torch.cat([ids_T, ids_T.new_zeros(size - tokens)]), Layout.of(lengths, ids_T.device, training=layout.training)
