"""Stage: judge encoders and baselines on retrieval collections and STS sets, with intervals over queries and pairs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.word_vectors import WordVectors
from lightning_e5.evaluation.beir_data import RetrievalData, load_beir
from lightning_e5.evaluation.retrieval import RetrievalResult, RetrievalTask
from lightning_e5.evaluation.significance import bootstrap_interval, paired_difference
from lightning_e5.evaluation.sts import evaluate_sts, load_sts
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.precision import Precision
from lightning_e5.progress import progress
from lightning_e5.rng import generator
from lightning_e5.storage import read_json, write_json, write_parquet

#: The metric that intervals and differences are given for.
MAIN_METRIC = "ndcg@10"
#: The STS rows of an evaluation.
STS_TABLE = "sts.json"
#: Pairs whose cosines are kept for the report.
COSINE_SAMPLE = 500


def evaluate(
    out: Path,
    *,
    collections: Mapping[str, Path] | None = None,
    sts: Mapping[str, Path] | None = None,
    encoders: Mapping[str, Path] | None = None,
    word_vectors: Path | None = None,
    baselines: Mapping[str, Any] | None = None,
    reference: str | None = None,
    split: str = "test",
    k: int = 100,
    precision: Precision = "fp32",
    index: Any = None,
    cache_dir: Path | str | None = None,
    seed: int,
) -> dict[str, float]:
    """Write ``<model>/<collection>/`` (TREC run, per-query values), ``table.json`` and ``sts.json``; return flat metrics.

    Args:
        collections: name -> folder in BEIR layout.
        sts: name -> file of sentence pairs with scores (see `load_sts`); for the models that embed.
        encoders: model name -> stage folder or encoder folder.
        word_vectors: folder of the averaged word vectors; judged as ``word-vectors``.
        baselines: model name -> an object with ``retrieve`` (BM25).
        reference: the model that all others are compared with, pairwise over queries.
        split: of the judgements.
        k: passages retrieved per query.
        precision: of the encoders' backbones; search and scores are always float32.
        index: an empty index to search embeddings with (`FaissIndex`); its recall against exact search stands in the
            table. Exact search by default.
        cache_dir: folder to keep the passages' embeddings in, and to search them from.

    Returns:
        ``<model>/<collection>/<metric>``, and ``<model>/<collection>/ndcg@10_low`` and ``_high`` (95% interval); for an
        STS set ``spearman``, ``spearman_low`` and ``spearman_high``.
    """
    metrics: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    searchers = _searchers(encoders or {}, word_vectors, baselines or {}, precision)
    if not collections and not sts:
        raise UserError("evaluate: nothing to judge on (give collections or sts)")
    if reference is not None and reference not in searchers:
        raise UserError(f"evaluate.reference: {reference!r} is not one of the models ({', '.join(searchers)})")
    for collection, folder in (collections or {}).items():
        data = load_beir(folder, split, name=collection)
        results: dict[str, RetrievalResult] = {}
        with progress(len(searchers), f"evaluate on {collection}", "model") as bar:
            for name, (searcher, seen) in searchers.items():
                started = time.perf_counter()
                results[name] = RetrievalTask(data, k=k, index=index, cache_dir=cache_dir).evaluate(searcher)
                recall = {key: value for key, value in results[name].counts.items() if key.startswith("ann_recall")}
                results[name].save(out / name / collection)
                metrics |= {f"{name}/{collection}/{m}": v for m, v in results[name].metrics.items()}
                table.append({"model": name, "collection": collection, "seconds": time.perf_counter() - started, **seen, **recall})
                if isinstance(searcher, TextEncoder):
                    _save_cosines(out / name / collection / "cosines.parquet", searcher, data, seed)
                bar(1)
        metrics |= _intervals(collection, results, reference, table, seed)
    metrics |= _judge_sts(out, sts or {}, searchers, seed)
    write_json(out / "timing_table.json", table)
    write_json(out / "table.json", [{k: v for k, v in row.items() if k != "seconds"} for row in table])
    return metrics


def _judge_sts(out: Path, sets: Mapping[str, Path], searchers: Mapping[str, tuple[Any, Any]], seed: int) -> dict[str, float]:
    """STS of every model that embeds; ``<model>/<set>/pairs.parquet`` and ``sts.json``."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    embedders = {name: model for name, (model, _) in searchers.items() if hasattr(model, "embed")}
    for name, path in sets.items():
        data = load_sts(path, name)
        for model, embedder in embedders.items():
            result = evaluate_sts(data, embedder, seed=seed)
            metrics |= {f"{model}/{name}/{m}": v for m, v in result.metrics.items()}
            write_parquet(out / model / name / "pairs.parquet", {"score": data.scores, "cosine": result.cosines})
            rows.append({"model": model, "set": name, "pairs": len(data.scores), "tied": result.tied, **result.metrics})
    if rows:
        write_json(out / STS_TABLE, rows)
    return metrics


def _searchers(
    encoders: Mapping[str, Path], word_vectors: Path | None, baselines: Mapping[str, Any], precision: Precision
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Model name -> (what is judged, what it has seen)."""
    searchers: dict[str, tuple[Any, dict[str, Any]]] = {name: (b, {"pairs_seen": 0}) for name, b in baselines.items()}
    if word_vectors is not None:
        searchers["word-vectors"] = (WordVectors.load(word_vectors / "word_vectors"), _seen(word_vectors))
    for name, folder in encoders.items():
        directory = folder / "encoder" if (folder / "encoder").is_dir() else folder
        searchers[name] = (TextEncoder.from_pretrained(directory, precision=precision), _seen(folder))
    if not searchers:
        raise UserError("evaluate: no model to judge (give encoders, word_vectors or baselines)")
    return searchers


def _seen(stage: Path) -> dict[str, Any]:
    """Pairs and groups that the stage itself trained on."""
    path = stage / "metrics.json"
    return {"pairs_seen": int(read_json(path).get("pairs_seen", 0))} if path.is_file() else {"pairs_seen": 0}


def _intervals(
    collection: str, results: Mapping[str, RetrievalResult], reference: str | None, table: list[dict[str, Any]], seed: int
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    queries = sorted(next(iter(results.values())).per_query[MAIN_METRIC])
    values = {name: np.array([r.per_query[MAIN_METRIC][q] for q in queries]) for name, r in results.items()}
    for name, per_query in values.items():
        low, high = bootstrap_interval(per_query, seed=seed)
        metrics |= {f"{name}/{collection}/{MAIN_METRIC}_low": low, f"{name}/{collection}/{MAIN_METRIC}_high": high}
        row = next(r for r in table if r["model"] == name and r["collection"] == collection)
        row |= {"low": low, "high": high}
        if reference is not None and name != reference:
            difference = paired_difference(per_query, values[reference], seed=seed)
            row |= {"difference": difference.mean, "difference_low": difference.low,
                    "difference_high": difference.high, "verdict": difference.verdict}  # fmt: skip
    return metrics


def _save_cosines(path: Path, encoder: TextEncoder, data: RetrievalData, seed: int) -> None:
    """Cosines of judged (query, passage) pairs and of random ones, for the report."""
    judged = [(q, d) for q, grades in data.qrels.items() for d, grade in grades.items() if grade > 0 and d in data.corpus]
    draw = generator(seed, "cosines")
    chosen = draw.permutation(len(judged))[:COSINE_SAMPLE]
    documents = list(data.corpus)
    others = draw.integers(0, len(documents), size=len(chosen))
    queries_ND = encoder.embed([data.queries[judged[i][0]] for i in chosen], "query")
    positives_ND = encoder.embed([data.corpus[judged[i][1]] for i in chosen], "passage")
    random_ND = encoder.embed([data.corpus[documents[i]] for i in others], "passage")
    columns = {"positive": _cosines(queries_ND, positives_ND), "random": _cosines(queries_ND, random_ND)}
    write_parquet(path, columns)


def _cosines(a_ND: torch.Tensor, b_ND: torch.Tensor) -> Any:
    return (a_ND * b_ND).sum(1).numpy()
