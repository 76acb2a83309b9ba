"""A corpus that lies in scratch files: a mapping from ids to texts of which nothing is held in memory.

Ids and texts are `StoredTexts` in the order of the corpus; a text is found by its id in a sorted list of the ids' hashes, which is
mapped. Files in a temporary folder are removed with the last object that reads them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.files.scratch import HashRanges, blocks, mapped
from lightning_e5.files.stored_texts import StoredTexts, TextWriter

#: Texts written at once.
_BLOCK = 1024


class RepeatedId(Exception):
    """An id is there twice; ``row`` is the number of the text that has it again."""

    def __init__(self, row: int, identifier: str) -> None:
        super().__init__(f"the id {identifier!r} was there before")
        self.row, self.identifier = row, identifier


class StoredCorpus(Mapping[str, str]):
    """Texts by id, written to files and read from them.

    Args:
        texts: (id, text) in order.
        folder: of the files; a temporary one by default.

    Raises:
        RepeatedId: an id is there twice.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], folder: Path | None = None) -> None:
        owner = tempfile.TemporaryDirectory(prefix="lightning_e5-corpus-") if folder is None else None
        folder = Path(owner.name) if owner is not None else folder
        assert folder is not None
        self._folder = folder
        with TextWriter(folder / "ids") as ids, TextWriter(folder / "texts") as stored:
            held: list[tuple[str, str]] = []
            for row in texts:
                held.append(row)
                if len(held) == _BLOCK:
                    _write(ids, stored, held)
                    held = []
            _write(ids, stored, held)
        #: Ids and texts, in the order of the corpus.
        self.ids, self.texts = StoredTexts(folder / "ids", owner=owner), StoredTexts(folder / "texts", owner=owner)
        self._find_ids(folder)

    def _find_ids(self, folder: Path) -> None:
        """Write the hashes of the ids, rising, and the row of each."""
        ranges = HashRanges(folder / "by-id", len(self.ids))
        for part in blocks(len(self.ids)):
            hashes = np.fromiter(map(_hash, self.ids[part]), dtype=np.uint64, count=part.stop - part.start)
            ranges.add(hashes, np.arange(part.start, part.stop))
        again: list[int] = []
        with (folder / "hashes").open("wb") as hash_file, (folder / "rows").open("wb") as row_file:
            for records in ranges:
                records = records[np.argsort(records["hash"], kind="stable")]
                records["hash"].tofile(hash_file)
                records["row"].tofile(row_file)
                same = np.flatnonzero(records["hash"][1:] == records["hash"][:-1])
                again += [int(b) for a, b in zip(records["row"][same], records["row"][same + 1], strict=True) if self.ids[int(a)] == self.ids[int(b)]]
        if again:
            raise RepeatedId(min(again), self.ids[min(again)])
        self._hashes, self._rows = mapped(folder / "hashes", "<u8"), mapped(folder / "rows", "<i8")

    def row_of(self, identifier: object) -> int | None:
        """The number of the text with this id; None where there is none."""
        if not isinstance(identifier, str):
            return None
        own = np.uint64(_hash(identifier))
        place = int(np.searchsorted(self._hashes, own))
        while place < len(self._hashes) and self._hashes[place] == own:
            row = int(self._rows[place])
            if self.ids[row] == identifier:
                return row
            place += 1
        return None

    def falling(self) -> NDArray[np.int64]:
        """The rows in the order of falling ids. While they are sorted, the ids and 24 bytes for each are in memory."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kept = self._folder / "falling"
        if not kept.is_file():
            ends = np.fromfile(self.ids.ends_path, dtype="<i8")
            buffers = [None, pa.py_buffer(np.concatenate([[0], ends])), pa.py_buffer(self.ids.path.read_bytes())]
            # Bytes of UTF-8 are in the order of the characters that they say.
            pc.array_sort_indices(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), buffers), order="descending").to_numpy().astype("<i8").tofile(kept)
        return mapped(kept, "<i8")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, identifier: str) -> str:
        row = self.row_of(identifier)
        if row is None:
            raise KeyError(identifier)
        return self.texts[row]

    def __contains__(self, identifier: object) -> bool:
        return self.row_of(identifier) is not None

    def values(self) -> ValuesView[str]:
        """The texts, in order."""
        return _Values(self)

    def items(self) -> ItemsView[str, str]:
        """Ids and texts, in order."""
        return _Items(self)


class _Values(ValuesView[str]):
    _mapping: StoredCorpus

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapping.texts)


class _Items(ItemsView[str, str]):
    _mapping: StoredCorpus

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self._mapping.ids, self._mapping.texts, strict=True)


def ids_of(corpus: Mapping[str, str]) -> Sequence[str]:
    """The ids of a corpus in their order."""
    return corpus.ids if isinstance(corpus, StoredCorpus) else list(corpus)


def texts_of(corpus: Mapping[str, str]) -> Sequence[str]:
    """The texts of a corpus in their order."""
    return corpus.texts if isinstance(corpus, StoredCorpus) else list(corpus.values())


def by_falling_id(corpus: Mapping[str, str]) -> tuple[Sequence[str], Sequence[str]]:
    """Ids and texts of a corpus by falling id."""
    if isinstance(corpus, StoredCorpus):
        rows: Any = corpus.falling()
        return corpus.ids.of(rows), corpus.texts.of(rows)
    ids = sorted(corpus, reverse=True)
    return ids, [corpus[own] for own in ids]


def _write(ids: TextWriter, texts: TextWriter, rows: Sequence[tuple[str, str]]) -> None:
    ids.extend(own for own, _ in rows)
    texts.extend(text for _, text in rows)


def _hash(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
