"""Every rule keeps and drops what its docstring says, pickles, and is built by a YAML."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import data_modules.ccpairs.heuristics as heuristics_module
from data_modules.ccpairs.heuristics import AdultContent, Length, MaxPassageChars, MinScore, NotDeleted, SourceRule
from data_modules.ccpairs.perplexity import KenLM, head_threshold, normalise_for_model
from data_modules.ccpairs.text_heuristics import (
    Boilerplate,
    CharacterShares,
    Language,
    MaxPerplexity,
    QueryIsPassage,
)
from lightning_e5.config.instantiate import check_node, instantiate
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate

PROSE = (
    "The harbour was built in 1870 by a company of fishermen. It has two piers, and the older one still carries the "
    "light that guided boats home.\nToday most of the boats are for pleasure, but three families still fish."
)
GERMAN = (
    "Der Hafen wurde von einer Gesellschaft von Fischern gebaut. Er hat zwei Molen, und die ältere trägt noch heute "
    "das Licht, das die Boote nach Hause führte. Die meisten Boote dienen inzwischen dem Vergnügen."
)
ALL_RULES: list[SourceRule] = [
    MaxPassageChars(chars=4096, sources=["reddit"]),
    MinScore(score=1, sources=["reddit"]),
    Length(min_query_chars=2, max_query_chars=300, min_passage_words=2),
    AdultContent(),
    NotDeleted(),
    QueryIsPassage(),
    Boilerplate(),
    CharacterShares(),
    Language(identify=True),
    MaxPerplexity(threshold=500.0),
]


def pair(
    query: str = "who built the harbour", passage: str = PROSE, source: str = "web", **facts: Any
) -> PairCandidate:
    return PairCandidate(query, passage, source, facts=facts)


def test_prose_passes_every_rule_and_rules_pickle() -> None:
    for rule in ALL_RULES:
        again = pickle.loads(pickle.dumps(rule))
        assert again == rule and again.fingerprint() == rule.fingerprint()
        assert rule(pair()) and again(pair(source="reddit")), rule.name
        assert json.loads(json.dumps(rule.fingerprint())) == rule.fingerprint()
    assert len({rule.name for rule in ALL_RULES}) == len(ALL_RULES)


def test_the_fingerprint_tells_settings_apart() -> None:
    assert MaxPassageChars(chars=10).fingerprint() != MaxPassageChars(chars=11).fingerprint()
    assert MaxPassageChars(chars=10).fingerprint() != MaxPassageChars(chars=10, sources=["a"]).fingerprint()
    assert MaxPassageChars(name="long comment").name == "long comment"


def test_reddit_rules_of_the_paper() -> None:
    length, score = MaxPassageChars(chars=4096, sources=["reddit"]), MinScore(score=1, sources=["reddit"])
    assert length(pair(passage="x" * 4096, source="reddit/askscience"))
    assert not length(pair(passage="x" * 4097, source="reddit/askscience"))
    assert length(pair(passage="x" * 4097, source="news"))  # the rule is for Reddit alone
    assert score(pair(source="reddit", score=1)) and not score(pair(source="reddit", score=0))
    assert not score(pair(source="reddit", score="-3"))  # a CSV's number
    assert score(pair(source="stackexchange", score=-5))
    assert score(pair(source="reddit", score=None)) and score(pair(source="reddit"))
    strict = MinScore(score=1, keep_unknown=False)
    assert not strict(pair()) and not strict(pair(score="n/a")) and not strict(pair(score=float("nan")))


@pytest.mark.parametrize(
    ("settings", "query", "passage", "stays"),
    [
        ({"min_query_chars": 4}, " abc ", "p", False),
        ({"min_query_chars": 3}, " abc ", "p", True),
        ({"max_query_chars": 3}, "abcd", "p", False),
        ({"min_query_words": 2}, "one", "p", False),
        ({"min_query_words": 2}, "one two", "p", True),
        ({"min_passage_chars": 5}, "q", "four", False),
        ({"max_passage_chars": 4}, "q", "four\n", True),
        ({"max_passage_chars": 3}, "q", "four", False),
        ({"min_passage_words": 3}, "q", "two words", False),
        ({"max_passage_words": 2}, "q", "now three words", False),
        ({"max_passage_words": 3}, "q", "now three words", True),
    ],
)
def test_length(settings: dict[str, int], query: str, passage: str, stays: bool) -> None:
    assert Length(**settings)(pair(query, passage)) is stays  # type: ignore[arg-type]


def test_flags_and_deleted_texts() -> None:
    assert not AdultContent()(pair(over_18=True)) and not AdultContent()(pair(over_18="True"))
    assert not AdultContent()(pair(nsfw=1))
    assert (
        AdultContent()(pair(over_18=False)) and AdultContent()(pair(over_18="False")) and AdultContent()(pair(nsfw=0))
    )
    for gone in ("[deleted]", " [removed]\n", "", "  ", "[Deleted by user]"):
        assert not NotDeleted()(pair(passage=gone)) and not NotDeleted()(pair(query=gone)), gone
    assert not NotDeleted()(pair(query="A title\n[removed]"))
    assert NotDeleted()(pair(passage="The comment said [deleted] and nothing more."))


def test_query_is_passage() -> None:
    rule = QueryIsPassage()
    assert not rule(pair("Some Title", "some  title "))
    assert not rule(
        pair(
            "Read this: a passage that is in the query as it stands. Thanks",
            "A passage that is in the query as it stands.",
        )
    )
    assert rule(pair("is it red or blue", "blue"))
    assert rule(pair("A title", "A title and then the text of the page"))
    assert QueryIsPassage(within_query=False)(pair("x" * 60, "x" * 50))


def test_boilerplate() -> None:
    rule = Boilerplate()
    frame = "Skip to content\nHome\nThis site uses cookies.\n© Copyright 2020 A Company. All rights reserved.\nOne line of text."
    assert not rule(pair(passage=frame))
    assert not rule(pair(passage="Read more\nRead more\nRead more\nA line."))
    assert rule(pair(passage="First line.\nSecond line.\nThird line.\nFourth line.\nPrivacy Policy"))
    article = "A court found that a site which uses cookies must say so in its privacy policy before it sets them. " * 3
    assert rule(pair(passage=article))
    assert not rule(pair(passage=" \n "))
    assert Boilerplate(sources=["web"])(pair(passage=frame, source="reddit"))


def test_character_shares() -> None:
    rule = CharacterShares()
    assert not rule(pair(passage="| --- | --- | :: >> << || ## ** " * 4))
    assert not rule(pair(passage="0192 3345 2231 44 8821 " * 4))
    assert not rule(pair(passage="BUY NOW AND SAVE MONEY ON ALL OUR GREAT PRODUCTS TODAY"))
    assert rule(pair(passage="1969")) and rule(pair(passage="NASA"))
    assert rule(pair(passage="東京は日本の首都であり、世界でも最大級の都市の一つである。" * 3))


def test_language() -> None:
    known, identified = Language(), Language(identify=True)
    assert known(pair(language="en")) and not known(pair(language="de")) and known(pair(passage=GERMAN))
    assert not identified(pair(passage=GERMAN)) and identified(pair())
    assert identified(pair(passage=GERMAN, language="en"))  # the source's word counts
    assert identified(pair(passage="Guten Tag"))  # too short to tell
    assert Language(allowed=["de"], identify=True)(pair(passage=GERMAN))
    with pytest.raises(UserError, match="english"):
        Language(allowed=["english"], identify=True)


def test_perplexity_of_the_source() -> None:
    rule = MaxPerplexity(threshold=300)
    assert rule(pair(perplexity=300.0)) and not rule(pair(perplexity=300.1)) and rule(pair())
    assert not MaxPerplexity(threshold=300, keep_unknown=False)(pair())


@pytest.mark.parametrize("name", ["pages.json", "pages.json.gz"])
def test_the_head_of_a_sample(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps({"raw_content": "x", "perplexity": p}) + "\n" for p in range(100, 0, -1)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert head_threshold(str(path), 0.3) == pytest.approx(30.7)
    rule = MaxPerplexity(head_share=0.3, sample=str(path))
    kept = [p for p in range(1, 101) if rule(pair(perplexity=p))]
    assert kept == list(range(1, 31))
    assert rule.fingerprint()["threshold"] == pytest.approx(30.7)


def test_a_damaged_sample_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "pages.json"
    path.write_text('{"perplexity": 3}\n{"perplexity": "low"}\n')
    with pytest.raises(UserError, match=r"pages\.json:2: the perplexity 'low'"):
        head_threshold(str(path), 0.5)
    path.write_text('{"perplexity": 3}\n{}\n')
    with pytest.raises(UserError, match=r"pages\.json:2: not a JSON object with the key"):
        head_threshold(str(path), 0.5)
    whole = gzip.compress(b'{"perplexity": 3}\n' * 1000)
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.json\.gz: .*archive breaks off"):
        head_threshold(str(tmp_path / "cut.json.gz"), 0.5)


ARPA = """
\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.5
-0.7\t</s>
-0.5\tharbour\t-0.3
-0.6\tthe\t-0.4

\\2-grams:
-0.2\t<s> the
-0.1\tthe harbour
-0.3\tharbour </s>

\\end\\
"""


def test_a_kenlm_model(tmp_path: Path) -> None:
    path = tmp_path / "model.arpa"
    path.write_text(ARPA)
    if importlib.util.find_spec("kenlm") is None:
        with pytest.raises(UserError, match="needs the package kenlm, which is not installed"):
            MaxPerplexity(threshold=3, model=str(path))
        return
    model = KenLM(str(path))
    assert model.perplexity("The  Harbour") == pytest.approx(10 ** (0.6 / 3))
    assert model.perplexity("The harbour\n\nthe harbour") == pytest.approx(10 ** (1.2 / 6))
    assert model.perplexity(" \n") is None
    rule = pickle.loads(pickle.dumps(MaxPerplexity(threshold=3, model=str(path))))
    assert rule(pair(passage="the harbour")) and not rule(pair(passage="qwx zzv"))
    assert json.loads(json.dumps(rule.fingerprint())) == rule.fingerprint()
    with pytest.raises(UserError, match=r"none\.arpa: no such file"):
        MaxPerplexity(threshold=3, model=str(tmp_path / "none.arpa"))


def test_text_for_a_model() -> None:
    assert normalise_for_model("  Café “Élan”, since\t1987… ") == 'cafe "elan", since 0000...'


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaxPassageChars(chars=0), "MaxPassageChars.chars=0"),
        (lambda: MaxPassageChars(sources="reddit"), "sources='reddit' must be a list"),
        (lambda: Length(min_passage_chars=10, max_passage_chars=5), "max_passage_chars=5"),
        (lambda: AdultContent(flags=[]), "AdultContent.flags"),
        (lambda: Boilerplate(max_frame_lines=30), "max_frame_lines=30 must be between 0 and 1"),
        (lambda: Language(allowed=[]), "Language.allowed"),
        (lambda: MaxPerplexity(), "either threshold or head_share"),
        (lambda: MaxPerplexity(threshold=1, head_share=0.3), "either threshold or head_share"),
        (lambda: MaxPerplexity(head_share=0.3), "head_share and sample"),
        (lambda: MaxPerplexity(threshold=-1), "threshold=-1"),
        (lambda: MaxPerplexity(threshold=1, pieces="x"), "no model is given"),
    ],
)
def test_mistakes_are_named(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_the_documented_yaml_builds() -> None:
    text = (heuristics_module.__doc__ or "").split("::\n\n")[1]
    node = yaml.safe_load(text)["heuristics"]
    check_node(node, "heuristics")
    rules = instantiate(node, "heuristics")
    assert [rule.name for rule in rules][:3] == ["not_deleted", "max_passage_chars", "min_score"] and len(rules) == 9
    assert all(rule(pair()) for rule in rules)
    with pytest.raises(UserError, match=r"heuristics\[1\].chars: 'many' is not an integer"):
        node[1]["chars"] = "many"
        check_node(node, "heuristics")


@given(
    query=st.text(max_size=80),
    passage=st.text(max_size=400),
    facts=st.dictionaries(
        st.sampled_from(["score", "over_18", "language", "perplexity"]),
        st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.booleans()),
    ),
)
def test_no_text_or_fact_breaks_a_rule(query: str, passage: str, facts: dict[str, Any]) -> None:
    for rule in ALL_RULES:
        candidate = PairCandidate(query, passage, "reddit", facts=facts)
        assert rule(candidate) is rule(candidate) and isinstance(rule(candidate), bool)
