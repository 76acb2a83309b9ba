"""A run directory as data: the one module through which the report, ``compare`` and the notebooks read runs.

Stages are recognised by the files they left, not by their names: a training stage has ``metrics.jsonl``, a filter
``ranks.parquet``, an evaluation ``table.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules import pair_store as pairs
from lightning_e5.config.experiment import Node, outside_path
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.beir_layout import either, stored_texts
from lightning_e5.files.parquet import parquet_columns, read_parquet
from lightning_e5.files.run_layout import CONFIG, ENVIRONMENT, LOG, METRICS, NANO_BEIR_SETS, TABLE, TIMING
from lightning_e5.files.storage import MANIFEST, sha256_file
from lightning_e5.result_row import MAIN_METRIC, ResultRow, evaluated_encoders
from lightning_e5.results import result_files as shapes
from lightning_e5.results.filters import FilterRanks, FilterSample, draw_samples, read_filter
from lightning_e5.results.recorded_config import load_recorded

RANKS, PER_QUERY = "ranks.parquet", "per_query.parquet"
_HASHED: dict[tuple[int, ...], str] = {}


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one collection.

    ``figures``: what the evaluation found; ``metrics``: by name, those that ``metrics.json`` has; ``trained_by``: the stages that the
    model's weights went through, in order; ``pairs``, ``tokens``, ``steps`` and ``seconds``: their sums, None where no such stage
    says; ``is_encoder``: False for BM25 and word vectors.
    """

    figures: ResultRow
    metrics: dict[str, float]
    trained_by: tuple[str, ...]
    pairs: int
    tokens: int | None
    steps: int | None
    seconds: float | None
    is_encoder: bool

    @property
    def model(self) -> str:
        """The model's name."""
        return self.figures.model

    @property
    def collection(self) -> str:
        """The collection's name."""
        return self.figures.collection

    @property
    def row(self) -> Node:
        """The figures as ``table.json`` has them (interval, difference)."""
        return self.figures.as_json()

    @property
    def previous(self) -> list[Node]:
        """The comparisons with the step before it, and with other models behind that; each with ``model``, ``difference`` and so on."""
        return [one.as_json() for one in self.figures.previous]


@dataclass
class RunData:
    """A run directory, read when asked.

    Args:
        path: the directory, with ``config.yaml``.
        given: the run's metrics while ``metrics.json``, the mark of a finished run, is not yet written.

    Raises:
        UserError: no such directory, or one without a readable ``config.yaml``.
    """

    path: Path
    given: Mapping[str, float] | None = None
    config: Node = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such run directory")
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{self.path}: is no run directory (has no config.yaml)")
        self.config = load_recorded(self.path / CONFIG)
        self._per_query: dict[tuple[Path, str], dict[str, float]] = {}

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config["name"])

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return (self.path / METRICS).is_file()

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All final metrics, flat; UserError names the stage reached where the run is unfinished."""
        if self.given is not None:
            return dict(self.given)
        if not self.finished:
            missing = [s for s in self.config["stages"] if not (self.stage(s) / MANIFEST).is_file()]
            where = f"stage {missing[0]!r} is not done" if missing else "its report is not written"
            raise UserError(f"{self.path}: the run is unfinished ({where}); run its experiment again, it continues")
        return dict(shapes.read_result(self.path / METRICS, shapes.METRICS))

    @property
    def environment(self) -> Node:
        """Commit, package versions and hardware; empty where they were not recorded."""
        return dict(shapes.read_result(path, shapes.ENVIRONMENT)) if (path := self.path / ENVIRONMENT).is_file() else {}

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / "stages" / name

    def stages_with(self, file: str) -> list[str]:
        """The stages that left ``file``, in the order of the configuration."""
        return [name for name in self.config["stages"] if (self.stage(name) / file).is_file()]

    def times(self) -> dict[str, dict[str, Any]]:
        """Stage -> ``seconds`` and ``peak_memory_gb`` of computing it, and ``reused_from``, the run that did, where it was another."""
        return {name: shapes.read_result(self.stage(name) / TIMING, shapes.TIMING) for name in self.stages_with(TIMING)}

    def reused(self) -> dict[str, str]:
        """Stage -> the run that its result was taken from; those that this run computed are not in it."""
        return {name: t["reused_from"] for name, t in self.times().items() if "reused_from" in t}

    def seconds_spent(self) -> float:
        """Seconds of the stages that this run computed."""
        return math.fsum(t["seconds"] for t in self.times().values() if "reused_from" not in t)

    def learning_curves(self) -> dict[str, list[dict[str, float]]]:
        """Training stage -> its rows of ``metrics.jsonl``, one per step."""
        return {name: rows for name in self.stages_with(LOG) if (rows := shapes.read_steps(self.stage(name) / LOG))}

    def filters(self) -> list[str]:
        """The stages that filtered pairs."""
        return self.stages_with(RANKS)

    def filter_ranks(self, stage: str) -> FilterRanks:
        """The ranks and decisions of a filter, with the injected label noise where its pairs have it."""
        return read_filter(self.stage(stage), self._pairs(stage), self.config["stages"][stage], shapes.read_metrics(self.stage(stage)))

    def filter_samples(self, stage: str, count: int = 5) -> list[FilterSample]:
        """``count`` kept pairs, then ``count`` dropped ones, drawn at random (always the same); empty without texts."""
        return [] if (pairs := self._pairs(stage)) is None else draw_samples(self.filter_ranks(stage), pairs, count)

    def results(self) -> list[Result]:
        """Every model on every collection, in the order of the evaluations' tables."""
        return list(self._results)

    @cached_property
    def _results(self) -> list[Result]:
        found: dict[tuple[str, str], Result] = {}
        for stage in self.stages_with(TABLE):
            rows = [row for row in shapes.read_rows(self.stage(stage)) if row.is_retrieval]
            found |= {(row.model, row.collection): self._result(stage, row) for row in rows}
        return list(found.values())

    @cached_property
    def figures(self) -> dict[str, tuple[Result, str]]:
        """Every figure of a model on a collection: its name in ``metrics.json`` -> the result, and the metric's own name."""
        return {f"{r.model}/{r.collection}/{metric}": (r, metric) for r in self.results() for metric in r.metrics}

    def rows(self) -> list[ResultRow]:
        """What the evaluations found, by all tasks."""
        return [row for stage in self.config["stages"] for row in shapes.read_rows(self.stage(stage))]

    def tasks(self) -> list[Node]:
        """Every model on every task beside retrieval: ``model``, ``set``, ``task``, ``metric``, ``value``, ``low``, ``high``."""
        return [row.as_json() for row in self.rows() if not row.is_retrieval]

    def reference(self, collection: str) -> str | None:
        """The model that the others of a collection were compared with, if any was."""
        rows = [r for r in self.results() if r.collection == collection]
        without = [r.model for r in rows if r.figures.difference is None]
        return without[0] if len(without) == 1 < len(rows) else None

    def per_query(self, model: str, collection: str, metric: str = MAIN_METRIC) -> dict[str, float]:
        """Query id -> the metric's value; UserError where the run did not evaluate that."""
        path = self.result_file(model, collection, PER_QUERY)
        if (path, metric) not in self._per_query:
            table = read_parquet(path, {"query_id": "string", metric: "double"})
            self._per_query[path, metric] = dict(zip(table["query_id"].to_pylist(), table[metric].to_pylist(), strict=True))
        return self._per_query[path, metric]

    def has_per_query(self, model: str, collection: str, metric: str) -> bool:
        """Whether a metric is one of single queries: neither an interval's end nor that of another kind of task."""
        return (path := self.result_file(model, collection, PER_QUERY)).is_file() and metric in parquet_columns(path)

    def cosines(self, model: str, collection: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Cosines of judged pairs and of random ones; None for a model that is no encoder."""
        path = self.result_file(model, collection, "cosines.parquet")
        if not path.is_file():
            return None
        table = read_parquet(path, {"positive": "float", "random": "float"})
        return table["positive"].to_numpy(), table["random"].to_numpy()

    def queries(self, collection: str) -> dict[str, str]:
        """Query id -> text."""
        return _texts(self.collection_folder(collection), "queries.jsonl")

    def passages(self, collection: str) -> dict[str, str]:
        """Passage id -> title and text."""
        return _texts(self.collection_folder(collection), "corpus.jsonl")

    def collection_folder(self, name: str) -> Path:
        """The folder of a collection that the run was evaluated on; UserError where there is none of that name."""
        for stage in reversed(self.stages_with(TABLE)):
            reference = ((self.config["stages"][stage].get("inputs") or {}).get("collections") or {}).get(name)
            if reference is not None:
                return self.input_path(reference)
            if (kept := self.stage(stage) / NANO_BEIR_SETS / name).is_dir():
                return kept
        raise UserError(f"{self.path}: has no collection {name!r}")

    def input_path(self, reference: str) -> Path:
        """Where a stage's input lies, given as in the configuration (``STAGE/FILE``, ``path:DIR``, ...)."""
        return outside_path(reference) or self.path / "stages" / reference

    def result_file(self, model: str, collection: str, file: str) -> Path:
        """A file that a model's evaluation left, such as ``run.trec``; UserError where there was no such evaluation."""
        for stage in reversed(self.stages_with(TABLE)):
            if (self.stage(stage) / model / collection).is_dir():
                return self.stage(stage) / model / collection / file
        wanted = f"{model} on {collection}"
        raise UserError(f"{self.path}: did not evaluate {wanted}{suggestion(wanted, [f'{r.model} on {r.collection}' for r in self.results()])}")

    def collection_files(self, collection: str) -> dict[str, str]:
        """File -> sha256 of a collection's queries, passages and judgements; equal for equal test sets.

        Where a stage of the run made them its manifest says so; other files are hashed, each once.
        """
        folder = self.collection_folder(collection)
        stage = folder.relative_to(self.path / "stages").parts[0] if folder.is_relative_to(self.path / "stages") else None
        manifest = self.stage(stage) / MANIFEST if stage is not None else None
        if manifest is not None and manifest.is_file():
            files = {manifest.parent / name: digest for name, digest in shapes.read_result(manifest, shapes.MANIFEST)["files"].items()}
            inside = {p.relative_to(folder).as_posix(): d for p, d in sorted(files.items()) if p.is_relative_to(folder)}
            if inside:
                return inside
        return {p.relative_to(folder).as_posix(): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    def _result(self, stage: str, row: ResultRow) -> Result:
        named = shapes.read_metrics(self.stage(stage))
        own = {m: v for m, v in row.metrics.items() if m == row.metric or f"{row.model}/{row.collection}/{m}" in named}
        trained_by = self._trained_by(stage, row.model)
        seen = [shapes.read_metrics(self.stage(s)) for s in trained_by]
        recorded = row.overlap.pairs_seen if row.overlap is not None else row.facts.get("pairs_seen")
        pairs = sum(int(m["pairs_seen"]) for m in seen) if seen else int(recorded or 0)
        seconds = _total([shapes.read_result(p, shapes.TIMING) for s in trained_by if (p := self.stage(s) / TIMING).is_file()], "seconds")
        is_encoder = (self.stage(stage) / row.model / row.collection / "cosines.parquet").is_file()
        tokens, steps = (None if (total := _total(seen, key)) is None else int(total) for key in ("tokens_seen", "steps"))
        return Result(row, own, trained_by, pairs, tokens, steps, seconds, is_encoder)

    def _trained_by(self, evaluation: str, model: str) -> tuple[str, ...]:
        """The stages with ``pairs_seen`` on the way of a model's weights: each one's input ``encoder`` leads on."""
        node = self.config["stages"][evaluation]
        reference = evaluated_encoders(node).get(model, (None,))[0] or ((node.get("inputs") or {}).get("word_vectors") if model == "word-vectors" else None)
        found: list[str] = []
        while isinstance(reference, str) and (name := reference.split("/")[0]) in self.config["stages"]:
            if "pairs_seen" in shapes.read_metrics(self.stage(name)):
                found.append(name)
            reference = (self.config["stages"][name].get("inputs") or {}).get("encoder")
        return tuple(reversed(found))

    def _pairs(self, stage: str) -> pairs.PairStore | None:
        reference = (self.config["stages"][stage].get("inputs") or {}).get("pairs")
        folder = self.input_path(reference) if isinstance(reference, str) else None
        return pairs.PairStore(folder) if folder is not None and any((folder / n).is_file() for n in (pairs.TABLE, pairs.SHARDS)) else None


def _sha256(path: Path) -> str:
    """The sha256 of a file, hashed once for all its names: the device and the inode are those of the bytes."""
    facts = path.stat()
    key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if key not in _HASHED:
        _HASHED[key] = sha256_file(path)
    return _HASHED[key]


def _total(rows: list[dict[str, float]], key: str) -> float | None:
    return math.fsum(values) if (values := [row[key] for row in rows if key in row]) else None


def _texts(folder: Path, name: str) -> dict[str, str]:
    return {row.id: row.with_title() for row in stored_texts(either(folder, name))}
