"""CCPairs batches for pre-training: a token cache, the rows that the filter kept, and the order of the steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch

from data_modules.base import StepDataModule, check_duration, resolve_steps
from data_modules.kept_rows import KeptRows
from data_modules.order import BatchOrder, Permutation
from data_modules.pair_rows import keep_masks, text_pairs
from data_modules.token_cache import TokenCache, temporary_token_cache
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError, suggestion
from lightning_e5.ranges import BatchSize, Count, CountOrZero, Epochs, Seed, Weight, WorkersOrZero
from lightning_e5.rng import order_seed
from lightning_e5.text import TextTokenizer
from lightning_e5.types import PairBatch, TextPair, TokenBatch

#: The key of the permutation by which pairs are held out.
HOLD_OUT = 5077
#: Rows that are gone through at once; a multiple of 8, as `KeptRows.of` needs.
_ROWS_AT_ONCE = 1 << 20


@configurable("data module", check=check_duration)
class CCPairsDataModule(StepDataModule):
    """In-batch-negative batches of (query, passage) token pairs.

    Args:
        tokens: a token cache (its folder, or opened) with the columns ``query`` and ``passage``.
        batch_size: pairs of the global batch (E5: 32,768).
        seed: of the order.
        max_steps, epochs: give one of them (E5: 20,000 steps, about 2.5 epochs).
        least_steps: of ``epochs``, for a training on few pairs; where it is above 1, a batch is at most as large as all pairs.
        keep: a Parquet file of the consistency filter with a bool column ``keep``, a row per pair; None keeps all.
        alpha: sources are drawn in proportion to (their kept pairs)^alpha: 1 samples pairs uniformly, 0 sources uniformly.
        weights: source -> its share of the pairs drawn, in any unit, instead of ``alpha``; 0 leaves a source out.
        one_source_per_batch: every batch comes from one source (with the same shares over the batches); else all mix.
        hold_out: pairs that are never trained on, nor any other pair with a text of theirs; drawn from all kept ones, the same for every seed.
        num_workers: data-loading processes.
        prefetch: batches that are made ahead of the step; 0 makes each when its step begins.

    Raises:
        UserError: a wrong number, ``weights`` that do not name the sources, or tokens that do not know theirs.
    """

    def __init__(
        self,
        *,
        tokens: Path | TokenCache,
        batch_size: BatchSize,
        seed: Seed,
        max_steps: Count | None = None,
        epochs: Epochs | None = None,
        least_steps: Count = 1,
        keep: Path | None = None,
        alpha: Weight = 1.0,
        weights: Mapping[str, Weight] | None = None,
        one_source_per_batch: bool = False,
        hold_out: CountOrZero = 0,
        num_workers: WorkersOrZero = 0,
        prefetch: CountOrZero = 2,
    ) -> None:
        cache = tokens if isinstance(tokens, TokenCache) else TokenCache(Path(tokens))
        kept = KeptRows.of(keep_masks(Path(keep), cache.rows, cache.directory), cache.rows) if keep is not None else None
        if kept is not None and not len(kept):
            raise UserError(f"{keep}: keeps no pair")
        if not 0 <= alpha < np.inf:
            raise UserError(f"alpha: {alpha} is not a finite number >= 0")
        spans, shares = {"": (0, cache.rows)}, cast("list[float] | None", None)
        if weights is not None or alpha != 1.0 or one_source_per_batch:
            spans, shares, kept = _chosen_sources(cache, kept, weights)
        held_out = np.empty(0, dtype=np.int64)
        if hold_out:
            held_out, kept = _held_out(cache, kept, hold_out)
        self.sources = _kept_of(spans, kept)
        if (empty := next((name for name, size in self.sources.items() if not size), None)) is not None:
            raise UserError(f"hold_out: {hold_out} pairs leave none to train on" + (f" of the source {empty!r}" if empty else ""))
        small = next((name for name, size in self.sources.items() if size < batch_size), None)
        if one_source_per_batch and small is not None:
            raise UserError(
                f"one_source_per_batch: the source {small!r} has {self.sources[small]} pairs, fewer than batch_size = {batch_size}; "
                "leave it out by weights, or choose smaller batches"
            )
        self.pairs = sum(self.sources.values())
        batch_size = min(batch_size, self.pairs) if least_steps > 1 else batch_size
        steps = resolve_steps(max_steps, epochs, self.pairs, batch_size, least_steps)
        super().__init__(batch_size=batch_size, max_steps=steps, seed=seed, num_workers=num_workers, prefetch=prefetch)
        self.cache, self.kept, self.held_out = cache, kept, held_out
        self.order = BatchOrder(
            list(self.sources.values()), batch_size, seed,
            weights=shares, alpha=alpha, one_source_per_batch=one_source_per_batch,
        )  # fmt: skip

    @classmethod
    def from_pairs(cls, pairs: Iterable[TextPair | tuple[str, str]], tokenizer: TextTokenizer, *, seed: int = 0, **settings: Any) -> Self:
        """Batches of a list of pairs, which is tokenised here.

        Args:
            pairs: (query, passage) or `TextPair`, whose sources can be drawn from by ``alpha`` and ``weights`` where each one's pairs
                stand together.
            tokenizer: of the encoder that is trained.
            seed: of the training, the same as its module's: the order that is drawn is the one of a stage with this seed.
            **settings: see the class; ``batch_size`` and one of ``max_steps`` and ``epochs`` are needed.

        Raises:
            UserError: something that is no pair of texts, or as the class.

        Example:
            ``CCPairsDataModule.from_pairs([("how to sort", "list.sort() sorts in place.")] * 8, encoder.tokenizer, batch_size=4, epochs=1)``
        """
        rows = text_pairs(pairs)
        queries, passages = [row.query for row in rows], [row.passage for row in rows]
        runs = [(name, len(list(run))) for name, run in itertools.groupby(row.source for row in rows)]
        sources = dict(runs) if len(dict(runs)) == len(runs) else None
        tokens = temporary_token_cache({"query": (queries, "query"), "passage": (passages, "passage")}, tokenizer, sources=sources)
        return cls(tokens=tokens, seed=order_seed(seed), **settings)

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        rows = self.order.rows(step)[self.rank_slice(rank, world_size)]
        return self.rows_batch(rows if self.kept is None else self.kept[rows])

    def rows_batch(self, rows: np.ndarray) -> PairBatch:
        return PairBatch(
            queries=_token_batch(self.cache, "query", rows),
            passages=_token_batch(self.cache, "passage", rows),
            query_text_B=torch.from_numpy(self.cache.text_ids("query", rows)),
            passage_text_P=torch.from_numpy(self.cache.text_ids("passage", rows)),
            rows_B=torch.from_numpy(rows),
        )


def _token_batch(cache: TokenCache, column: str, rows: np.ndarray) -> TokenBatch:
    ids, lengths = cache.gather(column, rows)
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(lengths))


def _kept_of(spans: Mapping[str, tuple[int, int]], kept: KeptRows | None) -> dict[str, int]:
    """How many rows of each span are kept."""
    return {name: stop - start if kept is None else kept.below(stop) - kept.below(start) for name, (start, stop) in spans.items()}


def _held_out(cache: TokenCache, kept: KeptRows | None, count: int) -> tuple[np.ndarray, KeptRows]:
    """``count`` of the kept rows, and those that may be trained on: no text of them is a held-out one's."""
    rows = cache.rows if kept is None else len(kept)
    if count >= rows:
        raise UserError(f"hold_out: {count} is not below the {rows} pairs that there are")
    held_out = Permutation(rows, HOLD_OUT)(np.arange(count))
    if kept is not None:
        held_out = kept[held_out]
    texts = np.concatenate([cache.text_ids(column, held_out) for column in ("query", "passage")])
    return held_out, KeptRows.of(_without(cache, texts, kept), cache.rows)


def _without(cache: TokenCache, texts: np.ndarray, kept: KeptRows | None) -> Iterator[np.ndarray]:
    """Of all rows, a mask at a time, those that are kept and have none of the texts."""
    first = 0
    for trained in _all_rows(cache.rows) if kept is None else kept.masks():
        for column in ("query", "passage"):
            rows = np.flatnonzero(trained)
            trained[rows] = ~np.isin(cache.text_ids(column, first + rows), texts)
        first += len(trained)
        yield trained


def _all_rows(rows: int) -> Iterator[np.ndarray]:
    for first in range(0, rows, _ROWS_AT_ONCE):
        yield np.ones(min(_ROWS_AT_ONCE, rows - first), dtype=bool)


def _chosen_sources(
    cache: TokenCache, kept: KeptRows | None, weights: Mapping[str, float] | None
) -> tuple[dict[str, tuple[int, int]], list[float] | None, KeptRows | None]:
    """The first and the last row of each source to draw from, their weights, and their kept rows (None: all)."""
    if not cache.sources:
        raise UserError(f"{cache.directory}: does not know the sources of its pairs; make it again from pairs whose sources are contiguous")
    for name in weights or ():
        if name not in cache.sources:
            raise UserError(f"weights: {name!r} is no source of {cache.directory}{suggestion(name, cache.sources)}")
    missing = [name for name in cache.sources if name not in weights] if weights is not None else []
    if missing:
        raise UserError(f"weights: says nothing of the source {missing[0]!r}; the rule is a number for every source, 0 to leave one out")
    ends = np.cumsum(list(cache.sources.values())).tolist()
    spans = dict(zip(cache.sources, zip([0, *ends[:-1]], ends, strict=True), strict=True))
    sizes = _kept_of(spans, kept)
    for name, weight in (weights or {}).items():
        if not 0 <= weight < np.inf:
            raise UserError(f"weights: {name!r} has {weight}; the rule is a finite number >= 0")
        if weight and not sizes[name]:
            raise UserError(f"weights: {name!r} has the weight {weight} but no pair was kept of it")
    chosen = [name for name in spans if sizes[name] and (weights is None or weights[name] > 0)]
    if not chosen:
        raise UserError("weights: leave no source to draw from")
    shares = None if weights is None else [float(weights[name]) for name in chosen]
    if len(chosen) < len(spans):
        kept = KeptRows.of(_of_sources(cache.rows, kept, [spans[name] for name in chosen]), cache.rows)
    return {name: spans[name] for name in chosen}, shares, kept


def _of_sources(rows: int, kept: KeptRows | None, spans: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The masks without the rows outside of the spans."""
    first = 0
    for mask in _all_rows(rows) if kept is None else kept.masks():
        inside = np.zeros(len(mask), dtype=bool)
        for start, stop in spans:
            inside[max(0, start - first) : max(0, stop - first)] = True
        first += len(mask)
        yield mask & inside
