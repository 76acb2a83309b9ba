"""The experiment on the paper's dumps runs as it lies there, on small files in the dumps' own formats."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.pair_store import PairStore
from lightning_e5.config.experiment import load_experiment
from lightning_e5.files.storage import read_json
from lightning_e5.pipeline.runner import check_experiment, run_experiment

ROOT = Path(__file__).resolve().parents[1]
TEXT = "The river rises in the northern hills and flows through {0} before it reaches the sea near the old harbour of {0}."
LONG = " ".join(TEXT.format(f"town number {i}") for i in range(60))


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json_lines(rows)))


def write_dumps(root: Path) -> None:
    py7zr, zstandard = pytest.importorskip("py7zr"), pytest.importorskip("zstandard")
    zstd = zstandard.ZstdCompressor()
    post = {"author": "a", "created_utc": 1, "is_self": True, "over_18": False, "subreddit": "rivers", "score": 5, "selftext": ""}
    posts = [{**post, "id": f"p{i}", "title": f"Where does river {i} rise?"} for i in range(20)]
    comments = [
        {"id": f"c{i}", "link_id": f"t3_p{i % 20}", "parent_id": f"t3_p{i % 20}", "body": TEXT.format(f"Reddit {i}"), "score": i % 4}
        for i in range(40)
    ]
    comments.append({"id": "long", "link_id": "t3_p1", "parent_id": "t3_p1", "body": LONG, "score": 9})
    for folder, name, rows in (("submissions", "RS_2020-01.zst", posts), ("comments", "RC_2020-01.zst", comments)):
        (root / "reddit" / folder).mkdir(parents=True)
        (root / "reddit" / folder / name).write_bytes(zstd.compress(json_lines(rows)))
    rows = "".join(
        f'<row Id="{2 * i + 1}" PostTypeId="1" Score="1" Title="How long is river {i}?" Body="&lt;p&gt;I want to know.&lt;/p&gt;"/>\n'
        f'<row Id="{2 * i + 2}" PostTypeId="2" ParentId="{2 * i + 1}" Score="{i % 3}" Body="&lt;p&gt;{TEXT.format(f"Exchange {i}")}&lt;/p&gt;"/>\n'
        for i in range(12)
    )
    (root / "stackexchange").mkdir()
    with py7zr.SevenZipFile(root / "stackexchange/rivers.stackexchange.com.7z", "w") as archive:
        archive.writestr(f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{rows}</posts>\n', "Posts.xml")
    page = "<page><title>River {0}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{1}\n\n== Course ==\n{2}</text></revision></page>"
    pages = "".join(page.format(i, TEXT.format(f"Wiki {i}"), TEXT.format(f"Course {i}")) for i in range(1, 5))
    (root / "wikipedia").mkdir()
    (root / "wikipedia/enwiki-20200101-pages-articles1.xml.bz2").write_bytes(bz2.compress(f"<mediawiki>{pages}</mediawiki>".encode()))
    papers = [
        {"paper_id": str(i), "title": f"Paper on river {i}", "abstract": TEXT.format(f"Paper {i}"), "outbound_citations": [str((i + 1) % 6)]}
        for i in range(6)
    ]
    write_gzip(root / "s2orc/part.jsonl.gz", papers)
    web = [
        {"url": f"http://a/{i}", "title": f"Page {i}", "raw_content": TEXT.format(f"Web {i}"), "language": "en", "perplexity": 100.0 * i}
        for i in range(9)
    ]
    write_gzip(root / "cc_net/en_head_0000.json.gz", web)
    write_gzip(root / "cc_net/sample.json.gz", web)
    news = [{"url": f"http://n/{i}", "title": f"News {i}", "description": f"What happened at river {i}", "maintext": TEXT.format(f"News {i}")} for i in range(5)]
    write_gzip(root / "news/news.jsonl.gz", news)
    (root / "beir/set").mkdir(parents=True)
    (root / "beir/set/corpus.jsonl").write_bytes(json_lines([{"_id": "d", "title": "", "text": TEXT.format("Web 0").upper()}]))
    (root / "beir/set/queries.jsonl").write_bytes(json_lines([{"_id": "q", "text": "News 1"}]))


def test_the_papers_dumps_become_pairs(tmp_path: Path) -> None:
    write_dumps(tmp_path / "raw")
    overrides = [f"data_dir={tmp_path / 'raw'}", f"runs_dir={tmp_path / 'runs'}", "logger={mode: disabled}",
                 "engine={_target_: lightning_e5.curation.engines.engine.LocalEngine, workers: 2}"]  # fmt: skip
    experiment = load_experiment(ROOT / "experiments/data/ccpairs_paper.yaml", overrides)
    experiment["stages"]["pairs"]["sources"][0]["buckets"] = 2
    check_experiment(experiment)
    metrics, _ = run_experiment(experiment, say=lambda text: None)
    out = tmp_path / "runs/ccpairs_paper/stages/pairs"
    store = PairStore(out)
    assert list(store.sources) == ["reddit", "stackexchange", "wikipedia", "s2orc", "common_crawl", "news"]
    assert metrics["pairs/bad_records"] == 0, read_json(out / "pairs.json")["read"]
    expected = {
        "reddit/dropped: max_passage_chars": 1.0,
        "reddit/dropped: min_score": 10.0,
        "reddit/pairs": 30.0,
        "stackexchange/pairs": 16.0,  # 8 answers of at least one vote, under the title and under title and body
        "wikipedia/pairs": 8.0,
        "s2orc/pairs": 18.0,
        "common_crawl/dropped: evaluation text as passage": 1.0,
        "common_crawl/dropped: max_perplexity": 6.0,
        "news/dropped: evaluation text as query": 1.0,
        "news/pairs": 9.0,
    }
    assert {name: metrics.get(name) for name in expected} == expected
    assert not (set(store.read(["query"])["query"].to_pylist()) & {"News 1"})
