"""Self-attention within each text of a packed batch: among all its tokens, or within a window around each.

Attention runs over groups of neighbouring texts of equal length, which need no mask, or on a GPU in one kernel for all
lengths (`lightning_e5.models.packed.varlen`), or where none has what is asked for, over few groups of about equal length with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_e5.models.packed.dropout import dropped
from lightning_e5.models.packed.layout import MOST_GROUPS, Layout, PaddedGroups
from lightning_e5.models.packed.varlen import has_varlen, varlen_attention

#: Tokens from which on no matrix of a text's tokens by its tokens is kept for the backward pass.
LONG = 1024
#: Queries that attend at a time in a long text whose attention has dropout.
_QUERIES = 256


def self_attention(
    qkv_T3HW: Tensor, layout: Layout, dropout: float, *, biases: Sequence[Tensor] | None = None, window: int | None = None
) -> Tensor:
    """Self-attention within each text.

    Args:
        qkv_T3HW: queries, keys and values of each token, H heads of W values.
        layout: of the texts.
        dropout: share of the attention probabilities set to 0.
        biases: for each run of the layout, what is added to the scores, ``[H, L, L]``.
        window: a token attends to those at most so far from it; None for all of its text.

    Returns:
        ``[T, H * W]``.
    """
    heads, width = qkv_T3HW.shape[2:]
    device, dtype = qkv_T3HW.device, qkv_T3HW.dtype
    if biases is None and has_varlen(device, dtype, dropout, width, windowed=window is not None):
        query_THW, key_THW, value_THW = qkv_T3HW.unbind(1)
        return varlen_attention(query_THW, key_THW, value_THW, layout.starts_B1, layout.longest, dropout, window).flatten(1)
    if biases is None and window is None and pads_groups(layout, device):
        return _padded_attention(qkv_T3HW, layout.padded(dtype), dropout)
    outputs = []
    # One split, not a slice per group: the gradient of each slice would be a zero tensor of the whole size.
    for number, (run, block) in enumerate(zip(layout.runs, qkv_T3HW.split([r.texts * r.length for r in layout.runs]), strict=True)):
        # [texts, length, 3, heads, width] -> three of [texts, heads, length, width]
        query, key, value = block.view(run.texts, run.length, 3, heads, width).permute(2, 0, 3, 1, 4)
        if window is None:
            mixed = attend(query, key, value, dropout, None if biases is None else biases[number], training=layout.training)
        else:
            mixed = attend_near(query, key, value, dropout, window, training=layout.training)
        outputs.append(mixed.transpose(1, 2).reshape(run.texts * run.length, heads * width))
    return torch.cat(outputs)


def pads_groups(layout: Layout, device: torch.device) -> bool:
    """Whether texts are padded to few lengths: on a GPU, where many small operations cost more than some padding."""
    return device.type == "cuda" and len(layout.runs) > MOST_GROUPS


def _padded_attention(qkv_T3HW: Tensor, padded: PaddedGroups, dropout: float) -> Tensor:
    """As `self_attention`, by groups of texts that are padded to one length; no text attends to padding."""
    heads, width = qkv_T3HW.shape[2:]
    # Each token has a place of its own, so both directions are copies, in any order.
    padded_P3HW = qkv_T3HW.new_zeros(padded.tokens, 3, heads, width).index_copy(0, padded.place_T, qkv_T3HW)
    outputs = []
    for group, mask_N11L, block in zip(padded.groups, padded.masks, padded_P3HW.split([g.texts * g.length for g in padded.groups]), strict=True):
        query, key, value = block.view(group.texts, group.length, 3, heads, width).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask_N11L, dropout)
        outputs.append(mixed.transpose(1, 2).reshape(group.texts * group.length, heads * width))
    return torch.cat(outputs).index_select(0, padded.place_T)


def attend(
    query_NHLW: Tensor, key_NHLW: Tensor, value_NHLW: Tensor, dropout: float, bias_HLL: Tensor | None = None, *, training: bool = False
) -> Tensor:
    """Softmax attention of texts of equal length, without a mask: three of ``[N, H, L, W] -> [N, H, L, W]``.

    On a CPU torch's fused attention is the slower way for short texts wherever a gradient or bfloat16 is involved
    (measured at 4,096 tokens of bfloat16: backward 5 to 10 times, forward 1.5 times), so there the matrices are written out.
    For long texts they would take the most memory; the fused one keeps none. It has no dropout on a CPU, where the queries
    then attend part by part and each part is computed again in the backward pass. What dropout draws does not depend on
    whether gradients are asked for, and in ``training`` no value does: a gradient cache encodes without them first, as many
    texts as there is memory for.

    ``bias_HLL``: added to the scores of every text; of one head for all heads.
    """
    length = query_NHLW.shape[2]
    if query_NHLW.is_cuda:
        fused = True
    elif dropout or length >= LONG:
        fused = not dropout  # torch's would draw other numbers than ours
    else:
        fused = length > 16 and not (training or torch.is_grad_enabled() or query_NHLW.dtype == torch.bfloat16)
    if fused:
        mask = None if bias_HLL is None else bias_HLL[None].to(query_NHLW.dtype)
        return functional.scaled_dot_product_attention(query_NHLW, key_NHLW, value_NHLW, mask, dropout)
    if length < LONG:
        return _written_out(query_NHLW, key_NHLW, value_NHLW, dropout, bias_HLL)
    queries = query_NHLW.split(_QUERIES, 2)
    rows: Sequence[Tensor | None] = [None] * len(queries) if bias_HLL is None else bias_HLL.split(_QUERIES, 1)
    parts = [checkpoint(_written_out, part, key_NHLW, value_NHLW, dropout, bias, use_reentrant=False) for part, bias in zip(queries, rows, strict=True)]
    return torch.cat(parts, 2)


def attend_near(query_NHLW: Tensor, key_NHLW: Tensor, value_NHLW: Tensor, dropout: float, window: int, *, training: bool = False) -> Tensor:
    """As `attend`, each token to those at most ``window`` tokens from it, in memory that grows with the length alone.

    A longer text is cut into blocks of ``window`` tokens, whose tokens have all that they attend to in their own block and
    the two beside it.
    """
    texts, heads, length, width = query_NHLW.shape
    device = query_NHLW.device
    if length <= window + 1:
        return attend(query_NHLW, key_NHLW, value_NHLW, dropout, training=training)
    if length <= 3 * window:
        places_L = torch.arange(length, device=device)
        far_LL = (places_L[:, None] - places_L).abs() > window
        return attend(query_NHLW, key_NHLW, value_NHLW, dropout, _minus_infinity(far_LL, query_NHLW)[None], training=training)
    blocks = -(-length // window)
    padding = blocks * window - length
    query = functional.pad(query_NHLW, (0, 0, 0, padding)).reshape(texts * heads, blocks, window, width)
    key, value = (_with_neighbours(x, window, padding) for x in (key_NHLW, value_NHLW))
    # [block, query, key], a key's place counted from the beginning of the block before.
    places_B1 = torch.arange(blocks, device=device)[:, None, None] * window
    offsets_K = torch.arange(3 * window, device=device) - window
    far = (offsets_K - torch.arange(window, device=device)[:, None]).abs() > window
    outside = (places_B1 + offsets_K < 0) | (places_B1 + offsets_K >= length)
    mixed = _written_out(query, key, value, dropout, _minus_infinity(far | outside, query_NHLW))
    return mixed.view(texts, heads, blocks * window, width)[:, :, :length]


def _with_neighbours(x_NHLW: Tensor, window: int, padding: int) -> Tensor:
    """Each block with the one before it and the one after it: ``[N * H, blocks, 3 * window, W]``."""
    texts, heads, _, width = x_NHLW.shape
    blocks = functional.pad(x_NHLW, (0, 0, window, window + padding)).reshape(texts * heads, -1, window, width)
    return torch.cat([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], 2)


def _minus_infinity(where: Tensor, like: Tensor) -> Tensor:
    """What keeps scores out of a softmax: -inf where it says so, else 0."""
    return torch.zeros(where.shape, dtype=like.dtype, device=like.device).masked_fill_(where, float("-inf"))


def _written_out(query_NHQW: Tensor, key_NHKW: Tensor, value_NHKW: Tensor, dropout: float, bias_HQK: Tensor | None) -> Tensor:
    texts, heads, queries, width = query_NHQW.shape
    query, key, value = (x.reshape(texts * heads, x.shape[2], width) for x in (query_NHQW, key_NHKW, value_NHKW))
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    if bias_HQK is not None:
        scores.view(texts, heads, queries, -1).add_(bias_HQK)
    probabilities = dropped(torch.softmax(scores, -1), dropout)
    return torch.bmm(probabilities, value).view(texts, heads, queries, width)
