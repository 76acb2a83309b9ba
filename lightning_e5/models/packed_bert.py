"""The forward pass of a Hugging Face ``BertModel`` without padding.

Texts lie one behind the other in a run of ``T`` tokens. Every layer but attention works on single tokens, so it runs
over ``[T, D]`` as it is; attention runs over groups of neighbouring texts of equal length, which need no mask, or on a
GPU in one kernel for all lengths (`lightning_e5.models.varlen`). The weights are those of the given ``BertModel``; it
loads and saves in its own layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_e5.models.pooling import LengthRun, length_runs
from lightning_e5.models.varlen import cumulative, has_varlen, varlen_attention

if TYPE_CHECKING:
    from transformers import BertModel


def is_packable(backbone: Any) -> bool:
    """Whether `PackedBert` computes what the model computes: a ``BertModel`` that reads in both directions."""
    config = backbone.config
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    return type(backbone).__name__ == "BertModel" and absolute and not getattr(config, "is_decoder", False)


class _ScatteredLookup(torch.autograd.Function):
    """Embedding lookup whose gradient is added to ``weight.grad`` at the rows used, without a dense ``[V, D]`` gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids_T: Tensor) -> Tensor:
        ctx.weight, ctx.ids_T = weight, ids_T
        return functional.embedding(ids_T, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        (gradient_TD,) = gradients
        with torch.no_grad():
            if ctx.weight.grad is None:
                ctx.weight.grad = torch.zeros_like(ctx.weight)
            ctx.weight.grad.index_add_(0, ctx.ids_T, gradient_TD.to(ctx.weight.dtype))
        return None, None


class _Layout(NamedTuple):
    """How the texts lie in the run of tokens; ``starts_B1`` on a GPU only."""

    runs: list[LengthRun]
    starts_B1: Tensor | None


class PackedBert(nn.Module):
    """A padding-free view of a ``BertModel``.

    Args:
        bert: the model whose weights are used, as a submodule of the caller (it is not registered twice here).
        gradient_checkpointing: recompute each layer in the backward pass.
        scatter_word_gradient: add the word-embedding gradient straight into ``.grad`` (only for callers that read
            ``.grad`` and register no hooks on that table).
    """

    bert: Any

    def __init__(
        self, bert: BertModel, *, gradient_checkpointing: bool = False, scatter_word_gradient: bool = False
    ) -> None:
        super().__init__()
        object.__setattr__(self, "bert", bert)
        self.gradient_checkpointing = gradient_checkpointing
        self.scatter_word_gradient = scatter_word_gradient

    def forward(self, ids_T: Tensor, lengths: Sequence[int], segments_T: Tensor | None = None) -> Tensor:
        """Last hidden states.

        Args:
            ids_T: int64 ``[T]`` token ids, text after text.
            lengths: tokens of each text; texts sorted by length give the fewest attention groups.
            segments_T: int64 ``[T]`` token types; all 0 by default.

        Returns:
            ``[T, D]`` states, in the autocast type where autocast is on.
        """
        layout = _Layout(length_runs(lengths), cumulative(lengths, ids_T.device) if ids_T.is_cuda else None)
        states_TD = self._embed(ids_T, layout.runs, segments_T)
        for layer in self.bert.encoder.layer:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                states_TD = checkpoint(_layer, layer, states_TD, layout, self.training, use_reentrant=False)
            else:
                states_TD = _layer(layer, states_TD, layout, self.training)
        return states_TD

    def _embed(self, ids_T: Tensor, runs: Sequence[LengthRun], segments_T: Tensor | None) -> Tensor:
        table = self.bert.embeddings
        weight = table.word_embeddings.weight
        if self.scatter_word_gradient and torch.is_grad_enabled() and weight.requires_grad:
            words_TD = _ScatteredLookup.apply(weight, ids_T)
        else:
            words_TD = functional.embedding(ids_T, weight)
        positions_T = torch.cat([torch.arange(r.length, device=ids_T.device).repeat(r.texts) for r in runs])
        positions_TD = functional.embedding(positions_T, table.position_embeddings.weight)
        types = table.token_type_embeddings.weight
        types_TD = types[0] if segments_T is None else functional.embedding(segments_T, types)
        states_TD = table.LayerNorm(words_TD + positions_TD + types_TD)
        return functional.dropout(states_TD, table.dropout.p, self.training)


def _layer(layer: Any, states_TD: Tensor, layout: _Layout, training: bool) -> Tensor:
    """One post-LayerNorm Transformer layer (attention, feed-forward), as ``BertLayer`` computes it."""
    attended_TD = _attention(layer.attention.self, states_TD, layout, training)
    output = layer.attention.output
    states_TD = output.LayerNorm(_residual(output.dense, output.dropout.p if training else 0.0, attended_TD, states_TD))
    inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states_TD))
    outer = layer.output
    return outer.LayerNorm(_residual(outer.dense, outer.dropout.p if training else 0.0, inner, states_TD))


def _residual(dense: nn.Linear, dropout: float, inner_TE: Tensor, states_TD: Tensor) -> Tensor:
    """``dropout(dense(inner)) + states``.

    Without dropout in full precision the matrix product adds onto the sum of residual and bias; on CPUs that saves one of
    three passes over ``[T, D]`` (measured: 3% of a forward pass of MiniLM).
    """
    if dropout or inner_TE.dtype != states_TD.dtype or torch.is_autocast_enabled(states_TD.device.type):
        return functional.dropout(dense(inner_TE), dropout, bool(dropout)) + states_TD
    return (states_TD + dense.bias).addmm_(inner_TE, dense.weight.t())


def attend(query_NHLW: Tensor, key_NHLW: Tensor, value_NHLW: Tensor, dropout: float) -> Tensor:
    """Softmax attention of texts of equal length, without a mask: three of ``[N, H, L, W] -> [N, H, L, W]``.

    On a CPU torch's fused attention is the slower way for short texts wherever a gradient or bfloat16 is involved
    (measured at 4,096 tokens of bfloat16: backward 5 to 10 times, forward 1.5 times), so there the matrices are written out.
    """
    fused = query_NHLW.is_cuda or not (torch.is_grad_enabled() or query_NHLW.dtype == torch.bfloat16)
    if fused and (query_NHLW.is_cuda or query_NHLW.shape[2] > 16):
        return functional.scaled_dot_product_attention(query_NHLW, key_NHLW, value_NHLW, dropout_p=dropout)
    texts, heads, length, width = query_NHLW.shape
    query, key, value = (x.reshape(texts * heads, length, width) for x in (query_NHLW, key_NHLW, value_NHLW))
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    probabilities = functional.dropout(torch.softmax(scores, -1), dropout, training=True) if dropout else torch.softmax(scores, -1)
    return torch.bmm(probabilities, value).view(texts, heads, length, width)


def _attention(attention: Any, states_TD: Tensor, layout: _Layout, training: bool) -> Tensor:
    """Self-attention within each text: ``[T, D] -> [T, D]``."""
    heads, width = attention.num_attention_heads, attention.attention_head_size
    probability = attention.dropout.p if training else 0.0
    weight = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
    bias = torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
    qkv_TE = functional.linear(states_TD, weight, bias)
    runs = layout.runs
    if layout.starts_B1 is not None and has_varlen(qkv_TE.device, qkv_TE.dtype, probability, width):
        query_THW, key_THW, value_THW = qkv_TE.view(-1, 3, heads, width).unbind(1)
        longest = max(r.length for r in runs)
        return varlen_attention(query_THW, key_THW, value_THW, layout.starts_B1, longest, probability).flatten(1)
    outputs = []
    # One split, not a slice per group: the gradient of each slice would be a zero tensor of the whole size.
    for run, block in zip(runs, qkv_TE.split([r.texts * r.length for r in runs]), strict=True):
        # [texts, length, 3, heads, width] -> three of [texts, heads, length, width]
        query, key, value = block.view(run.texts, run.length, 3, heads, width).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, probability)
        outputs.append(mixed.transpose(1, 2).reshape(run.texts * run.length, heads * width))
    return torch.cat(outputs)
