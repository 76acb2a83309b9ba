"""From token states to one vector per text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_e5.models.packed.layout import LengthRun

#: The ways of pooling that sentence-transformers has, in the order in which it joins the vectors of several.
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: tuple[str, ...] = get_args(PoolingMode)
#: Those that a training starts with, by the names that a YAML gives them.
Pooling = Literal["mean", "cls", "last"]
POOLING_NAMES: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "last": "lasttoken"}


def average_pool(states_TD: Tensor, runs: Sequence[LengthRun], lengths_B: Tensor | None = None) -> Tensor:
    """Mean of each text's token states, special tokens and prefix included: ``[T, D] -> [B, D]``.

    Args:
        states_TD: token states, text after text.
        runs: of the texts' lengths; each is one mean.
        lengths_B: the lengths, on the states' device: all means are then one operation, forward and backward, each thread summing
            its own values in order. For a GPU, where operations cost more than arithmetic; on a CPU the runs are the faster way.

    Example:
        >>> from lightning_e5.models.packed.layout import length_runs
        >>> states = torch.tensor([[1.0], [3.0], [5.0]])  # a text of two tokens and one of one
        >>> average_pool(states, length_runs([2, 1])).tolist()
        [[2.0], [5.0]]

    Source: paper section 3.2 (average pooling over the last layer).
    """
    if lengths_B is not None:
        return torch.segment_reduce(states_TD, "mean", lengths=lengths_B, unsafe=True)  # unsafe: the lengths are not read by the host
    width = states_TD.shape[-1]
    blocks = states_TD.split([r.texts * r.length for r in runs])
    means = [block.view(r.texts, r.length, width).mean(1) for r, block in zip(runs, blocks, strict=True)]
    return torch.cat(means) if means else states_TD.new_empty(0, width)


def pool(
    states_TD: Tensor, runs: Sequence[LengthRun], modes: Sequence[str], prompt: int = 0, lengths_B: Tensor | None = None
) -> Tensor:
    """The vectors of several ways of pooling side by side: ``[T, D] -> [B, len(modes) * D]``.

    Args:
        states_TD: token states, text after text.
        runs: of the texts' lengths.
        modes: of `POOLING_MODES`.
        prompt: tokens at the beginning of each text that are left out (``include_prompt: false``); a text that has no others keeps them.
        lengths_B: see `average_pool`.

    Source: sentence-transformers' ``Pooling``.
    """
    if tuple(modes) == ("mean",) and not prompt:
        return average_pool(states_TD, runs, lengths_B)
    width = states_TD.shape[-1]
    blocks = states_TD.split([r.texts * r.length for r in runs])
    parts = [_pool(block.view(r.texts, r.length, width), modes, prompt if prompt < r.length else 0) for r, block in zip(runs, blocks, strict=True)]
    return torch.cat(parts) if parts else states_TD.new_empty(0, len(modes) * width)


def _pool(states_BLD: Tensor, modes: Sequence[str], prompt: int) -> Tensor:
    own_BLD = states_BLD[:, prompt:]
    count = own_BLD.shape[1]
    vectors = []
    for mode in modes:
        if mode == "cls":
            vectors.append(own_BLD[:, 0])
        elif mode == "lasttoken":
            vectors.append(own_BLD[:, -1])
        elif mode == "max":
            vectors.append(own_BLD.amax(1))
        elif mode == "weightedmean":  # by its place in the whole text, the prompt's tokens counted
            weight_L = torch.arange(prompt + 1, prompt + count + 1, device=own_BLD.device, dtype=own_BLD.dtype)
            vectors.append((own_BLD * weight_L[:, None]).sum(1) / weight_L.sum())
        else:
            vectors.append(own_BLD.mean(1) if mode == "mean" else own_BLD.sum(1) / count**0.5)
    return torch.cat(vectors, -1)
