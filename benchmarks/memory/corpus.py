"""Pairs of real words, any number of them, written shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.memory.stage import Inputs
from data_modules.ccpairs.sources.python_docs import PythonDocs
from data_modules.pair_store import SHARDS, shard_name
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json

#: Packages whose documentation the words are of.
PACKAGES = ["stdlib", "numpy", "networkx"]
#: Source -> its share of the pairs.
SOURCES = {"forum": 0.5, "papers": 0.3, "encyclopedia": 0.2}
#: Rows of a shard, small enough that the smaller pool has many of them, too.
SHARD_ROWS = 25_000
#: Of 100 pairs, those that are an earlier pair again.
_REPEATED = 2


def pairs(inputs: Inputs, out: Path) -> dict[str, Any]:
    """Write ``inputs.rows`` pairs: passages of three runs of 6 to 18 words of the documentation, queries of a part of one of them.

    The runs are drawn anew for each pair, so that texts differ and words have their real frequencies; 2 of 100 pairs are copies.
    """
    words = np.array([word for pair in PythonDocs(PACKAGES, show_progress=False) for word in pair.passage.split()], dtype=object)
    listed, done = [], 0
    for number, (source, share) in enumerate(SOURCES.items()):
        rows = inputs.rows - done if number == len(SOURCES) - 1 else round(inputs.rows * share)
        shards = []
        for shard, first in enumerate(range(0, rows, SHARD_ROWS)):
            count = min(SHARD_ROWS, rows - first)
            queries, passages = _texts(words, count, np.random.default_rng([number, shard]))
            ids = [f"{source}-{row}" for row in range(first, first + count)]
            file = shard_name(source, shard)
            columns = {"query": queries, "passage": passages, "source": pa.array([source] * count), "passage_kind": ["passage"] * count, "id": ids}
            write_parquet(out / file, columns)
            shards.append({"file": file, "rows": count})
        listed.append({"name": source, "shards": shards})
        done += rows
    write_json(out / SHARDS, {"sources": listed})
    return {"rows": done}


def _texts(words: Any, count: int, draw: np.random.Generator) -> tuple[list[str], list[str]]:
    starts, lengths = draw.integers(0, len(words) - 20, (count, 3)), draw.integers(6, 19, (count, 3))
    asked = draw.integers(0, 3, count)
    queries, passages = [], []
    for own_starts, own_lengths, run in zip(starts.tolist(), lengths.tolist(), asked.tolist(), strict=True):
        runs = [words[start : start + length] for start, length in zip(own_starts, own_lengths, strict=True)]
        passages.append(" ".join(" ".join(part) for part in runs))
        queries.append(" ".join(runs[run][:6]))
    for row in range(100, count, 100 // _REPEATED):
        queries[row], passages[row] = queries[row - 100], passages[row - 100]
    return queries, passages
