"""Fine-tuning batches: a query's group is its positive, then its negatives, with the teacher's scores beside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_modules.finetune.datamodule import RankedDataModule
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.text import TextTokenizer, text_id
from lightning_e5.types import TokenBatch

ROWS = 30


def table(texts: list[str], **columns: Any) -> dict[str, Any]:
    """30 queries with 4 negatives each; every passage occurs in several groups."""
    passages = texts[100:140]
    return {
        "query": texts[:ROWS],
        "positive": [passages[i % 20] for i in range(ROWS)],
        "negatives": [[passages[(i + d) % 40] for d in (1, 2, 3, 4)] for i in range(ROWS)],
        "teacher_scores": pa.array([None if i == 4 else [float(i), 0.5, -1.0, 2.0, 3.0] for i in range(ROWS)], pa.list_(pa.float32())),
        **columns,
    }


def module(directory: Path, tokenizer: TextTokenizer, columns: dict[str, Any], **settings: Any) -> RankedDataModule:
    write_parquet(directory / "ranked.parquet", {k: v for k, v in columns.items() if v is not None})
    given = {"batch_size": 8, "seed": 1, "negatives": 3, "max_steps": 6, **settings}
    return RankedDataModule(ranked=directory / "ranked.parquet", tokenizer=tokenizer, cache_dir=directory / "cache", **given)


def tokens_of(batch: TokenBatch) -> list[list[int]]:
    return [part.tolist() for part in torch.split(batch.ids_T, batch.lengths_B.tolist())]


def test_a_batch_is_its_groups(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    columns = table(texts)
    data = module(tmp_path, small_tokenizer, columns, epochs=1, max_steps=None)
    assert data.max_steps == 4
    seen = []
    for step in range(3):
        batch = data.batch(step, 0, 1)
        rows = batch.rows_B.tolist()
        seen += rows
        passages = [text for r in rows for text in (columns["positive"][r], *columns["negatives"][r][:3])]
        ids, lengths = small_tokenizer.encode([columns["query"][r] for r in rows], "query")
        assert batch.queries.ids_T.tolist() == ids.tolist() and batch.queries.lengths_B.tolist() == lengths.tolist()
        ids, lengths = small_tokenizer.encode(passages, "passage")
        assert batch.passages.ids_T.tolist() == ids.tolist() and batch.passages.lengths_B.tolist() == lengths.tolist()
        assert batch.passage_text_P.tolist() == [text_id(p) for p in passages]
        assert batch.query_text_B.tolist() == [text_id(columns["query"][r]) for r in rows]
        teacher = batch.teacher_BG
        assert teacher is not None and teacher.dtype == torch.float32 and teacher.shape == (8, 4)
        for r, scores in zip(rows, teacher.tolist(), strict=True):
            assert all(map(math.isnan, scores)) if r == 4 else scores == [float(r), 0.5, -1.0, 2.0]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_parts_make_the_global_batch(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer, world_size: int) -> None:
    data = module(tmp_path, small_tokenizer, table(texts))
    for step in (0, 5):
        whole = data.batch(step, 0, 1)
        parts = [data.batch(step, rank, world_size) for rank in range(world_size)]
        assert torch.cat([p.rows_B for p in parts]).tolist() == whole.rows_B.tolist()
        assert [t for p in parts for t in tokens_of(p.passages)] == tokens_of(whole.passages)
        assert whole.teacher_BG is not None
        both = torch.cat([p.teacher_BG for p in parts if p.teacher_BG is not None])
        assert torch.equal(both.nan_to_num(99), whole.teacher_BG.nan_to_num(99))


def test_after_a_resume_the_rest_comes(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    whole = [b.rows_B.tolist() for b in module(tmp_path, small_tokenizer, table(texts)).train_dataloader()]
    again = module(tmp_path, small_tokenizer, table(texts))
    again.load_state_dict({"trained_steps": 4})
    assert len(whole) == 6 and [b.rows_B.tolist() for b in again.train_dataloader()] == whole[4:]


def test_held_out_queries_are_never_drawn(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    data = module(tmp_path, small_tokenizer, table(texts), hold_out=10, max_steps=10)
    assert data.pairs == 20
    assert set(torch.cat([b.rows_B for b in data.train_dataloader()]).tolist()) == set(range(20))
    assert data.held_out.tolist() == list(range(20, 30)) and data.groups(data.held_out).rows_B.tolist() == list(range(20, 30))
    twice = table(texts)
    twice["query"][3] = twice["query"][25]  # a query of a held-out row is in no row that is trained on
    data = module(tmp_path, small_tokenizer, twice, hold_out=10, max_steps=10)
    assert data.pairs == 19 and set(torch.cat([b.rows_B for b in data.train_dataloader()]).tolist()) == set(range(20)) - {3}
    batches = list(data.val_dataloader())
    assert [len(b.rows_B) for b in batches if b is not None] == [data.batch_size] * (10 // data.batch_size)


def test_without_a_teacher(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    assert module(tmp_path, small_tokenizer, table(texts, teacher_scores=None)).batch(0, 0, 1).teacher_BG is None


def test_the_tokens_are_made_once_and_made_again_for_other_texts(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    first = module(tmp_path, small_tokenizer, table(texts)).groups(np.arange(ROWS))
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.arrow")}
    assert len(files) == 2
    module(tmp_path, small_tokenizer, table(texts))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.arrow")} == files
    upper = table([t.upper() for t in texts])
    other = table(list(reversed(texts)))
    for columns in (upper, other):  # as many texts as before
        found = module(tmp_path, small_tokenizer, columns).groups(np.arange(ROWS))
        ids, _ = small_tokenizer.encode(columns["query"], "query")
        assert found.queries.ids_T.tolist() == ids.tolist()
    shorter = TextTokenizer(small_tokenizer.backend, max_length=8)
    assert max(module(tmp_path, shorter, table(texts)).groups(np.arange(ROWS)).queries.lengths_B) <= 8
    (tmp_path / "cache" / "queries" / "manifest.json").unlink()
    again = module(tmp_path, small_tokenizer, table(texts)).groups(np.arange(ROWS))
    assert again.queries.ids_T.tolist() == first.queries.ids_T.tolist()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"batch_size": 31}, "ranked.parquet: 30 queries to train on are fewer than batch_size = 31"),
        ({}, {"hold_out": 25}, "5 queries to train on are fewer"),
        ({}, {"negatives": 5}, "row 0 has 4 negatives, fewer than 5"),
        ({"negatives": [["a", "b", "c"]] * 20 + [["a"]] + [["a", "b", "c"]] * 9}, {}, "row 20 has 1 negatives, fewer than 3"),
        ({"negatives": [["a", "b", "c"]] * 29 + [None]}, {}, "row 29 has 0 negatives, fewer than 3"),
        ({"teacher_scores": pa.array([[1.0, 2.0]] * ROWS, pa.list_(pa.float32()))}, {}, r"row 0 has 2 teacher scores, fewer than 1 \+ 3"),
        ({"positive": None}, {}, "lacks the column 'positive'"),
        ({"query": list(range(ROWS))}, {}, "column 'query' holds int64, not string"),
        ({"positive": ["a"] * 7 + [None] + ["a"] * 22}, {}, "row 7, column 'positive'"),
        ({"query": ["a"] * 9 + [None] + ["a"] * 20}, {}, "row 9, column 'query'"),
        ({"negatives": [["a", "b", "c"]] * 3 + [["a", None, "c"]] + [["a", "b", "c"]] * 26}, {}, "row 3"),
        ({"teacher_scores": pa.array([[1.0, None, 3.0, 4.0]] * ROWS, pa.list_(pa.float32()))}, {}, "row 0"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer, change: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        module(tmp_path, small_tokenizer, table(texts, **change), **settings)
    assert "ranked.parquet" in str(raised.value)
