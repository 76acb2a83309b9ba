"""Batches of lists in memory: those that the same texts in files give, and nothing is left on disk."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data_modules.base import StepDataset
from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.finetune.datamodule import RankedDataModule
from data_modules.token_cache import write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.rng import order_seed
from lightning_e5.text import TextTokenizer
from lightning_e5.types import PairBatch, TextPair, TrainingGroup

ROWS = 30


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def same(one: PairBatch, other: PairBatch) -> bool:
    def flat(batch: PairBatch) -> list[torch.Tensor]:
        teacher = [] if batch.teacher_BG is None else [batch.teacher_BG.nan_to_num(-99.0)]
        return [*batch.queries, *batch.passages, batch.query_text_B, batch.passage_text_P, batch.rows_B, *teacher]

    return len(flat(one)) == len(flat(other)) and all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def pairs_of(texts: list[str]) -> list[tuple[str, str]]:
    return [(texts[i], f"about {texts[i]}") for i in range(ROWS)]


def groups_of(texts: list[str]) -> list[TrainingGroup]:
    """Groups of 2 or 3 negatives, every third without a teacher."""
    found = []
    for i in range(ROWS):
        negatives = tuple(texts[60 + (i + d) % 20] for d in range(2 + i % 2))
        found.append(TrainingGroup(texts[i], texts[40 + i % 15], negatives, None if i % 3 == 0 else tuple(float(i + j) for j in range(1 + len(negatives)))))
    return found


def test_a_list_of_pairs_gives_the_batches_of_its_token_cache(tmp_path: Path, temporary: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    pairs = pairs_of(texts)
    write_token_cache(tmp_path / "tokens", {"query": ([q for q, _ in pairs], "query"), "passage": ([p for _, p in pairs], "passage")}, small_tokenizer)
    files = CCPairsDataModule(tokens=tmp_path / "tokens", batch_size=8, epochs=2, seed=order_seed(5))
    lists = CCPairsDataModule.from_pairs(pairs, small_tokenizer, batch_size=8, epochs=2, seed=5)
    assert lists.max_steps == files.max_steps == 8
    assert all(same(files.batch(s, 0, 1), lists.batch(s, 0, 1)) for s in range(8))
    assert all(same(a, b) for a, b in zip(files.train_dataloader(), lists.train_dataloader(), strict=True))
    other = CCPairsDataModule.from_pairs(pairs, small_tokenizer, batch_size=8, epochs=2, seed=6)
    assert not same(files.batch(0, 0, 1), other.batch(0, 0, 1))


def test_what_is_tokenised_stays_while_it_is_used_and_no_longer(temporary: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    data = CCPairsDataModule.from_pairs(pairs_of(texts), small_tokenizer, batch_size=8, max_steps=3)
    first, dataset = data.batch(0, 0, 1), StepDataset(data, 0, 1)
    ranked = RankedDataModule.from_groups(groups_of(texts), small_tokenizer, batch_size=8, negatives=2, max_steps=3)
    own = ranked.batch(0, 0, 1)
    assert len(list(temporary.iterdir())) == 3  # pairs, queries, passages
    del data
    gc.collect()
    for worker, batch in ((dataset, first), (StepDataset(ranked, 0, 1), own)):
        assert same(pickle.loads(pickle.dumps(worker))[0], batch), "a data worker opens the files"
    del dataset, ranked, worker
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_sources_are_drawn_from_where_pairs_name_them(texts: list[str], small_tokenizer: TextTokenizer) -> None:
    pairs = [TextPair(q, p, "one" if i < 20 else "two") for i, (q, p) in enumerate(pairs_of(texts))]
    settings: dict[str, Any] = {"tokenizer": small_tokenizer, "batch_size": 8, "max_steps": 4}
    data = CCPairsDataModule.from_pairs(pairs, weights={"one": 0, "two": 1}, **settings)
    assert {row for step in range(4) for row in data.batch(step, 0, 1).rows_B.tolist()} == set(range(20, 30))
    with pytest.raises(UserError, match="does not know the sources of its pairs"):
        CCPairsDataModule.from_pairs(pairs[::-2] + pairs[::2], weights={"one": 0, "two": 1}, **settings)


@pytest.mark.parametrize("as_tuples", [False, True])
def test_a_list_of_groups_gives_the_batches_of_its_file(
    tmp_path: Path, temporary: Path, texts: list[str], small_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, as_tuples: bool
) -> None:
    groups = groups_of(texts)
    columns = {
        "query": [g.query for g in groups], "positive": [g.positive for g in groups], "negatives": [list(g.negatives) for g in groups],
        "teacher_scores": pa.array([g.teacher_scores for g in groups], pa.list_(pa.float32())),
    }  # fmt: skip
    write_parquet(tmp_path / "ranked.parquet", columns)
    settings: dict[str, Any] = {"tokenizer": small_tokenizer, "batch_size": 8, "negatives": 2, "epochs": 2}
    files = RankedDataModule(ranked=tmp_path / "ranked.parquet", cache_dir=tmp_path / "cache", seed=order_seed(3), **settings)
    monkeypatch.setenv("LOCAL_RANK", "1")  # no rank waits for what another one tokenises for itself
    given: list[Any] = [(g.query, g.positive, list(g.negatives), g.teacher_scores) for g in groups] if as_tuples else groups
    lists = RankedDataModule.from_groups(given, seed=3, **settings)
    assert lists.max_steps == files.max_steps and files.batch(0, 0, 1).teacher_BG is not None
    assert all(same(files.batch(s, 0, 1), lists.batch(s, 0, 1)) for s in range(files.max_steps))


def test_groups_without_a_teacher_and_of_like_texts(texts: list[str], small_tokenizer: TextTokenizer) -> None:
    groups = [(g.query, g.positive, g.negatives) for g in groups_of(texts)]
    data = RankedDataModule.from_groups(groups, small_tokenizer, batch_size=8, negatives=2, max_steps=1)
    assert data.batch(0, 0, 1).teacher_BG is None
    alike = [TrainingGroup(*group, passage_kind="query") for group in groups]
    batch = RankedDataModule.from_groups(alike, small_tokenizer, batch_size=8, negatives=2, max_steps=1).batch(0, 0, 1)
    expected = [text for row in batch.rows_B.tolist() for text in (groups[row][1], *groups[row][2][:2])]
    assert batch.passages.ids_T.tolist() == small_tokenizer.encode(expected, "query")[0].tolist()


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "pairs: there is none"),
        ([("a", "b"), ("a",)], r"pairs: number 1 is \('a',\); the rule is a \(query, passage\) of two texts"),
        (["ab"], "pairs: number 0 is 'ab'; the rule"),
        ([("a", 3)], r"pairs: number 0 is \('a', 3\)"),
        ([("a", "b")] * 3, "batch_size: 4 is not in 1 .. 3"),
    ],
)
def test_what_is_no_pair(temporary: Path, small_tokenizer: TextTokenizer, pairs: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CCPairsDataModule.from_pairs(pairs, small_tokenizer, batch_size=4, epochs=1)
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([], "groups: there is none"),
        ([("a", "b")], r"groups: number 0 is \('a', 'b'\); the rule is \(query, positive, list of negatives\)"),
        ([("a", "b", "c")], "groups: number 0 is"),
        ([("a", "b", ["c", 3])], "groups: number 0 is"),
        ([("a", "b", ["c", "d"], [1.0])], "groups: number 0 has 1 teacher scores for 3 passages"),
        ([("a", "b", ["c", "d"], ["x", 1, 2])], r"groups: number 0 has the teacher scores \['x', 1, 2\]; the rule is a list of numbers"),
        ([("a", "b", ["c", "d"]), ("a", "b", ["c"])] * 4, "^groups: row 1 has 1 negatives, fewer than 2$"),
        ([("a", "b", ["c", "d"])], "^groups: 1 queries to train on are fewer than batch_size = 4$"),
        ([TrainingGroup("a", "b", ("c", "d"), passage_kind="document")], "^groups: row 0: passage_kind 'document' is not"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_group(temporary: Path, small_tokenizer: TextTokenizer, groups: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RankedDataModule.from_groups(groups, small_tokenizer, batch_size=4, negatives=2, epochs=1)
    assert list(temporary.iterdir()) == []


def test_a_lone_surrogate_is_read_as_the_tokenizer_reads_it(small_tokenizer: TextTokenizer) -> None:
    groups = [("a \ud800", "b", ["c \udfff"])] * 4
    batch = RankedDataModule.from_groups(groups, small_tokenizer, batch_size=4, negatives=1, epochs=1).batch(0, 0, 1)
    assert batch.queries.ids_T.tolist() == small_tokenizer.encode(["a \ud800"] * 4, "query")[0].tolist()
