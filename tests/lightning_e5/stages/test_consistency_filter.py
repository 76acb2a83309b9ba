"""The filter over tables and shards, whole and in pieces, killed and continued, round after round."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.pair_store import shard_name
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.curation.engines.engine import LocalEngine
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.stages.consistency_filter import consistency_filter
from lightning_e5.text import text_id

ROOT = Path(__file__).resolve().parents[3]
SIZES = {"small": 7, "a/x": 40, "large": 63}


@pytest.fixture
def columns(texts: list[str]) -> dict[str, list[Any]]:
    """110 pairs of three sources: a text and its own beginning, every fifth exchanged; some passages occur twice."""
    rows = sum(SIZES.values())
    chosen = [t for t in dict.fromkeys(texts) if len(t) > 40][:rows]
    planted = [i % 5 == 0 for i in range(rows)]
    passages = [chosen[(i + 31) % rows] if planted[i] else chosen[i] for i in range(rows)]
    passages[20:26] = [f" {passages[60].upper()} "] * 6
    return {
        "query": [" ".join(t.split()[:6]) for t in chosen],
        "passage": passages,
        "source": [name for name, count in SIZES.items() for _ in range(count)],
        "planted": planted,
    }


@pytest.fixture
def encoder(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def pairs(tmp_path: Path, columns: dict[str, list[Any]]) -> Path:
    write_parquet(tmp_path / "pairs" / "pairs.parquet", columns)
    return tmp_path / "pairs"


def shards(folder: Path, columns: dict[str, list[Any]], size: int) -> Path:
    listed, first = [], 0
    for name, count in SIZES.items():
        files = []
        for number, start in enumerate(range(first, first + count, size)):
            file = shard_name(name, number)
            stop = min(start + size, first + count)
            write_parquet(folder / file, {key: values[start:stop] for key, values in columns.items()})
            files.append({"file": file, "rows": stop - start})
        listed.append({"name": name, "shards": files})
        first += count
    write_json(folder / "pairs.json", {"sources": listed})
    return folder


def ranks(out: Path) -> tuple[np.ndarray, np.ndarray]:
    table = read_parquet(out / "ranks.parquet", {"rank": "int64", "keep": "bool"})
    return table["rank"].to_numpy(), table["keep"].to_numpy(zero_copy_only=False)


def brute_force(columns: dict[str, list[Any]], encoder: Path, per_source: bool) -> np.ndarray:
    """Ranks among all passages (of the source), one pair at a time."""
    model = TextEncoder.from_pretrained(encoder)
    queries, passages = model.embed(columns["query"], "query").double(), model.embed(columns["passage"], "passage").double()
    ids = np.array([text_id(p) for p in columns["passage"]])
    source = np.array(columns["source"])
    found = []
    for row in range(len(ids)):
        scores = (passages @ queries[row]).numpy()
        rivals = (ids != ids[row]) & ((source == source[row]) if per_source else True)
        found.append(1 + int((scores[rivals] > scores[row]).sum()))
    return np.array(found)


@pytest.mark.parametrize("pool", ["global", "per_source"])
def test_ranks_are_those_of_brute_force_and_the_records_add_up(tmp_path, pairs, encoder, columns, pool):
    metrics = consistency_filter(tmp_path / "out", pairs=pairs, encoder=encoder, pool=pool, k=2, seed=3)
    rank, keep = ranks(tmp_path / "out")
    expected = brute_force(columns, encoder, pool == "per_source")
    assert rank.tolist() == expected.tolist() and (keep == (rank <= 2)).all() and 10 < keep.sum() < 100
    planted = np.array(columns["planted"])
    assert metrics["kept"] == keep.sum() and metrics["pool"] == 110 and metrics["pairs"] == 110
    assert metrics["precision"] == pytest.approx((keep & ~planted).sum() / keep.sum())
    record = read_json(tmp_path / "out" / "sources.json")
    assert [s["source"] for s in record["sources"]] == list(SIZES) and record["pool"] == pool
    first = 0
    for row, (name, count) in zip(record["sources"], SIZES.items(), strict=True):
        own = slice(first, first + count)
        assert (row["pairs"], row["kept"], row["planted"]) == (count, keep[own].sum(), planted[own].sum())
        assert row["pool"] == (count if pool == "per_source" else 110)
        assert metrics[f"kept_share.{name.replace('/', ':')}"] == pytest.approx(keep[own].mean())
        first += count
    assert not (tmp_path / "out" / "pool").exists()


@pytest.mark.parametrize("pool", ["global", "per_source"])
def test_shards_and_pieces_are_the_whole(tmp_path, pairs, encoder, columns, pool):
    given = {"encoder": encoder, "pool": pool, "pool_size": 30, "seed": 4, "rows_per_part": 17}
    whole = consistency_filter(tmp_path / "whole", pairs=pairs, **given)
    for size in (9, 100):
        out = tmp_path / f"shards-{size}"
        assert consistency_filter(out, pairs=shards(tmp_path / f"p{size}", columns, size), **given) == whole
        for file in ("ranks.parquet", "sources.json"):
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    consistency_filter(tmp_path / "one", pairs=pairs, **given | {"rows_per_part": 1000})
    assert (ranks(tmp_path / "one")[0] == ranks(tmp_path / "whole")[0]).mean() > 0.95  # embedded in other company
    assert len(list((tmp_path / "whole" / "ranks").iterdir())) == 7


def test_pairs_of_mixed_sources_are_ranked_in_their_own_pools(tmp_path, encoder, columns):
    order = np.random.default_rng(0).permutation(110)
    mixed = {key: [values[i] for i in order] for key, values in columns.items()}
    write_parquet(tmp_path / "mixed" / "pairs.parquet", mixed)
    consistency_filter(tmp_path / "out", pairs=tmp_path / "mixed", encoder=encoder, pool="per_source", rows_per_part=40, seed=0)
    assert ranks(tmp_path / "out")[0].tolist() == brute_force(mixed, encoder, True).tolist()


class Stop(Exception):
    """A kill, as the process itself sees it: nothing after it runs."""


@pytest.mark.parametrize("after", range(1, 12, 2))
def test_stopped_anywhere_it_goes_on_and_ends_with_the_same_bytes(tmp_path, pairs, encoder, monkeypatch, after):
    given = {"pairs": pairs, "encoder": encoder, "pool_size": 50, "rows_per_part": 20, "seed": 1}
    consistency_filter(tmp_path / "whole", **given)
    embedded: list[int] = []
    embed = TextEncoder.embed

    def stopping(self: TextEncoder, texts: list[str], *rest: Any, **more: Any) -> torch.Tensor:
        embedded.append(len(texts))
        if len(embedded) == after + 1:
            raise Stop
        return embed(self, texts, *rest, **more)

    monkeypatch.setattr(TextEncoder, "embed", stopping)
    with pytest.raises(Stop):
        consistency_filter(tmp_path / "out", **given)
    assert not (tmp_path / "out" / "ranks.parquet").exists()
    consistency_filter(tmp_path / "out", **given)
    # 50 of the pool, 2 x 110 of the pairs, and what the stop threw away: one run's.
    assert sum(embedded) <= 270 + 40
    for file in ("ranks.parquet", "sources.json", "filter.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    before = len(embedded)
    consistency_filter(tmp_path / "out", **given)
    assert len(embedded) == before, "a finished run is not done again"
    consistency_filter(tmp_path / "out", **given | {"seed": 2})
    assert len(embedded) > before, "another seed's runs are not used"


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_e5.curation.engines import run_parts
from lightning_e5.stages.consistency_filter import consistency_filter
write = run_parts.write_parquet
def killing(path, columns):
    write(path, columns)
    if path.name == "part-00002.parquet":
        (path.parent / ".part-00003.parquet.1.tmp").write_bytes(b"torn")
        os.kill(os.getpid(), signal.SIGKILL)
run_parts.write_parquet = killing
root = Path(sys.argv[1])
consistency_filter(root / "out", pairs=root / "pairs", encoder=root / "encoder", pool_size=50, rows_per_part=20, seed=1)
"""


def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path, pairs, encoder):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = tmp_path / "out" / "ranks"
    finished = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*")}
    assert sorted(finished) == [f"part-0000{i}.parquet" for i in range(3)]
    given = {"pairs": pairs, "encoder": encoder, "pool_size": 50, "rows_per_part": 20, "seed": 1}
    for name in ("out", "whole"):
        consistency_filter(tmp_path / name, **given)
    assert {name: (parts / name).stat().st_mtime_ns for name in finished} == finished
    files = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("out", "whole")]
    assert files[0] == files[1]
    assert (tmp_path / "out/ranks.parquet").read_bytes() == (tmp_path / "whole/ranks.parquet").read_bytes()


def test_capped_ranks_keep_the_same_pairs(tmp_path, pairs, encoder):
    consistency_filter(tmp_path / "all", pairs=pairs, encoder=encoder, k=3, seed=1)
    consistency_filter(tmp_path / "capped", pairs=pairs, encoder=encoder, k=3, exact_up_to=5, seed=1)
    rank, keep = ranks(tmp_path / "all")
    assert rank.max() > 6
    capped, kept = ranks(tmp_path / "capped")
    assert (capped == np.minimum(rank, 6)).all() and (kept == keep).all()


def test_a_round_ranks_what_the_round_before_kept(tmp_path, pairs, encoder, monkeypatch):
    given = {"pairs": pairs, "encoder": encoder, "rows_per_part": 30, "seed": 1}
    consistency_filter(tmp_path / "all", **given)
    rank, _ = ranks(tmp_path / "all")
    before = np.arange(110) % 3 != 0
    before[30:60] = False  # a whole run
    write_parquet(tmp_path / "before.parquet", {"keep": before, "rank": np.ones(110, np.int64)})
    metrics = consistency_filter(tmp_path / "next", previous=tmp_path / "before.parquet", **given)
    again, kept = ranks(tmp_path / "next")
    assert (again[~before] == 0).all() and not kept[~before].any()
    assert (again[before] == rank[before]).mean() > 0.95 and metrics["ranked"] == before.sum()
    assert (kept == ((again <= 2) & before)).all() and kept.any()
    assert sum(s["ranked"] for s in read_json(tmp_path / "next/sources.json")["sources"]) == before.sum()


def test_an_engine_s_processes_write_the_same_ranks(tmp_path, pairs, encoder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = {"pairs": pairs, "encoder": encoder, "pool_size": 60, "rows_per_part": 60, "seed": 1}
    here = consistency_filter(tmp_path / "here", **given)
    there = consistency_filter(tmp_path / "there", engine=LocalEngine(workers=2), **given)
    torch.set_num_threads(threads)
    assert here == there
    assert (tmp_path / "here/ranks.parquet").read_bytes() == (tmp_path / "there/ranks.parquet").read_bytes()


def test_pairs_without_source_and_truth(tmp_path, encoder, columns):
    write_parquet(tmp_path / "bare" / "pairs.parquet", {key: columns[key] for key in ("query", "passage")})
    metrics = consistency_filter(tmp_path / "out", pairs=tmp_path / "bare", encoder=encoder, seed=0)
    assert set(metrics) == {"pairs", "kept", "pool", "kept_share"}
    assert ranks(tmp_path / "out")[0].tolist() == brute_force(columns, encoder, False).tolist()
    none_planted = {key: columns[key] for key in ("query", "passage")} | {"planted": [False] * 110}
    write_parquet(tmp_path / "unplanted" / "pairs.parquet", none_planted)
    assert consistency_filter(tmp_path / "unplanted_out", pairs=tmp_path / "unplanted", encoder=encoder, seed=0) == metrics
    with pytest.raises(UserError, match="per_source needs a column 'source'"):
        consistency_filter(tmp_path / "other", pairs=tmp_path / "bare", encoder=encoder, pool="per_source", seed=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 0}, "k = 0 and pool_size"),
        ({"pool_size": 0}, "pool_size = 0 must be >= 1"),
        ({"pool": "per_sourc"}, "pool = 'per_sourc' is no kind of pool; did you mean 'per_source'"),
        ({"k": 3, "exact_up_to": 2}, "exact_up_to = 2 must be >= k = 3"),
        ({"rows_per_part": 0}, "rows_per_part = 0 must be >= 1"),
        ({"engine": "rya"}, "engine: 'rya' is no engine; did you mean 'ray'"),
    ],
)
def test_wrong_settings(tmp_path, pairs, encoder, wrong, says):
    with pytest.raises(UserError, match=says):
        consistency_filter(tmp_path / "out", pairs=pairs, encoder=encoder, seed=0, **wrong)


def test_a_round_of_other_pairs_is_refused(tmp_path, pairs, encoder):
    write_parquet(tmp_path / "before.parquet", {"keep": [True] * 3})
    with pytest.raises(UserError, match=r"before\.parquet: previous has 3 rows, the pairs 110"):
        consistency_filter(tmp_path / "out", pairs=pairs, encoder=encoder, previous=tmp_path / "before.parquet", seed=0)


def test_nothing_stays_in_memory(tmp_path, pairs, encoder):
    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if isinstance(thing, TextEncoder | RankPool)}
    consistency_filter(tmp_path / "out", pairs=pairs, encoder=encoder, seed=0)
    assert [thing for thing in gc.get_objects() if isinstance(thing, TextEncoder | RankPool) and id(thing) not in before] == []
