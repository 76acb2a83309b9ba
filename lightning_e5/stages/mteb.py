"""Stage: evaluate encoders on mteb's tasks with E5's rules, task by task, with results in mteb's own layout."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning_e5.configurable import configurable
from lightning_e5.distributed.devices import Precision, recorded_precision
from lightning_e5.errors import UserError
from lightning_e5.evaluation.loaded_models import LoadedModel, ModelSpec, chosen_on, encoder_directory, given_prefixes
from lightning_e5.evaluation.mteb.adapter import MtebEncoder, encoder_revision, text_kind
from lightning_e5.evaluation.mteb.local import feed, local_identity
from lightning_e5.evaluation.mteb.tasks import (
    MissingData,
    averages,
    find_tasks,
    main_score,
    metric_name,
    offline,
    result_path,
    run_task,
)
from lightning_e5.files.storage import write_json
from lightning_e5.progress import progress
from lightning_e5.ranges import Length, Size

#: One row per model and task.
TABLE = "mteb.json"


@configurable("stage")
def mteb(
    out: Path,
    *,
    encoders: Mapping[str, Path],
    tasks: Sequence[str],
    languages: Sequence[str] | None = None,
    split: str | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
    subsets: Mapping[str, Sequence[str]] | None = None,
    local: Mapping[str, Path] | None = None,
    prefixes: Mapping[str, str] | None = None,
    prefix_ablation: bool = False,
    max_length: Length | None = None,
    truncate_dim: Size | None = None,
    precision: Precision = "bf16-gpu",
    normalize_features: bool = False,
    organisation: str = "lightning_e5",
    results_dir: Path | str | None = None,
    selected_on_this: bool = False,
) -> dict[str, float]:
    """Write ``results/<organisation>__<model>/<revision>/<Task>.json`` and ``mteb.json``.

    Args:
        encoders: model name -> stage folder or encoder folder. A folder that stores no prefixes gets E5's own where it is an E5 (see `default_prefixes`), else none.
        tasks: mteb's names.
        languages: ISO 639-3 codes; other subsets of multilingual tasks are left out.
        split: that tasks are evaluated on; each task's own where not given.
        splits: task -> splits, where they are others.
        subsets: task -> subsets, such as ``en-en``.
        local: task -> files that its data are read from instead of from the hub (see `mteb_local.feed`).
        prefixes: ``query`` and ``passage``, for all encoders; refused where a folder stores others.
        prefix_ablation: allow other prefixes; the rows are labelled.
        max_length: tokens per text; as stored in the folders where not given.
        truncate_dim: the first values of the encoders' embeddings that are compared; as stored in the folders where not given.
        precision: of the encoders' backbones.
        normalize_features: give classification unit vectors; E5's own evaluation does not.
        organisation: of the models' names in mteb's results.
        selected_on_this: evaluate encoders on files of ``local`` that chose their weights in a validation, too; such rows say so.
        results_dir: folder that finished tasks are kept in and taken from, also by other runs; ``out`` where not given.

    Returns:
        ``<model>/<task>/<main metric>``, ``<model>/mteb/<type>`` (mean over a type's tasks) and ``<model>/mteb/all``.

    Raises:
        UserError: an unknown task, files that do not fit or that chose an encoder's weights, or data sets that cannot be had; what could be done is kept.
    """
    if not encoders or not tasks:
        raise UserError(f"mteb: no {'encoder' if not encoders else 'task'} is named")
    found = find_tasks(tasks, languages=languages, split=split, splits=splits, subsets=subsets)
    named = {task.metadata.name: task for task in found}
    for name, path in (local or {}).items():
        if name not in named:
            raise UserError(f"mteb.local: {name!r} is not one of the tasks ({', '.join(named)})")
        feed(named[name], path)
    kept = out if results_dir is None else Path(results_dir)
    missing: dict[str, str] = {}
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for model, folder in encoders.items():
            loaded, encoder = _encoder(model, folder, organisation, prefixes, prefix_ablation, max_length, precision, normalize_features, truncate_dim)
            chosen = _chosen_on(model, loaded, named, local or {}, selected_on_this)
            scores: dict[str, float] = {}
            with progress(len(found), f"mteb: {model}", "task") as bar:
                for name, task in named.items():
                    started = time.perf_counter()
                    try:
                        result = run_task(encoder, task, kept)
                    except MissingData as error:
                        if not missing:
                            stack.enter_context(offline())  # the others may be in the cache
                        missing.setdefault(name, str(error))
                    else:
                        scores[name] = main_score(result)
                        row = _row(model, loaded, encoder, task, result) | ({"selected_on_this": True} if name in chosen else {})
                        rows.append(row | {"seconds": time.perf_counter() - started})
                        _copy(result_path(kept, encoder, task), kept, out)
                    bar(1)
            metrics |= {f"{model}/{name}/{metric_name(named[name])}": value for name, value in scores.items()}
            means = averages(scores, {name: task.metadata.type for name, task in named.items()})
            metrics |= {f"{model}/mteb/{kind}": value for kind, value in means.items()}
    write_json(out / "timing_table.json", rows)
    write_json(out / TABLE, [{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    if missing:
        first = next(iter(missing))
        raise UserError(
            f"mteb: the data of {first} ({named[first].metadata.dataset['path']}) can be had neither from the cache nor from the "
            f"network ({missing[first]}); {len(found) - len(missing)} of {len(found)} tasks are done and kept in {kept / 'results'}"
        )
    return metrics


def _chosen_on(model: str, loaded: LoadedModel, tasks: Mapping[str, Any], local: Mapping[str, Path], allowed: bool) -> list[str]:
    """The tasks whose files have chosen the encoder's weights in a validation."""
    if loaded.training is None or not loaded.training.selected_on:
        return []
    return [name for name, path in local.items() if chosen_on(local_identity(tasks[name], path), name, {model: loaded}, allowed)]


def _encoder(
    model: str, folder: Path, organisation: str, prefixes: Mapping[str, str] | None, ablation: bool,
    max_length: int | None, precision: Precision, normalize: bool, truncate_dim: int | None,
) -> tuple[LoadedModel, MtebEncoder]:  # fmt: skip
    directory = encoder_directory(folder)
    loaded = ModelSpec(model, directory, precision, given_prefixes(prefixes, "mteb.prefixes"), max_length, ablation, truncate_dim).load()
    tokenizer, device = loaded.model.tokenizer, next(loaded.model.parameters()).device
    settings = {
        "prefixes": (tokenizer.prefixes.query, tokenizer.prefixes.passage), "max_length": tokenizer.max_length,
        "precision": recorded_precision(precision, device), "normalize": normalize, "head": loaded.model.head.describe(),
    }  # fmt: skip
    revision = encoder_revision(directory, settings)
    return loaded, MtebEncoder(loaded.model, f"{organisation}/{model}", revision, normalize_probes=normalize)


def _row(model: str, loaded: LoadedModel, encoder: MtebEncoder, task: Any, result: Any) -> dict[str, Any]:
    about = task.metadata
    tokenizer = loaded.model.tokenizer
    kinds = {side: text_kind(about, side) for side in ("query", "document")}
    row = {
        "model": model, "task": about.name, "type": about.type, "metric": metric_name(task), "value": main_score(result),
        "split": list(task.eval_splits), "subset": list(task.hf_subsets), "data": about.dataset["path"], "data_revision": about.revision,
        "prefix": {side: tokenizer.prefixes.of(kind) for side, kind in kinds.items()}, "max_length": tokenizer.max_length,
        "precision": recorded_precision(loaded.model.precision, next(loaded.model.parameters()).device), "revision": encoder.revision, "mteb": result.mteb_version,
    }  # fmt: skip
    if hasattr(task, "ignore_identical_ids"):  # mteb's own flag of a retrieval task: its queries are documents
        row["queries_are_documents"] = bool(task.ignore_identical_ids)
    dimensions = loaded.model.head.settings.truncate_dim
    row |= {} if dimensions is None else {"dimensions": dimensions}
    return row | ({"prefix_ablation": True} if loaded.prefix_ablation else {})


def _copy(path: Path, source: Path, out: Path) -> None:
    """The result and the model's description, into a run that takes them from another folder."""
    if source == out:
        return
    for file in (path, path.parent / "model_meta.json"):
        target = out / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
