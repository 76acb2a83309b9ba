"""Corpora of raw texts: what self-supervised pairs are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.sources.pair_text import string_of
from data_modules.ccpairs.sources.tables import JsonlPairs, ParquetPairs
from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.files.lines import json_rows
from lightning_e5.types import PairFiles, ReadReport


@configurable("text source")
class TextFiles(Protocol):
    """Files of texts, read part by part like `PairFiles`."""

    def parts(self) -> Sequence[str]:
        """Independent parts of the work, in a fixed order."""
        ...

    def read(self, part: str, report: ReadReport) -> Iterator[tuple[str, str]]:
        """(id, text) of each document, always the same ones in the same order."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the texts."""
        ...


@configurable("text source")
class PassagesOf:
    """The passages of any source of pairs.

    Args:
        pairs: the source.
    """

    def __init__(self, pairs: PairFiles) -> None:
        self._pairs = pairs

    def parts(self) -> Sequence[str]:
        """The source's."""
        return self._pairs.parts()

    def fingerprint(self) -> Mapping[str, Any]:
        """The source's."""
        return self._pairs.fingerprint()

    def read(self, part: str, report: ReadReport) -> Iterator[tuple[str, str]]:
        """The passages with the pairs' ids; what the source counts as ``pairs`` becomes ``texts``."""
        inner = ReadReport()
        try:
            for pair in self._pairs.read(part, inner):
                yield pair.id, pair.passage
        finally:
            inner.counts["texts"] = inner.counts.pop("pairs", 0)
            report.add(inner)


@configurable("text source")
class ParquetTexts(PassagesOf):
    """The texts of a column of Parquet files.

    Args:
        paths: files or patterns.
        column: the text's column, or several whose texts are joined by a newline.
        id_column: column with the texts' id, or null.
    """

    def __init__(
        self, paths: str | Sequence[str], *, column: str | Sequence[str] = "text", id_column: str | None = None
    ) -> None:
        super().__init__(ParquetPairs(paths, query=column, passage=column, id_column=id_column))


@configurable("text source")
class JsonlTexts(PassagesOf):
    """The texts of a field of JSON lines, also compressed.

    Args:
        paths: files or patterns.
        field: the text's field, or several whose texts are joined by a newline.
        id_field: field with the texts' id, or null.
    """

    def __init__(
        self, paths: str | Sequence[str], *, field: str | Sequence[str] = "text", id_field: str | None = None
    ) -> None:
        super().__init__(JsonlPairs(paths, query=field, passage=field, id_column=id_field))


@configurable("text source")
class BeirTexts(FileParts):
    """The documents of ``corpus.jsonl`` in BEIR's layout: the title, where there is one, then the text, on two lines.

    Read as a raw dump is (up to where it is damaged, ids not needed), where `beir_layout` reads collections strictly.

    Args:
        paths: ``corpus.jsonl`` files, also compressed, or patterns.
    """

    def __init__(self, paths: str | Sequence[str]) -> None:
        self._paths = expand(paths)

    def fingerprint(self) -> dict[str, Any]:
        """The files."""
        return {"files": file_fingerprint(self._paths)}

    def read(self, part: str, report: ReadReport) -> Iterator[tuple[str, str]]:
        """The documents, line by line; one without a text is empty."""
        for place, row in json_rows(part, report):
            title, text = (string_of(row, key, place, report) for key in ("title", "text"))
            if title is not None and text is not None:
                report.counts["texts"] += 1
                yield str(row.get("_id", "")), f"{title}\n{text}".strip()


@configurable("text source")
class StoredPassages:
    """The passages of a folder of pairs (see `PairStore`), as often as they lie there.

    Args:
        folder: the folder.

    Raises:
        UserError: no pairs are there.
    """

    def __init__(self, folder: Path | str) -> None:
        self._shards = PairStore(folder).shards()

    def parts(self) -> list[str]:
        """The shards."""
        return [str(shard.path) for shard in self._shards]

    def fingerprint(self) -> dict[str, Any]:
        """The shards."""
        return {"files": file_fingerprint([shard.path for shard in self._shards])}

    def read(self, part: str, report: ReadReport) -> Iterator[tuple[str, str]]:
        """The passages of one shard; a row's number in it is its id."""
        reader = ParquetPairs(part, query="passage", passage="passage")
        for number, (_, text) in enumerate(PassagesOf(reader).read(part, report)):
            yield str(number), text
