"""DistilBERT without padding: BERT's layers without token types, and without dropout behind the attention."""

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


class PackedDistilBert(PackedEncoder):
    """A padding-free view of a ``DistilBertModel``."""

    def embed(self, words_TD: Tensor, layout: Layout, segments_T: Tensor | None) -> Tensor:
        """Words and positions, summed and normalised; there are no token types."""
        table = self.backbone.embeddings
        positions_TD = functional.embedding(layout.positions(words_TD.device), table.position_embeddings.weight)
        return dropped(table.LayerNorm(words_TD + positions_TD), self.rate(table.dropout))

    def layers(self) -> Iterable[Any]:
        """Those of its ``transformer``."""
        return self.backbone.transformer.layer  # type: ignore[no-any-return]

    def layer(self, layer: Any, states_TD: Tensor, layout: Layout, shared: Any) -> Tensor:
        """Attention and feed-forward, each added to its input and normalised, as ``TransformerBlock`` computes it."""
        attention = layer.attention
        qkv_TE = self.linear(states_TD, attention.q_lin, attention.k_lin, attention.v_lin)
        qkv_T3HW = qkv_TE.view(-1, 3, attention.n_heads, attention.attention_head_size)
        attended_TD = self_attention(qkv_T3HW, layout, self.rate(attention.dropout))
        return self.post_norm(layer, attended_TD, states_TD, (0.0, self.rate(layer.ffn.dropout)))

    def behind_attention(self, layer: Any) -> PostNorm:
        """``TransformerBlock`` behind its attention."""
        feed = layer.ffn
        return PostNorm(layer.attention.out_lin, layer.sa_layer_norm, feed.lin1, feed.activation, feed.lin2, layer.output_layer_norm)
