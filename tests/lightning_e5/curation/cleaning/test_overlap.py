"""Planted test queries are found, look-alikes are not, and the report says what a match is not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.curation.cleaning.decontaminate import Contamination
from lightning_e5.curation.cleaning.evaluation_texts import EvaluationText
from lightning_e5.curation.cleaning.overlap import FALSE_HITS, SHOWN_MATCHES, EvaluationNgrams, OverlapReport
from lightning_e5.errors import UserError
from lightning_e5.text import words
from lightning_e5.types import PairCandidate, TextPair

SHORT = "Who designed the old harbour light?"
LONG = (
    "Does a daily dose of vitamin D in the first year of life lower the risk of fractures in children "
    "who live north of the sixtieth parallel?"
)
EVALUATION = [EvaluationText("questions", SHORT), EvaluationText("claims", LONG), EvaluationText("claims", "Yes.")]
AROUND = (
    "Someone wrote to us last week and asked: {} We passed it on to the editors, who will answer in the next issue."
)

#: What a copy looks like -> whether exact match finds it. Every one must be in the report.
PLANTED = {
    SHORT: True,
    SHORT.upper(): True,
    " Who designed\nthe old  harbour light?": True,
    "Who designed the old harbour light": False,
    "who designed 'the old harbour light' ...": False,
    AROUND.format(SHORT): False,
    LONG: True,
    LONG.casefold(): True,
    LONG.replace(" in ", ", in ").rstrip("?"): False,
    AROUND.format(LONG): False,
    "The claim: a daily dose of vitamin D in the first year of life lower the risk, they say.": False,
}
LOOK_ALIKES = [
    "Who designed the harbour light?",
    "Who designed the old harbour lights?",
    "Who built the old harbour light?",
    "Who designed the old light of the harbour?",
    "The old harbour light: who designed it?",
    "designed the old harbour light",
    "Who designed the old harbour? Light and shade in painting.",
    "Light harbour old the designed who?",
    "Who designed the new harbour light?",
    "When was the old harbour light designed?",
    "Does a daily dose of vitamin C in the first year of life lower the risk of colds in children?",
    "Does a weekly dose of vitamin D in the first years of life lower the risk of fractures in adults?",
    "A daily dose of vitamin D in the first year of life.",
    "The risk of fractures in children who live north of the sixtieth parallel",
    "Vitamin D lowers the risk of fractures in children who live north of the Alps.",
    "Fractures in children who live in the north",
    "Does calcium in the first year of life lower the risk of fractures in children of the north?",
    "Yes.",
    "yes yes yes yes",
    "Does a daily walk in the first year of retirement lower the risk of a fall?",
]

#: Look-alikes that share a whole short text, or 13 words, all the same: what the report is to be read for.
FOUND_FALSELY = {
    "Who designed the old harbour? Light and shade in painting.",
    "The risk of fractures in children who live north of the sixtieth parallel",
    "Does calcium in the first year of life lower the risk of fractures in children of the north?",
}


def check(text: str, side: str) -> tuple[bool, bool]:
    """(exact match finds it, the report finds it)."""
    pair = TextPair(text, "an answer of its own", "a") if side == "query" else TextPair("a title", text, "a")
    exact = Contamination.of(t.text for t in EVALUATION[:2])
    report = OverlapReport()
    found = EvaluationNgrams(EVALUATION).look(pair, report)
    assert found == bool(report.matched_pairs["a"]) == any(report.matches.values())
    if found:
        assert next(m for listed in report.matches.values() for m in listed).side == side
    return exact.drops(pair.query, pair.passage) == side, found


@pytest.mark.parametrize("side", ["query", "passage"])
def test_planted_copies_are_found(side: str) -> None:
    assert {text: check(text, side) for text in PLANTED} == {text: (exact, True) for text, exact in PLANTED.items()}


@pytest.mark.parametrize("side", ["query", "passage"])
def test_look_alikes_are_not_but_for_known_false_hits(side: str) -> None:
    assert len(LOOK_ALIKES) == 20
    found = {text: check(text, side) for text in LOOK_ALIKES}
    assert not any(exact for exact, _ in found.values())
    assert {text for text, (_, reported) in found.items() if reported} == FOUND_FALSELY


def test_false_hits_are_listed_with_their_words() -> None:
    evaluation, report = EvaluationNgrams(EVALUATION), OverlapReport()
    for text in LOOK_ALIKES:
        evaluation.look(TextPair(text, "an answer of its own", "a"), report)
    found = report.as_json(evaluation)
    assert found["note"] == FALSE_HITS and found["sources"]["a"] == {"pairs": 20, "matched": 3, "share": 0.15}
    shared = [match["shared"] for collection in found["collections"].values() for match in collection["matches"]]
    assert sorted(shared) == [
        "in the first year of life lower the risk of fractures in children",
        "the risk of fractures in children who live north of the sixtieth parallel",
        "who designed the old harbour light",
    ]


def test_the_report() -> None:
    evaluation = EvaluationNgrams(EVALUATION)
    report = OverlapReport()
    stock = "a daily dose of vitamin D in the first year of life lower the"  # 14 words of LONG: a false hit, perhaps
    evaluation.look(PairCandidate("t", "Guidelines advise " + stock + " dose later.", "health", id="h7"), report)
    evaluation.look(TextPair(SHORT, LONG, "forum"), report)
    evaluation.look(TextPair("other", "text", "forum"), report)
    evaluation.look(TextPair("other", "text", "news"), report)
    found = json.loads(json.dumps(report.as_json(evaluation)))
    assert found["note"] == FALSE_HITS and "false hit" in FALSE_HITS
    assert (found["n"], found["min_words"], found["pairs"]) == (13, 4, 4)
    assert found["sources"] == {
        "forum": {"pairs": 2, "matched": 1, "share": 0.5},
        "health": {"pairs": 1, "matched": 1, "share": 1.0},
        "news": {"pairs": 1, "matched": 0, "share": 0.0},
    }
    claims = found["collections"]["claims"]
    assert (claims["texts"], claims["texts_too_short"], claims["pairs"], claims["share"]) == (2, 1, 2, 0.5)
    assert claims["sources"] == {
        "forum": {"pairs": 1, "share": 0.5, "ngram": 1, "whole_text": 0},
        "health": {"pairs": 1, "share": 1.0, "ngram": 1, "whole_text": 0},
    }
    assert found["collections"]["questions"]["sources"]["forum"] == {
        "pairs": 1,
        "share": 0.5,
        "ngram": 0,
        "whole_text": 1,
    }
    assert claims["matches"][0] == {
        "collection": "claims",
        "rule": "ngram",
        "source": "health",
        "pair": "h7",
        "side": "passage",
        "shared": stock.lower(),
        "before": "guidelines advise",
        "after": "dose later",
    }


def test_a_run_in_two_collections_counts_for_both() -> None:
    evaluation = EvaluationNgrams(
        [EvaluationText("a", SHORT), EvaluationText("b", SHORT.upper()), EvaluationText("a", SHORT)]
    )
    report = OverlapReport()
    evaluation.look(TextPair("q", AROUND.format(SHORT), "s"), report)
    assert report.by_either == {("s", "a"): 1, ("s", "b"): 1} and report.matched_pairs["s"] == 1


def test_the_list_is_bounded_and_parts_add_up(tmp_path: Path) -> None:
    """Also where the evaluation's runs and the parts' counts come from files, as in a build."""
    made = EvaluationNgrams(EVALUATION)
    made.save(tmp_path / "ngrams.npz")
    evaluation = EvaluationNgrams.load(tmp_path / "ngrams.npz")
    assert evaluation.fingerprint() == made.fingerprint()
    assert (evaluation.texts, evaluation.too_short, evaluation.collections) == (made.texts, made.too_short, made.collections)
    pairs = [
        PairCandidate(f"q{i}", AROUND.format(SHORT) if i % 2 else "none of it", f"s{i % 3}", id=str(i))
        for i in range(90)
    ]
    whole = OverlapReport()
    for pair in pairs:
        evaluation.look(pair, whole)
    summed = OverlapReport()
    for start in range(0, 90, 30):
        part = OverlapReport()
        for pair in pairs[start : start + 30]:
            evaluation.look(pair, part)
        again = OverlapReport.of_state(json.loads(json.dumps(part.state())))
        assert again == part
        summed.add(again)
    assert summed.as_json(evaluation) == whole.as_json(evaluation)
    assert [m.pair for m in whole.matches["questions"]] == [str(i) for i in range(1, 2 * SHOWN_MATCHES, 2)]
    assert sum(whole.matched_pairs.values()) == 45


def test_a_damaged_file_of_runs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ngrams.npz"
    EvaluationNgrams(EVALUATION).save(path)
    whole = path.read_bytes()
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **{**arrays, "owners": arrays["owners"] + np.uint16(1)})
    with pytest.raises(UserError, match=r"ngrams\.npz: its sha256 is not the one"):
        EvaluationNgrams.load(path)
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"ngrams\.npz: not a file of evaluation n-grams"):
            EvaluationNgrams.load(path)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 6))
def test_agrees_with_a_search_by_words(seed: int, n: int) -> None:
    """By brute force over word lists, with a small vocabulary so that runs are often shared."""
    generator = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(generator.choice("abcd") for _ in range(generator.randrange(most)))

    texts = [EvaluationText(generator.choice("xy"), text(9)) for _ in range(4)]
    evaluation = EvaluationNgrams(texts, n=n, min_words=2)
    for _ in range(8):
        pair = TextPair(text(12), text(12), "s")
        expected = set()
        for item in texts:
            run = words(item.text)
            length = min(n, len(run))
            grams = {tuple(run[i : i + length]) for i in range(len(run) - length + 1)} if length >= 2 else set()
            for own in (words(pair.query), words(pair.passage)):
                if any(tuple(own[i : i + length]) in grams for i in range(len(own) - length + 1)):
                    expected.add((item.collection, "ngram" if length == n else "whole_text"))
        report = OverlapReport()
        assert evaluation.look(pair, report) == bool(expected)
        assert {(collection, rule) for (_, collection, rule) in report.matched} == expected


def test_fingerprints_and_mistakes() -> None:
    one = EvaluationNgrams(EVALUATION)
    assert one.fingerprint() == EvaluationNgrams(EVALUATION).fingerprint()
    assert one.fingerprint() != EvaluationNgrams(EVALUATION, n=12).fingerprint()
    assert one.fingerprint() != EvaluationNgrams(EVALUATION[:1]).fingerprint()
    assert not EvaluationNgrams([]).look(TextPair(SHORT, LONG, "s"), OverlapReport())
    with pytest.raises(UserError, match="min_words=14 must be between 1 and n=13"):
        EvaluationNgrams(EVALUATION, min_words=14)
