"""The pairs of tables: one per row and positive, with the negatives that the row brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.finetune.records import string
from data_modules.own.columns import Columns, find_columns
from data_modules.own.own_pair import PAIRS, OwnPair
from data_modules.own.tables import TableFormat, column_names, detect_format, rows_of, texts_of
from lightning_e5.errors import UserError
from lightning_e5.files.rows import number_of
from lightning_e5.types import ReadReport

#: Of the highest score there is, from which on a pair is a positive where the user names no ``min_score``: 4 of 5 in STS, 1 of 0 and 1.
POSITIVE_SHARE = 0.8
#: Scales that scores are known to have (their highest value); any other one is the user's to explain.
_SCALES = (1.0, 5.0)
#: Characters of a text; a longer query is no query, a longer passage a document that should be cut into sections.
LONGEST_QUERY, LONGEST_PASSAGE = 2_000, 20_000


@dataclass(frozen=True, slots=True)
class PairTable:
    """A table with its format and columns. name: its path as ids show it."""

    path: Path
    name: str
    format: TableFormat
    columns: Columns


def pair_table(path: Path, root: Path | None = None, **options: Any) -> PairTable:
    """Recognise a table of pairs.

    Args:
        path: the file.
        root: that ids start from; its folder by default.
        options: columns that the user names (see `find_columns`).

    Raises:
        UserError: it is no table, or its columns cannot be told.
    """
    format = detect_format(path)
    columns = find_columns(path, column_names(path, format), **options)
    return PairTable(path, path.relative_to(root or path.parent).as_posix(), format, columns)


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """Pairs with at least this score are positives. said: how it was found, for a person."""

    least: float
    said: str


def score_rule(table: PairTable, scores: Sequence[float], min_score: float | None) -> ScoreRule:
    """The threshold of a table's scores.

    Raises:
        UserError: nobody named one and the scores are of no known scale (0 to 1, -1 to 1, or 0 to 5).
    """
    column = table.columns.score
    if min_score is not None:
        return ScoreRule(min_score, f"pairs with {column!r} of at least {min_score:g} are positives")
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    scale = next((s for s in _SCALES if high <= s), None)
    if scale is None or low < -1:
        raise UserError(
            f"{table.path}: the column {column!r} has values from {low:g} to {high:g}, which is no known scale (0 to 1, or 0 to 5); say by min_score= "
            "from which on a pair is a positive, or by score= (empty) that it is none"
        )
    return ScoreRule(POSITIVE_SHARE * scale, f"pairs with {column!r} of at least {POSITIVE_SHARE * scale:g} (of {scale:g}) are positives; min_score= decides otherwise")


def table_pairs(table: PairTable, report: ReadReport, min_score: float | None = None, said: list[str] | None = None) -> Iterator[OwnPair]:
    """The pairs of a table in its order; rows without a query or a positive, too long ones, and those below the score are counted.

    Args:
        table: see `pair_table`.
        report: gets what is left out.
        min_score: see `score_rule`.
        said: gets the sentence on the scores.
    """
    rule: ScoreRule | None = None
    if table.columns.score is not None:
        rule = score_rule(table, _scores(table), min_score)
        if said is not None:
            said.append(f"{table.path}: {rule.said}")
    for place, row in rows_of(table.path, table.format, report):
        # ``/long/path/faq.csv:17`` -> ``faq.csv:17``
        short = place.replace(str(table.path), table.name, 1).replace(": ", ":")
        yield from _row_pairs(table.columns, row, place, short, rule, report)


def _row_pairs(columns: Columns, row: dict[str, Any], place: str, short: str, rule: ScoreRule | None, report: ReadReport) -> Iterator[OwnPair]:
    query, positives = string(row.get(columns.query)), texts_of(row.get(columns.passage))
    if query is None or positives is None:
        report.reject(place, f"no text in the column {columns.query if query is None else columns.passage!r}")
        return
    if rule is not None:
        score = number_of(row.get(str(columns.score)))
        if score is None:
            report.reject(place, f"no number in the column {columns.score!r}")
            return
        if score < rule.least:
            report.skip(place, "score below min_score")
            return
    if len(query) > LONGEST_QUERY:
        report.skip(place, f"query of over {LONGEST_QUERY:,} characters")
        return
    negatives = tuple(text for name in columns.negatives for text in texts_of(row.get(name)) or ())
    document = row.get(columns.document) if columns.document else None
    named = f"{columns.document}={document}" if isinstance(document, str | int) and str(document).strip() else ""
    for number, positive in enumerate(positives):
        if len(positive) > LONGEST_PASSAGE:
            report.skip(place, f"passage of over {LONGEST_PASSAGE:,} characters")
        else:
            yield OwnPair(query, positive, PAIRS, f"{short}/{number}" if number else short, named, negatives)


def _scores(table: PairTable) -> list[float]:
    values = (number_of(row.get(str(table.columns.score))) for _, row in rows_of(table.path, table.format, ReadReport()))
    return [value for value in values if value is not None]
