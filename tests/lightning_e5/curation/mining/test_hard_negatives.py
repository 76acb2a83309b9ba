"""What is mined is never a known answer, is counted, and is the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.curation.mining.candidates import Candidates, false_negatives
from lightning_e5.curation.mining.collections import of_pairs
from lightning_e5.curation.mining.hard_negatives import NegativeRules, mine
from lightning_e5.curation.mining.teacher_scores import separation
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.losses.distillation import positive_first
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.stages.hard_negatives import hard_negatives
from lightning_e5.text import TextTokenizer, normalise_text
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import PairBatch, TokenBatch
from tests.lightning_e5.modules.loss_of_step import loss_of_step


class Case(NamedTuple):
    """What was retrieved for some queries in a corpus in which texts may occur several times."""

    candidates: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    known: list[set[int]]
    texts: np.ndarray
    rules: NegativeRules
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    passages, queries, width = draw(st.integers(12, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 12))
    texts = rng.permutation(np.concatenate([np.arange(10), rng.integers(10, 30, passages - 10)]))
    scores = -np.sort(-rng.normal(size=(queries, width)).astype(np.float32), axis=1)
    candidates = np.stack([rng.permutation(passages)[:width] for _ in range(queries)]).astype(np.int64)
    for row in range(queries):
        candidates[row, width - rng.integers(0, width + 1) :] = -1
    known = [set(rng.choice(texts, rng.integers(1, 4)).tolist()) for _ in range(queries)]
    first = draw(st.integers(1, 4))
    rules = NegativeRules(
        count=draw(st.integers(1, 5)), first_rank=first, last_rank=first + draw(st.integers(0, 12)),
        absolute_margin=draw(st.sampled_from([None, 0.0, 0.3])), relative_margin=draw(st.sampled_from([None, 0.0, 0.05])),
    )  # fmt: skip
    return Case(candidates, scores, rng.normal(size=queries).astype(np.float32), known, texts, rules, draw(st.integers(0, 2**31)))


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_no_mined_negative_is_a_known_positive(case: Case) -> None:
    chosen, chosen_scores, report = mine(*case[:6], seed=case.seed)
    assert chosen.shape == (len(case.known), case.rules.count) and chosen.dtype == np.int64
    window = slice(case.rules.first_rank - 1, case.rules.last_rank)
    candidates = known_positives = filled = absolute = relative = 0
    for row, negatives in enumerate(chosen):
        found = case.texts[negatives].tolist()
        assert not set(found) & case.known[row], "a known positive"
        assert len(set(found)) == case.rules.count, "one text twice"
        allowed = set()
        for place, score in zip(case.candidates[row, window], case.scores[row, window], strict=True):
            if place < 0:
                continue
            candidates += 1
            positive = case.positive_scores[row]
            if case.texts[place] in case.known[row]:
                known_positives += 1
            elif case.rules.absolute_margin is not None and not score <= positive - np.float32(case.rules.absolute_margin):
                absolute += 1
            elif case.rules.relative_margin is not None and not score <= positive - np.float32(case.rules.relative_margin) * abs(positive):
                relative += 1
            else:
                allowed.add(int(case.texts[place]))
        missing = max(0, case.rules.count - len(allowed))
        filled += missing
        retrieved = negatives[: case.rules.count - missing]
        for negative, score in zip(negatives, chosen_scores[row], strict=True):
            at = np.flatnonzero(case.candidates[row] == negative)
            assert np.isnan(score) if negative not in retrieved else score in case.scores[row, at]
        assert np.isnan(chosen_scores[row]).sum() == missing
        assert set(case.texts[retrieved].tolist()) <= allowed and set(retrieved.tolist()) <= set(case.candidates[row, window].tolist())
    assert report.queries == len(case.known)
    counts = (report.candidates, report.known_positives, report.over_absolute_margin, report.over_relative_margin, report.filled_at_random)
    assert counts == (candidates, known_positives, absolute, relative, filled)


@given(case=cases())
@settings(max_examples=50, deadline=None)
def test_mining_is_deterministic_and_a_query_stands_alone(case: Case) -> None:
    chosen, _, report = mine(*case[:6], seed=case.seed)
    again, _, report_again = mine(*case[:6], seed=case.seed)
    assert np.array_equal(chosen, again) and report == report_again
    first, *_ = mine(case.candidates[:1], case.scores[:1], case.positive_scores[:1], case.known[:1], case.texts, case.rules, seed=case.seed)
    assert np.array_equal(chosen[:1], first)


def test_seeds_differ_and_negatives_keep_their_rank_order() -> None:
    candidates, scores = np.arange(50)[None, :], np.linspace(1, 0, 50, dtype=np.float32)[None, :]
    draws = [mine(candidates, scores, np.ones(1, np.float32), [{0}], np.arange(50), NegativeRules(5), seed=s)[0][0] for s in range(5)]
    assert len({tuple(d) for d in draws}) == 5
    assert all(np.array_equal(d, np.sort(d)) for d in draws)


def test_a_collapsed_retriever_mines_at_random_and_says_so() -> None:
    """A candidate that scores exactly as the positive cannot be told from it."""
    candidates, scores = np.tile(np.arange(20), (4, 1)), np.full((4, 20), 0.5, np.float32)
    chosen, mined, report = mine(candidates, scores, scores[:, 0], [{0}] * 4, np.arange(200), NegativeRules(5), seed=3)
    assert (report.tied_with_positive, report.filled_at_random, report.filled_against_rules) == (4 * 19, 20, 20)
    assert np.isnan(mined).all() and len({tuple(row) for row in chosen}) == 4 and (chosen >= 20).all()
    scores[0, 3] = 0.25  # one that can be told
    chosen, mined, report = mine(candidates, scores, scores[:, 0], [{0}] * 4, np.arange(200), NegativeRules(5), seed=3)
    assert report.tied_with_positive == 4 * 19 - 1 and 3 in chosen[0] and mined[0, 0] == np.float32(0.25)


class Alike:
    """A cross-encoder that gives every pair one logit."""

    def score(self, queries: Any, passages: Any) -> torch.Tensor:
        return torch.full((len(queries),), 1.5)


def test_a_collapsed_cross_encoder_vetoes_everything(tmp_path: Path) -> None:
    data = of_pairs(["a", "b"], ["x", "y"], ["s", "s"], max_queries=None, seed=0)
    found = Candidates(np.array([[0, 1], [1, 0]]), np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    for number, (margin, veto) in enumerate(((0.0, True), (0.5, True), (-0.5, False))):
        vetoed = false_negatives(data, found, slice(0, 2), Alike(), tmp_path / str(number), margin=margin, max_score=None)
        assert vetoed.tolist() == [[False, veto], [False, veto]]  # the known positive is none of its candidates


def test_a_positive_that_ties_is_not_first() -> None:
    assert separation([np.zeros(4, np.float32)] * 3)["positive_first"] == 0.0
    assert separation([np.array([2, 1, 1], np.float32), np.array([1, 1, 0], np.float32)])["positive_first"] == 0.5
    logits = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert float(positive_first(logits)) == 0.25 and float(positive_first(logits[:, :1])) == 1.0
    module = CrossEncoderModule(torch.nn.Linear(2, 2), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=1)  # type: ignore[arg-type]
    none = TokenBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    output = loss_of_step(module, PairBatch(none, none, torch.arange(4), torch.arange(12), torch.arange(4)), logits.view(-1, 1))
    assert float(output.accuracy) == 0.25


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [20, 5000])
def test_a_corpus_of_copies_is_refused(size: int) -> None:
    candidates, scores = np.zeros((1, 2), np.int64), np.zeros((1, 2), np.float32)
    with pytest.raises(UserError, match=r"negatives: .*corpus"):
        mine(candidates, scores, np.ones(1, np.float32), [{7}], np.arange(size) % 3, NegativeRules(3), seed=1)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"first_rank": 0}, {"first_rank": 3, "last_rank": 2}])
def test_wrong_rules(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="negatives: count"):
        NegativeRules(**wrong)


def test_the_stage_never_hands_out_an_answer(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer, small_bert: Any) -> None:
    queries = [*texts[:40], *[t.upper() for t in texts[:10]]]  # ten queries a second time, with other answers
    passages = [*texts[60:100], *texts[100:105], *[f" {t}  " for t in texts[60:65]]]  # five answers a second time
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    write_parquet(tmp_path / "pairs.parquet", {"query": queries, "passage": passages, "source": ["s"] * 50})
    keep = [i % 7 != 0 for i in range(50)]
    write_parquet(tmp_path / "ranks.parquet", {"keep": keep})
    given = {"pairs": tmp_path, "keep": tmp_path / "ranks.parquet", "encoder": tmp_path / "encoder", "count": 3, "last_rank": 10}
    metrics = hard_negatives(tmp_path / "a", **given, seed=1)
    hard_negatives(tmp_path / "b", **given, seed=1)
    assert (tmp_path / "a/ranked.parquet").read_bytes() == (tmp_path / "b/ranked.parquet").read_bytes()
    rows = read_parquet(tmp_path / "a/ranked.parquet", {"query": "string", "positive": "string", "negatives": "list<string>"}).to_pylist()
    kept = [(q, p) for q, p, k in zip(queries, passages, keep, strict=True) if k]
    assert [(r["query"], r["positive"]) for r in rows] == kept and metrics["queries"] == len(kept)
    answers: dict[str, set[str]] = {}
    for query, passage in kept:
        answers.setdefault(normalise_text(query), set()).add(normalise_text(passage))
    assert max(map(len, answers.values())) == 2
    for row in rows:
        negatives = [normalise_text(n) for n in row["negatives"]]
        assert len(set(negatives)) == 3 and not set(negatives) & answers[normalise_text(row["query"])]
        assert set(row["negatives"]) <= {p for _, p in kept}
    report = read_json(tmp_path / "a/report.json")
    assert report["candidates"] == 10 * len(kept) and report["known_positives"] == metrics["known_positives"]
