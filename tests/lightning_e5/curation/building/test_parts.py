"""A part is read in bounded memory and put in its place whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lightning_e5.curation.building import merge
from lightning_e5.curation.building import parts as pair_parts
from lightning_e5.curation.building.merge import decide, pieces_by_source
from lightning_e5.curation.building.parts import RECORD, RawPart, read_part
from lightning_e5.curation.building.shards import shard_bounds
from lightning_e5.curation.engines.run_parts import Part, run_parts
from lightning_e5.files.scratch import blocks
from lightning_e5.types import PairCandidate, ReadReport

LETTERS = 2000


class Many:
    """Pairs of ``LETTERS`` characters, of two sources in turn."""

    name = "many"

    def __init__(self, rows: int, broken_at: int | None = None) -> None:
        self.rows, self.broken_at = rows, broken_at

    def parts(self) -> Sequence[str]:
        return ["all"]

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        for row in range(self.rows):
            if row == self.broken_at:
                raise RuntimeError("broken")
            yield PairCandidate(f"query {row}", f"{row} ".ljust(LETTERS, "x"), "odd" if row % 2 else "even", id=str(row))

    def fingerprint(self) -> Mapping[str, Any]:
        return {}


def read(folder: Path, source: Many) -> dict[str, Any]:
    raw = RawPart(source, "all", (), None, None, folder / "part")
    return next(iter(run_parts(read_part, [Part("many", raw.folder / RECORD, raw, key="key", folder=raw.folder)], title="read")))


def test_memory_is_a_block_not_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path / "imports", Many(3))  # what is loaded once is not a part's memory
    monkeypatch.setattr(pair_parts, "BLOCK_CHARACTERS", 2**20)
    tracemalloc.start()
    record = read(tmp_path, Many(10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20 < 10_000 * LETTERS
    assert [(s["name"], s["rows"]) for s in record["sources"]] == [("even", 5000), ("odd", 5000)]
    rows = pq.read_table(tmp_path / "part" / record["sources"][1]["file"], columns=["id"])["id"].to_pylist()
    assert rows == [str(row) for row in range(1, 10_000, 2)]


def test_a_part_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        read(tmp_path, Many(50, broken_at=40))
    assert list(tmp_path.iterdir()) == []
    record = read(tmp_path, Many(50))
    assert read(tmp_path, Many(50, broken_at=0)) == record, "a finished part is not read again"
    (tmp_path / "part" / record["sources"][0]["file"]).write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="broken"):
        read(tmp_path, Many(50, broken_at=0))
    again = read(tmp_path, Many(50))
    assert again["sources"] == record["sources"] and [p.name for p in tmp_path.iterdir()] == ["part"]


def test_texts_that_no_file_can_hold_are_counted(tmp_path: Path) -> None:
    class Odd(Many):
        def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
            yield PairCandidate("a lone \ud800", "passage", "odd")
            yield PairCandidate(" ", "passage", "odd")
            yield PairCandidate("query", "", "odd")
            yield PairCandidate("Same  text", "same TEXT", "odd")

    source = read(tmp_path, Odd(0))["sources"][0]
    assert source["dropped"] == {"not UTF-8": 1, "empty text": 2, "query is passage": 1} and source["rows"] == 0


def test_a_cap_draws_by_its_seed_and_shards_have_equal_sizes(tmp_path: Path) -> None:
    parts = [(tmp_path / "part", read(tmp_path, Many(400)))]
    pieces = pieces_by_source(parts)
    kept = [decide(pieces, None, 90, {"even": seed, "odd": 3}, tmp_path / "scratch").keep_N for seed in (1, 1, 2)]
    assert (kept[0] == kept[1]).all() and (kept[0] != kept[2]).any()
    assert [int(kept[0][half].sum()) for half in (slice(0, 200), slice(200, 400))] == [90, 90]
    bounds = shard_bounds(kept[0], slice(200, 400), 40)
    assert [int(kept[0][first:stop].sum()) for first, stop in bounds] == [40, 40, 10]
    assert bounds[0][0] == 200 + int(np.flatnonzero(kept[0][200:])[0]) and bounds[-1][1] == 400


def test_a_cap_of_many_blocks_keeps_as_many_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, each candidate as likely as any other; in one block the draw is that of a permutation of all."""
    keep = np.ones(600, dtype=bool)
    keep[::3] = False
    rows, expected = np.flatnonzero(keep[100:]) + 100, keep.copy()
    expected[rows[np.random.default_rng(5).permutation(len(rows))[90:]]] = False
    one = keep.copy()
    merge._cap(one, slice(100, 600), 90, len(rows), 5)
    assert (one == expected).all()
    monkeypatch.setattr(merge, "blocks", lambda rows: blocks(rows, 64))
    counts = np.zeros(600, dtype=np.int64)
    for seed in range(300):
        many = keep.copy()
        merge._cap(many, slice(100, 600), 90, len(rows), seed)
        assert many[100:].sum() == 90 and (many[:100] == keep[:100]).all() and not (many & ~keep).any()
        counts += many
    share = counts[rows] / 300  # 90 of 333: 0.27, with a standard error of 0.026
    assert abs(share.mean() - 90 / len(rows)) < 1e-9 and share.min() > 0.15 and share.max() < 0.4
    by_block = [share[(rows >= first) & (rows < first + 64)].mean() for first in range(100, 600, 64)]
    assert max(by_block) - min(by_block) < 0.05
