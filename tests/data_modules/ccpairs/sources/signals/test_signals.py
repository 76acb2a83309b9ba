"""Each training signal does to real and made-up documents what it says, always the same, and counts what it leaves out."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_modules.ccpairs.sources.signals.bm25_taught import Bm25Taught
from data_modules.ccpairs.sources.signals.crops import AUGMENTATIONS, RandomCrops, augmented
from data_modules.ccpairs.sources.signals.signal import TOO_SHORT, blocks, sentences
from data_modules.ccpairs.sources.signals.texts import BeirTexts, JsonlTexts, ParquetTexts, PassagesOf, StoredPassages
from data_modules.ccpairs.sources.signals.within_text import InverseCloze, NeighbouringSpans, SimCse
from data_modules.ccpairs.sources.tables import JsonlPairs
from data_modules.pair_store import PairStore
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.rng import generator
from lightning_e5.stages.build_ccpairs import build_ccpairs
from lightning_e5.types import PairCandidate, ReadReport


def read(source: Any) -> tuple[list[PairCandidate], ReadReport]:
    report = ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


def corpus(path: Path, texts: list[str]) -> ParquetTexts:
    pq.write_table(pa.table({"text": texts, "id": [f"t{i}" for i in range(len(texts))]}), path)
    return ParquetTexts(str(path), id_column="id")


def document(number: int, sentences: int = 6) -> str:
    """Sentences of eight words, none of which occurs twice in the document."""
    return " ".join(" ".join([f"S{number}x{s}", *(f"w{number}x{s}x{i}" for i in range(7))]) + "." for s in range(sentences))


SIGNALS = [SimCse, InverseCloze, RandomCrops, NeighbouringSpans, Bm25Taught]


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_same_pairs_for_the_same_seed_whatever_came_before(signal: Any, tmp_path: Path) -> None:
    documents = [document(i, 20) for i in range(30)]
    source = signal(corpus(tmp_path / "a.parquet", documents), seed=3)
    pairs, report = read(source)
    assert pairs and read(pickle.loads(pickle.dumps(source)))[0] == pairs
    assert report.counts["pairs"] == len(pairs) and report.counts["texts"] == 30
    assert {pair.source for pair in pairs} == {source.name}
    assert all(pair.id.startswith("t") for pair in pairs)
    other = signal(corpus(tmp_path / "a.parquet", documents), seed=4)
    assert other.fingerprint() != source.fingerprint()
    if signal is not SimCse:
        assert read(other)[0] != pairs
    if signal is not Bm25Taught:  # a document's draws do not depend on the other documents
        half, _ = read(signal(corpus(tmp_path / "b.parquet", documents[:10]), seed=3))
        assert half == pairs[: len(half)]


@pytest.mark.parametrize("signal", SIGNALS)
def test_short_documents_are_counted(signal: Any, tmp_path: Path) -> None:
    pairs, report = read(signal(corpus(tmp_path / "a.parquet", ["No.", "Too short", document(1, 20), "A b."])))
    assert report.counts[f"skipped: {TOO_SHORT}"] == 3 and report.counts["pairs"] == len(pairs) >= 1
    assert all("S1x" in pair.passage or "w1x" in pair.passage for pair in pairs)


def test_simcse_is_the_text_twice(tmp_path: Path) -> None:
    (pair,), _ = read(SimCse(corpus(tmp_path / "a.parquet", ["One line.\nAnother line."])))
    assert pair.query == pair.passage == "One line.\nAnother line."


def test_inverse_cloze_takes_the_sentence_out_nine_times_of_ten(tmp_path: Path) -> None:
    count = 2000
    pairs, _ = read(InverseCloze(corpus(tmp_path / "a.parquet", [document(i) for i in range(count)])))
    assert len(pairs) == count
    kept = chosen = 0
    places: Counter[int] = Counter()
    for number, pair in enumerate(pairs):
        whole = sentences(document(number))
        assert pair.query in whole
        places[whole.index(pair.query)] += 1
        rest = [s for s in whole if s != pair.query]
        kept += pair.passage == " ".join(whole)
        chosen += pair.passage == " ".join(rest)
    assert kept + chosen == count
    assert abs(kept / count - 0.1) < 4 * (0.09 / count) ** 0.5
    assert set(places) == set(range(6)) and max(places.values()) < 1.3 * min(places.values())
    for keep, share in ((0.0, 0), (1.0, count)):
        pairs, _ = read(InverseCloze(corpus(tmp_path / "a.parquet", [document(i) for i in range(count)]), keep=keep))
        assert sum(pair.query in pair.passage for pair in pairs) == share


def test_inverse_cloze_takes_copies_out_too(tmp_path: Path) -> None:
    title = "The flow over a blunt body ."
    text = f"{title}\n{title} It is laminar at first and turns turbulent further on ."
    for seed in range(5):
        (pair,), _ = read(InverseCloze(corpus(tmp_path / "a.parquet", [text]), keep=0.0, seed=seed))
        assert pair.query not in pair.passage
    (pair,), _ = read(InverseCloze(corpus(tmp_path / "a.parquet", [text]), keep=1.0))
    assert pair.passage.count(title) == 2


def test_all_signals_in_one_build(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "a.parquet", [document(i, 20) for i in range(12)])
    metrics = build_ccpairs(tmp_path / "out", sources=[signal(texts) for signal in SIGNALS], seed=1)
    assert {name: metrics[f"{name}/pairs"] for name in ("simcse", "crops", "neighbours", "bm25-taught")} == dict.fromkeys(
        ("simcse", "crops", "neighbours", "bm25-taught"), 12.0
    )
    store = PairStore(tmp_path / "out")
    assert list(store.sources) == ["simcse", "inverse-cloze", "crops", "neighbours", "bm25-taught"]
    simcse = store.read(["query", "passage"]).slice(0, 12)
    assert simcse["query"].to_pylist() == simcse["passage"].to_pylist()


def test_inverse_cloze_cuts_long_documents_in_blocks(tmp_path: Path) -> None:
    pairs, _ = read(InverseCloze(corpus(tmp_path / "a.parquet", [document(0, 50)]), block_words=80))
    assert len(pairs) == 5
    for block, pair in enumerate(pairs):
        assert {int(word[3:].rstrip(".")) for word in pair.passage.split() if word.startswith("S0x")} <= set(range(10 * block, 10 * block + 10))


def test_crops_stay_inside_the_document(tmp_path: Path) -> None:
    documents = [document(i, 12) for i in range(200)]
    pairs, _ = read(RandomCrops(corpus(tmp_path / "a.parquet", documents), augment=()))
    assert len(pairs) == 200
    shares = []
    for text, pair in zip(documents, pairs, strict=True):
        for crop in (pair.query, pair.passage):
            assert f" {crop} " in f" {text} "
            shares.append(len(crop.split()) / len(text.split()))
    assert 0.08 < min(shares) < 0.13 and 0.45 < max(shares) <= 0.5
    assert abs(np.mean(shares) - 0.3) < 0.03
    assert sum(pair.query == pair.passage for pair in pairs) < 5
    disturbed, _ = read(RandomCrops(corpus(tmp_path / "a.parquet", documents), augment=AUGMENTATIONS))
    assert all(set(f"{p.query} {p.passage}".split()) <= set(text.split()) for text, p in zip(documents, disturbed, strict=True))


def test_long_documents_give_a_pair_per_chunk(tmp_path: Path) -> None:
    text = document(0, 70)  # 560 words
    pairs, _ = read(RandomCrops(corpus(tmp_path / "a.parquet", [text]), chunk_words=256, min_words=50, augment=()))
    assert len(pairs) == 2  # the last chunk has 48 words
    assert all(word in text.split()[256:512] for word in pairs[1].query.split())


def test_augmentations_concern_a_word_in_ten() -> None:
    words = [f"w{i}" for i in range(20_000)]
    results = {name: augmented(words, name, 0.1, ["new"], generator(1, name)) for name in AUGMENTATIONS}
    slack = 4 * (0.09 * len(words)) ** 0.5
    assert abs(len(words) - len(results["delete"]) - 2000) < slack and set(results["delete"]) < set(words)
    assert abs(results["replace"].count("new") - 2000) < slack and len(results["replace"]) == len(words)
    assert abs(results["insert"].count("new") - 2000) < slack
    assert [w for w in results["insert"] if w != "new"] == words
    moved = sum(a != b for a, b in zip(words, results["reorder"], strict=True))
    assert sorted(results["reorder"]) == sorted(words) and abs(moved - 2000) < slack
    assert augmented(["only"], "delete", 1.0, ["new"], generator(1)) == ["only"]
    for name in AUGMENTATIONS:
        assert augmented(words, name, 0.0, ["new"], generator(1)) == words


def test_neighbours_follow_one_another(tmp_path: Path) -> None:
    documents = [document(i, 20) for i in range(50)]
    pairs, _ = read(NeighbouringSpans(corpus(tmp_path / "a.parquet", documents), span_words=32))
    assert len(pairs) == 50 and all(f"{p.query} {p.passage}" in d for p, d in zip(pairs, documents, strict=True))
    assert len({pair.query.split(".")[0].split("x")[1] for pair in pairs}) > 2  # not always the first
    every, _ = read(NeighbouringSpans(corpus(tmp_path / "a.parquet", documents[:1]), span_words=32, pairs_per_text=9))
    assert len(every) == 4 and [p.passage for p in every[:-1]] == [p.query for p in every[1:]]


def test_bm25_teaches_its_own_ranking(tmp_path: Path) -> None:
    from lightning_e5.retrieval.bm25 import BM25

    texts = [
        "Dogs bark loudly at the moon. Nobody sleeps.", "The moon is far away from dogs that bark. It is grey.",
        "Cats sleep on warm mats all day. They purr.", "Warm mats are for cats that sleep. Mats are flat.", "Rain falls.",
    ]  # fmt: skip
    pairs, report = read(Bm25Taught(corpus(tmp_path / "a.parquet", texts), top=3))
    assert report.counts[f"skipped: {TOO_SHORT}"] == 1
    for query in dict.fromkeys(pair.query for pair in pairs):
        run = BM25().retrieve({str(i): text for i, text in enumerate(texts)}, {"q": query}, 3)["q"]
        assert [pair.passage for pair in pairs if pair.query == query] == [texts[int(i)] for i in run]
    others, _ = read(Bm25Taught(corpus(tmp_path / "a.parquet", texts), own=False))
    assert others and all(pair.query not in pair.passage for pair in others)
    assert others[0].id == "t0 t1"
    few, _ = read(Bm25Taught(corpus(tmp_path / "a.parquet", texts), max_queries=2))
    assert len({pair.query for pair in few}) == 2
    # Porter's stem of a possessive s is empty, stop words are no words: neither finds a passage, nor ends in a traceback
    wordless, _ = read(Bm25Taught(corpus(tmp_path / "a.parquet", ["'s 's 's 's.", "It is not to be.", *texts]), max_queries=None))
    assert {pair.query for pair in wordless} == {pair.query for pair in pairs}


def test_sentences_and_blocks() -> None:
    text = 'He said "Stop." Then 3 men ran! Why?  (Nobody knows.) e.g. this stays\nA title\n\n  end'
    assert sentences(text) == ['He said "Stop."', "Then 3 men ran!", "Why?", "(Nobody knows.) e.g. this stays", "A title", "end"]
    assert sentences(" \n ") == []
    assert sentences("flow is laminar . it separates at mach 2.5 . end") == ["flow is laminar .", "it separates at mach 2.5 .", "end"]
    assert blocks(["a b", "c", "d e f g", "h"], 3) == [["a b", "c"], ["d e f g"], ["h"]]


def test_every_kind_of_corpus(tmp_path: Path) -> None:
    rows = [{"_id": "1", "title": "A title", "text": "A text."}, {"_id": "2", "text": "No title."}, {"_id": "3", "title": 4, "text": "x"}]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = ReadReport()
    assert list(BeirTexts(str(path)).read(str(path), report)) == [("1", "A title\nA text."), ("2", "No title.")]
    assert report.counts == {"records": 3, "texts": 2, "bad: title is no string": 1}
    assert [text for _, text in JsonlTexts(str(path)).read(str(path), ReadReport())] == ["A text.", "No title.", "x"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"q": "a", "p": "b"}\n')
    assert list(PassagesOf(JsonlPairs(str(pairs), query="q", passage="p")).read(str(pairs), ReadReport())) == [("", "b")]
    write_parquet(tmp_path / "stage" / "pairs.parquet", {"query": ["a", "b"], "passage": ["c", "d"]})
    stored = StoredPassages(tmp_path / "stage")
    assert list(stored.read(stored.parts()[0], ReadReport())) == [("0", "c"), ("1", "d")]
    for texts in (BeirTexts(str(path)), stored):
        before = texts.fingerprint()
        for part in texts.parts():
            Path(part).write_bytes(Path(part).read_bytes() + b"\n")
        assert texts.fingerprint() != before
    with pytest.raises(UserError, match="neither"):
        StoredPassages(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: InverseCloze(t, keep=1.5), "keep: 1.5 is not between 0 and 1"),
        (lambda t: InverseCloze(t, block_words=0), "block_words: 0 is not >= 1"),
        (lambda t: RandomCrops(t, min_ratio=0.6), "max_ratio: 0.5 is not between 0.6 and 1"),
        (lambda t: RandomCrops(t, probability=-0.1), "probability: -0.1"),
        (lambda t: RandomCrops(t, augment=["deletion"]), "augment: 'deletion'.*did you mean 'delete'"),
        (lambda t: RandomCrops(t, min_crop_words=30), "min_crop_words: 30 is more than min_words=20"),
        (lambda t: NeighbouringSpans(t, pairs_per_text=0), "pairs_per_text: 0"),
        (lambda t: Bm25Taught(t, top=0), "top: 0"),
        (lambda t: Bm25Taught(t, max_queries=0), "max_queries: 0"),
        (lambda t: SimCse(t, min_words=0), "min_words: 0"),
    ],
)
def test_errors(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make(corpus(tmp_path / "a.parquet", ["a"]))
