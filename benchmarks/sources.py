"""Rows per second of the readers of raw dumps, on one core, against plain loops that do the same work.

A loop opens the same file, parses it with ``json`` or ``lxml``, joins with a dictionary in memory where ours joins on
disk, and builds the same texts; it checks nothing and reports nothing. ``--big-gigabytes`` reads a Reddit-style dump of
that size in a process of its own and reports the most memory it held.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import raw_dumps, raw_loops
from benchmarks.common import alternate, arguments, report, told
from data_modules.ccpairs.sources.common_crawl import CcNetPages, WarcPages, WetPages
from data_modules.ccpairs.sources.news import CcNews
from data_modules.ccpairs.sources.papers import AclAnthology, S2ag, S2orc
from data_modules.ccpairs.sources.reddit import RedditComments
from data_modules.ccpairs.sources.stackexchange import StackExchangePosts
from data_modules.ccpairs.sources.tables import HfDatasetPairs, JsonlPairs, ParquetPairs
from data_modules.ccpairs.sources.wikipedia import WikipediaSections
from lightning_e5.types import PairFiles, ReadReport

Contest = tuple[str, Callable[[], PairFiles], Callable[[], Iterator[tuple[str, str]]]]

_CHILD = """
import json, resource, sys, time
from data_modules.ccpairs.sources.reddit import RedditComments
from lightning_e5.types import ReadReport
submissions, comments, work = sys.argv[1:]
source, report, started = RedditComments(submissions, comments, work_dir=work), ReadReport(), time.perf_counter()
pairs = sum(1 for part in source.parts() for _ in source.read(part, report))
seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"pairs": pairs, "ours_s": seconds, "peak_rss_bytes": peak, "bad": len(report.bad)}))
"""


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "", megabytes={"type": float, "default": 50, "help": "plain text per dump (default 50)"},
        big_gigabytes={"type": float, "default": 0, "help": "also read a Reddit-style dump of this size (default: none)"},
        only={"nargs": "*", "help": "names, or parts of names, of the sources that run"},
    )  # fmt: skip
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make, loop in contests(Path(folder), int(chosen.megabytes * 10**6)):
            if not chosen.only or any(part in name for part in chosen.only):
                rows.append(measure(name, make, loop, chosen.rounds, Path(folder)))
        if chosen.big_gigabytes:
            rows.append(big_reddit(Path(folder), chosen.big_gigabytes))
    report(rows, chosen.json, megabytes=chosen.megabytes)


def measure(
    name: str, make: Callable[[], PairFiles], loop: Callable[[], Iterator[tuple[str, str]]], rounds: int, folder: Path
) -> dict[str, Any]:
    """One row of the table; the first runs are compared by what they give."""

    def ours() -> int:
        shutil.rmtree(folder / "work", ignore_errors=True)  # the index and the buckets are made in every round
        source, counted = make(), ReadReport()
        return sum(1 for part in source.parts() for _ in source.read(part, counted))

    def peer() -> int:
        return sum(1 for _ in loop())

    counted, source = ReadReport(), make()
    found = sorted((p.query, p.passage) for part in source.parts() for p in source.read(part, counted))
    expected = sorted(loop())
    same = sum(a == b for a, b in zip(found, expected, strict=False)) / max(len(found), len(expected), 1)
    told(f"{name}: {len(found)} pairs, the loop {len(expected)}; equal: {same:.1%}; bad: {len(counted.bad)}")
    times = alternate({"ours": ours, "peer": peer}, rounds, warm_up=0)
    ours_s, peer_s = times["ours"].wall, times["peer"].wall
    return {
        "name": name, "batch": counted.counts["records"] or len(found), "precision": "text", "ours_s": ours_s, "peer_s": peer_s,
        "ratio": peer_s / ours_s, "rows_per_s": (counted.counts["records"] or len(found)) / ours_s, "pairs": len(found),
        "equal_share": same,
    }  # fmt: skip


def contests(folder: Path, size: int) -> Iterator[Contest]:
    """(name, our source, the loop) of every source; each dump is written when its turn comes."""
    work = str(folder / "work")
    path = raw_dumps.s2orc(folder / "s2orc.jsonl.gz", size)
    yield "s2orc title_abstract", lambda: S2orc(str(path)), lambda: raw_loops.s2orc(path)
    files = raw_dumps.s2ag(folder, size)
    given = {name: str(file) for name, file in files.items()}
    yield "s2ag all kinds, joined", lambda: S2ag(work_dir=work, **given), lambda: raw_loops.s2ag(**files)
    xml = raw_dumps.acl(folder / "Q18.xml", size)
    yield "acl_anthology", lambda: AclAnthology(str(xml)), lambda: raw_loops.acl(xml)
    warc = raw_dumps.warc(folder / "a.warc.gz", size)
    yield "common_crawl WARC", lambda: WarcPages(str(warc)), lambda: raw_loops.warc(warc)
    wet = raw_dumps.wet(folder / "a.warc.wet.gz", size)
    yield "common_crawl WET", lambda: WetPages(str(wet), first_line_is_title=True), lambda: raw_loops.wet(wet)
    cc_net = raw_dumps.cc_net(folder / "en_head_0000.json.gz", size)
    yield "common_crawl cc_net", lambda: CcNetPages(str(cc_net)), lambda: raw_loops.cc_net(cc_net)
    news = raw_dumps.news(folder / "news.jsonl.gz", size)
    yield "news", lambda: CcNews(str(news)), lambda: raw_loops.news(news)
    parquet = raw_dumps.pairs_parquet(folder / "pairs.parquet", size)
    yield (
        "Parquet", lambda: ParquetPairs(str(parquet), source_column="source", id_column="id"),
        lambda: raw_loops.parquet(parquet),
    )  # fmt: skip
    arrays = raw_dumps.pair_rows(folder / "pairs.jsonl.gz", size)
    yield "JSONL arrays", lambda: JsonlPairs(str(arrays), query=0, passage=1), lambda: raw_loops.arrays(arrays)
    hub = raw_loops.saved_dataset(parquet, folder / "dataset")
    yield "datasets folder", lambda: HfDatasetPairs(str(hub)), lambda: raw_loops.dataset(hub)
    posts, comments = raw_dumps.reddit(folder, size)
    yield (
        "reddit comments, joined", lambda: RedditComments(str(posts), str(comments), work_dir=work),
        lambda: raw_loops.reddit(posts, comments),
    )  # fmt: skip
    site = raw_dumps.stackexchange(folder / "Posts.xml", size)
    yield (
        "stackexchange, joined",
        lambda: StackExchangePosts(str(site), work_dir=work),
        lambda: raw_loops.stackexchange(site),
    )
    wiki = raw_dumps.wikipedia(folder / "pages-articles.xml.bz2", size)
    yield "wikipedia", lambda: WikipediaSections(str(wiki)), lambda: raw_loops.wikipedia(wiki)


def big_reddit(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Peak memory of a process that reads a dump of this many 10**9 bytes; a third more disk than that is needed."""
    started = time.perf_counter()
    submissions, comments = raw_dumps.reddit(folder, int(gigabytes * 10**9), suffix="")
    told(f"reddit of {gigabytes} GB written in {time.perf_counter() - started:.0f} s")
    command = [sys.executable, "-c", _CHILD, str(submissions), str(comments), str(folder / "big-work")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    told(f"peak {found['peak_rss_bytes'] / 1e9:.3f} GB")
    return {"name": f"reddit comments, {gigabytes:g} GB, peak memory", "precision": "text", **found}


if __name__ == "__main__":
    main()
