"""What the ``evaluate`` verb is given, as models, data and settings of an evaluation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.evaluation.evaluate import evaluate
from lightning_e5.evaluation.load_tasks import KINDS, TaskSettings, load_tasks
from lightning_e5.evaluation.loaded_models import ModelSpec
from lightning_e5.files.storage import write_json
from lightning_e5.models.reference import model_folder
from lightning_e5.result_row import ResultRow, flat
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.text import Prefixes
from lightning_e5.tracking.run_directory import warn

#: The metrics of retrieval that the command writes.
RETRIEVAL_METRICS = (
    "ndcg@10", "ndcg@1", "ndcg@3", "ndcg@5", "ndcg@100", "map@100", "recall@10", "recall@100", "mrr@10", "precision@10",
)  # fmt: skip
#: Those of them that its table shows.
SHOWN_METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10")
_SPLIT = re.compile(r"[_-](?:test|dev|train|validation|valid)$")
_SUFFIXES = (".gz", ".jsonl", ".json", ".tsv", ".parquet")


def evaluate_given(given: argparse.Namespace) -> list[ResultRow]:
    """Evaluate what the command's arguments name, and write the metrics to ``--out`` last, atomically.

    Raises:
        UserError: no such model or file, two of one name, a place for results that is none, or as in `evaluate`.
    """
    models = _models(given)
    data = _data(given)
    if given.details is not None and Path(given.details).is_dir() and any(Path(given.details).iterdir()):
        raise UserError(f"--details: {given.details}: is not empty")
    if given.out is not None and Path(given.out).is_dir():
        raise UserError(f"--out: {given.out}: is a directory, not a file")
    rules = _by_set(given.rules, "--rules: {!r} is not SET=BEIR-SET (or SET=none)", bool)
    samples = _by_set(given.samples_per_label, "--samples-per-label: {!r} is not SET=N with N >= 1", lambda n: n.isdecimal() and int(n))
    settings = TaskSettings(
        given.split, rules, metrics=RETRIEVAL_METRICS, normalize_features=given.normalize_features,
        samples_per_label={name: int(count) for name, count in samples.items()},
    )  # fmt: skip
    rows = evaluate(
        models, load_tasks(data, settings, warn), seed=given.seed, out=Path(given.details) if given.details else None,
        training_texts=_training_texts(given.training_texts),
    )  # fmt: skip
    if given.out is not None:
        write_json(Path(given.out), flat(rows))
    return rows


def set_name(path: Path) -> str:
    """``stsb`` of ``stsb_test.tsv``, ``scifact`` of ``beir/SciFact``: without ending and split, lower-cased."""
    name = path.resolve().name
    for suffix in _SUFFIXES if not path.is_dir() else ():
        name = name.removesuffix(suffix)
    return (name if path.is_dir() else _SPLIT.sub("", name)).lower()


def _models(given: argparse.Namespace) -> list[ModelSpec]:
    """The models, each also as ``NAME=...``, those that are not read from a folder first."""
    prefixes = _prefixes(given)
    specs: dict[str, ModelSpec] = {}
    for one in given.model:
        name, place = _named(one)
        target: Path | BM25 = BM25()
        if place == "bm25":
            name = name or "bm25"
        else:
            try:
                target = model_folder(place)
            except UserError as error:
                raise UserError(f"--model: {error}" + ("" if "/" in place else " (nor bm25)")) from None
            name = name or Path(place.partition("#")[0]).resolve().name.lower()
        if name in specs:
            raise UserError(f"--model: two models are named {name!r}; name one of them as NAME=FOLDER")
        specs[name] = ModelSpec(name, target, given.precision, prefixes, given.max_length, given.prefix_ablation)
    return sorted(specs.values(), key=lambda spec: isinstance(spec.model, Path))


def _data(given: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """Kind of data -> name -> place, each place also as ``NAME=...``."""
    found: dict[str, dict[str, Path]] = {}
    for kind in KINDS:
        for one in given.beir if kind == "collections" else getattr(given, kind):
            name, place = _named(one)
            if not Path(place).exists():
                raise UserError(f"{place}: no such file or directory")
            name = name or set_name(Path(place))
            if any(name in names for names in found.values()):
                raise UserError(f"{place}: two sets are named {name!r}; name one of them as NAME={place}")
            found.setdefault(kind, {})[name] = Path(place)
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


def _by_set(given: Sequence[str], rule: str, good: Callable[[str], object]) -> dict[str, str]:
    """Set -> what is said of it, of ``SET=...``; UserError, naming option and ``rule``, for one without name or a good value."""
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        if not name or not good(value):
            raise UserError(rule.format(one))
        found[name] = value
    return found


def _prefixes(given: argparse.Namespace) -> Prefixes | None:
    query, passage = given.query_prefix, given.passage_prefix
    if query is None and passage is None:
        return None
    if query is None or passage is None:
        raise UserError("--query-prefix and --passage-prefix belong together; give both (an empty one as '')")
    return Prefixes(query, passage)
