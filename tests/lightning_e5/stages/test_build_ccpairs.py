"""A build of shards: what stays and what is counted, the same bytes from any engine, and what a kill leaves to do."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.pair_store import PairStore
from lightning_e5.curation.cleaning.duplicates import NearDuplicates
from lightning_e5.curation.engines.engine import Engine, LocalEngine, RayEngine
from lightning_e5.errors import UserError
from lightning_e5.stages.build_ccpairs import build_ccpairs
from tests.lightning_e5.stages.pair_files import LongQuery, TextFiles
from tests.processes import alive

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "tu") for b in ("den", "fil", "gor", "hab", "jin")]


def passage(number: int, length: int = 24) -> str:
    return " ".join(WORDS[(number * 7 + i * i + i * number) % len(WORDS)] for i in range(length)) + f" {number}"


def write_raw(root: Path) -> list[TextFiles]:
    """Two readers: ``posts`` of three parts and two sources of pairs, ``pages`` of one part."""
    sources = []
    for name, parts in (("posts", 3), ("pages", 1)):
        folder = root / name
        folder.mkdir(parents=True)
        for part in range(parts):
            lines = []
            for i in range(30):
                number = 1000 * parts + 100 * part + i
                source = "\tcomments/new" if name == "posts" and i % 3 == 2 else ""
                lines.append(f"what is number {number}\t{passage(number)}{source}")
            lines += ["a line without tab", "short\tpassage of a short query", f"same text here\tSame  TEXT here{' '}"]
            lines += [f"what is number 1003\t{passage(1003)}", "the evaluation query itself\tsome passage of it", "asks for another thing\tThe evaluation passage."]
            (folder / f"part-{part}.txt").write_text("\n".join(lines), encoding="utf-8")
        sources.append(TextFiles(name, folder))
    # A near copy: one word of the passage is another, and the query is the same.
    text = passage(3005, 60)
    path = root / "posts" / "part-2.txt"
    path.write_text(path.read_text() + f"\nwhat is near\t{text}\nwhat is near\t{text.replace(text.split()[30], 'other', 1)}", encoding="utf-8")
    evaluation = root / "evaluation.jsonl"
    evaluation.write_text('{"text": "The evaluation query itself"}\n{"text": "the evaluation passage."}\n', encoding="utf-8")
    return sources


@pytest.fixture
def raw(tmp_path: Path) -> list[TextFiles]:
    return write_raw(tmp_path / "raw")


def build(out: Path, sources: list[TextFiles], **settings: Any) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    standard: dict[str, Any] = {
        "heuristics": [LongQuery(2)], "decontaminate": [str(sources[0].folder.parent / "evaluation.jsonl")],
        "shard_rows": 25, "engine": LocalEngine(1), "seed": 1,
    }  # fmt: skip
    return build_ccpairs(out, sources=sources, **{**standard, **settings})


def digests(out: Path) -> dict[str, str]:
    """Of the results: all but the time it took."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "timing_table.json"]
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def reads(source: TextFiles) -> dict[str, int]:
    return dict(Counter((source.folder / "reads.log").read_text().split()))


def test_what_stays_and_what_is_counted(raw: list[TextFiles], tmp_path: Path) -> None:
    metrics = build(tmp_path / "out", raw, near_duplicates=NearDuplicates(threshold=0.7), ngram_report=5)
    store = PairStore(tmp_path / "out")
    assert store.sources == {"posts": 62, "comments/new": 30, "pages": 29}
    rows = store.read(["query", "passage", "source", "passage_kind", "id"]).to_pylist()
    expected = {"candidates": 142.0, "pairs": 121.0, "planted": 0.0, "bad_records": 4.0, "sources": 3.0, "posts/pairs": 62.0,
                "posts/dropped: long_query": 3.0, "posts/dropped: query is passage": 3.0, "posts/dropped: exact duplicate": 2.0,
                "posts/dropped: near duplicate": 1.0, "posts/dropped: evaluation text as query": 3.0,
                "posts/dropped: evaluation text as passage": 3.0, "comments/new/pairs": 30.0}  # fmt: skip
    assert {k: metrics[k] for k in expected} == expected
    assert rows[0] == {"query": "what is number 3000", "passage": passage(3000), "source": "posts", "passage_kind": "passage", "id": "part-0.txt:1"}
    assert [r["source"] for r in rows] == ["posts"] * 62 + ["comments/new"] * 30 + ["pages"] * 29
    assert [s.rows for s in store.shards()] == [25, 25, 12, 25, 5, 25, 4]
    facts = json.loads((tmp_path / "out/pairs.json").read_text())
    assert facts["read"][0] == {
        "name": "posts", "parts": 3, "counts": {"bad: no tab": 3, "records": 110},
        "bad": [[f"part-{part}.txt:31", "no tab"] for part in range(3)], "first": {"bad: no tab": "part-0.txt:31"},
        "candidates": 107, "warnings": [],
    }  # fmt: skip
    for source in facts["sources"]:
        assert source["candidates"] == source["pairs"] + sum(source["dropped"].values())
    assert json.loads((tmp_path / "out/overlap.json").read_text())["pairs"] == 126  # before duplicates are dropped
    times = json.loads((tmp_path / "out/timing_table.json").read_text())
    assert set(times["reader_seconds"]) == {"posts", "pages"} and times["worker_peak_memory_gb"] > 0
    assert not (tmp_path / "out/work").exists()


def test_a_source_that_gives_nothing_or_little_is_said_and_counted(
    raw: list[TextFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("other", "{}\n[]\n"), ("half", "a\nb\nc\nwhat is this\tpassage of it\n"), ("void", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-0.txt").write_text(content)
    sources = [raw[0], *(TextFiles(name, tmp_path / name) for name in ("other", "half", "void"))]
    sentences = [
        "other: gives no pair from 2 records; 2 times bad: no tab, first at part-0.txt:1",
        "half: 3 of 4 records are bad: no tab; the first is part-0.txt:1",
        "void: gives no pair from 0 records",
    ]
    for _ in range(2):  # the second one finds the pairs made
        metrics = build(tmp_path / "out", sources)
        assert [line for line in capsys.readouterr().err.splitlines() if ": " in line and "records" in line] == sentences
    facts = json.loads((tmp_path / "out/pairs.json").read_text())
    assert [sentence for reader in facts["read"] for sentence in reader["warnings"]] == sentences
    assert metrics["other/pairs"] == metrics["void/pairs"] == 0 and metrics["half/pairs"] == 1
    assert metrics["other/bad: no tab"] == 2 and metrics["void/records"] == 0
    with pytest.raises(UserError, match="no pair is left of them, they gave no candidate: other: gives no pair from 2 records"):
        build(tmp_path / "none", sources[1:2], decontaminate=[])


@pytest.fixture
def own_corpus(tmp_path: Path) -> list[TextFiles]:
    """Pairs of a corpus that is searched, too: titles and passages of it, and what its test asks; and a pair from elsewhere."""
    beir = tmp_path / "beir" / "own"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": f"the title {i}", "text": passage(i)} for i in range(20)]
    (beir / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "What does document 3 say?"}) + "\n" + json.dumps({"_id": "r", "text": passage(19)}) + "\n")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    folder = tmp_path / "raw" / "docs"
    folder.mkdir(parents=True)
    lines = [f"the title {i}\t{passage(i)}" for i in range(20)] + [f"what does document 3 say? \t{passage(3)}", f"{passage(3)}\twhat does document 3 say?"]
    (folder / "part-0.txt").write_text("\n".join([*lines, f"from elsewhere\t{passage(77)}"]))
    return [TextFiles("docs", folder)]


def test_the_corpus_that_is_searched_stays_unless_it_is_to_be_dropped(own_corpus: list[TextFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"decontaminate": [str(tmp_path / "beir" / "*")], "engine": InThisProcess()}
    kept = build(tmp_path / "kept", own_corpus, **settings)
    assert (kept["docs/pairs"], kept["docs/kept_evaluation_passages"]) == (20, 19)  # 19 of the corpus, one from elsewhere
    # the judged pair on either side, and the document that is a query as well
    assert (kept["docs/dropped: evaluation text as query"], kept["docs/dropped: evaluation text as passage"]) == (1, 2)
    said = "decontaminate: 19 pairs, before duplicates and caps, hold a passage of an evaluation corpus and stay (drop_corpus: true drops them)"
    assert said in capsys.readouterr().err
    queries = PairStore(tmp_path / "kept").read(["query"])["query"].to_pylist()
    assert "the title 3" in queries and not [q for q in queries if "what does" in q.lower()]
    dropped = build(tmp_path / "dropped", own_corpus, **settings, drop_corpus=True)
    assert dropped["docs/pairs"] == 1 and "docs/kept_evaluation_passages" not in dropped and not capsys.readouterr().err.count("stay")
    assert "kept_evaluation_passages" not in (tmp_path / "dropped" / "pairs.json").read_text()
    (own_corpus[0].folder / "part-0.txt").write_text(f"the title 1\t{passage(1)}")
    with pytest.raises(UserError, match=r"most were dropped by 'evaluation text as passage' \(drop_corpus: false keeps passages of the evaluation's"):
        build(tmp_path / "none", own_corpus, **settings, drop_corpus=True)


def test_equal_bytes_from_one_and_two_workers(raw: list[TextFiles], tmp_path: Path) -> None:
    settings = {"near_duplicates": NearDuplicates(), "planted_mismatches": 0.2, "max_pairs_per_source": 40}
    metrics = build(tmp_path / "one", raw, **settings)
    build(tmp_path / "two", raw, **settings, engine=LocalEngine(2))
    build(tmp_path / "seed", raw, **settings, **{"seed": 2})
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two") != digests(tmp_path / "seed")
    assert metrics["posts/pairs"] == 40 and metrics["posts/dropped: over max_pairs_per_source"] > 0
    table = PairStore(tmp_path / "one").read(["query", "passage", "planted"]).to_pylist()
    assert sum(row["planted"] for row in table) == metrics["planted"] > 10
    own = {passage(int(row["query"].split()[-1])) == row["passage"] for row in table if row["query"].startswith("what is number") and row["planted"]}
    assert own == {False}


def test_the_bytes_do_not_depend_on_how_shards_are_cut_from_parts(raw: list[TextFiles], tmp_path: Path) -> None:
    build(tmp_path / "small", raw, shard_rows=10)
    build(tmp_path / "large", raw, shard_rows=1000)
    columns = ["query", "passage", "source", "id"]
    assert PairStore(tmp_path / "small").read(columns) == PairStore(tmp_path / "large").read(columns)


@pytest.mark.parametrize("kill", ["worker", pytest.param("parent", marks=pytest.mark.slow)])
def test_a_killed_build_goes_on(raw: list[TextFiles], tmp_path: Path, kill: str) -> None:
    build(tmp_path / "whole", raw)
    (raw[0].folder / "reads.log").unlink()
    dying = [TextFiles("posts", raw[0].folder, "part-1.txt", kill), raw[1]]
    (raw[0].folder / "die").touch()
    process = multiprocessing.get_context("spawn").Process(target=build, args=(tmp_path / "out", dying))
    process.start()
    process.join(60)
    assert process.exitcode == (0 if kill == "worker" else -9)
    if kill == "parent":
        wait_for_the_end_of(int((raw[0].folder / "pid").read_text()))
        assert not (tmp_path / "out/pairs.json").exists()
        assert list((tmp_path / "out/work/parts").glob("00-posts-*")), "the first part was finished"
        build(tmp_path / "out", dying)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert reads(raw[0]) == {"part-0.txt": 1, "part-1.txt": 2, "part-2.txt": 1}, "a finished part is not read again"


def test_what_lies_in_the_parts_of_a_killed_build_runs_no_code(raw: list[TextFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the work folder in turn, and those of earlier versions, holds a bomb: what it stood for is made again."""
    settings: dict[str, Any] = {"ngram_report": 5, "engine": InThisProcess()}
    build(tmp_path / "whole", raw, **settings)
    with monkeypatch.context() as patch:
        patch.setattr("lightning_e5.stages.build_ccpairs._write_overlap", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "killed", raw, **settings)
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    kept = {p.relative_to(tmp_path / "killed/work") for p in (tmp_path / "killed/work").rglob("*") if p.is_file()}
    kept = {p for p in kept if p.parts[:2] != ("parts", "00-posts-00001")}  # another part of the same kind
    assert {p.name for p in kept} >= {"overlap.json", "ngrams.npz", "texts.npy", "keep.npy", "record.json", "000000.json"}
    part = Path("parts/00-posts-00000")
    for name in [*sorted(kept), part / "overlap.pkl", Path("evaluation/ngrams.pkl")]:
        shutil.copytree(tmp_path / "killed", tmp_path / "out")
        (tmp_path / "out/work" / name).write_bytes(bomb)
        build(tmp_path / "out", raw, **settings)
        assert not marker.exists(), name
        assert digests(tmp_path / "out") == digests(tmp_path / "whole"), name
        shutil.rmtree(tmp_path / "out")
    pickle.loads(bomb)
    assert marker.exists(), "the control: the bomb works"


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


class InThisProcess(LocalEngine):
    """Tasks one after the other, here."""

    def map(self, function: Any, tasks: Any, *, title: str, gpus_per_task: int = 0) -> Iterator[Any]:
        return map(function, tasks)


def wait_for_the_end_of(pid: int) -> None:
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end, "the worker outlived its parent"
        time.sleep(0.05)


def test_a_changed_setting_is_done_again(raw: list[TextFiles], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, raw)
    first = digests(out)
    build(out, raw)
    assert reads(raw[0])["part-0.txt"] == 1, "nothing changed, nothing is read"
    build(out, raw, heuristics=[LongQuery(4)])
    assert reads(raw[0])["part-0.txt"] == 2 and digests(out) != first
    metrics = build(out, raw, shard_rows=1000)
    assert metrics["pairs"] == PairStore(out).rows and len(PairStore(out).shards()) == 3
    assert {p.name for p in out.rglob("*.parquet")} == {"part-00000.parquet"}, "shards of the other build are gone"
    build(out, raw)
    assert digests(out) == first
    (out / PairStore(out).shards()[0].path).write_bytes(b"damaged")
    build(out, raw)
    assert digests(out) == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": 2}, "sources: two have the name 'posts'"),
        ({"heuristics": [LongQuery(1), LongQuery(2)]}, "heuristics: two have the name 'long_query'"),
        ({"heuristics": [LongQuery(100)]}, "no pair is left of them; most were dropped by 'long_query'"),
        ({"shard_rows": 0}, "shard_rows: 0 is not >= 1"),
        ({"planted_mismatches": 1.5}, r"planted_mismatches: 1\.5"),
        ({"decontaminate": [], "ngram_report": 5}, "ngram_report: 5 needs evaluation texts"),
        ({"decontaminate": ["absent/*"]}, r"nothing matches 'absent/\*'"),
        ({"engine": "lokal"}, "engine: 'lokal' is no engine; did you mean 'local'"),
    ],
)
def test_mistakes_are_named(raw: list[TextFiles], tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path / "out", raw[:1] * settings.pop("sources", 1), **settings)


@pytest.fixture
def two_nodes() -> Iterator[Engine]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield RayEngine(address=cluster.address)
    cluster.shutdown()


@pytest.mark.slow
def test_equal_bytes_from_a_cluster_that_loses_a_worker(raw: list[TextFiles], tmp_path: Path, two_nodes: Engine) -> None:
    settings = {"near_duplicates": NearDuplicates(), "planted_mismatches": 0.2}
    build(tmp_path / "local", raw, **settings)
    (raw[0].folder / "reads.log").unlink()
    (raw[0].folder / "die").touch()
    dying = [TextFiles("posts", raw[0].folder, "part-1.txt"), raw[1]]
    build(tmp_path / "ray", dying, **settings, engine=two_nodes)
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert reads(raw[0]) == {"part-0.txt": 1, "part-1.txt": 2, "part-2.txt": 1}


@pytest.mark.slow
def test_equal_bytes_from_ray_on_this_machine(raw: list[TextFiles], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    build(tmp_path / "local", raw)
    build(tmp_path / "ray", raw, engine=RayEngine(workers=2))
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
