"""A test collection of held-out pairs in BEIR's layout, with passages that nobody asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_modules.own.beir_folder import Collection
from data_modules.own.own_pair import JUDGED, OwnPair
from lightning_e5.files.storage import write_text
from lightning_e5.rng import generator
from lightning_e5.text import text_id
from lightning_e5.types import Qrels


def collection_of_pairs(
    held: Sequence[OwnPair],
    asking: Sequence[OwnPair],
    others: Sequence[OwnPair],
    *,
    most_queries: int,
    most_passages: int,
    seed: int,
    whole: Mapping[str, str] | None = None,
) -> Collection:
    """Queries of held-out pairs, the passages of all held-out documents, and further passages.

    The further passages are of training pairs. They are no leak: none of them answers a query of the test, and what training teaches of
    them is which *other* queries they answer, as it will have of most passages of the index that the encoder is used with. Without
    them the task would be to tell a few hundred passages apart, which hardly differs from chance for short texts and flatters every model.

    Args:
        held: held-out pairs, all of whose passages are in the collection.
        asking: those of them whose queries are asked.
        others: pairs whose passages may be added, up to ``most_passages`` in all.
        most_queries: drawn by ``seed`` where there are more.
        whole: passage id -> ``title text`` of a BEIR corpus, to be searched in place of the passages.
    """
    texts = _Texts(whole or {})
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    ids: dict[int, str] = {}
    for pair in _drawn(asking, most_queries, seed):
        query = ids.setdefault(text_id(pair.query), _unused(f"q:{pair.id}", queries))
        queries.setdefault(query, pair.query)
        qrels.setdefault(query, {})[texts.add(pair)] = 1
    # A document of a BEIR corpus is one passage, not its title's and its judgements' one.
    judged = {pair.document for pair in asking if pair.source == JUDGED} if whole is None else set()
    for pair in held:
        if pair.document not in judged or pair.source == JUDGED:
            texts.add(pair)
        for negative in pair.negatives:
            texts.add_text(negative, f"{pair.id}/negative")
    room = most_passages - len(texts.by_id)
    for row in generator(seed, "other passages").permutation(len(others)).tolist():
        if room <= 0:
            break
        before = len(texts.by_id)
        texts.add(others[row])
        room -= len(texts.by_id) - before
    return Collection(texts.by_id, queries, qrels)


def write_collection(folder: Path, collection: Collection) -> None:
    """Write ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv``."""
    _write_lines(folder / "corpus.jsonl", ({"_id": key, "title": "", "text": text} for key, text in collection.passages.items()))
    _write_lines(folder / "queries.jsonl", ({"_id": key, "text": text} for key, text in collection.queries.items()))
    lines = [f"{query}\t{passage}\t{grade}" for query, grades in collection.qrels.items() for passage, grade in grades.items()]
    write_text(folder / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _drawn(asking: Sequence[OwnPair], most: int, seed: int) -> list[OwnPair]:
    """The pairs of at most ``most`` queries, all of each query's."""
    names = list(dict.fromkeys(text_id(pair.query) for pair in asking))
    if len(names) > most:
        names = [names[row] for row in sorted(generator(seed, "queries").choice(len(names), size=most, replace=False).tolist())]
    kept = set(names)
    return [pair for pair in asking if text_id(pair.query) in kept]


class _Texts:
    """Passages by id, equal texts once."""

    def __init__(self, whole: Mapping[str, str]) -> None:
        self.whole = whole
        self.by_id: dict[str, str] = {}
        self.of_text: dict[int, str] = {}

    def add(self, pair: OwnPair) -> str:
        """The id of a pair's passage, which is put in where its text is new."""
        return self.add_text(self.whole.get(pair.id, pair.passage), pair.id)

    def add_text(self, text: str, wanted: str) -> str:
        key = text_id(text)
        if key not in self.of_text:
            self.of_text[key] = _unused(wanted, self.by_id)
            self.by_id[self.of_text[key]] = text
        return self.of_text[key]


def _unused(wanted: str, used: Mapping[str, str]) -> str:
    """The id without control characters; with a number where another text has it."""
    name = "".join(c if c.isprintable() else " " for c in wanted).strip()
    number = 2
    found = name
    while found in used:
        found, number = f"{name} ({number})", number + 1
    return found
