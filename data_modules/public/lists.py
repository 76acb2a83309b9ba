"""The lines of ``sentence-transformers/embedding-training-data``: gzipped JSON lines in four layouts, which its README describes.

``["text1", "text2"]``, ``["anchor", "positive", "negative"]``, ``{"set": [...]}`` of texts that mean the same, and
``{"query": ..., "pos": [...], "neg": [...]}``, with ``neg`` or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.hub import data_set_files, local_file
from lightning_e5.files.lines import json_values
from lightning_e5.types import ReadReport

_ENDINGS = (".jsonl.gz", ".jsonl", ".json.gz")
_RULE = 'it is none of ["a", "b"], ["anchor", "positive", "negative"], {"set": [...]} and {"query", "pos", "neg"}'


class ListRow(NamedTuple):
    """A line: a query with its positives and negatives, or texts that are ``alike``."""

    query: str = ""
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()


def list_name(file: str) -> str:
    """A list's name by its file's: ``AllNLI`` of ``AllNLI.jsonl.gz``."""
    name = file.rpartition("/")[2]
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def list_files(place: str, files: Sequence[str] | None, revision: str | None) -> list[str]:
    """The lists of a place, all or those that are named, under the names by which they are read.

    Raises:
        UserError: there is none, one is not there or named twice, or as `data_set_files`.
    """
    there = {name: file for name, file in data_set_files(place, revision).items() if name.endswith(_ENDINGS)}
    if not there:
        raise UserError(f"{place}: holds no {' or '.join(f'*{ending}' for ending in _ENDINGS)}")
    for number, name in enumerate(files or []):
        if name not in there:
            raise UserError(f"files: {place} has no {name!r}{suggestion(name, there)}")
        if name in (files or [])[:number]:
            raise UserError(f"files: {name!r} is named twice")
    return list(there.values()) if files is None else [there[name] for name in files]


def list_rows(file: str, report: ReadReport) -> Iterator[tuple[str, ListRow]]:
    """(place ``file:line``, row) of a list, which is fetched where it is on the Hub; UserError where its first line is of no known layout."""
    path = local_file(file)
    first = True
    for place, value in json_values(path, report):
        place = file + place.removeprefix(str(path))
        row = _row(value)
        if row is not None:
            yield place, row
        elif first:
            keys = f" (it has the keys {', '.join(map(str, value))[:200]})" if isinstance(value, dict) else ""
            raise UserError(f"{place}: {_RULE}{keys}")
        else:
            report.reject(place, "a line of no known layout")
        first = False


def _row(value: Any) -> ListRow | None:
    if isinstance(value, list):
        return ListRow(value[0], (value[1],), tuple(value[2:])) if _texts(value) and len(value) in (2, 3) else None
    if not isinstance(value, dict):
        return None
    if "set" in value:
        return ListRow(alike=tuple(value["set"])) if _texts(value["set"]) else None
    query, positives, negatives = value.get("query"), _side(value.get("pos")), _side(value.get("neg", []))
    if not isinstance(query, str) or positives is None or negatives is None:
        return None
    return ListRow(query, positives, negatives)


def _side(value: Any) -> tuple[str, ...] | None:
    """The texts of a side, which may be a list or one text."""
    return (value,) if isinstance(value, str) else tuple(value) if _texts(value) else None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
