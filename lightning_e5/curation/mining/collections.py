"""What negatives are mined for and among: queries with a positive each, a corpus, and every query's known answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.files.scratch import HashRanges, blocks, hash_of, mapped_zeros, release
from lightning_e5.files.stored_corpus import StoredCorpus
from lightning_e5.files.stored_texts import StoredTexts
from lightning_e5.rng import generator
from lightning_e5.text import text_id

#: Of a collection to mine in that a stage wrote, beside its corpus: ``passage_kind`` of its passages.
COLLECTION_FACTS = "collection.json"
#: Texts read at once, and rows after which pages are given back.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class MiningData:
    """Rows to mine for.

    Args:
        queries, sources: of each row.
        positives: int64, row of the corpus of each row's own positive (or of a copy of it).
        positive_texts: the positives as the rows word them.
        known: text ids of all known answers of each row's query, its own positive among them.
        corpus: texts; may hold copies of a text.
        known_negatives: of each row the rows of the corpus that are known not to answer its query, one copy of each text;
            none where it is empty.
        corpus_text: `corpus_text_P` where it was computed with the corpus.
        distinct: different texts of the corpus, where that was counted with it.
    """

    queries: Sequence[str]
    sources: Sequence[str]
    positives: NDArray[np.int64]
    positive_texts: Sequence[str]
    known: Sequence[set[int]]
    corpus: Sequence[str]
    known_negatives: Sequence[Sequence[int]] = ()
    corpus_text: NDArray[np.int64] | None = None
    distinct: int | None = None

    @cached_property
    def corpus_text_P(self) -> NDArray[np.int64]:
        """Text id of every passage of the corpus."""
        if self.corpus_text is not None:
            return self.corpus_text
        return np.fromiter((text_id(p) for p in self.corpus), dtype=np.int64, count=len(self.corpus))

    @cached_property
    def corpus_distinct(self) -> int:
        """How many different texts the corpus has."""
        return len(np.unique(self.corpus_text_P)) if self.distinct is None else self.distinct

    @cached_property
    def most_known(self) -> int:
        """The most known answers that a row has."""
        counted = getattr(self.known, "most", None)
        return counted() if counted is not None else max((len(known) for known in self.known), default=0)


def sampled_rows(rows: int, most: int | None, seed: int) -> NDArray[np.int64]:
    """At most ``most`` of the rows, drawn by ``seed``, in order."""
    if most is None or most >= rows:
        return np.arange(rows)
    return np.sort(generator(seed, "queries").permutation(rows)[:most])


def of_pairs(
    queries: Sequence[str], passages: Sequence[str], sources: Sequence[str], *, more_passages: Sequence[str] = (), max_queries: int | None, seed: int
) -> MiningData:
    """Of training pairs: the corpus is their passages and ``more_passages``, a query's known answers are those of all pairs with its text."""
    texts = [*passages, *more_passages]
    query_text, passage_text = [text_id(q) for q in queries], [text_id(p) for p in texts]
    known: dict[int, set[int]] = {}
    for q, p in zip(query_text, passage_text[: len(passages)], strict=True):
        known.setdefault(q, set()).add(p)
    corpus = sorted({text: row for row, text in reversed(list(enumerate(passage_text)))}.values())
    place = {passage_text[row]: i for i, row in enumerate(corpus)}
    rows = sampled_rows(len(queries), max_queries, seed)
    return MiningData(
        queries=[queries[r] for r in rows],
        sources=[sources[r] for r in rows],
        positives=np.asarray([place[passage_text[r]] for r in rows], dtype=np.int64),
        positive_texts=[passages[r] for r in rows],
        known=[known[query_text[r]] for r in rows],
        corpus=[texts[r] for r in corpus],
    )


def of_collection(data: RetrievalData, *, max_queries: int | None, seed: int, folder: Path | None = None) -> MiningData:
    """Of a collection with qrels: a row per query and document judged above 0, among all its documents that have a text.

    A query's known answers are, by id and hence by text, its relevant documents and those of every query with the same
    text; a document that reads as the query itself is none of its negatives either. Documents that are judged 0 are its known
    negatives, in the order of the qrels.

    Args:
        data: the collection.
        max_queries, seed: as `sampled_rows` has them.
        folder: of scratch files, for a corpus that lies in files; without one, 8 bytes for each text are held in memory.

    Raises:
        UserError: no relevant document is in the corpus.
    """
    texts, place = _with_text(data.corpus, {d for grades in data.qrels.values() for d in grades})
    relevant = {q: [d for d, grade in grades.items() if grade > 0 and d in place] for q, grades in data.qrels.items()}
    known: dict[int, set[int]] = {}
    for query, found in relevant.items():
        identity = text_id(data.queries[query])
        known.setdefault(identity, {identity}).update(text_id(data.corpus[d]) for d in found)
    pairs = [(query, document) for query, found in relevant.items() if data.queries[query].strip() for document in found]
    if not pairs:
        raise UserError(f"{data.name}: no document that {data.split} judges relevant is in the corpus")
    pairs = [pairs[r] for r in sampled_rows(len(pairs), max_queries, seed)]
    negatives = {
        query: _known_negatives(data, [d for d, grade in data.qrels[query].items() if grade == 0 and d in place], known[text_id(data.queries[query])], place)
        for query in dict.fromkeys(q for q, _ in pairs)
    }
    corpus_text, distinct = _stored_identities(texts, folder) if folder is not None and isinstance(texts, StoredTexts) else (None, None)
    return MiningData(
        queries=[data.queries[q] for q, _ in pairs],
        sources=[data.name] * len(pairs),
        positives=np.asarray([place[d] for _, d in pairs], dtype=np.int64),
        positive_texts=[data.corpus[d] for _, d in pairs],
        known=[known[text_id(data.queries[q])] for q, _ in pairs],
        corpus=texts,
        known_negatives=[negatives[q] for q, _ in pairs],
        corpus_text=corpus_text,
        distinct=distinct,
    )


def _stored_identities(texts: StoredTexts, folder: Path) -> tuple[NDArray[np.int64], int]:
    """The text id of each text, mapped from a file, and how many different ones there are."""
    text_P, ranges = mapped_zeros(folder / "corpus-ids", "<i8", len(texts)), HashRanges(folder / "by-text", len(texts))
    for part in blocks(len(texts), ROWS_AT_ONCE):
        text_P[part] = [text_id(text) for text in texts[part]]
        ranges.add(hash_of(text_P[part]), np.arange(part.start, part.stop))
        release(text_P)
    return text_P, sum(len(np.unique(records["hash"])) for records in ranges)


def _with_text(corpus: Mapping[str, str], judged: set[str]) -> tuple[Sequence[str], dict[str, int]]:
    """The texts of the documents that have one, and the places of the judged among them."""
    if isinstance(corpus, StoredCorpus):
        rows = corpus.texts.not_empty()
        row_of = {document: row for document in judged if (row := corpus.row_of(document)) is not None}
        if isinstance(rows, range):  # all of them
            return corpus.texts, row_of
        places = np.searchsorted(rows, list(row_of.values())).tolist()
        return corpus.texts.of(rows), {d: i for (d, row), i in zip(row_of.items(), places, strict=True) if i < len(rows) and rows[i] == row}
    documents = [d for d, text in corpus.items() if text]
    return [corpus[d] for d in documents], {d: i for i, d in enumerate(documents) if d in judged}


def _known_negatives(data: RetrievalData, documents: Sequence[str], answers: set[int], place: Mapping[str, int]) -> list[int]:
    """The documents' rows, without those that read as an answer or as one before."""
    of_text = {text_id(data.corpus[d]): place[d] for d in reversed(documents)}
    return [row for text, row in reversed(of_text.items()) if text not in answers]
