"""Leaving tokens of a text out in training, so that no single word carries a match."""

from __future__ import annotations

import torch

from lightning_e5.rng import derive_seed
from lightning_e5.types import TokenBatch


def drop_inner_tokens(batch: TokenBatch, share: float, *, seed: int, keep_first: int) -> TokenBatch:
    """Drop each inner token with probability ``share``; the first ``keep_first`` and the last of each text stay.

    Args:
        batch: packed texts.
        share: in [0, 1).
        seed: the draw is a function of it and of the token's place alone.
        keep_first: special token and prefix.

    Raises:
        ValueError: ``share`` is not in [0, 1).
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"token_dropout: {share} is not in [0, 1)")
    if share == 0.0:
        return batch
    lengths = batch.lengths_B.cpu()  # drawn there, so that every device leaves out the same tokens
    starts = torch.cumsum(lengths, 0) - lengths
    place_T = torch.arange(len(batch.ids_T), device="cpu") - torch.repeat_interleave(starts, lengths)
    last_T = place_T == torch.repeat_interleave(lengths, lengths) - 1
    draw = torch.rand(len(place_T), generator=torch.Generator("cpu").manual_seed(derive_seed(seed, "token_dropout")), device="cpu")
    keep_T = (draw >= share) | (place_T < keep_first) | last_T
    text_T = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), lengths)
    kept_lengths = torch.zeros_like(lengths).index_add_(0, text_T, keep_T.long())
    kept_K = keep_T.nonzero().squeeze(1).to(batch.ids_T.device)
    return TokenBatch(batch.ids_T.index_select(0, kept_K), kept_lengths.to(batch.lengths_B.device))
