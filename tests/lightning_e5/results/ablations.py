"""Ablation directories written by hand, in the format of real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import sha256_file, write_json, write_text

MODEL, SET = "e5-pt", "docs"
NDCG, RECALL, PRECISION = f"{MODEL}/{SET}/ndcg@10", f"{MODEL}/{SET}/recall@100", "filter/precision"
ENVIRONMENT = {
    "commit": "0123abcd", "uncommitted_changes": False, "python": "3.11.7", "processor": "A processor", "cpus": 2, "threads": 2,
    "gpus": [], "packages": {"torch": "2.13.0", "lightning": "2.6.6"},
}  # fmt: skip


def make_ablation(
    root: Path,
    lifts: Mapping[str, float],
    *,
    name: str = "negatives",
    scale: str = "laptop",
    seeds: Sequence[int] = (1, 2, 3),
    queries: int = 200,
    seed_noise: float = 0.004,
    report: Sequence[str] = (NDCG, RECALL, PRECISION),
    unfinished: Mapping[tuple[str, int], Mapping[str, object]] | None = None,
    pairs: Mapping[str, int] | None = None,
    paper: Mapping[str, object] | None = None,
    question: str = "Do in-batch negatives beat a queue?",
    steps: int = 20,
    skipped: Mapping[str, str] | None = None,
    also_compare: Sequence[Sequence[str]] = (),
) -> Path:
    """An ablation's directory with a run per variant and seed.

    Args:
        root: the folder of run directories.
        lifts: variant -> how far its mean nDCG lies above 0.5; the first is the baseline.
        unfinished: (variant, seed) -> its row of ``status.json``; the run has no ``metrics.json``.
        pairs: variant -> pairs seen, where not 3,200.
    """
    directory = root / "ablations" / f"{name}-{scale}"
    shared = directory / "shared"
    write_collection(shared, queries)
    status = {}
    plan = {}
    for number, (variant, lift) in enumerate(lifts.items()):
        plan[variant] = {"description": f"What {variant} is.", "runs": {str(s): f"{variant}-seed{s}" for s in seeds}}
        for seed in seeds:
            run = f"{variant}-seed{seed}"
            row = (unfinished or {}).get((variant, seed))
            status[run] = dict(row) if row else {"state": "finished", "exit_code": 0, "message": "", "seconds": 90.0}
            draw = np.random.default_rng([number, seed])
            values = np.clip(
                np.random.default_rng(7).beta(0.6, 0.6, queries) + lift + seed_noise * draw.standard_normal() + draw.normal(0, 0.08, queries), 0, 1
            )
            write_run(directory / run, seed, values, shared, (pairs or {}).get(variant, 3200), finished=row is None, steps=steps)
    if status:
        write_json(directory / "status.json", status)
    write_json(
        directory / "ablation.json",
        {
            "ablation": name, "scale": scale, "file": f"experiments/ablations/{name}.yaml", "question": question,
            "held_constant": ["data", "encoder"], "baseline": next(iter(lifts)), "report": list(report), "seeds": list(seeds),
            "paper": paper, "variants": plan, "order": list(lifts), "skipped": dict(skipped or {}),
            "also_compare": [list(two) for two in also_compare],
        },
    )  # fmt: skip
    return directory


def write_collection(folder: Path, queries: int) -> None:
    """The stage's output that all runs share by hard links, as a stage cache makes them."""
    write_text(folder / "test/queries.jsonl", "".join(json.dumps({"_id": f"q{i}", "text": f"question {i}"}) + "\n" for i in range(queries)))
    write_text(folder / "test/corpus.jsonl", json.dumps({"_id": "d", "title": "T", "text": "x"}) + "\n")
    write_text(folder / "test/qrels/test.tsv", "query-id\tcorpus-id\tscore\n")
    files = ["test/queries.jsonl", "test/corpus.jsonl", "test/qrels/test.tsv"]
    write_json(folder / "manifest.json", {"kind": "stage", "files": {f: sha256_file(folder / f) for f in files}, "fingerprint": {}})
    write_json(folder / "timing.json", {"seconds": 30.0, "peak_memory_gb": 0.5})


def write_run(path: Path, seed: int, values: np.ndarray, shared: Path, pairs: int, *, finished: bool, steps: int) -> None:
    """One run of three stages: data, training, evaluation."""
    configuration = {
        "name": path.name, "seed": seed, "runs_dir": str(path.parent), "threads": 2,
        "stages": {
            "pairs": {"_target_": "a.pairs"},
            "pretrain": {"_target_": "a.pretrain", "inputs": {"pairs": "pairs"}},
            "evaluate": {"_target_": "a.evaluate", "inputs": {"collections": {SET: "pairs/test"}, "encoders": {MODEL: "pretrain"}}},
        },
    }  # fmt: skip
    write_text(path / "config.yaml", yaml.safe_dump(configuration, sort_keys=False))
    write_json(path / "environment.json", ENVIRONMENT)
    for file in sorted(p for p in shared.rglob("*") if p.is_file()):
        target = path / "stages/pairs" / file.relative_to(shared)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
    train = path / "stages/pretrain"
    rows = [
        {"step": s, "loss": 4.0 / (1 + s / 5) + 0.1 * values.mean() + 0.02 * seed, "pairs": pairs * s // steps, "tokens": 50 * s}
        for s in range(1, steps + 1)
    ]
    write_text(train / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(train / "metrics.json", {"pairs_seen": float(pairs), "tokens_seen": pairs * 50.0, "steps": float(steps)})
    evaluate = path / "stages/evaluate"
    ids = [f"q{i}" for i in range(len(values))]
    recall = np.clip(values + 0.2, 0, 1)
    write_parquet(evaluate / MODEL / SET / "per_query.parquet", {"query_id": ids, "ndcg@10": values, "recall@100": recall})
    metrics = {NDCG: float(values.mean()), RECALL: float(recall.mean()), f"{NDCG}_low": 0.1, f"{NDCG}_high": 0.9}
    write_json(evaluate / "metrics.json", metrics)
    write_json(evaluate / "table.json", [{"model": MODEL, "collection": SET, "pairs_seen": pairs, "low": 0.1, "high": 0.9}])
    for stage, seconds in ((train, 61.0 + seed), (evaluate, 5.0)):
        write_json(stage / "timing.json", {"seconds": seconds, "peak_memory_gb": 0.5})
        write_json(stage / "manifest.json", {"kind": "stage", "files": {}})
    if finished:
        write_json(path / "metrics.json", {**metrics, PRECISION: 0.9 + 0.001 * seed + 0.01 * (pairs % 7)})
