"""What the ``evaluate`` verb is given, as models, data and settings of an evaluation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir.nano import NANO_HUB
from lightning_e5.evaluation.evaluate import evaluate
from lightning_e5.evaluation.load_tasks import KINDS, TaskSettings, load_tasks
from lightning_e5.evaluation.loaded_models import ModelSpec
from lightning_e5.evaluation.per_query import PerQueryFile
from lightning_e5.models.reference import model_folder
from lightning_e5.result_row import ResultRow, at_dimensions
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.text import Prefixes
from lightning_e5.tracking.run_directory import warn

#: The metrics of retrieval that the command writes.
RETRIEVAL_METRICS = (
    "ndcg@10", "ndcg@1", "ndcg@3", "ndcg@5", "ndcg@100", "map@100", "recall@10", "recall@100", "mrr@10", "precision@10",
)  # fmt: skip
#: Options that name a file of results.
_FILES = ("out", "csv", "html", "per_query")
_SPLIT = re.compile(r"[_-](?:test|dev|train|validation|valid)$")
_SUFFIXES = (".gz", ".jsonl", ".json", ".tsv", ".parquet")


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found; ``reference``: the model that the others were compared with, None where there is one model."""

    rows: list[ResultRow]
    reference: str | None


def evaluate_given(given: argparse.Namespace) -> Evaluated:
    """Evaluate what the command's arguments name; the values of single queries are written to ``--per-query``.

    Raises:
        UserError: no such model or file, two of one name, a place for results that is none, a reference that is none of the
            models, or as in `evaluate`.
    """
    models = _models(given)
    data = _data(given)
    if given.details is not None and Path(given.details).is_dir() and any(Path(given.details).iterdir()):
        raise UserError(f"--details: {given.details}: is not empty")
    reference = _reference(given, models)
    _check_files(given)
    per_query = None if given.per_query is None else PerQueryFile(Path(given.per_query))
    rules = _by_set(given.rules, "--rules: {!r} is not SET=BEIR-SET (or SET=none)", bool)
    samples = _by_set(given.samples_per_label, "--samples-per-label: {!r} is not SET=N with N >= 1", lambda n: n.isdecimal() and int(n))
    settings = TaskSettings(
        given.split, rules, metrics=RETRIEVAL_METRICS, normalize_features=given.normalize_features,
        samples_per_label={name: int(count) for name, count in samples.items()}, nano_sets=given.nano_sets,
        nano_beir=NANO_HUB if given.nano_beir == "" else given.nano_beir,
    )  # fmt: skip
    rows = evaluate(
        models, load_tasks(data, settings, warn), seed=given.seed, out=Path(given.details) if given.details else None,
        training_texts=_training_texts(given.training_texts), reference=reference, compare_tasks=True,
        keep=None if per_query is None else per_query.keep, selected_on_this=given.selected_on_this,
    )  # fmt: skip
    if per_query is not None:
        per_query.write()
    return Evaluated(rows, reference)


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
        place = _named(one)[1]
        target: Path | BM25 = BM25()
        if place != "bm25":
            try:
                target = model_folder(place)
            except UserError as error:
                raise UserError(f"--model: {error}" + ("" if "/" in place else " (nor bm25)")) from None
        for name, (_, dimensions) in _names(one, given).items():
            if name in specs:
                raise UserError(f"--model: two models are named {name!r}; name one of them as NAME=FOLDER")
            specs[name] = ModelSpec(name, target, given.precision, prefixes, given.max_length, given.prefix_ablation, dimensions)
    return sorted(specs.values(), key=lambda spec: isinstance(spec.model, Path))


def _reference(given: argparse.Namespace, models: Sequence[ModelSpec]) -> str | None:
    """The model that the others are compared with: the first that was given, unless one is named."""
    names = [spec.name for spec in models]
    if given.reference is None:
        return next(iter(_names(given.model[0], given))) if len(names) > 1 else None
    if given.reference not in names:
        raise UserError(f"--reference: {given.reference!r} is not one of the models ({', '.join(names)}){suggestion(given.reference, names)}")
    if len(names) == 1:
        raise UserError(f"--reference: {given.reference!r} is the only model; give another --model to compare with it")
    return given.reference


def _check_files(given: argparse.Namespace) -> None:
    """UserError for a file of results that is a directory, or that two options name."""
    places: dict[Path, str] = {}
    for key in _FILES:
        option, file = f"--{key.replace('_', '-')}", getattr(given, key)
        if file is None:
            continue
        if Path(file).is_dir():
            raise UserError(f"{option}: {file}: is a directory, not a file")
        if (other := places.setdefault(Path(file).resolve(), option)) != option:
            raise UserError(f"{option}: {file}: is the file of {other}, too")


def _name_of(model: str) -> str:
    """The name that a model's results get: the one given, or the folder's."""
    name, place = _named(model)
    return name or ("bm25" if place == "bm25" else Path(place.partition("#")[0]).resolve().name.lower())


def _names(model: str, given: argparse.Namespace) -> dict[str, tuple[str, int | None]]:
    """The names that a model is evaluated under, each with its dimension; BM25 has no embeddings to truncate."""
    return at_dimensions({_name_of(model): model}, None if _named(model)[1] == "bm25" else given.truncate_dim)


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
