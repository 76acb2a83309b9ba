"""Fine-tuning batches: queries with one positive, N hard negatives and, where there are, teacher scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from data_modules.base import StepDataModule, resolve_steps
from data_modules.order import BatchOrder
from data_modules.token_cache import TokenCache, texts_digest, write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.launch import is_first_process, wait_for
from lightning_e5.progress import progress
from lightning_e5.storage import MANIFEST, empty_directory, read_json, read_parquet
from lightning_e5.text import TextTokenizer
from lightning_e5.types import PairBatch, TokenBatch


class RankedDataModule(StepDataModule):
    """Groups of 1 + N passages per query.

    Args:
        ranked: Parquet with ``query``, ``positive``, ``negatives`` (list of at least N strings) and, for distillation,
            ``teacher_scores`` (list: the positive's logit, then one per negative; null where there is no teacher).
        tokenizer: of the model that is trained.
        cache_dir: where texts are tokenised to, once.
        batch_size: queries of the global batch (E5: 256).
        seed: of the order.
        negatives: N (E5: 7).
        max_steps, epochs: give one of them; E5 fine-tunes for 3 epochs.
        hold_out: queries at the end that are never trained on (for judging a teacher).
        num_workers: data-loading processes.
    """

    def __init__(
        self,
        *,
        ranked: Path,
        tokenizer: TextTokenizer,
        cache_dir: Path,
        batch_size: int,
        seed: int,
        negatives: int = 7,
        max_steps: int | None = None,
        epochs: float | None = None,
        hold_out: int = 0,
        num_workers: int = 0,
    ) -> None:
        table = read_parquet(Path(ranked), {"query": "string", "positive": "string", "negatives": "list<string>"})
        self.pairs = len(table) - hold_out
        if self.pairs < batch_size:
            raise UserError(f"{ranked}: {self.pairs} queries to train on are fewer than batch_size = {batch_size}")
        steps = resolve_steps(max_steps, epochs, self.pairs, batch_size)
        super().__init__(batch_size=batch_size, max_steps=steps, seed=seed, num_workers=num_workers)
        self.group = 1 + negatives
        texts = _unique_passages(Path(ranked), table, negatives)
        self.passage_rows_NG = texts.rows_NG
        self.teacher_NG = _teacher_scores(Path(ranked), negatives, len(table))
        self.queries = _cached(Path(cache_dir) / "queries", table["query"].to_pylist(), "query", tokenizer)
        self.passages = _cached(Path(cache_dir) / "passages", texts.texts, "passage", tokenizer)
        self.order = BatchOrder([self.pairs], batch_size, seed)

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        return self.groups(self.order.rows(step)[self.rank_slice(rank, world_size)])

    def groups(self, rows: np.ndarray) -> PairBatch:
        """The groups of some rows."""
        passages = self.passage_rows_NG[rows].reshape(-1)
        query_ids, query_lengths = self.queries.gather("text", rows)
        passage_ids, passage_lengths = self.passages.gather("text", passages)
        teacher = None if self.teacher_NG is None else torch.from_numpy(self.teacher_NG[rows])
        return PairBatch(
            queries=TokenBatch(torch.from_numpy(query_ids), torch.from_numpy(query_lengths)),
            passages=TokenBatch(torch.from_numpy(passage_ids), torch.from_numpy(passage_lengths)),
            query_text_B=torch.from_numpy(self.queries.text_ids("text", rows)),
            passage_text_P=torch.from_numpy(self.passages.text_ids("text", passages)),
            rows_B=torch.from_numpy(rows),
            teacher_BG=teacher,
        )


class _Passages:
    """Every passage once, and which of them make each row's group."""

    def __init__(self, texts: list[str], rows_NG: np.ndarray) -> None:
        self.texts, self.rows_NG = texts, rows_NG


def _unique_passages(path: Path, table: object, negatives: int) -> _Passages:
    places: dict[str, int] = {}
    rows_NG = np.empty((len(table), 1 + negatives), dtype=np.int64)  # type: ignore[arg-type]
    positives, lists = table["positive"].to_pylist(), table["negatives"].to_pylist()  # type: ignore[index]
    for row, (positive, others) in enumerate(zip(positives, lists, strict=True)):
        if others is None or len(others) < negatives:
            raise UserError(f"{path}: row {row} has {len(others or [])} negatives, fewer than {negatives}")
        for column, text in enumerate([positive, *others[:negatives]]):
            rows_NG[row, column] = places.setdefault(text, len(places))
    return _Passages(list(places), rows_NG)


def _teacher_scores(path: Path, negatives: int, count: int) -> np.ndarray | None:
    """float32 ``[N, G]``, NaN in rows without a teacher; None where the file has no such column."""
    import pyarrow.parquet as pq

    if "teacher_scores" not in pq.read_schema(path).names:
        return None
    lists = read_parquet(path, {"teacher_scores": "list<float>"})["teacher_scores"].to_pylist()
    scores = np.full((count, 1 + negatives), math.nan, dtype=np.float32)
    for row, values in enumerate(lists):
        if values is None:
            continue
        if len(values) <= negatives:
            raise UserError(f"{path}: row {row} has {len(values)} teacher scores, fewer than 1 + {negatives}")
        scores[row] = values[: 1 + negatives]
    return scores


def _cached(directory: Path, texts: list[str], kind: str, tokenizer: TextTokenizer) -> TokenCache:
    """The token cache of ``texts``; one of other texts or another tokenizer, or an unfinished one, is made again."""
    wanted = (tokenizer.fingerprint(), {"text": texts_digest(texts)})

    def made() -> bool:
        manifest = read_json(directory / MANIFEST) if (directory / MANIFEST).is_file() else {}
        return (manifest.get("tokenizer"), manifest.get("texts")) == wanted

    if not is_first_process():
        wait_for(made)
    elif not made():
        empty_directory(directory)
        with progress(len(texts), f"tokenise {directory.name}", "text") as bar:
            write_token_cache(directory, {"text": (texts, kind)}, tokenizer, progress=bar)  # type: ignore[dict-item]
    return TokenCache(directory)
