"""Ranked Parquet files as numbers: every passage once, which passages each row may use, and the teacher's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.text import encodable
from lightning_e5.types import Kind, TrainingGroup

#: ``first``: the first N negatives of a row, always; ``window``: the next N in each epoch, around and around.
Choice = Literal["first", "window"]
#: Rows whose texts are numbered at once: the texts of a large file, with all their repetitions, fit no memory.
_ROWS_AT_ONCE = 8192
KINDS: tuple[Kind, Kind] = ("passage", "query")


class RankedTable(NamedTuple):
    """Rows of one or several files, one behind the other.

    queries: texts. passages: the texts of each kind, passages of kind ``passage`` first. starts: int64 ``[R + 1]``, where
    each row's group begins in ``members`` (int64 passage numbers, the positive first) and ``teacher`` (float32 logits, NaN
    without; None where no row has one). sizes: rows of each file.
    """

    queries: list[str]
    passages: Mapping[Kind, list[str]]
    starts: NDArray[np.int64]
    members: NDArray[np.int64]
    teacher: NDArray[np.float32] | None
    sizes: list[int]


def read_ranked(paths: list[Path], negatives: int, choice: Choice) -> RankedTable:
    """Read ranked files.

    Args:
        paths: of the files.
        negatives: a row with fewer is refused.
        choice: with ``first`` no more than these are kept of a row.

    Raises:
        UserError: naming the file and the row.
    """
    queries: list[str] = []
    places: dict[Kind, dict[str, int]] = {kind: {} for kind in KINDS}  # a text's number among those of its kind
    members: list[NDArray[np.int64]] = []
    of_query: list[NDArray[np.bool_]] = []
    lengths: list[NDArray[np.int64]] = []
    teachers: list[NDArray[np.float32] | None] = []
    for path in paths:
        table = read_parquet(path, {"query": "string", "positive": "string", "negatives": "list<string>"})
        queries += table["query"].to_pylist()
        counts = _checked_counts(path, table["negatives"], negatives)
        kept = np.minimum(counts, negatives) if choice == "first" else counts
        is_query = np.repeat(_query_kind(path, len(table)), 1 + kept)
        numbers = np.empty(len(is_query), dtype=np.int64)
        end = 0
        for first in range(0, len(table), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            flat = _members(table.slice(first, _ROWS_AT_ONCE), counts[part], kept[part])
            start, end = end, end + len(flat)
            for kind in KINDS:
                chosen = np.flatnonzero(is_query[start:end] == (kind == "query"))
                numbers[start + chosen] = _numbered(flat.take(pa.array(chosen)), places[kind])
        teachers.append(_teacher(path, counts, kept, negatives, choice))
        members.append(numbers)
        of_query.append(is_query)
        lengths.append(1 + kept)
    every_member = np.concatenate(members)
    every_member[np.concatenate(of_query)] += len(places["passage"])
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    teacher = None
    if any(t is not None for t in teachers):
        teacher = np.concatenate([np.full(int(n.sum()), np.nan, np.float32) if t is None else t for t, n in zip(teachers, lengths, strict=True)])
    return RankedTable(queries, {kind: list(places[kind]) for kind in KINDS}, starts, every_member, teacher, [len(n) for n in lengths])


def write_groups(path: Path, groups: Iterable[TrainingGroup | tuple[Any, ...]]) -> None:
    """Write a list of groups, or of tuples with a group's first values, as a ranked file.

    Raises:
        UserError: one of them is no group, or there is none.
    """
    rows = [_group(number, group) for number, group in enumerate(groups)]
    if not rows:
        raise UserError("groups: there is none")
    types = {
        "query": pa.string(), "positive": pa.string(), "negatives": pa.list_(pa.string()), "passage_kind": pa.string(),
        **({"teacher_scores": pa.list_(pa.float32())} if any(row.teacher_scores is not None for row in rows) else {}),
    }  # fmt: skip
    write_parquet(path, {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in types.items()})


def _group(number: int, group: Any) -> TrainingGroup:
    """A group of what a list holds; UserError where that is none."""
    found = group if isinstance(group, TrainingGroup) else TrainingGroup(*group) if isinstance(group, tuple) and 3 <= len(group) <= 4 else None
    if found is None or not isinstance(found.negatives, tuple | list) or not all(isinstance(t, str) for t in (found.query, found.positive, *found.negatives)):
        raise UserError(f"groups: number {number} is {repr(group)[:60]}; the rule is (query, positive, list of negatives) of texts, with or without teacher scores")
    scores = found.teacher_scores
    try:
        scores = None if scores is None else tuple(map(float, scores))
    except (TypeError, ValueError):
        raise UserError(f"groups: number {number} has the teacher scores {repr(scores)[:60]}; the rule is a list of numbers") from None
    if scores is not None and len(scores) != 1 + len(found.negatives):
        raise UserError(f"groups: number {number} has {len(scores)} teacher scores for {1 + len(found.negatives)} passages, the positive and its negatives")
    negatives = tuple(encodable(negative) for negative in found.negatives)
    return TrainingGroup(encodable(found.query), encodable(found.positive), negatives, scores, found.source, found.passage_kind)


def _numbered(texts: Any, places: dict[str, int]) -> NDArray[np.int64]:
    """The numbers of some texts; a text that is new gets the next one."""
    encoded = texts.dictionary_encode()
    numbers = np.fromiter((places.setdefault(t, len(places)) for t in encoded.dictionary.to_pylist()), np.int64, len(encoded.dictionary))
    return numbers[encoded.indices.to_numpy(zero_copy_only=False)]


def _checked_counts(path: Path, lists: Any, negatives: int) -> NDArray[np.int64]:
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    few = np.flatnonzero(counts < negatives)
    if len(few):
        raise UserError(f"{path}: row {few[0]} has {counts[few[0]]} negatives, fewer than {negatives}")
    return counts


def _members(table: Any, counts: NDArray[np.int64], kept: NDArray[np.int64]) -> Any:
    """Positive, then the first ``kept`` negatives, row after row, as one Arrow array of strings."""
    positives = [chunk.cast(pa.large_string()) for chunk in table["positive"].chunks]
    both = pa.concat_arrays([*positives, *(chunk.flatten().cast(pa.large_string()) for chunk in table["negatives"].chunks)])
    rows, sizes = len(counts), 1 + kept
    order = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within the row's group
    negative = np.repeat(rows + np.cumsum(counts) - counts - 1, sizes) + order
    return both.take(pa.array(np.where(order == 0, np.repeat(np.arange(rows), sizes), negative)))


def _query_kind(path: Path, rows: int) -> NDArray[np.bool_]:
    """Whether each row's passages get the query's prefix; a file without the column has ordinary passages."""
    if "passage_kind" not in pq.read_schema(path).names:
        return np.zeros(rows, dtype=bool)
    kinds = np.asarray(read_parquet(path, {"passage_kind": "string"})["passage_kind"].to_pylist())
    wrong = np.flatnonzero(~np.isin(kinds, KINDS))
    if len(wrong):
        raise UserError(f"{path}: row {wrong[0]}: passage_kind {str(kinds[wrong[0]])!r} is not 'passage' or 'query'")
    return np.asarray(kinds == "query")


def _teacher(path: Path, counts: NDArray[np.int64], kept: NDArray[np.int64], negatives: int, choice: Choice) -> NDArray[np.float32] | None:
    """The scores of each row's members, NaN in rows without a teacher; None where the file has no such column."""
    if "teacher_scores" not in pq.read_schema(path).names:
        return None
    lists = read_parquet(path, {"teacher_scores": "list<float>"})["teacher_scores"].combine_chunks()
    given = pc.list_value_length(lists)
    there = given.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(given, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    needed = 1 + (np.full_like(counts, negatives) if choice == "first" else counts)
    few = np.flatnonzero(there & (lengths < needed))
    if len(few):
        row = few[0]
        raise UserError(f"{path}: row {row} has {lengths[row]} teacher scores, fewer than 1 + {needed[row] - 1}")
    values = np.append(lists.flatten().to_numpy(zero_copy_only=False), np.float32(np.nan))
    sizes = 1 + kept
    order = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.repeat(there, sizes)
    places = np.repeat(np.cumsum(lengths) - lengths, sizes) + order
    return values[np.where(rows, places, len(values) - 1)].astype(np.float32)
