"""ModernBERT without padding: rotary positions, local and global attention by turns, gated feed-forward, pre-LayerNorm.

Source: Warner et al. 2024, "Smarter, Better, Faster, Longer".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_e5.models.packed.attention import self_attention
from lightning_e5.models.packed.dropout import dropped
from lightning_e5.models.packed.encoder import PackedEncoder
from lightning_e5.models.packed.layout import Layout

#: Rotary embeddings whose frequencies change with the longest text of a batch: a text's states would depend on its neighbours.
_BY_LENGTH = ("dynamic", "longrope")


class PackedModernBert(PackedEncoder):
    """A padding-free view of a ``ModernBertModel``.

    Its local layers take memory in proportion to the tokens; its global ones as well (see
    `lightning_e5.models.packed.attention.attend`), so texts may have all the 8,192 tokens that the model has positions for.
    """

    @staticmethod
    def unsupported(config: Any) -> str | None:
        """Frequencies by the length of the batch, and what no class computes."""
        found = [getattr(config, "rope_scaling", None), *(getattr(config, "rope_parameters", None) or {}).values()]
        kinds = [kind for rope in found if isinstance(rope, Mapping) and (kind := rope.get("rope_type", rope.get("type"))) in _BY_LENGTH]
        return f"rope_type: {kinds[0]}" if kinds else PackedEncoder.unsupported(config)

    def embed(self, words_TD: Tensor, layout: Layout, segments_T: Tensor | None) -> Tensor:
        """Normalised words; positions come in by rotation, and there are no token types."""
        table = self.backbone.embeddings
        return dropped(table.norm(words_TD), self.rate(table.drop))

    def shared(self, states_TD: Tensor, layout: Layout) -> dict[str, tuple[Tensor, Tensor]]:
        """For each kind of layer cosine and sine of every token's angles, ``[T, 1, 1, W / 2]``."""
        places_T = layout.positions(states_TD.device)
        places_1L = torch.arange(layout.longest, device=states_TD.device)[None]
        angles = {}
        for kind in sorted(set(self.backbone.config.layer_types)):
            # Both halves of a head turn by the same angles.
            cosine, sine = (x[0, :, None, None, : x.shape[-1] // 2][places_T] for x in self.backbone.rotary_emb(states_TD, places_1L, kind))
            angles[kind] = cosine, sine
        return angles

    def layers(self) -> Iterable[Any]:
        """The model's own list."""
        return self.backbone.layers  # type: ignore[no-any-return]

    def layer(self, layer: Any, states_TD: Tensor, layout: Layout, shared: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Attention and gated feed-forward of the normalised input, each added to it, as ``ModernBertEncoderLayer`` computes it."""
        attention, feed = layer.attn, layer.mlp
        qkv_TE = self.linear(layer.attn_norm(states_TD), attention.Wqkv)  # the first layer's norm is none: its input was normalised
        heads, kind = self.backbone.config.num_attention_heads, layer.attention_type
        qkv_T3HW: Tensor = _Rotated.apply(qkv_TE.view(-1, 3, heads, attention.head_dim), *shared[kind])
        window = self.backbone.config.sliding_window if kind == "sliding_attention" else None
        dropout = attention.attention_dropout if self.training else 0.0  # of the probabilities, and of the output
        states_TD = self.residual(attention.Wo, dropout, self_attention(qkv_T3HW, layout, dropout, window=window), states_TD)
        inner, gate = self.linear(layer.mlp_norm(states_TD), feed.Wi).chunk(2, -1)
        gated = dropped(feed.act(inner) * gate, self.rate(feed.drop))
        return self.residual(feed.Wo, 0.0, gated, states_TD)

    def finish(self, states_TD: Tensor) -> Tensor:
        """The last normalisation."""
        normalised_TD: Tensor = self.backbone.final_norm(states_TD)
        return normalised_TD


class _Rotated(torch.autograd.Function):
    """Queries and keys turned by their positions' angles, values as they are; the gradient is turned back.

    As a function of its own it keeps nothing but the angles, which all layers share.
    """

    @staticmethod
    def forward(ctx: Any, qkv_T3HW: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(qkv_T3HW, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradients[0], cosine, -sine), None, None


def _turned(qkv_T3HW: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    turned = torch.empty_like(qkv_T3HW)
    turned[:, 2] = qkv_T3HW[:, 2]
    half = qkv_T3HW.shape[-1] // 2
    left, right = qkv_T3HW[:, :2].to(cosine.dtype).split(half, -1)
    turned[:, :2, :, :half] = torch.addcmul(left * cosine, right, sine, value=-1)
    turned[:, :2, :, half:] = torch.addcmul(right * cosine, left, sine)
    return turned
