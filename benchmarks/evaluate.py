"""A whole retrieval set, from its files to its metrics: ours against beir with sentence-transformers.

Both read the same folder in BEIR's layout and the same model folder, each with its own loader, encoder, search and
metrics: ours is `RetrievalTask`; the peer is beir's ``GenericDataLoader``, ``SentenceBERT``, ``DenseRetrievalExactSearch``
and ``EvaluateRetrieval``, at the batch size that a probe finds fastest. A round of each is load, encode, search and evaluate;
the models are loaded before. In bfloat16 both backbones run under autocast. ``ratio`` is the peer's time over ours, and
both nDCG@10 are given.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import alternate, arguments, make_encoder, real_pairs, report, told
from lightning_e5.distributed.devices import Precision, inference_device
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.folder import stored_settings

BATCH_SIZES = (8, 16, 32, 64, 128)
#: Documents per probe of a batch size.
PROBE = 128
#: Cut-offs of the metrics; the deepest is how many documents are retrieved.
CUTS = [1, 10, 100]


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        beir={"metavar": "FOLDER", "help": "a set in BEIR's layout, not gzipped (default: documentation of Python packages)"},
        model={"metavar": "DIR", "help": "a model folder (default: MiniLM-L6's shape with random weights)"},
        split={"default": "test", "help": "of the judgements (default test)"},
        limit={"type": int, "metavar": "N", "help": "only the first N documents, and the queries judged on them"},
        precision={"nargs": "+", "default": ["fp32"], "choices": ["fp32", "bf16"], "help": "a row for each (default fp32)"},
        minutes={"type": float, "default": float("inf"), "help": "no round begins that would end later"},
    )
    with tempfile.TemporaryDirectory() as work:
        data = Path(chosen.beir) if chosen.beir else documentation(Path(work) / "documentation", chosen.limit or 2000)
        if chosen.beir and chosen.limit:
            data = first_documents(data, Path(work) / data.name, chosen.split, chosen.limit)
        model = Path(chosen.model) if chosen.model else random_model(Path(work) / "model")
        rows = [measure(data, model, precision, chosen) for precision in chosen.precision]
    report(rows, chosen.json, threads=chosen.threads, limit=chosen.limit)


def measure(data: Path, model: Path, precision: Precision, chosen: Any) -> dict[str, Any]:
    """One row."""
    ours, metrics = our_evaluation(data, model, chosen.split, precision)
    peer, theirs, batch_size = peer_evaluation(data, model, chosen.split, precision)
    times = alternate({"ours": ours, "peer": peer}, chosen.rounds, minutes=chosen.minutes)
    return {
        "name": f"{data.name} / evaluate b{batch_size}", "precision": precision, "documents": metrics["documents"], "queries": metrics["queries"],
        "rounds": times["ours"].rounds, "ours_s": times["ours"].wall, "peer_s": times["peer"].wall,
        "ratio": times["peer"].wall / times["ours"].wall, "ours_cpu_s": times["ours"].cpu, "peer_cpu_s": times["peer"].cpu,
        "ratio_cpu": times["peer"].cpu / times["ours"].cpu, "ours_ndcg@10": round(metrics["ndcg@10"], 5), "peer_ndcg@10": theirs["NDCG@10"],
    }  # fmt: skip


def our_evaluation(data: Path, model: Path, split: str, precision: Precision) -> tuple[Callable[[], object], dict[str, Any]]:
    """A round of ours, and where it puts what it found."""
    encoder = TextEncoder.from_pretrained(model, precision=precision).to(inference_device())
    found: dict[str, Any] = {}
    metrics = [f"{family}@{k}" for family in ("ndcg", "map", "recall", "precision") for k in CUTS]

    def run() -> None:
        result = RetrievalTask(load_beir(data, split), k=CUTS[-1], metrics=metrics).evaluate(encoder)
        found.update(result.counts | result.metrics)

    return run, found


def peer_evaluation(
    data: Path, model: Path, split: str, precision: Precision
) -> tuple[Callable[[], object], dict[str, float], int]:
    """A round of the peer, where it puts what it found, and its best batch size."""
    import logging

    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.models import SentenceBERT
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    logging.disable(logging.INFO)
    device = inference_device()
    stored = stored_settings(model).prefixes
    names = {"query": "query", "passage": "passage"} if stored is not None and (stored.query or stored.passage) else None
    encoder = SentenceBERT(str(model), prompt_names=names, device=str(device))
    found: dict[str, float] = {}
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    with autocast:
        batch_size = fastest(encoder, list(GenericDataLoader(str(data)).load(split)[0].values()))

    def evaluate() -> None:
        corpus, queries, judged = GenericDataLoader(str(data)).load(split)
        search = DenseRetrievalExactSearch(encoder, batch_size=batch_size, show_progress_bar=False)
        evaluation = EvaluateRetrieval(search, k_values=CUTS, score_function="cos_sim")
        with autocast:
            run = evaluation.retrieve(corpus, queries)
        for part in evaluation.evaluate(judged, run, CUTS):
            found.update(part)

    return evaluate, found, batch_size


def fastest(encoder: Any, corpus: list[dict[str, str]]) -> int:
    """The batch size that the peer encodes a spread of the corpus fastest with."""
    chosen = corpus[:: max(1, len(corpus) // PROBE)][:PROBE]
    chosen.sort(key=lambda row: -len(row["title"] + row["text"]))  # the order that beir's search encodes in
    seconds = dict.fromkeys(BATCH_SIZES, float("inf"))
    for size in (*BATCH_SIZES, *BATCH_SIZES):  # twice, the faster counts: a disturbed probe would choose a slow peer
        started = time.perf_counter()
        encoder.encode_corpus(chosen, batch_size=size, show_progress_bar=False, convert_to_tensor=True)
        seconds[size] = min(seconds[size], time.perf_counter() - started)
    told(f"peer, seconds by batch size: { {size: round(value, 2) for size, value in seconds.items()} }")
    return min(seconds, key=lambda size: seconds[size])


def documentation(folder: Path, limit: int) -> Path:
    """Names and summaries as queries, the text below them as documents, in BEIR's layout; a query for every tenth document."""
    pairs = real_pairs()
    rows: dict[str, str] = {}
    for query, passage in zip(pairs.query_texts, pairs.passage_texts, strict=True):
        rows.setdefault(passage, query)
    chosen = list(rows.items())[:: max(1, len(rows) // limit)][:limit]
    corpus = [{"_id": f"d{i}", "title": "", "text": passage} for i, (passage, _) in enumerate(chosen)]
    queries = [{"_id": f"q{i}", "text": query} for i, (_, query) in enumerate(chosen) if i % 10 == 0]
    return write_set(folder, "test", corpus, queries, [f"{row['_id']}\td{row['_id'][1:]}\t1" for row in queries])


def first_documents(source: Path, folder: Path, split: str, limit: int) -> Path:
    """The first documents of a set, with the queries that have one of them as relevant."""
    corpus = [json.loads(line) for _, line in zip(range(limit), (source / "corpus.jsonl").open(encoding="utf-8"), strict=False)]
    known = {row["_id"] for row in corpus}
    lines = (source / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = [line for line in lines if line.split("\t")[1] in known]
    asked = {line.split("\t")[0] for line in judged if int(line.split("\t")[2]) > 0}
    if len(asked) < 2:  # beir's search fails on a set of one query
        raise UserError(f"{source}: fewer than two queries are judged on its first {limit} documents")
    queries = [row for row in map(json.loads, (source / "queries.jsonl").open(encoding="utf-8")) if row["_id"] in asked]
    return write_set(folder, split, corpus, queries, [line for line in judged if line.split("\t")[0] in asked])


def write_set(folder: Path, split: str, corpus: list[Any], queries: list[Any], judged: list[str]) -> Path:
    """A set in BEIR's layout."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n", encoding="utf-8")
    return folder


def random_model(folder: Path) -> Path:
    """MiniLM-L6's shape with random weights."""
    make_encoder("MiniLM-L6", real_pairs().tokenizer).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
