"""BERT without padding: absolute positions, token types, post-LayerNorm layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn import functional

from lightning_e5.models.packed.attention import self_attention
from lightning_e5.models.packed.dropout import dropped
from lightning_e5.models.packed.encoder import PackedEncoder
from lightning_e5.models.packed.layout import Layout
from lightning_e5.models.packed.post_norm import PostNorm


class PackedBert(PackedEncoder):
    """A padding-free view of a ``BertModel``."""

    def embed(self, words_TD: Tensor, layout: Layout, segments_T: Tensor | None) -> Tensor:
        """Words, positions and token types, summed and normalised."""
        table = self.backbone.embeddings
        positions_T = layout.positions(words_TD.device) + self.first_position()
        positions_TD = functional.embedding(positions_T, table.position_embeddings.weight)
        types = table.token_type_embeddings.weight
        types_TD = types[0] if segments_T is None or len(types) < 2 else functional.embedding(segments_T, types)
        states_TD = table.LayerNorm(words_TD + positions_TD + types_TD)
        return dropped(states_TD, self.rate(table.dropout))

    def first_position(self) -> int:
        """Row of the position table that a text's first token has."""
        return 0

    def layers(self) -> Iterable[Any]:
        """Those of its ``encoder``."""
        return self.backbone.encoder.layer  # type: ignore[no-any-return]

    def layer(self, layer: Any, states_TD: Tensor, layout: Layout, shared: Any) -> Tensor:
        """Attention and feed-forward, each added to its input and normalised, as ``BertLayer`` computes it."""
        attended_TD = self._attention(layer.attention.self, states_TD, layout)
        rates = self.rate(layer.attention.output.dropout), self.rate(layer.output.dropout)
        return self.post_norm(layer, attended_TD, states_TD, rates)

    def behind_attention(self, layer: Any) -> PostNorm:
        """``BertSelfOutput``, ``BertIntermediate`` and ``BertOutput``."""
        attention, inner, outer = layer.attention.output, layer.intermediate, layer.output
        return PostNorm(attention.dense, attention.LayerNorm, inner.dense, inner.intermediate_act_fn, outer.dense, outer.LayerNorm)

    def _attention(self, attention: Any, states_TD: Tensor, layout: Layout) -> Tensor:
        qkv_TE = self.linear(states_TD, attention.query, attention.key, attention.value)
        qkv_T3HW = qkv_TE.view(-1, 3, attention.num_attention_heads, attention.attention_head_size)
        return self_attention(qkv_T3HW, layout, self.rate(attention.dropout))
