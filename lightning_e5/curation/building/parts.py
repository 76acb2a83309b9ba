"""One part of a raw source, read to the pairs that single-pair rules leave: a function of `run_parts`.

A part's files lie in a folder of its own, put in its place whole; its record, written last, names the key of everything that
decided its content, so a part is read again exactly when that changes.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.curation.cleaning.decontaminate import Contamination
from lightning_e5.curation.cleaning.duplicates import NearDuplicates, pair_id
from lightning_e5.curation.cleaning.evaluation_texts import evaluation_texts
from lightning_e5.curation.cleaning.overlap import EvaluationNgrams, OverlapReport
from lightning_e5.curation.engines.run_parts import Progress
from lightning_e5.files.storage import (
    fsync_directory,
    naming_the_file,
    sha256_file,
    sha256_text,
    write_json,
)
from lightning_e5.text import text_id
from lightning_e5.types import PairCandidate, PairFiles, PairHeuristic, ReadReport

RECORD, OVERLAP = "record.json", "overlap.json"
#: The ids of the evaluation texts that drop a pair, those of passages that are counted alone, and the texts' runs of words.
TEXTS, KEPT_TEXTS, NGRAMS = "texts.npy", "kept_texts.npy", "ngrams.npz"
#: Of the parts' content; a change of the rules here must raise it, so that older parts are read again.
VERSION = 2
#: Rows and characters that are held before they are written.
BLOCK_ROWS, BLOCK_CHARACTERS = 16_384, 2**26


@dataclass(frozen=True)
class RawPart:
    """One part of one source.

    Args:
        source, part: what is read.
        heuristics: rules, applied in order.
        near_duplicates: makes the signatures; None for none.
        evaluation: folder that `write_evaluation` made, or None.
        folder: where the finished part lies.
    """

    source: PairFiles
    part: Any
    heuristics: Sequence[PairHeuristic]
    near_duplicates: NearDuplicates | None
    evaluation: Path | None
    folder: Path


def part_key(
    source: PairFiles,
    part: Any,
    heuristics: Sequence[PairHeuristic],
    near_duplicates: NearDuplicates | None,
    evaluation: str | None,
) -> str:
    """Sha256 of everything that decides a part's content; ``evaluation`` identifies the evaluation texts."""
    rules = [[h.name, h.fingerprint()] for h in heuristics]
    near = None if near_duplicates is None else near_duplicates.fingerprint()
    return sha256_text(json.dumps([VERSION, source.name, source.fingerprint(), part, rules, near, evaluation], sort_keys=True, default=str))


def read_part(work: RawPart, progress: Progress) -> dict[str, Any]:
    """Read a part into its folder; returns its record.

    The record holds ``read`` (the reader's report), ``sources`` (per value of
    ``PairCandidate.source``, in the order of their first pair: name, candidates, drops by rule, and the file of the
    pairs left; where the corpora of the evaluation are kept also how many pairs hold a passage of theirs) and ``files``:
    their sha256, and that of the overlap's counts.
    """
    temporary = work.folder.with_name(f".{work.folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with naming_the_file(temporary):
            record = _read(work, temporary)
            # A worker that was taken for dead may have finished meanwhile; its part is the same.
            if not (work.folder / RECORD).is_file():
                shutil.rmtree(work.folder, ignore_errors=True)  # of another key, or damaged
                os.replace(temporary, work.folder)
            fsync_directory(work.folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def _read(work: RawPart, folder: Path) -> dict[str, Any]:
    report = ReadReport()
    contamination, corpora, ngrams = _evaluation(work.evaluation)
    candidates: Counter[str] = Counter()
    of_corpora: Counter[str] = Counter()
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overlap = OverlapReport()
    writer = _Writer(folder, work.near_duplicates)
    for pair in work.source.read(work.part, report):
        candidates[pair.source] += 1
        rule = _drop_rule(pair, work.heuristics)
        if rule is None and contamination is not None and (side := contamination.drops(pair.query, pair.passage)):
            rule = f"{EVALUATION_TEXT} as {side}"
        if rule is not None:
            dropped[pair.source][rule] += 1
            continue
        if corpora is not None and corpora.drops(pair.query, pair.passage):
            of_corpora[pair.source] += 1
        if ngrams is not None:
            ngrams.look(pair, overlap)
        writer.add(pair)
    written = writer.close()
    if ngrams is not None:
        write_json(folder / OVERLAP, overlap.state())
    sources = [
        {"name": name, "candidates": count, "dropped": dict(dropped[name]), **written.get(name, {"rows": 0})}
        | ({OF_CORPORA: of_corpora[name]} if corpora is not None else {})
        for name, count in candidates.items()
    ]
    return {
        "source": work.source.name,
        "part": str(work.part),
        "read": report.as_json(),
        "sources": sources,
        "files": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    }


#: Key of a source's count of pairs that hold a passage of an evaluation corpus and stay.
OF_CORPORA = "kept_evaluation_passages"
#: Rules that are not the user's; of the last the side follows.
EMPTY, NOT_UTF8, SAME_TEXT, EVALUATION_TEXT = "empty text", "not UTF-8", "query is passage", "evaluation text"


def _drop_rule(pair: PairCandidate, heuristics: Sequence[PairHeuristic]) -> str | None:
    """The first rule that drops a pair, or None."""
    if not pair.query.strip() or not pair.passage.strip():
        return EMPTY
    if not (_is_utf8(pair.query) and _is_utf8(pair.passage) and _is_utf8(pair.id)):
        return NOT_UTF8
    for heuristic in heuristics:
        if not heuristic(pair):
            return heuristic.name
    if pair.facts.get("same_text"):  # on purpose
        return None
    return SAME_TEXT if text_id(pair.query) == text_id(pair.passage) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which a JSON file can hold
        return False
    return True


class _Writer:
    """One Parquet file per source, written block by block."""

    def __init__(self, folder: Path, near_duplicates: NearDuplicates | None) -> None:
        import pyarrow as pa

        self.folder, self.near = folder, near_duplicates
        fields = [(name, pa.string()) for name in ("query", "passage", "passage_kind", "id")] + [("pair_id", pa.int64())]
        if near_duplicates is not None:
            fields.append(("signature", pa.binary(4 * near_duplicates.permutations)))
        self.schema = pa.schema(fields)
        self.files: dict[str, Any] = {}
        self.rows: Counter[str] = Counter()
        self.blocks: dict[str, list[tuple[Any, ...]]] = {}
        self.held_rows = self.held_characters = 0

    def add(self, pair: PairCandidate) -> None:
        row: tuple[Any, ...] = (pair.query, pair.passage, pair.passage_kind, pair.id, pair_id(pair.query, pair.passage))
        if self.near is not None:
            row += (self.near.signature(pair.query, pair.passage),)
        self.blocks.setdefault(pair.source, []).append(row)
        self.held_rows += 1
        self.held_characters += len(pair.query) + len(pair.passage)
        if self.held_rows >= BLOCK_ROWS or self.held_characters >= BLOCK_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for source, rows in self.blocks.items():
            if source not in self.files:
                path = self.folder / f"{len(self.files):05d}.parquet"
                self.files[source] = (path, pq.ParquetWriter(path, self.schema, compression="zstd", write_statistics=False))
            columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), self.schema, strict=True)]
            self.files[source][1].write_table(pa.table(columns, schema=self.schema))
            self.rows[source] += len(rows)
        self.blocks = {}
        self.held_rows = self.held_characters = 0

    def close(self) -> dict[str, dict[str, Any]]:
        self._flush()
        facts = {}
        for source, (path, writer) in self.files.items():
            writer.close()
            with path.open("rb+") as handle:
                os.fsync(handle.fileno())
            facts[source] = {"file": path.name, "rows": self.rows[source]}
        return facts


def write_evaluation(folder: Path, paths: Sequence[Path], ngram: int | None, *, drop_corpus: bool) -> str:
    """Write what workers need of the evaluation texts; returns an identity.

    Args:
        folder: gets ``texts.npy``: the texts that drop a pair; ``kept_texts.npy``: passages that are counted, without those that are a
            query as well; and, with ``ngram``, ``ngrams.npz``.
        paths: of `evaluation_texts`.
        ngram: words of a run.
        drop_corpus: whether the documents of BEIR folders are among the texts that drop a pair, or are counted.
    """
    contamination = Contamination.of(text.text for text in evaluation_texts(paths, corpora=drop_corpus))
    contamination.save(folder / TEXTS)
    kept = ""
    if not drop_corpus:
        corpora = Contamination.of(text.text for text in evaluation_texts(paths)).without(contamination)
        corpora.save(folder / KEPT_TEXTS)
        kept = f" kept {corpora.fingerprint()}"
    if ngram is not None:
        EvaluationNgrams(evaluation_texts(paths), n=ngram, min_words=min(4, ngram)).save(folder / NGRAMS)
    return f"{contamination.fingerprint()} {ngram}{kept}"


@functools.lru_cache(maxsize=1)
def _evaluation(folder: Path | None) -> tuple[Contamination | None, Contamination | None, EvaluationNgrams | None]:
    """The evaluation texts that drop a pair, the passages that are counted, and the runs of words, read once per process."""
    if folder is None:
        return None, None, None
    ngrams = EvaluationNgrams.load(folder / NGRAMS) if (folder / NGRAMS).is_file() else None
    kept = Contamination.load(folder / KEPT_TEXTS) if (folder / KEPT_TEXTS).is_file() else None
    return Contamination.load(folder / TEXTS), kept, ngrams
