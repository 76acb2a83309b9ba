"""The evaluation: every model on every task, compared, with what each has seen of the test items in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fusion import FusedModels
from lightning_e5.evaluation.beir.average import beir_averages
from lightning_e5.evaluation.beir.model_differences import checked_previous, compare_models
from lightning_e5.evaluation.beir.retrieval import Searcher
from lightning_e5.evaluation.contamination import Contamination, Item, check_training_texts
from lightning_e5.evaluation.loaded_models import LoadedModel, ModelSpec, fused_models, load_models
from lightning_e5.evaluation.published import Published, check_published, published_of
from lightning_e5.evaluation.statistics.decision import decide_together
from lightning_e5.evaluation.tasks.retrieval import CollectionResult, CollectionTask
from lightning_e5.evaluation.tasks.task import EvalTask, TaskResult, items_identity
from lightning_e5.files.run_layout import TABLE, TASKS
from lightning_e5.files.storage import write_json
from lightning_e5.progress import progress
from lightning_e5.result_row import Comparison, ResultRow, TextsRead
from lightning_e5.types import Embedder, Run


@dataclass
class _Evaluated:
    model: str
    collection: str
    result: TaskResult
    texts: TextsRead
    comparisons: list[dict[str, Any]]
    seconds: float
    selected_on_this: bool = False


def evaluate(
    models: Sequence[ModelSpec] | Mapping[str, str | Path | Searcher | Embedder],
    tasks: Iterable[EvalTask],
    *,
    seed: int = 0,
    out: Path | None = None,
    reference: str | None = None,
    previous: Mapping[str, str | Sequence[str]] | None = None,
    published: Published | None = None,
    training_texts: Mapping[str, Path] | None = None,
    trained_on: Mapping[str, Sequence[str]] | None = None,
    compare_tasks: bool = False,
    keep: Callable[[str, str, TaskResult], None] | None = None,
    fusions: Mapping[str, Sequence[str]] | None = None,
    selected_on_this: bool = False,
) -> list[ResultRow]:
    """Evaluate every model on every task that it can do: all of them on retrieval, those that embed on the others.

    Args:
        models: loaded first, each once; in short name -> a loaded one, a folder, or whatever else `model_folder` takes.
        tasks: each is done, with all models, before the next one is taken (see `load_tasks`).
        seed: of all bootstraps.
        out: gets ``<model>/<set>/`` (TREC run, per-query or per-item values) and the rows, as ``table.json`` and ``tasks.json``.
        reference: the model that all others are compared with on retrieval, pairwise over queries (and see ``compare_tasks``).
        previous: model -> the step of the recipe before it, or several models, the step before it first: it is compared with
            them, too.
        published: model -> ``<set>/<metric>`` -> a published figure, kept beside ours.
        training_texts: name -> folder of pairs or ``ranked.parquet``, in which the test items are looked for (see `Contamination`).
        trained_on: model -> names of ``training_texts`` that it read, where its folder does not say.
        compare_tasks: compare the models on the other tasks, too, item by item where that is possible.
        keep: called with model, set and result, which has the values of single queries or items, one after the other.
        fusions: name -> models of this evaluation whose rankings are fused (see `fuse`) and evaluated as one more model.
        selected_on_this: evaluate models on a set that chose their weights in a validation, too; such rows say so.

    Returns:
        Retrieval's rows, then the averages over BEIR's 15 sets and NanoBEIR's 13 where all were evaluated, then those of the other tasks. What is
        said of differences holds for all of them together (Holm).

    Raises:
        UserError: no model, no task that one can do, a wrong name, a set that chose a model's weights, or as the models and tasks.
    """
    loaded = load_models(models)
    loaded |= fused_models(fusions or {}, loaded)
    training, read_by = training_texts or {}, trained_on or {}
    check_training_texts(training, read_by, loaded)
    compared_with = checked_previous(previous, list(loaded))
    if reference is not None and reference not in loaded:
        raise UserError(f"evaluate.reference: {reference!r} is not one of the models ({', '.join(loaded)})")
    embedders = {name: model for name, model in loaded.items() if model.embeds}
    evaluated: list[_Evaluated] = []
    items: dict[str, Sequence[Item]] = {}
    beir: dict[str, dict[str, Sequence[NDArray[np.float64]]]] = {}
    for task in tasks:
        able = loaded if isinstance(task, CollectionTask) else embedders
        chosen = _chosen_on(task, able, selected_on_this)
        found = _on_task(task, able, seed, out, keep)
        for name in chosen:
            found[name].selected_on_this = True
        items[task.name] = list(task.items())
        compares = compare_tasks or isinstance(task, CollectionTask)
        answers = {name: one.result.answers for name, one in found.items() if compares and one.result.answers is not None}
        for name, comparisons in compare_models(answers, reference=reference, previous=compared_with, seed=seed).items():
            found[name].comparisons.extend(comparisons)
        for name, one in found.items():
            if isinstance(one.result, CollectionResult) and one.result.benchmark_set is not None:
                beir.setdefault(one.result.benchmark_set, {})[name] = one.result.groups
        evaluated += found.values()
    if not evaluated:
        raise UserError(f"evaluate: {', '.join(loaded)} can only search, and there is no collection to search (give collections)")
    decide_together([comparison for one in evaluated for comparison in one.comparisons])
    contamination = Contamination(items, training, read_by)
    rows = [_row(one, loaded[one.model], contamination) for one in evaluated]
    retrieval, others = [row for row in rows if row.is_retrieval], [row for row in rows if not row.is_retrieval]
    rows = [*retrieval, *beir_averages(beir, seed), *others]
    check_published(published or {}, loaded, rows)
    rows = [replace(row, published=published_of(published or {}, row)) for row in rows]
    if out is not None:
        _write(out, rows)
    return rows


def _chosen_on(task: EvalTask, models: Mapping[str, LoadedModel], allowed: bool) -> list[str]:
    """The models whose weights were chosen by this task's items in a validation; UserError for one where that is not allowed."""
    identity = items_identity(task)
    found = [name for name, model in models.items() if model.training is not None and identity in model.training.selected_on]
    if found and not allowed:
        raise UserError(
            f"{task.name}: chose the step whose weights {found[0]} has, so its figure there says little of other texts; evaluate on another "
            "split or set, or say that it is meant (--selected-on-this, in a YAML selected_on_this: true): the row will say so"
        )
    return found


def _on_task(
    task: EvalTask, models: Mapping[str, LoadedModel], seed: int, out: Path | None, keep: Callable[[str, str, TaskResult], None] | None
) -> dict[str, _Evaluated]:
    """What each model reached, its values per query or item written and kept."""
    texts = task.texts()
    found = {}
    runs: dict[str, Run] = {}
    fused = {member for model in models.values() if isinstance(model.model, FusedModels) for member in model.model.members}
    with progress(len(models), f"evaluate on {task.name}", "model") as bar:
        for name, model in models.items():
            started = time.perf_counter()
            if isinstance(model.model, FusedModels):
                assert isinstance(task, CollectionTask)
                model.model.take(task.collection, runs)
            result = task.evaluate(model.model, seed=seed)
            if out is not None:
                result.save(out / name / task.name)
            if keep is not None:
                keep(name, task.name, result)
            if isinstance(result, CollectionResult):
                if name in fused and result.found is not None:
                    runs[name] = result.found.run
                result = replace(result, found=None, cosines=None)  # runs of many collections would fill the memory
            read = model.texts_read(texts if isinstance(texts, Mapping) else {"query": texts})
            found[name] = _Evaluated(name, task.name, result, read, [], time.perf_counter() - started)
            bar(1)
    return found


def _row(one: _Evaluated, model: LoadedModel, contamination: Contamination) -> ResultRow:
    result = one.result
    overlap, clean = contamination.of(one.model, model, one.collection, result)
    compared = [Comparison.of_json(comparison) for comparison in one.comparisons]
    facts = dict(result.facts) | ({"selected_on_this": True} if one.selected_on_this else {})
    return ResultRow(
        one.model, one.collection, result.task, result.metric, result.value, result.low, result.high, result.items,
        {**result.others, **clean}, facts.pop("split", None), one.texts, overlap,
        difference=next((comparison for comparison in compared if not comparison.model), None),
        previous=tuple(comparison for comparison in compared if comparison.model), facts=facts, seconds=one.seconds,
    )  # fmt: skip


def _write(out: Path, rows: Sequence[ResultRow]) -> None:
    """The rows as files; times, which are others each time, in one of their own."""
    table = [(row.as_json(), row.seconds) for row in rows if row.is_retrieval]
    if others := [row.as_json() for row in rows if not row.is_retrieval]:
        write_json(out / TASKS, others)
    write_json(out / "timing_table.json", [{**row, "seconds": seconds} for row, seconds in table])
    write_json(out / TABLE, [row for row, _ in table])
