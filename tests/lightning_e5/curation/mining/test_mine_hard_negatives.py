"""Mining and teacher scores for lists: those of the stages, known answers left out, and a sentence for what cannot be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_e5.curation.mining.mine_hard_negatives import mine_hard_negatives
from lightning_e5.curation.mining.teacher_scores import score_groups
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.hard_negatives import hard_negatives
from lightning_e5.stages.teacher import teacher_scores
from lightning_e5.text import text_id
from lightning_e5.types import TrainingGroup

ROWS = 24


@pytest.fixture
def encoder(small_bert: Any, small_tokenizer: Any) -> TextEncoder:
    return TextEncoder(small_bert, small_tokenizer).eval()


@pytest.fixture
def teacher(small_bert: Any, small_tokenizer: Any) -> CrossEncoder:
    return CrossEncoder(small_bert, small_tokenizer).eval()


@pytest.fixture
def queries(texts: list[str]) -> list[str]:
    """Some occur twice, with another positive each time."""
    return [" ".join(texts[i % 20].split()[:6]) for i in range(ROWS)]


@pytest.fixture
def positives(texts: list[str]) -> list[str]:
    return texts[:ROWS]


@pytest.mark.parametrize("by", ["encoder", "bm25", "encoder, de-noised"])
def test_the_groups_are_those_of_the_stage(
    tmp_path: Path, queries: list[str], positives: list[str], encoder: TextEncoder, teacher: CrossEncoder, by: str
) -> None:
    write_parquet(tmp_path / "pairs" / "pairs.parquet", {"query": queries, "passage": positives, "source": ["s"] * ROWS})
    write_parquet(tmp_path / "ranks.parquet", {"keep": [True] * ROWS})
    rules: dict[str, Any] = {"count": 3, "first_rank": 2, "last_rank": 9, "relative_margin": 0.01, "seed": 4}
    given: dict[str, Any] = {"retriever": BM25()} if by == "bm25" else {"encoder": tmp_path / "encoder"}
    options: dict[str, Any] = {}
    if by == "encoder, de-noised":
        teacher.save_pretrained(tmp_path / "teacher")
        given |= {"denoise": tmp_path / "teacher", "denoise_margin": 0.1}
        options = {"denoise": teacher, "denoise_margin": 0.1}
    encoder.save_pretrained(tmp_path / "encoder")
    hard_negatives(tmp_path / "out", pairs=tmp_path / "pairs", keep=tmp_path / "ranks.parquet", **given, **rules)
    columns = {"query": "string", "positive": "string", "negatives": "list<string>", "passage_kind": "string", "retriever_scores": "list<float>"}
    rows = read_parquet(tmp_path / "out" / "ranked.parquet", columns).to_pylist()
    groups = mine_hard_negatives(BM25() if by == "bm25" else encoder, queries, positives, **options, **rules)
    assert [(g.query, g.positive, list(g.negatives), g.passage_kind) for g in groups] == [tuple(r[c] for c in list(columns)[:4]) for r in rows]
    np.testing.assert_array_equal(np.array([g.retriever_scores for g in groups], np.float32), np.array([r["retriever_scores"] for r in rows], np.float32))


def test_no_known_answer_is_a_negative_and_the_corpus_is_mined(queries: list[str], positives: list[str], encoder: TextEncoder, texts: list[str]) -> None:
    more = [*texts[40:80], f" {positives[3].upper()} "]  # a copy of an answer is that answer
    groups = mine_hard_negatives(encoder, queries, positives, more, count=5, last_rank=30)
    known: dict[str, set[int]] = {}
    for query, positive in zip(queries, positives, strict=True):
        known.setdefault(query, set()).add(text_id(positive))
    assert [(g.query, g.positive) for g in groups] == list(zip(queries, positives, strict=True))
    for group in groups:
        found = [text_id(negative) for negative in group.negatives]
        assert len(set(found)) == 5 and not set(found) & known[group.query]
        assert group.retriever_scores is not None and len(group.retriever_scores) == 6
    assert {n for g in groups for n in g.negatives} & set(texts[40:80])


def test_negatives_that_were_drawn_at_random_are_told(capfd: pytest.CaptureFixture[str], queries: list[str], positives: list[str]) -> None:
    groups = mine_hard_negatives(BM25(), ["zzz", *queries[1:]], positives, count=2)
    assert all(math.isnan(score) for score in groups[0].retriever_scores[1:])  # type: ignore[index]
    assert "were not retrieved but drawn at random" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"queries": []}, "0 queries and 24 positives; the rule is one positive for each query"),
        ({"positives": ["one"]}, "24 queries and 1 positives"),
        ({"queries": "text"}, "'text' is one text"),
        ({"corpus": [3]}, "number 0 is a int, not a text"),
        ({"count": 0}, "count 0 must be >= 1"),
        ({"count": 40}, "is too small for 40 negatives"),
        ({"max_score": 0.5}, "denoise_margin and max_score need denoise"),
    ],
)
def test_what_cannot_be_mined(queries: list[str], positives: list[str], changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mine_hard_negatives(BM25(), **{"queries": queries, "positives": positives, **changed})


@pytest.mark.parametrize("scale", [0.0, 20.0])
def test_the_scores_are_those_of_the_stage(tmp_path: Path, queries: list[str], positives: list[str], encoder: TextEncoder, teacher: CrossEncoder, scale: float) -> None:
    groups = mine_hard_negatives(encoder, queries, positives, count=3, last_rank=9)
    columns: dict[str, Any] = {name: [getattr(g, name) for g in groups] for name in ("query", "positive", "negatives")}
    write_parquet(tmp_path / "ranked.parquet", {**columns, "retriever_scores": [np.array(g.retriever_scores, np.float32) for g in groups]})
    teacher.save_pretrained(tmp_path / "teacher")
    teacher_scores(tmp_path / "out", teacher=tmp_path / "teacher", ranked=tmp_path / "ranked.parquet", retriever_scale=scale)
    rows = read_parquet(tmp_path / "out" / "ranked.parquet", {"teacher_scores": "list<float>"})["teacher_scores"].to_pylist()
    scored = score_groups(teacher, groups, retriever_scale=scale)
    assert [list(g.teacher_scores) for g in scored] == rows  # type: ignore[arg-type]
    assert [dataclasses.replace(g, teacher_scores=None) for g in scored] == groups


class Alike:
    """A teacher that says the same of all."""

    def score(self, queries: Any, passages: Any) -> torch.Tensor:
        return torch.ones(len(queries))


def test_what_cannot_be_scored(teacher: CrossEncoder) -> None:
    group = TrainingGroup("a", "b", ("c", "d"))
    with pytest.raises(UserError, match="groups: the teacher has collapsed"):
        score_groups(Alike(), [group])
    with pytest.raises(UserError, match="groups: there is none"):
        score_groups(teacher, [])
    with pytest.raises(UserError, match="groups: number 1 has no negatives"):
        score_groups(teacher, [group, dataclasses.replace(group, negatives=())])
    with pytest.raises(UserError, match="groups: number 0 has no retriever score for each of its passages"):
        score_groups(teacher, [group], retriever_scale=20.0)
    mined = dataclasses.replace(group, retriever_scores=(0.9, 0.5, float("nan")))
    (scored,) = score_groups(teacher, [mined], retriever_scale=20.0)
    assert [math.isnan(s) for s in scored.teacher_scores or ()] == [False, False, True]
