"""Columns are guessed from usual names, and refused with the option that decides where they are not known or several fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.own.columns import Columns, find_columns
from lightning_e5.errors import UserError

TABLE = Path("faq.csv")


@pytest.mark.parametrize(
    ("names", "query", "passage", "negatives", "score", "document"),
    [
        ("query passage", "query", "passage", (), None, None),
        ("Question Answer title", "Question", "Answer", (), None, "title"),
        ("anchor positive", "anchor", "positive", (), None, None),
        ("anchor positive negative_1 negative_2", "anchor", "positive", ("negative_1", "negative_2"), None, None),
        ("query pos neg", "query", "pos", ("neg",), None, None),
        ("sentence1 sentence2 score", "sentence1", "sentence2", (), "score", None),
        ("title body", "title", "body", (), None, None),
        ("id title abstract", "title", "abstract", (), None, "id"),
        ("query document", "query", "document", (), None, None),
        ("query passage document url", "query", "passage", (), None, "document"),
        ("prompt response", "prompt", "response", (), None, None),
        ("source url query title passage", "query", "passage", (), None, "url"),
        ("anchor entailment contradiction", "anchor", "entailment", ("contradiction",), None, None),
    ],
)
def test_usual_names(names: str, query: str, passage: str, negatives: tuple[str, ...], score: str | None, document: str | None) -> None:
    assert find_columns(TABLE, names.split()) == Columns(query, passage, negatives, score, document, guessed=True)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ("question context answers", {}, "more than one pair of columns may be meant .*'answers'.*'context'.*query and passage"),
        ("frage antwort", {}, "'frage', 'antwort'.* have no names .* query and passage"),
        ("frage antwort", {"query": "frage"}, "by passage "),
        ("query passage", {"query": "querry", "passage": "passage"}, "query: there is no column 'querry'; did you mean 'query'"),
        ("query passage", {"query": "query", "passage": "query"}, "both the column 'query'"),
        ("query passage", {"negative": ["passage", "no"]}, "negative: there is no column 'no'"),
    ],
)
def test_what_is_refused(names: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"faq.csv: .*{said}"):
        find_columns(TABLE, names.split(), **options)


def test_what_the_user_names_is_taken() -> None:
    names = ["question", "context", "answers", "score", "id"]
    assert find_columns(TABLE, names, query="question", passage="context", score="", document="") == Columns("question", "context")
    assert find_columns(TABLE, names, passage="answers").query == "question"
    assert "(guessed" in find_columns(TABLE, ["query", "passage"]).sentence() and "(guessed" not in Columns("a", "b").sentence()
