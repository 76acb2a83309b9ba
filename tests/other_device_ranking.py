"""Ranks, searches and the consistency filter, as `tests.other_device_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from lightning_e5.curation.consistency_filter import bounded_scores
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.retrieval.top_k import TopK
from lightning_e5.training.reciprocal_rank import reciprocal_ranks
from tests.other_device_inputs import unit


def ranked(device: torch.device) -> Any:
    texts = torch.arange(12).remainder(9)
    return reciprocal_ranks(unit(6, 8).to(device), unit(12, 8, seed=1).to(device), texts[:6].to(device), texts.to(device), block_scores=20)


def nearest(device: torch.device) -> Any:
    corpus, queries = unit(300, 8).numpy(), unit(9, 8, seed=1).numpy()
    corpus[40] = corpus[7]
    best = TopK(queries, 5, corpus_chunk=64, query_chunk=4, device=str(device))
    best.show(corpus[:170], 0)
    best.show(corpus[170:], 170)
    return best.rows, best.scores


def filtered(score_format: Any, exact_up_to: int | None) -> Callable[[torch.device], Any]:
    """Ranks among a pool that fits on the device, and among one that does not."""

    def case(device: torch.device) -> Any:
        queries, passages, pool = (unit(n, 12, seed=n) for n in (12, 13, 80))
        passages = torch.nn.functional.normalize(queries + 0.2 * passages[:12], dim=1)
        passages[::3] = passages[::3].flip(0)
        ids, found = torch.arange(92), []
        for room in (10**9, 0):
            with patch.dict(bounded_scores.POOL_ROWS, {"cpu": 32, "cuda": 32}), patch.object(bounded_scores, "available_bytes", lambda device, room=room: room):
                ranked = RankPool(pool, ids[12:], exact_up_to=exact_up_to, score_format=score_format, device=device, block_scores=32 * 8)
            assert {value.device for value in ranked.levels[0].values} == ({device} if room else {torch.device("cpu")} if score_format == "bf16" else set()) or device.type == "cpu"
            assert ranked.exact_PD.device == (device if room else torch.device("cpu"))
            found.append(ranked.ranks(queries, passages, ids[:12]))
        return found

    return case
