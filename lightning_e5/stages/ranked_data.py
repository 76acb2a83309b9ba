"""Stage: public fine-tuning sets (MS-MARCO, NQ, NLI) as training groups, or as a collection to mine negatives in."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from lightning_e5.configurable import configurable
from lightning_e5.curation.mining.collections import COLLECTION_FACTS
from lightning_e5.curation.mining.training_groups import Positives, training_groups
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import batches_of
from lightning_e5.files.storage import atomic_path, write_json
from lightning_e5.progress import progress
from lightning_e5.ranges import Count, Share
from lightning_e5.text import text_id
from lightning_e5.tracking.run_directory import warn
from lightning_e5.types import Kind, RankedSource, ReadReport, TrainingGroup

#: Rows of a row group, so the most that wait in memory; a row may hold hundreds of passages.
_ROWS_AT_ONCE = 2048


@configurable("stage")
def ranked_data(
    out: Path,
    *,
    source: RankedSource,
    negatives: Count = 7,
    positives: Positives = "first",
    max_bad_share: Share = 0.01,
) -> dict[str, float]:
    """Write ``ranked.parquet`` and, for queries with too few negatives, ``collection/``; ``report.json`` of what was bad.

    ``ranked.parquet``: ``query``, ``positive``, ``negatives`` (list), ``source``, ``passage_kind`` and ``teacher_scores``
    (the positive's logit, then one per negative; null without a teacher). ``collection/`` has BEIR's layout with the split
    ``train``: `lightning_e5.stages.hard_negatives` mines in it. It holds the queries with too few negatives, their positives
    (judged 1), the negatives they have (judged 0, which mining keeps and fills up), and all other passages of the source.

    Args:
        source: reads the files.
        negatives: a query with fewer goes to the collection (E5 trains with 7).
        positives: ``first`` makes one group per query, ``each`` one per positive.
        max_bad_share: of bad records; more stop the stage.

    Returns:
        Counts by name.

    Raises:
        UserError: too many bad records, or no example.

    Source: paper section 4.2.
    """
    report, counts, examples = ReadReport(), Counter[str](), 0
    counts.update(ranked=0, with_teacher=0, to_mine=0)
    with ExitStack() as stack:
        table = _RankedFile(stack, out / "ranked.parquet")
        collection = _Collection(stack, out / "collection")
        bar = stack.enter_context(progress(None, f"read {source.name}", "query"))
        for example in source.read(report):
            bar(1)
            examples += 1
            if example.teacher_scores is not None and len(example.teacher_scores) != len(example.positives) + len(example.negatives):
                raise ValueError(f"{source.name}: {len(example.teacher_scores)} teacher scores for a query's passages")
            for group in training_groups(example, positives, counts):
                if len(group.negatives) < negatives:
                    collection.add(group, example.positives)
                    counts["to_mine"] += 1
                    counts["known_negatives_to_mine"] += len(group.negatives)
                    break
                counts["with_teacher"] += group.teacher_scores is not None
                counts["ranked"] += 1
                table.add(group)
        bad = sum(n for reason, n in report.counts.items() if reason.startswith("bad: "))
        records = max(1, report.counts["records"])
        warnings = report.warnings(source.name, examples, "query")
        write_json(out / "report.json", {**report.as_json(), "warnings": warnings})
        if bad > max_bad_share * records:
            place, reason = report.bad[0]
            raise UserError(f"{source.name}: {bad} of {records} records are bad, more than max_bad_share = {max_bad_share}; the first is {place}: {reason}")
        if not counts["ranked"] and not counts["to_mine"]:
            raise UserError("; ".join([f"{source.name}: gives no query with a positive passage", *warnings]))
        table.finish()
        corpus = getattr(source, "corpus", lambda: iter(()))()
        counts["collection_passages"] = collection.finish(itertools.chain(corpus, table.passages()) if counts["to_mine"] else corpus)
    for sentence in warnings:
        warn(sentence)
    return {k: float(v) for k, v in counts.items()} | {f"source_{_name(k)}": float(v) for k, v in report.counts.items()}


def _name(reason: str) -> str:
    return reason.replace(": ", "_").replace(" ", "_")


class _RankedFile:
    """``ranked.parquet``, written in row groups; not there at all where no group was added or something failed."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.stack, self.path = stack, path
        self.rows: list[TrainingGroup] = []
        self.writer: Any = None
        self.temporary: Path | None = None

    def add(self, group: TrainingGroup) -> None:
        self.rows.append(group)
        if len(self.rows) >= _ROWS_AT_ONCE:
            self._write()

    def finish(self) -> None:
        if self.rows:
            self._write()
        if self.writer is not None:
            self.writer.close()

    def passages(self) -> Iterator[str]:
        """The positives and negatives of all rows, once it is finished."""
        import pyarrow.parquet as pq

        if self.temporary is not None:
            with pq.ParquetFile(self.temporary) as file:
                for batch in batches_of(file, _ROWS_AT_ONCE, ["positive", "negatives"]):
                    for row in batch.to_pylist():
                        yield from (row["positive"], *row["negatives"])

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {
            "query": pa.string(), "positive": pa.string(), "negatives": pa.list_(pa.string()), "source": pa.string(),
            "passage_kind": pa.string(), "teacher_scores": pa.list_(pa.float32()),
        }  # fmt: skip
        if self.writer is None:
            self.temporary = self.stack.enter_context(atomic_path(self.path))
            self.writer = pq.ParquetWriter(self.temporary, pa.schema(list(types.items())), compression="zstd", write_statistics=False)
        self.writer.write_table(pa.table({n: pa.array([getattr(r, n) for r in self.rows], t) for n, t in types.items()}))
        self.rows.clear()


class _Collection:
    """A collection in BEIR's layout, written as it comes; equal passages once, equal queries once."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.passages: dict[int, int] = {}
        self.queries: dict[int, int] = {}
        self.qrels: dict[tuple[int, int], int] = {}
        self.kind: Kind | None = None
        self.files: dict[str, IO[str]] = {}

    def add(self, group: TrainingGroup, positives: tuple[str, ...]) -> None:
        query = group.query
        if self.kind not in (None, group.passage_kind):
            raise UserError(f"{group.source}: has queries to mine for with passages of both kinds, which one collection cannot hold")
        self.kind = group.passage_kind
        if not self.files:
            for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
                temporary = self.stack.enter_context(atomic_path(self.folder / name))
                self.files[name] = self.stack.enter_context(temporary.open("w", encoding="utf-8"))
            self.files["qrels/train.tsv"].write("query-id\tcorpus-id\tscore\n")
        identity = text_id(query)
        if identity not in self.queries:
            self.queries[identity] = len(self.queries)
            self._line("queries.jsonl", {"_id": f"q{self.queries[identity]}", "text": query})
        for passages, grade in ((positives, 1), (group.negatives, 0)):
            for passage in passages:
                pair = (self.queries[identity], self._passage(passage))
                self.qrels[pair] = max(grade, self.qrels.get(pair, 0))  # another example's answer is an answer

    def finish(self, corpus: Iterator[str]) -> int:
        """Add the source's other passages; returns how many there are."""
        if self.files:
            for (query, document), grade in self.qrels.items():
                self.files["qrels/train.tsv"].write(f"q{query}\td{document}\t{grade}\n")
            with progress(None, "corpus", "passage") as bar:
                for passage in corpus:
                    self._passage(passage)
                    bar(1)
            write_json(self.folder / COLLECTION_FACTS, {"passage_kind": self.kind})
        return len(self.passages)

    def _passage(self, text: str) -> int:
        identity = text_id(text)
        if identity not in self.passages:
            self.passages[identity] = len(self.passages)
            self._line("corpus.jsonl", {"_id": f"d{self.passages[identity]}", "title": "", "text": text})
        return self.passages[identity]

    def _line(self, name: str, row: dict[str, str]) -> None:
        self.files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
