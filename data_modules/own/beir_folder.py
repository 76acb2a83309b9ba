"""A BEIR folder as pairs: its documents' titles and first sentences, and the judged queries of one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_modules.own.own_pair import JUDGED, SENTENCES, TITLES, OwnPair
from data_modules.own.sections import LONGEST_PASSAGE, SHORTEST_PASSAGE, first_sentence
from lightning_e5.errors import UserError
from lightning_e5.files.beir_layout import StoredText, either, read_judgements, stored_texts
from lightning_e5.progress import progress
from lightning_e5.types import Qrels, ReadReport

#: Names of the split that is the user's own test, the first that is there; and of the one to validate on beside it.
TEST_SPLITS, VALIDATION_SPLITS = ("test", "dev", "validation"), ("dev", "validation")


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts to evaluate with: ids to texts, and which passages answer which query. Every query has at least one of grade 1 or more."""

    passages: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Qrels


def splits(folder: Path) -> list[str]:
    """The splits that a folder has judgements of."""
    return sorted({path.name.partition(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*")}) if (folder / "qrels").is_dir() else []


def own_test_split(folder: Path) -> str | None:
    """The split that is the user's own test: ``test``, else ``dev``; None where there is neither."""
    return next((name for name in TEST_SPLITS if name in splits(folder)), None)


def validation_split(folder: Path) -> str | None:
    """The split to validate on: ``dev`` beside a ``test``; None where there is none."""
    return next((name for name in VALIDATION_SPLITS if name in splits(folder) and name != own_test_split(folder)), None)


def corpus_pairs(folder: Path, report: ReadReport) -> Iterator[OwnPair]:
    """Title and text of every document, or its first sentence and the rest where it has no title."""
    path = either(folder, "corpus.jsonl")
    with progress(None, f"read {path.name}", "document") as bar:
        own = ReadReport()
        for row in stored_texts(path, own):
            bar(1)
            text = row.text.strip()[: 4 * LONGEST_PASSAGE]
            if not text:
                own.skip(row.place, "no text in the document")
            elif row.title.strip():
                if len(text) < SHORTEST_PASSAGE:
                    own.skip(row.place, f"text of under {SHORTEST_PASSAGE} characters")
                else:
                    yield OwnPair(row.title.strip(), text, TITLES, row.id, row.id)
            elif (cut := first_sentence(text)) is None:
                own.skip(row.place, "no first sentence")
            elif len(cut[1]) < SHORTEST_PASSAGE:
                own.skip(row.place, f"text of under {SHORTEST_PASSAGE} characters")
            else:
                yield OwnPair(*cut, SENTENCES, row.id, row.id)
    report.add(own)


def judged_pairs(folder: Path, split: str, report: ReadReport) -> Iterator[OwnPair]:
    """A pair per judgement above 0 of a split, with ``title text`` as passage; those judged 0 for a query are its negatives."""
    qrels = read_judgements(either(folder, f"qrels/{split}.tsv"), report).qrels
    queries = _texts(either(folder, "queries.jsonl"), set(qrels))
    passages = _texts(either(folder, "corpus.jsonl"), {d for grades in qrels.values() for d in grades})
    for query, grades in qrels.items():
        negatives = tuple(passages[d] for d, grade in grades.items() if grade <= 0 and d in passages)
        for document, grade in grades.items():
            if grade <= 0:
                continue
            if query in queries and document in passages:
                yield OwnPair(queries[query], passages[document], JUDGED, document, document, negatives)
            else:
                report.skip(f"{folder}/qrels/{split}.tsv: query {query}", "judged text not there")


def read_collection(folder: Path, split: str) -> Collection:
    """The whole corpus with the judged queries of a split.

    Raises:
        UserError: a file is missing or damaged, or no query has a relevant passage that is there.
    """
    passages = {row.id: row.with_title() for row in stored_texts(either(folder, "corpus.jsonl")) if row.with_title()}
    qrels = read_judgements(either(folder, f"qrels/{split}.tsv")).qrels
    queries = _texts(either(folder, "queries.jsonl"), set(qrels))
    known = {q: {d: g for d, g in grades.items() if d in passages} for q, grades in qrels.items() if q in queries}
    kept = {q: grades for q, grades in known.items() if any(g > 0 for g in grades.values())}
    if not kept:
        raise UserError(f"{folder}: no query of the split {split!r} has a relevant passage in its corpus")
    return Collection(passages, {q: queries[q] for q in kept}, kept)


def _texts(path: Path, wanted: set[str]) -> dict[str, str]:
    return {row.id: _whole(row) for row in stored_texts(path, ReadReport()) if row.id in wanted and _whole(row)}


def _whole(row: StoredText) -> str:
    return row.with_title()
