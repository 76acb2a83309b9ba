"""Vectors in files, mapped while they are read, and exact search over them: memory is a block, whatever the number of rows."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_e5.distributed.devices import search_devices
from lightning_e5.errors import UserError
from lightning_e5.retrieval.exact import VectorIndex, check_searchable, checked_vectors
from lightning_e5.retrieval.faiss_index import FaissIndex
from lightning_e5.retrieval.top_k import ON_CPU, ON_GPU, Float32, Int64, TopK, longest_norm

#: How values of vectors are written: float16 halves the files and rounds every value to 11 bits.
StoredType = Literal["float32", "float16"]
#: Rows of a block on a CPU, and values of one on a GPU (1 GiB).
_ROWS_AT_ONCE, _VALUES_ON_GPU = 32_768, 2**28


class MappedVectors:
    """Rows of vectors in files, numbered file after file; a `VectorIndex` that is searched and not added to.

    The files must not change while it is used: the longest row of each block is kept from the first search on.

    Args:
        shards: files with the rows of each, ``.npy`` or uncompressed ``.npz`` of one array ``[N, width]``.
        width: of a row.
    """

    def __init__(self, shards: Sequence[tuple[Path, int]], width: int) -> None:
        self._shards, self.width = list(shards), width
        self._firsts = np.cumsum([0, *(rows for _, rows in self._shards)])
        #: (number of the file, first row, rows) -> the norm of its longest row.
        self._longest: dict[tuple[int, int, int], float] = {}

    @classmethod
    def of(cls, files: Sequence[Path]) -> MappedVectors:
        """Of files whose rows are not known yet."""
        shapes = [_mapped(path).shape for path in files]
        return cls([(path, rows) for path, (rows, _) in zip(files, shapes, strict=True)], shapes[0][1])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def shards(self) -> list[Any]:
        """The files' arrays in order, each ``[N, D]``, mapped: nothing is read before it is used."""
        return [_mapped(path) for path, _ in self._shards]

    def add_to(self, index: VectorIndex) -> None:
        """Give an index all rows, file after file: mapped as they lie, where it leaves them there, else as float32 in memory."""
        for shard in self.shards():
            index.add(shard if isinstance(index, FaissIndex) else np.require(shard, np.float32, "A"))

    def take(self, rows: Int64) -> Float32:
        """Some rows, float32 ``[len(rows), D]``."""
        found = np.empty((len(rows), self.width), dtype=np.float32)
        numbers = np.searchsorted(self._firsts, rows, "right") - 1
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            found[places] = _mapped(self._shards[number][0])[rows[places] - self._firsts[number]]
        return found

    def search(
        self,
        queries: Any,
        k: int,
        *,
        corpus_chunk: int | None = None,
        query_chunk: int | None = None,
        devices: Sequence[str] | None = None,
    ) -> tuple[Float32, Int64]:
        """The ``k`` rows of highest inner product for each query, exactly; every shard is read once.

        The result is the same for every chunk, shard size and number of devices; of equal scores the lower row comes
        first. Scores are those of the stored vectors, in float32 whatever they are stored as.

        Args:
            queries: ``[Q, D]`` float32.
            k: results per query; cut to the number of rows.
            corpus_chunk: rows per matrix product; 4,096 by default, 32,768 on GPUs.
            query_chunk: queries per matrix product; 512 by default, 4,096 on GPUs.
            devices: such as ``["cuda:0", "cuda:1"]``; shard ``i`` is searched by device ``i`` modulo their number.
                By default all GPUs, or the CPU where there is none.

        Returns:
            Scores float32 ``[Q, k]`` and rows int64 ``[Q, k]``, as `ExactIndex.search`.
        """
        check_searchable(len(self), k)
        array = checked_vectors(queries, "queries", self.width)
        places = list(devices or search_devices())
        rows, at_once = ON_CPU if places == ["cpu"] else ON_GPU
        corpus_chunk, query_chunk = corpus_chunk or rows, query_chunk or at_once
        best = [
            TopK(
                array, min(k, len(self)), corpus_chunk=corpus_chunk, query_chunk=max(1, min(query_chunk, len(array))),
                device=None if place == "cpu" else place,
            )
            for place in places
        ]  # fmt: skip
        errors: list[BaseException] = []

        def work(own: int) -> None:
            try:
                for number in range(own, len(self._shards), len(places)):
                    self._show(best[own], number, int(self._firsts[number]))
            except BaseException as error:  # raised again in the caller's thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(own,)) for own in range(1, len(places))]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        for other in best[1:]:
            best[0].merge(other)
        return best[0].scores, best[0].rows

    def _show(self, best: TopK, number: int, first: int) -> None:
        shard = _mapped(self._shards[number][0])  # mapped here: its pages are given back after the shard
        # A GPU has its products long before the best rows of a block are chosen and merged, so it gets few blocks.
        rows = _ROWS_AT_ONCE if best.device is None else max(_ROWS_AT_ONCE, _VALUES_ON_GPU // self.width)
        for start in range(0, len(shard), rows):
            block = np.require(shard[start : start + rows], np.float32, "A")  # in a .npz they may lie unaligned
            place = number, start, len(block)
            longest = self._longest.get(place)
            if longest is None:
                longest = self._longest[place] = longest_norm(block)
            best.show(block, first + start, longest)


def _mapped(path: Path) -> Any:
    """The array of a ``.npy`` file, or the only one of an uncompressed ``.npz``, mapped."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive, path.open("rb") as handle:
            (member,) = archive.infolist()
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its array is compressed")
            handle.seek(member.header_offset + 26)  # of the local header: behind its 30 bytes come the name and what else there is
            lengths = handle.read(4)
            handle.seek(member.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"))
            version = np.lib.format.read_magic(handle)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(handle)
            if dtype.hasobject or fortran or len(shape) != 2:
                raise ValueError(f"an array of {dtype} {list(shape)}")
            return np.memmap(path, dtype=dtype, mode="r", offset=handle.tell(), shape=shape)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {path.parent} and start again") from None

