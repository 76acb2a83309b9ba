"""mteb's tasks by name: found, run one at a time, their results kept in mteb's own layout, a killed run continued."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.mteb.adapter import MtebEncoder


class MissingData(UserError):
    """A task's data are neither here nor to be had; the message is the reason."""


def find_tasks(
    names: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
    subsets: Mapping[str, Sequence[str]] | None = None,
) -> list[Any]:
    """mteb's tasks.

    Args:
        names: as mteb has them.
        languages: ISO 639-3 codes; a multilingual task's other languages are left out.
        split: that tasks are evaluated on; their own where not given.
        splits: name -> splits of a task that is evaluated on others.
        subsets: name -> subsets of a task (such as ``en-en``).

    Raises:
        UserError: a name twice, an unknown name, or a split or subset that a task lacks.
    """
    from mteb.get_tasks import _TASKS_REGISTRY, get_task

    for argument, chosen in (("splits", splits or {}), ("subsets", subsets or {})):
        for name in chosen:
            if name not in names:
                raise UserError(f"{argument}: {name!r} is not one of the tasks{suggestion(name, names)}")
    found = []
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"tasks: {name!r} is named twice")
        if name not in _TASKS_REGISTRY:
            raise UserError(f"tasks: mteb has no task {name!r}{suggestion(name, _TASKS_REGISTRY)}")
        given_splits = (splits or {}).get(name, [split] if split is not None else None)
        try:
            task = get_task(name, languages=languages, eval_splits=given_splits, hf_subsets=(subsets or {}).get(name))
        except (ValueError, KeyError) as error:
            raise UserError(f"tasks: {name}: {str(error).splitlines()[0]}") from None
        lacking = [s for s in given_splits or [] if s not in task.metadata.eval_splits]
        if lacking:
            raise UserError(f"tasks: {name}: has no split {lacking[0]!r} (its own: {', '.join(task.metadata.eval_splits)})")
        found.append(task)
    return found


def run_task(encoder: MtebEncoder, task: Any, folder: Path) -> Any:
    """mteb's ``TaskResult`` of a task, from ``folder`` where it is finished there.

    Args:
        encoder: the model.
        task: one of mteb's tasks; of an aggregate its parts are kept one by one.
        folder: gets ``results/<organisation>__<name>/<revision>/<Task>.json`` and ``model_meta.json``.

    Raises:
        MissingData: the data can be had neither from the cache of data sets nor from the network.
        UserError: the score is not a number.
    """
    import mteb
    from mteb.cache import ResultCache

    cache = ResultCache(cache_path=folder)
    meta = encoder.mteb_model_meta
    # an aggregate is run part by part: its own result is what mteb makes of theirs, and a part that lacks its data is told
    parts = list(getattr(task.metadata, "tasks", None) or [])
    for part in parts or [task]:
        if not _finished(cache, part, meta):
            loaded = _load(part)
            _evaluate(mteb, encoder, part, cache)
            if loaded:
                part.unload_data()
    if parts:
        _finished(cache, task, meta)
    result = _evaluate(mteb, encoder, task, cache).task_results[0]
    if not np.isfinite(main_score(result)):
        raise UserError(f"{task.metadata.name}: {meta.name}'s {task.metadata.main_score} is not a number (are its embeddings all alike?)")
    return result


@contextmanager
def offline() -> Iterator[None]:
    """Let the block's tasks take their data from the cache alone: asking a hub that cannot be reached takes 20 s a task."""
    import datasets.config
    import huggingface_hub.constants

    modules: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def main_score(result: Any) -> float:
    """A task's score: the mean of its main score over splits and subsets."""
    return float(result.get_score())


def metric_name(task: Any) -> str:
    """The main metric in the project's own spelling: ``ndcg@10`` for mteb's ``ndcg_at_10``."""
    return str(task.metadata.main_score).replace("_at_", "@")


def result_path(folder: Path, encoder: MtebEncoder, task: Any) -> Path:
    """Where a task's result lies."""
    from mteb.cache import ResultCache

    return Path(ResultCache(cache_path=folder).get_task_result_path(task.metadata.name, encoder.mteb_model_meta))


def averages(scores: Mapping[str, float], types: Mapping[str, str]) -> dict[str, float]:
    """``<Type>`` -> mean over the type's tasks, and ``all`` -> mean over all tasks (as the paper's Table 3 has them).

    Args:
        scores: task -> score.
        types: task -> mteb's type.
    """
    means = {kind: float(np.mean([scores[t] for t in scores if types[t] == kind])) for kind in sorted({types[t] for t in scores})}
    return means | {"all": float(np.mean(list(scores.values())))} if scores else {}


def _evaluate(mteb: Any, encoder: MtebEncoder, task: Any, cache: Any) -> Any:
    # mteb's own bars and notes would break our progress line
    logging.getLogger("mteb").setLevel(logging.ERROR)
    options = {"batch_size": 256, "show_progress_bar": False}  # of mteb's loader of texts, not of the model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*superseded by.*")  # the benchmark's own tasks are wanted, not newer ones
        return mteb.evaluate(encoder, task, cache=cache, co2_tracker=False, encode_kwargs=options, show_progress_bar=False)


def _finished(cache: Any, task: Any, meta: Any) -> bool:
    """Whether a whole result is there; what mteb could not read, or would take for this data's result, is removed.

    mteb writes a result in place, so a kill leaves half a file; and it keeps a result of another revision of the data.
    """
    path = Path(cache.get_task_result_path(task.metadata.name, meta))
    if not path.is_file():
        return False
    try:
        revision = json.loads(path.read_text(encoding="utf-8"))["dataset_revision"]
    except (ValueError, KeyError, TypeError):
        revision = None
    if revision != task.metadata.revision:
        path.unlink()
        return False
    return not cache.load_task_result(task.metadata.name, meta).get_missing_evaluations(task)


def _load(task: Any) -> bool:
    """Load a task's data; whether they were not loaded before."""
    if task.data_loaded:
        return False
    try:
        task.load_data()
    except MemoryError:
        raise
    except Exception as error:  # every library on the way to the hub has errors of its own
        raise MissingData((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    return True
