"""Mining in a judged collection: with an encoder and BM25, with a cross-encoder's veto, and after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightning_e5.curation.mining.candidates as candidates_module
from lightning_e5.curation.engines.engine import LocalEngine
from lightning_e5.curation.mining.hard_negatives import NegativeRules, mine
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.hard_negatives import hard_negatives
from lightning_e5.text import TextTokenizer, normalise_text

COLUMNS = {"query": "string", "positive": "string", "negatives": "list<string>", "source": "string", "passage_kind": "string"}


@pytest.fixture
def collection(tmp_path: Path, texts: list[str]) -> Path:
    """30 queries over 92 documents; each has an answer, every third a second one, and planted copies of both."""
    folder = tmp_path / "sets" / "planted"
    (folder / "qrels").mkdir(parents=True)
    documents = {f"d{i}": text for i, text in enumerate(texts[:60])}
    documents |= {f"copy{i}": f"  {text.upper()} " for i, text in enumerate(texts[:30])}
    documents |= {"empty": "", "question": texts[60]}  # one document reads as the first query
    queries = {f"q{i}": texts[60 + i] for i in range(29)} | {"q29": texts[61].upper()}  # the last one is the second again
    lines = [f"q{i}\td{i}\t1" for i in range(30)] + [f"q{i}\td{30 + i}\t2" for i in range(0, 30, 3)]
    lines += ["q5\td40\t0", "q5\tempty\t1", "q7\tabsent\t1"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": k, "title": "", "text": v}) + "\n" for k, v in documents.items()))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in queries.items()))
    (folder / "qrels/train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


@pytest.fixture
def encoder(tmp_path: Path, small_tokenizer: TextTokenizer, small_bert: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_parquet(out / "ranked.parquet", COLUMNS).to_pylist()


def check_negatives(rows: list[dict[str, Any]], texts: list[str], count: int) -> None:
    """No negative reads as a known answer of the query, in whatever spelling, or as the query itself."""
    answers: dict[str, set[str]] = {}
    for i in range(30):
        query = normalise_text(texts[60 + i] if i < 29 else texts[61])
        answers.setdefault(query, {query}).add(normalise_text(texts[i]))
        if i % 3 == 0:
            answers[query].add(normalise_text(texts[30 + i]))
    for row in rows:
        negatives = [normalise_text(n) for n in row["negatives"]]
        assert len(set(negatives)) == len(negatives) == count and "" not in negatives
        assert not set(negatives) & answers[normalise_text(row["query"])]
        assert normalise_text(row["positive"]) in answers[normalise_text(row["query"])]


@pytest.mark.parametrize("lexical", [False, True])
def test_no_negative_is_a_known_answer(tmp_path: Path, texts: list[str], collection: Path, encoder: Path, lexical: bool) -> None:
    retriever: dict[str, Any] = {"retriever": BM25()} if lexical else {"encoder": encoder}
    metrics = hard_negatives(tmp_path / "a", collection=collection, count=5, last_rank=30, seed=1, **retriever)
    hard_negatives(tmp_path / "b", collection=collection, count=5, last_rank=30, seed=1, **retriever)
    assert (tmp_path / "a/ranked.parquet").read_bytes() == (tmp_path / "b/ranked.parquet").read_bytes()
    rows = rows_of(tmp_path / "a")
    assert len(rows) == metrics["queries"] == 40 and metrics["known_positives"] > 10
    assert {row["source"] for row in rows} == {"planted"} and {row["passage_kind"] for row in rows} == {"passage"}
    check_negatives(rows, texts, 5)
    report = read_json(tmp_path / "a/report.json")
    assert len(report["score_quantiles"]) == 5 and report["score_quantiles"] == sorted(report["score_quantiles"])
    assert report["candidates"] == 1200 if not lexical else report["candidates"] <= 1200
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["ranked.parquet", "report.json"]
    few = hard_negatives(tmp_path / "c", collection=collection, count=5, last_rank=30, seed=1, max_queries=7, source="named", **retriever)
    assert few["queries"] == 7 and {row["source"] for row in rows_of(tmp_path / "c")} == {"named"}


def test_scores_keep_their_margins(tmp_path: Path, texts: list[str], collection: Path, encoder: Path) -> None:
    metrics = hard_negatives(tmp_path / "a", collection=collection, encoder=encoder, count=3, last_rank=91, absolute_margin=0.02, seed=1)
    assert metrics["over_absolute_margin"] > 0
    model = TextEncoder.from_pretrained(encoder)
    kept = broken = 0
    for row in rows_of(tmp_path / "a"):
        query = model.embed([row["query"]], "query")
        scores = (model.embed([row["positive"], *row["negatives"]], "passage") @ query.T).squeeze(1)
        wrong = int((scores[1:] > scores[0] - 0.02 + 1e-5).sum())
        broken, kept = broken + wrong, kept + 3 - wrong
    assert metrics["known_negatives"] == 1, "the one judgement of 0"
    assert broken <= metrics["filled_against_rules"] + metrics["known_negatives"] and kept > 0
    check_negatives(rows_of(tmp_path / "a"), texts, 3)


@pytest.mark.parametrize("positive", [-1.0, -0.6, -0.1, 0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize(("absolute", "relative"), [(0.1, None), (None, 0.05), (0.02, 0.2)])
def test_margins_hold_for_positives_of_either_sign(positive: float, absolute: float | None, relative: float | None) -> None:
    scores = np.linspace(1, -1, 400, dtype=np.float32)[None, :]
    rules = NegativeRules(7, 1, 400, absolute, relative)
    chosen, _, report = mine(np.arange(400)[None, :], scores, np.array([positive], np.float32), [{399}], np.arange(400), rules, seed=1)
    below = scores[0, chosen[0]] <= positive - max(absolute or 0.0, (relative or 0.0) * abs(positive)) + 1e-6
    assert int((~below).sum()) <= report.filled_against_rules
    if positive > -0.6:
        assert below.all() and report.filled_against_rules == report.filled_at_random == 0


def test_what_fills_up_was_not_retrieved() -> None:
    """A passage that a margin rejects must not come back as a random one."""
    candidates = np.arange(50)[None, :]
    scores = np.full((1, 50), 0.9, np.float32)
    scores[0, -1] = 0.1
    for seed in range(30):
        chosen, _, report = mine(candidates, scores, np.full(1, 0.5, np.float32), [{60}], np.arange(100), NegativeRules(7, absolute_margin=0.1), seed=seed)
        assert chosen[0, 0] == 49 and (chosen[0, 1:] >= 50).all() and 60 not in chosen
        assert (report.filled_at_random, report.filled_against_rules) == (6, 0)
    chosen, _, report = mine(candidates, scores, np.full(1, 0.15, np.float32), [{60}], np.arange(100), NegativeRules(7, absolute_margin=0.1), seed=1)
    assert report.filled_against_rules == 7, "the retrieved end above the margin, so others may be above it"


def test_the_teachers_veto_is_that_of_its_scores() -> None:
    veto = np.zeros((2, 40), dtype=bool)
    veto[0, ::2] = True
    candidates, scores = np.tile(np.arange(40), (2, 1)), np.tile(np.linspace(1, 0, 40, dtype=np.float32), (2, 1))
    chosen, _, report = mine(candidates, scores, np.ones(2, np.float32), [{0}, {1}], np.arange(60), NegativeRules(7), seed=1, false_negatives_QK=veto)
    assert (chosen[0] % 2 == 1).all() and report.answers_by_teacher == 19, "20 vetoed, of which one is the positive itself"
    assert (chosen[1] % 2 == 0).any()


def test_denoising(tmp_path: Path, texts: list[str], collection: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CrossEncoder.from_encoder(TextEncoder.from_pretrained(encoder, max_length=30)).save_pretrained(tmp_path / "teacher" / "cross_encoder")
    given: dict[str, Any] = {"collection": collection, "encoder": encoder, "count": 3, "last_rank": 20, "seed": 1, "denoise": tmp_path / "teacher"}
    plain = hard_negatives(tmp_path / "plain", **given, denoise_margin=-1e9)
    assert plain["answers_by_teacher"] == 0
    metrics = hard_negatives(tmp_path / "a", **given)
    assert 0 < metrics["answers_by_teacher"] < metrics["candidates"]
    check_negatives(rows_of(tmp_path / "a"), texts, 3)
    teacher = CrossEncoder.from_pretrained(tmp_path / "teacher" / "cross_encoder")
    kept = total = 0
    for row in rows_of(tmp_path / "a"):
        scores = teacher.score([row["query"]] * 4, [row["positive"], *row["negatives"]])
        kept, total = kept + int((scores[1:] <= scores[0] + 1e-4).sum()), total + 3
    assert total - kept <= metrics["filled_at_random"]
    everything = hard_negatives(tmp_path / "all", **given, max_score=-1e9)
    assert everything["answers_by_teacher"] == everything["candidates"] - everything["known_positives"]
    assert everything["filled_at_random"] == 3 * everything["queries"] - everything["known_negatives"]


def test_a_killed_mining_continues(tmp_path: Path, collection: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "TEXTS", 16)
    monkeypatch.setattr(candidates_module, "SEARCHES", 8)
    monkeypatch.setattr(candidates_module, "RESCORED", 8)
    CrossEncoder.from_encoder(TextEncoder.from_pretrained(encoder, max_length=30)).save_pretrained(tmp_path / "teacher")
    given: dict[str, Any] = {"collection": collection, "encoder": encoder, "count": 3, "last_rank": 20, "seed": 1, "denoise": tmp_path / "teacher"}
    hard_negatives(tmp_path / "whole", **given)
    blocks, savez = 0, np.savez
    for killed_at in (2, 3, 4, 5):

        def dies(handle: Any, killed_at: int = killed_at, **arrays: Any) -> None:
            nonlocal blocks
            blocks += 1
            if blocks == killed_at:
                handle.write(b"half")
                raise KeyboardInterrupt
            savez(handle, **arrays)

        blocks = 0
        monkeypatch.setattr(np, "savez", dies)
        with pytest.raises(KeyboardInterrupt):
            hard_negatives(tmp_path / "killed", **given)
        assert not (tmp_path / "killed/ranked.parquet").exists()
    done = len(list((tmp_path / "killed/parts").iterdir()))
    assert done == 1 + 2 + 3 + 4, "what was finished before each kill is kept"
    blocks = -100
    hard_negatives(tmp_path / "killed", **given)
    assert blocks == -100 + (3 + 6 + 5 + 5) - done
    for name in ("ranked.parquet", "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed/parts").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retriever": BM25()}, "either pairs with keep, or a collection"),
        ({"collection": Path("x"), "pairs": Path("x"), "retriever": BM25()}, "either pairs with keep, or a collection"),
        ({"pairs": Path("x"), "retriever": BM25()}, "pairs need keep"),
        ({"collection": Path("x")}, "either an encoder or a retriever"),
        ({"collection": Path("x"), "encoder": Path("x"), "retriever": BM25()}, "either an encoder or a retriever"),
        ({"collection": Path("x"), "retriever": BM25(), "max_score": 1.0}, "need denoise"),
        ({"collection": Path("absent"), "retriever": BM25()}, "absent: no such directory"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hard_negatives(tmp_path, **settings, seed=1)


@pytest.mark.slow  # stages/test_consistency_filter.py compares the engines
def test_an_engine_embeds_the_same(tmp_path: Path, collection: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of texts embedded by two workers and by one give the same file."""
    monkeypatch.setattr(candidates_module, "TEXTS", 16)
    for workers in (1, 2):
        engine = LocalEngine(workers=workers)
        hard_negatives(tmp_path / f"{workers}", collection=collection, encoder=encoder, count=5, last_rank=30, seed=1, engine=engine)
    one, two = ((tmp_path / f"{workers}/ranked.parquet").read_bytes() for workers in (1, 2))
    assert one == two
    hard_negatives(tmp_path / "here", collection=collection, encoder=encoder, count=5, last_rank=30, seed=1)
    assert [r["query"] for r in rows_of(tmp_path / "here")] == [r["query"] for r in rows_of(tmp_path / "2")]
