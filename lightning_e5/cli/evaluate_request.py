"""The ``evaluate`` verb: any model on any data by one command."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_e5.distributed.devices import Precision
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.models.reference import model_folder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import TASKS_TABLE, evaluate

#: The metrics of retrieval that the command writes.
RETRIEVAL_METRICS = (
    "ndcg@10", "ndcg@1", "ndcg@3", "ndcg@5", "ndcg@100", "map@100", "recall@10", "recall@100", "mrr@10", "precision@10",
)  # fmt: skip
#: Those of them that its table shows.
SHOWN_METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10")
_SPLIT = re.compile(r"[_-](?:test|dev|train|validation|valid)$")
_SUFFIXES = (".gz", ".jsonl", ".json", ".tsv", ".parquet")


@dataclass(frozen=True)
class EvaluationRequest:
    """What the command was asked for.

    ``models``: ``bm25``, a run directory or a model (see `lightning_e5.models.reference.model_folder`), each also as ``NAME=...``. The sets: folders in BEIR's layout,
    files of sentence pairs, folders of labelled texts, files of labelled texts, and so on, each also as ``NAME=...``.
    ``rules``: ``SET=BEIR-SET`` or ``SET=none``, whose rules a
    retrieval set is judged by instead of by its name; ``query_prefix`` and ``passage_prefix``: instead of the models' own; ``samples_per_label``: ``SET=N``;
    ``training_texts``: folders of pairs and ``ranked.parquet`` files, also as ``NAME=...``.
    """

    models: Sequence[str]
    beir: Sequence[str] = ()
    sts: Sequence[str] = ()
    classification: Sequence[str] = ()
    clustering: Sequence[str] = ()
    pair_classification: Sequence[str] = ()
    reranking: Sequence[str] = ()
    split: str = "test"
    rules: Sequence[str] = ()
    training_texts: Sequence[str] = ()
    query_prefix: str | None = None
    passage_prefix: str | None = None
    prefix_ablation: bool = False
    max_length: int | None = None
    precision: Precision = "fp32"
    samples_per_label: Sequence[str] = ()
    normalize_features: bool = False
    seed: int = 0
    out: str | None = None
    details: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: flat, ``<model>/<set>/<metric>``; ``retrieval`` and ``tasks``: the rows of the tables."""

    metrics: dict[str, float]
    retrieval: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)


def run_evaluation(request: EvaluationRequest) -> Evaluation:
    """Judge, and write the metrics to ``request.out`` last, atomically.

    Raises:
        UserError: no such model or file, two of one name, or as in `evaluate`.
    """
    encoders: dict[str, Path] = {}
    baselines: dict[str, Any] = {}
    for given in request.models:
        name, place = _named(given)
        if place == "bm25":
            name, target = name or "bm25", None
        else:
            try:
                target = model_folder(place)
            except UserError as error:
                raise UserError(f"--model: {error}" + ("" if "/" in place else " (nor bm25)")) from None
            name = name or Path(place.partition("#")[0]).resolve().name.lower()
        if name in encoders or name in baselines:
            raise UserError(f"--model: two models are named {name!r}; name one of them as NAME=FOLDER")
        if target is None:
            baselines[name] = BM25()
        else:
            encoders[name] = target
    sets = _sets(request)
    if request.details is not None and Path(request.details).is_dir() and any(Path(request.details).iterdir()):
        raise UserError(f"--details: {request.details}: is not empty")
    if request.out is not None and Path(request.out).is_dir():
        raise UserError(f"--out: {request.out}: is a directory, not a file")
    with tempfile.TemporaryDirectory(prefix="evaluate-") as temporary:
        folder = Path(request.details or temporary)
        metrics = evaluate(
            folder, collections=sets.get("collections"), sts=sets.get("sts"), classification=sets.get("classification"),
            clustering=sets.get("clustering"), pair_classification=sets.get("pair_classification"),
            reranking=sets.get("reranking"), encoders=encoders, baselines=baselines, split=request.split,
            rules=_rules(request.rules), metrics=RETRIEVAL_METRICS,
            samples_per_label=_counts(request.samples_per_label), normalize_features=request.normalize_features,
            precision=request.precision, prefixes=_prefixes(request), max_length=request.max_length,
            prefix_ablation=request.prefix_ablation, training_texts=_training_texts(request.training_texts), cosines=False, seed=request.seed,
        )  # fmt: skip
        rows = [read_json(path) if (path := folder / name).is_file() else [] for name in ("table.json", TASKS_TABLE)]
    if request.out is not None:
        write_json(Path(request.out), metrics)
    return Evaluation(metrics, *rows)


def set_name(path: Path) -> str:
    """``stsb`` of ``stsb_test.tsv``, ``scifact`` of ``beir/SciFact``: without ending and split, lower-cased."""
    name = path.resolve().name
    for suffix in _SUFFIXES if not path.is_dir() else ():
        name = name.removesuffix(suffix)
    return (name if path.is_dir() else _SPLIT.sub("", name)).lower()


def _sets(request: EvaluationRequest) -> dict[str, dict[str, Path]]:
    arguments = {
        "collections": request.beir, "sts": request.sts, "classification": request.classification, "clustering": request.clustering,
        "pair_classification": request.pair_classification, "reranking": request.reranking,
    }  # fmt: skip
    found: dict[str, dict[str, Path]] = {}
    for argument, places in arguments.items():
        for given in places:
            name, place = _named(given)
            if not Path(place).exists():
                raise UserError(f"{place}: no such file or directory")
            found.setdefault(argument, {})
            name = name or set_name(Path(place))
            if any(name in names for names in found.values()):
                raise UserError(f"{place}: two sets are named {name!r}; name one of them as NAME={place}")
            found[argument][name] = Path(place)
    return found


def _named(given: str) -> tuple[str | None, str]:
    """(name or None, place) of ``NAME=PLACE`` or ``PLACE``; a place that is there as it is written has no name."""
    name, equals, place = given.partition("=")
    if not equals or Path(given).exists() or given.startswith(("package:", "path:")):
        return None, given
    if not name or "/" in name or not place:
        raise UserError(f"{given!r}: is not NAME=FOLDER with a name without '/'")
    return name, place


def _training_texts(given: Sequence[str]) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for one in given:
        name, place = _named(one)
        if not Path(place).exists():
            raise UserError(f"--training-texts: {place}: no such file or directory")
        if (name := name or place) in places:
            raise UserError(f"--training-texts: {place}: two places are named {name!r}")
        places[name] = Path(place)
    return places


def _counts(given: Sequence[str]) -> dict[str, int]:
    counts = {}
    for one in given:
        name, _, count = one.partition("=")
        if not name or not count.isdecimal() or int(count) < 1:
            raise UserError(f"--samples-per-label: {one!r} is not SET=N with N >= 1")
        counts[name] = int(count)
    return counts


def _rules(given: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for one in given:
        name, _, rules = one.partition("=")
        if not name or not rules:
            raise UserError(f"--rules: {one!r} is not SET=BEIR-SET (or SET=none)")
        chosen[name] = rules
    return chosen


def _prefixes(request: EvaluationRequest) -> dict[str, str] | None:
    query, passage = request.query_prefix, request.passage_prefix
    if query is None and passage is None:
        return None
    if query is None or passage is None:
        raise UserError("--query-prefix and --passage-prefix belong together; give both (an empty one as '')")
    return {"query": query, "passage": passage}
