"""MPNet without padding: RoBERTa's positions, and a learned bias on the scores by the distance of two tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.models.packed.attention import self_attention
from lightning_e5.models.packed.dropout import dropped
from lightning_e5.models.packed.encoder import PackedEncoder
from lightning_e5.models.packed.layout import Layout
from lightning_e5.models.packed.post_norm import PostNorm


class PackedMPNet(PackedEncoder):
    """A padding-free view of an ``MPNetModel``."""

    def embed(self, words_TD: Tensor, layout: Layout, segments_T: Tensor | None) -> Tensor:
        """Words and positions, summed and normalised; there are no token types."""
        table = self.backbone.embeddings
        positions_T = layout.positions(words_TD.device) + table.padding_idx + 1
        states_TD = table.LayerNorm(words_TD + functional.embedding(positions_T, table.position_embeddings.weight))
        return dropped(states_TD, self.rate(table.dropout))

    def shared(self, states_TD: Tensor, layout: Layout) -> list[Tensor]:
        """The bias ``[H, L, L]`` of each run's length L, which all layers add to their scores."""
        of_length = {length: self.bias(length, states_TD.device) for length in {run.length for run in layout.runs}}
        return [of_length[run.length] for run in layout.runs]

    def bias(self, length: int, device: torch.device) -> Tensor:
        """The relative attention bias ``[H, L, L]`` of a text of L tokens.

        Each distance is looked up once: the row of token i is a window on the values of all distances ``1 - L .. L - 1``.
        """
        encoder = self.backbone.encoder
        distances = torch.arange(1 - length, length, device=device)
        values_HE = functional.embedding(encoder.relative_position_bucket(distances), encoder.relative_attention_bias.weight).t()
        # A GPU's fused kernels of attention take a bias whose last dimension lies in a row.
        return values_HE.unfold(1, length, 1).flip(1).contiguous()

    def layers(self) -> Iterable[Any]:
        """Those of its ``encoder``."""
        return self.backbone.encoder.layer  # type: ignore[no-any-return]

    def layer(self, layer: Any, states_TD: Tensor, layout: Layout, shared: list[Tensor]) -> Tensor:
        """Attention and feed-forward, each added to its input and normalised, as ``MPNetLayer`` computes it."""
        outside, attention = layer.attention, layer.attention.attn
        qkv_TE = self.linear(states_TD, attention.q, attention.k, attention.v)
        qkv_T3HW = qkv_TE.view(-1, 3, attention.num_attention_heads, attention.attention_head_size)
        attended_TD = self_attention(qkv_T3HW, layout, self.rate(attention.dropout), biases=shared)
        return self.post_norm(layer, attended_TD, states_TD, (self.rate(outside.dropout), self.rate(layer.output.dropout)))

    def behind_attention(self, layer: Any) -> PostNorm:
        """``MPNetAttention`` behind its scores, ``MPNetIntermediate`` and ``MPNetOutput``."""
        attention, inner, outer = layer.attention, layer.intermediate, layer.output
        return PostNorm(attention.attn.o, attention.LayerNorm, inner.dense, inner.intermediate_act_fn, outer.dense, outer.LayerNorm)
