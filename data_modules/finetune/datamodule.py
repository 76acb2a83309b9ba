"""Fine-tuning batches: queries with one positive, N hard negatives and, where there are, teacher scores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.base import StepDataModule, check_duration, resolve_steps
from data_modules.finetune.groups import KINDS, Choice, RankedTable, read_ranked, write_groups
from data_modules.order import BatchOrder
from data_modules.token_cache import TokenCache, temporary_token_cache, write_token_cache
from lightning_e5.configurable import configurable
from lightning_e5.distributed.launch import is_first_process, wait_for
from lightning_e5.distributed.ranks import loss
from lightning_e5.errors import TrainingStopped, UserError, suggestion
from lightning_e5.files.storage import empty_directory, read_manifest, verify_manifest
from lightning_e5.progress import progress
from lightning_e5.ranges import BatchSize, Count, CountOrZero, Epochs, Seed, Weight, WorkersOrZero
from lightning_e5.rng import order_seed
from lightning_e5.text import TextTokenizer, texts_digest
from lightning_e5.types import Kind, PairBatch, TokenBatch, TrainingGroup


@configurable("data module", check=check_duration)
class RankedDataModule(StepDataModule):
    """Groups of 1 + N passages per query, from one or several files.

    Args:
        ranked: Parquet with ``query``, ``positive``, ``negatives`` (list of at least N strings) and, for distillation,
            ``teacher_scores`` (list: the positive's logit, then one per negative; null where there is no teacher); where
            it has ``passage_kind``, passages of kind ``query`` get the query's prefix (NLI). Or a mapping of names to
            such files.
        tokenizer: of the model that is trained.
        cache_dir: where texts are tokenised to, once for all processes; None: to a temporary folder, by each process for itself.
        batch_size: queries of the global batch (E5: 256).
        seed: of the order.
        negatives: N (E5: 7).
        choose: ``first`` takes the first N negatives of a row in every epoch; ``window`` the next N in each, beginning at
            a place that the seed gives, around and around (as SimLM does).
        weights: share of each file in the batches, by its name; by default its rows, as in a concatenation (E5).
        max_steps, epochs: give one of them; E5 fine-tunes for 3 epochs. An epoch is as many queries as all files have.
        least_steps: of ``epochs``, for a training on few queries; where it is above 1, a batch is at most as large as all queries.
        hold_out: rows at the end of the file that are never trained on, nor any other row with a query of theirs; of several files
            each gives its share by its rows.
        num_workers: data-loading processes.
        prefetch: batches that are made ahead of the step; 0 makes each when its step begins.

    Source: paper section 4.2; the window is that of SimLM's loader.
    """

    def __init__(
        self,
        *,
        ranked: Path | Mapping[str, Path],
        tokenizer: TextTokenizer,
        cache_dir: Path | None = None,
        batch_size: BatchSize,
        seed: Seed,
        negatives: CountOrZero = 7,
        choose: Choice = "first",
        weights: Mapping[str, Weight] | None = None,
        max_steps: Count | None = None,
        epochs: Epochs | None = None,
        least_steps: Count = 1,
        hold_out: CountOrZero = 0,
        num_workers: WorkersOrZero = 0,
        prefetch: CountOrZero = 2,
    ) -> None:
        paths = {n: Path(p) for n, p in ranked.items()} if isinstance(ranked, Mapping) else {"": Path(ranked)}
        named = ", ".join(map(str, paths.values()))
        if not paths:
            raise UserError("ranked: names no file")
        table = read_ranked(list(paths.values()), negatives, choose)
        held_out, trained = _held_out(table, hold_out)
        sizes = [int(part.sum()) for part in np.split(trained, np.cumsum(table.sizes)[:-1])]
        self.pairs = sum(sizes)
        batch_size = min(batch_size, self.pairs) if least_steps > 1 else batch_size
        if self.pairs < batch_size:
            raise UserError(f"{named}: {self.pairs} queries to train on are fewer than batch_size = {batch_size}")
        steps = resolve_steps(max_steps, epochs, self.pairs, batch_size, least_steps)
        super().__init__(batch_size=batch_size, max_steps=steps, seed=seed, num_workers=num_workers, prefetch=prefetch)
        self.group, self.choose, self.rows = 1 + negatives, choose, len(table.queries)
        self.held_out, self.trained = held_out, np.flatnonzero(trained)
        self.starts, self.members, self.teacher = table.starts, table.members, table.teacher
        folder = None if cache_dir is None else Path(cache_dir)
        self.queries = _cached(folder, "queries", table.queries, "query", tokenizer)
        self.passages = _Passages(folder, table.passages, tokenizer)
        self.order = BatchOrder(sizes, batch_size, seed, weights=_weights(weights, list(paths)))

    @classmethod
    def from_groups(cls, groups: Iterable[TrainingGroup | tuple[Any, ...]], tokenizer: TextTokenizer, *, seed: int = 0, **settings: Any) -> Self:
        """Batches of a list of training groups, such as `lightning_e5.curation.mining.mine_hard_negatives` makes.

        Args:
            groups: `TrainingGroup`, or tuples (query, positive, negatives), as fourth with a list of the teacher's logits, the
                positive's first.
            tokenizer: of the model that is trained.
            seed: of the training, the same as its module's: the order that is drawn is the one of a stage with this seed.
            **settings: see the class; ``batch_size`` and one of ``max_steps`` and ``epochs`` are needed.

        Raises:
            UserError: something that is no group, or as the class.

        Example:
            ``RankedDataModule.from_groups([("how to sort", "list.sort() sorts.", ["open() opens."])] * 8, encoder.tokenizer, negatives=1, batch_size=4, epochs=1)``
        """
        with tempfile.TemporaryDirectory(prefix="lightning_e5-groups-") as folder:
            path = Path(folder, "groups.parquet")
            write_groups(path, groups)
            try:
                return cls(ranked=path, tokenizer=tokenizer, seed=order_seed(seed), **settings)
            except UserError as error:  # the rows of the file are the groups of the list
                raise UserError(str(error).replace(str(path), "groups")) from None

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        rows, epochs = self.order.draws(step)
        share = self.rank_slice(rank, world_size)
        return self.groups(self.trained[rows[share]], epochs[share])

    def rows_batch(self, rows: NDArray[np.int64]) -> PairBatch:
        return self.groups(rows)

    def groups(self, rows: NDArray[np.int64], epochs: NDArray[np.int64] | None = None) -> PairBatch:
        """The groups of some rows, each in its epoch; without ``epochs`` in epoch 0."""
        places = self._places(rows, np.zeros_like(rows) if epochs is None else epochs)
        passages = self.members[places].reshape(-1)
        query_ids, query_lengths = self.queries.gather("text", rows)
        passage_ids, passage_lengths = self.passages.gather(passages)
        return PairBatch(
            queries=TokenBatch(torch.from_numpy(query_ids), torch.from_numpy(query_lengths)),
            passages=TokenBatch(torch.from_numpy(passage_ids), torch.from_numpy(passage_lengths)),
            query_text_B=torch.from_numpy(self.queries.text_ids("text", rows)),
            passage_text_P=torch.from_numpy(self.passages.text_ids(passages)),
            rows_B=torch.from_numpy(rows),
            teacher_BG=None if self.teacher is None else torch.from_numpy(self.teacher[places]),
        )

    def _places(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the members of each row's group are: the positive, then its N negatives of that epoch; ``[B, G]``."""
        first, wanted = self.starts[rows], np.arange(self.group - 1)
        if self.choose == "first":
            negatives = np.broadcast_to(wanted, (len(rows), len(wanted)))
        else:
            available = (self.starts[rows + 1] - first - 1)[:, None]
            begin = ((epochs + self.seed % 2**31) * len(wanted))[:, None]
            negatives = (begin + wanted) % available
        return np.concatenate([first[:, None], first[:, None] + 1 + negatives], axis=1)


def _held_out(table: RankedTable, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The rows at the end of each file that are held out, ``count`` in all, and of each row whether it may be trained on."""
    total = len(table.queries)
    if count >= total:
        raise UserError(f"hold_out: {count} is not below the {total} queries that there are")
    ends = np.cumsum(table.sizes)
    # The share of the files up to each one, rounded down: the shares add up to ``count``.
    shares = np.diff([0, *(int(end) * count // total for end in ends)])
    held_out = np.concatenate([np.arange(end - share, end) for end, share in zip(ends, shares, strict=True)]).astype(np.int64)
    texts = {table.queries[row] for row in held_out}
    trained = np.array([query not in texts for query in table.queries]) if count else np.ones(total, dtype=bool)
    return held_out, trained


class _Passages:
    """The token caches of the passages, one per kind, numbered one behind the other."""

    def __init__(self, cache_dir: Path | None, texts: Mapping[Kind, list[str]], tokenizer: TextTokenizer) -> None:
        self.caches = {
            kind: _cached(cache_dir, "passages" if kind == "passage" else f"passages-{kind}", texts[kind], kind, tokenizer)
            for kind in KINDS
            if texts[kind]
        }
        self.plain = len(texts[KINDS[0]])

    def gather(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of some passages, text after text, and their lengths."""
        parts = [(chosen, *cache.gather("text", own)) for chosen, cache, own in self._parts(rows)]
        if len(parts) == 1:
            return parts[0][1], parts[0][2]
        lengths = np.empty(len(rows), dtype=np.int64)
        for chosen, _, own in parts:
            lengths[chosen] = own
        starts = np.cumsum(lengths) - lengths
        ids = np.empty(int(lengths.sum()), dtype=np.int64)
        for chosen, tokens, own in parts:
            within = np.arange(len(tokens)) - np.repeat(np.cumsum(own) - own, own)
            ids[np.repeat(starts[chosen], own) + within] = tokens
        return ids, lengths

    def text_ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Normalised-text ids of some passages; of any kind, for a text is the same text with either prefix."""
        result = np.empty(len(rows), dtype=np.int64)
        for chosen, cache, own in self._parts(rows):
            result[chosen] = cache.text_ids("text", own)
        return result

    def _parts(self, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], TokenCache, NDArray[np.int64]]]:
        """Per kind that occurs: which of ``rows``, its cache, their numbers in it."""
        other = rows >= self.plain
        found = []
        for kind, cache in self.caches.items():
            chosen = np.flatnonzero(other == (kind != KINDS[0]))
            if len(chosen):
                found.append((chosen, cache, rows[chosen] - (self.plain if kind != KINDS[0] else 0)))
        return found


def _weights(weights: Mapping[str, float] | None, names: Sequence[str]) -> list[float] | None:
    if weights is None:
        return None
    for name in weights:
        if name not in names:
            raise UserError(f"weights: {name!r} is none of the ranked files{suggestion(name, names)}")
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"weights: lacks the ranked file {missing[0]!r}")
    return [float(weights[name]) for name in names]


def _cached(cache_dir: Path | None, name: str, texts: list[str], kind: Kind, tokenizer: TextTokenizer) -> TokenCache:
    """The token cache of ``texts``; one of other texts or another tokenizer, or an unfinished one, is made again."""
    if cache_dir is None:
        return temporary_token_cache({"text": (texts, kind)}, tokenizer)
    directory = cache_dir / name
    wanted = (tokenizer.fingerprint(), {"text": texts_digest(texts)})

    def made() -> bool:
        try:  # the first process proves the files, the others read what it says of them
            manifest = verify_manifest(directory) if is_first_process() else read_manifest(directory)
        except UserError:  # not there, unfinished or damaged
            return False
        return (manifest.get("tokenizer"), manifest.get("texts")) == wanted

    if not is_first_process():
        if not wait_for(made):
            raise TrainingStopped(f"{directory}: {loss() or 'the first process ended'} before it had tokenised the texts")
    elif not made():
        empty_directory(directory)
        with progress(len(texts), f"tokenise {directory.name}", "text") as bar:
            write_token_cache(directory, {"text": (texts, kind)}, tokenizer, progress=bar)
    return TokenCache(directory)
