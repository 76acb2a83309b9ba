"""Which columns of a table are query, passage, negatives and score: by the names that data sets usually have, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.errors import UserError, suggestion

#: Names of a query's column -> names of the passage's column beside it; the layouts of sentence-transformers are the third and fourth.
LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("query", "queries"), ("passage", "positive", "positives", "pos", "positive_passage", "document", "doc", "text", "answer", "response", "context", "content")),
    (("question", "questions"), ("answer", "answers", "accepted_answer", "response", "passage", "context", "document", "positive")),
    (("anchor",), ("positive", "positives", "pos", "entailment")),
    (("sentence1", "sentence_1", "sentence_a", "text1", "text_1", "text_a"), ("sentence2", "sentence_2", "sentence_b", "text2", "text_2", "text_b")),
    (("prompt",), ("response", "completion", "output", "answer", "chosen")),
    (("instruction",), ("response", "output", "completion")),
    (("claim",), ("evidence", "document", "passage")),
    (("search_query", "search_term", "keyword"), ("product_title", "product", "passage", "document", "text", "result")),
)  # fmt: skip
#: Only where no layout above is there: beside a query these name the document.
TITLED = (("title", "headline", "subject", "heading", "name"), ("body", "text", "abstract", "content", "passage", "description", "article", "document"))
NEGATIVES = re.compile(r"(hard_)?neg(ative)?s?(_passages?)?(_?\d+)?|contradiction|rejected")
SCORES = ("score", "similarity", "similarity_score", "label", "relevance", "rating", "grade")
#: Columns whose equal values mark one document.
DOCUMENTS = ("document_id", "doc_id", "docid", "article_id", "context_id", "page_id", "document", "url", "page", "article", "title", "file", "path", "id")
#: Names that may be a passage or a document's id; the passage only where there is no other one.
_WEAK = ("document", "doc", "article", "content")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one table.

    guessed: whether a name was found by itself, so that it is stated. document: see `OwnPair`.
    """

    query: str
    passage: str
    negatives: tuple[str, ...] = ()
    score: str | None = None
    document: str | None = None
    guessed: bool = False

    def sentence(self) -> str:
        """``columns query 'question', passage 'answer' (guessed by their names)``."""
        parts = [f"query {self.query!r}", f"passage {self.passage!r}"]
        parts += [f"negatives {', '.join(map(repr, self.negatives))}"] if self.negatives else []
        parts += [f"score {self.score!r}"] if self.score else []
        parts += [f"document {self.document!r}"] if self.document else []
        return f"columns {', '.join(parts)}" + (" (guessed by their names)" if self.guessed else "")


def find_columns(
    path: Path,
    names: Sequence[str],
    *,
    query: str | None = None,
    passage: str | None = None,
    negative: str | Sequence[str] | None = None,
    score: str | None = None,
    document: str | None = None,
) -> Columns:
    """The columns of a table with the header ``names``; what the user names is taken, the rest is guessed.

    Args:
        path: the table, for messages.
        names: of its columns.
        query, passage, negative, score, document: columns as the user names them; an empty ``negative``, ``score`` or ``document``
            says that there is none.

    Raises:
        UserError: a named column is not there, no layout is known, or several fit.
    """
    given = {"query": query, "passage": passage, "score": score, "document": document}
    asked = [(k, v) for k, v in given.items() if v] + [("negative", v) for v in _several(negative)]
    for option, name in asked:
        if name not in names:
            raise UserError(f"{path}: {option}: there is no column {name!r}{suggestion(name, names) or f' (has: {_shown(names)})'}")
    if query is not None and query == passage:
        raise UserError(f"{path}: query and passage are both the column {query!r}")
    plain = {_plain(name): name for name in reversed(list(names))}
    found_query, found_passage = _texts(path, names, plain, query, passage)
    used = {found_query, found_passage}
    negatives = _several(negative) if negative is not None else tuple(n for n in names if NEGATIVES.fullmatch(_plain(n)) and n not in used)
    used |= set(negatives)
    if score is None:
        score = next((plain[n] for n in SCORES if n in plain and plain[n] not in used), None)
    if document is None:
        document = next((plain[n] for n in DOCUMENTS if n in plain and plain[n] not in used), None)
    return Columns(found_query, found_passage, negatives, score or None, document or None, guessed=query is None or passage is None)


def _texts(path: Path, names: Sequence[str], plain: dict[str, str], query: str | None, passage: str | None) -> tuple[str, str]:
    if query is not None and passage is not None:
        return query, passage
    fitting = [pair for layout in LAYOUTS for pair in _fitting(layout, plain, query, passage)] or _fitting(TITLED, plain, query, passage)
    fitting = list(dict.fromkeys(fitting))
    strong = [(q, p) for q, p in fitting if _plain(p) not in _WEAK]
    fitting = strong or fitting
    if len(fitting) == 1:
        return fitting[0]
    said = "query and passage (--query, --passage)" if query is None and passage is None else "passage (--passage)" if passage is None else "query (--query)"
    if fitting:
        shown = "; ".join(f"query {q!r} with passage {p!r}" for q, p in fitting)
        raise UserError(f"{path}: more than one pair of columns may be meant ({shown}); say which by {said}")
    raise UserError(f"{path}: its columns ({_shown(names)}) have no names by which query and passage are known; name them by {said}")


def _fitting(layout: tuple[tuple[str, ...], tuple[str, ...]], plain: dict[str, str], query: str | None, passage: str | None) -> list[tuple[str, str]]:
    queries = [query] if query else [plain[n] for n in layout[0] if n in plain]
    passages = [passage] if passage else [plain[n] for n in layout[1] if n in plain]
    if query and _plain(query) not in layout[0] and not passage:
        passages = [p for names in LAYOUTS for n in names[1] if (p := plain.get(n))]
    return [(q, p) for q in queries for p in passages if q != p]


def _several(value: str | Sequence[str] | None) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else tuple(value or ())
    return tuple(name for name in given if name)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(repr(n[:60]) for n in names)
    return text if len(text) <= 300 else f"{text[:300]} ..."
