"""Every reader of fine-tuning and evaluation files, given damaged ones: a sentence, or records counted as bad, never a traceback."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_modules.finetune.beir import BeirRanked
from data_modules.finetune.groups import read_ranked
from data_modules.finetune.msmarco import SimLMRanked, TevatronRanked
from data_modules.finetune.nli import Nli
from data_modules.finetune.nq import DprRanked
from lightning_e5.curation.cleaning.evaluation_texts import evaluation_texts
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.vectors_file import read_vectors
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.evaluation.tasks.classification import ClassificationTask
from lightning_e5.evaluation.tasks.clustering import ClusteringTask
from lightning_e5.evaluation.tasks.pair_classification import PairClassificationTask
from lightning_e5.evaluation.tasks.reranking import RerankingTask
from lightning_e5.evaluation.tasks.sts import load_sts
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.types import ReadReport

WORDS = ["river", "brücke", "sea \u2028", "sun", 'say "so"', "list"]
NLI = [{"premise": f"p {w}", "hypothesis": f"{label} {w} {i}", "label": label} for i, w in enumerate(WORDS) for label in ("entailment", "contradiction")]
STS = [{"split": "test", "score": str(i), "sentence1": f"a {w}", "sentence2": f"b {w}"} for i, w in enumerate(WORDS)]
LABELLED = [{"text": f"text {w}", "label": "ab"[i % 2]} for i, w in enumerate(WORDS)]
PASSAGES = [{"id": str(i), "title": "-", "contents": f"contents {w}"} for i, w in enumerate(WORDS)]
SIMLM = [{"query": f"q {w}", "positives": {"doc_id": [str(i)], "score": [1.5]}, "negatives": {"doc_id": ["0", "5"], "score": [0.1, -2]}} for i, w in enumerate(WORDS[1:5], 1)]
TEVATRON = [{"query": f"q {w}", "positive_passages": [{"title": "T", "text": w}], "negative_passages": [{"title": "", "text": f"no {w}"}]} for w in WORDS]
DPR = [{"question": f"q {w}", "positive_ctxs": [{"title": "T", "text": w}], "hard_negative_ctxs": [{"title": "", "text": "no"}], "negative_ctxs": []} for w in WORDS]
RERANKING = [{"query": f"q {w}", "positive": [f"yes {w}"], "negative": [f"no {w}", "never"]} for w in WORDS]
GROUPS = {"query": WORDS, "positive": WORDS, "negatives": [["a", "b"]] * 6, "passage_kind": ["query"] * 6, "teacher_scores": pa.array([[1.0, 2.0, 3.0]] * 6, pa.list_(pa.float32()))}


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        write_parquet(path, pa.Table.from_pylist(rows))
        return path
    if ending == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        cells = [[*rows[0]], *([str(v) for v in row.values()] for row in rows)]
        quoted = [['"' + c.replace('"', '""') + '"' for c in row] for row in cells] if ending == "csv" else cells
        text = "".join(("," if ending == "csv" else "\t").join(row) + "\n" for row in quoted)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def beir(folder: Path, end: str = "") -> Path:
    table(folder / f"corpus.jsonl{end}", [{"_id": f"d{i}", "title": "T", "text": w} for i, w in enumerate(WORDS)])
    table(folder / f"queries.jsonl{end}", [{"_id": i, "text": f"q {w}"} for i, w in enumerate(WORDS)])
    table(folder / f"qrels/test.tsv{end}", [{"query-id": str(i), "corpus-id": f"d{i}", "score": "1.0"} for i in range(6)])
    return folder


def examples(source: Any) -> None:
    report = ReadReport()
    found = list(source.read(report))
    list(getattr(source, "corpus", list)())
    bad = sum(n for name, n in report.counts.items() if name.startswith("bad: "))
    assert bad >= len(report.bad) and all(":" in place for place, _ in report.bad)
    assert all(text.encode() and text.strip() for e in found for text in (e.query, *e.positives, *e.negatives))


def text_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def simlm(folder: Path) -> Callable[[], object]:
    paths = table(folder / "kd.jsonl", SIMLM), table(folder / "passages.jsonl.gz", PASSAGES)
    return lambda: examples(SimLMRanked(examples=paths[0], passages=paths[1], teacher_scores=True))


def classification(folder: Path) -> Callable[[], object]:
    for part in ("train.jsonl", "test.jsonl.gz"):
        table(folder / part, LABELLED)
    return lambda: ClassificationTask.load(folder)


def of_table(name: str, rows: list[dict[str, Any]], read: Callable[[Path], object]) -> Callable[[Path], Callable[[], object]]:
    def made(folder: Path) -> Callable[[], object]:
        path = table(folder / name, rows)
        return lambda: read(path)

    return made


#: name -> what writes a folder of good files and returns what reads them.
READERS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "beir": lambda f: (lambda folder: lambda: load_beir(folder))(beir(f)),
    "beir to train": lambda f: (lambda folder: lambda: examples(BeirRanked(folder=folder, split="test")))(beir(f, ".gz")),
    "evaluation texts": lambda f: (lambda folder: lambda: list(evaluation_texts([folder])))(beir(f)),
    **{f"sts.{e}": of_table(f"sts.{e}", STS, load_sts) for e in ("tsv", "tsv.gz", "csv", "jsonl", "parquet")},
    "pair classification": of_table("p.jsonl.gz", [{**row, "label": i % 2} for i, row in enumerate(STS)], PairClassificationTask.load),
    "clustering": of_table("c.csv", LABELLED, ClusteringTask.load),
    "re-ranking": of_table("r.jsonl", RERANKING, RerankingTask.load),
    "re-ranking.parquet": of_table("r.parquet", RERANKING, RerankingTask.load),
    "evaluation file": of_table("sts.tsv", STS, lambda p: list(evaluation_texts([p]))),
    "classification": classification,
    **{f"nli.{e}": of_table(f"n.{e}", NLI, lambda p: examples(Nli(paths=[p], random_negatives=2))) for e in ("csv", "tsv.gz", "jsonl", "parquet")},
    "simlm": simlm,
    **{f"tevatron.{e}": of_table(f"t.{e}", TEVATRON, lambda p: examples(TevatronRanked(path=p))) for e in ("jsonl.gz", "parquet")},
    "dpr": lambda f: (lambda path: lambda: examples(DprRanked(path=path)))(text_file(f / "dpr.json", json.dumps(DPR, ensure_ascii=False))),
    "groups": lambda f: (write_parquet(f / "g.parquet", GROUPS), lambda: read_ranked([f / "g.parquet"], 2, "first"))[1],  # type: ignore[func-returns-value]
    "vectors": lambda f: (lambda path: lambda: read_vectors(path, {"river", "sun"}))(text_file(f / "v.txt", "2 3\nriver 1 2 3\nsun .5 1e-3 -2\n")),
    "json": lambda f: (lambda path: lambda: read_json(path))(text_file(f / "m.json", json.dumps({"kind": WORDS}))),
}  # fmt: skip


def damaged(good: bytes, seed: int) -> Iterator[bytes]:
    """Cut, with changed bits and bytes, repeated, marked, and as a file of another kind."""
    draw = random.Random(seed)
    yield from (good[: len(good) * part // 8] for part in range(8))
    yield from (good[:-1], good + good, b"\xef\xbb\xbf" + good, good.replace(b"\n", b"\r\n"), good.replace(b"\n", b"\r"), good.replace(b"\n", b"\n\n"))
    for _ in range(8):
        changed = bytearray(good)
        changed[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        yield bytes(changed)
    for byte in (b"\0", b"\xff", b"\t", b"\\ud800", b"\xed\xa0\x80", b'"', b"1e999", b"[" * 20_000, b"9" * 5_000, b"\n{}\n", b"null"):
        place = draw.randrange(len(good))
        yield good[:place] + byte + good[place + 1 :]
    yield from (b"\0" * 100, b"PAR1" + bytes(20) + b"PAR1", gzip.compress(good), b"PK\x03\x04aaaa", b"<html>404</html>", b"[1, 2]\n", b"\n\n\n", b"a,b\n1,2\n")
    yield from (b'"text"\n', b"{}\n", b"3\n", b"[]", b"null\n", good.decode("utf-8", "ignore").encode("utf-16"), draw.randbytes(300))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_in_a_sentence_or_are_counted(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    read = READERS[name](folder)
    read()
    refused = tried = 0
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        good = path.read_bytes()
        versions = list(damaged(good, number))
        if path.suffix == ".gz":
            versions = versions[:22] + [gzip.compress(version, 1) for version in damaged(gzip.decompress(good), number)]
        for version in versions:
            path.write_bytes(version)
            tried += 1
            try:
                read()
            except UserError as error:
                refused += 1
                said = str(error)
                assert "\n" not in said and str(tmp_path) in said and len(said) < 1500, said[:200]
        path.unlink()
        path.mkdir()
        with contextlib.suppress(UserError):
            read()
        shutil.rmtree(path)
        path.write_bytes(good)
    read()
    assert refused > tried / 5, f"{refused} of {tried}"
