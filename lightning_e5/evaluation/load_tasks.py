"""The tasks of an evaluation from the places of their data: one reader of the stage's arguments and of the command's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir.average import AVERAGES
from lightning_e5.evaluation.beir.collection import Collection, check_rules, load_collection, rules_of
from lightning_e5.evaluation.beir.metrics import DEFAULT_METRICS
from lightning_e5.evaluation.beir.nano import load_nano_set, nano_files, nano_set_names
from lightning_e5.evaluation.tasks.classification import SAMPLES_PER_LABEL, ClassificationTask
from lightning_e5.evaluation.tasks.clustering import ClusteringTask
from lightning_e5.evaluation.tasks.labelled import load_split
from lightning_e5.evaluation.tasks.pair_classification import PairClassificationTask
from lightning_e5.evaluation.tasks.reranking import RerankingTask
from lightning_e5.evaluation.tasks.retrieval import CollectionTask
from lightning_e5.evaluation.tasks.sts import STSTask, load_sts
from lightning_e5.evaluation.tasks.task import EvalTask
from lightning_e5.evaluation.tasks.zero_shot import ZeroShotPrompts, ZeroShotTask
from lightning_e5.files.storage import check_component
from lightning_e5.progress import say
from lightning_e5.retrieval.exact import VectorIndex

#: The kinds of data, as the stage's arguments name them.
KINDS = ("collections", "sts", "classification", "clustering", "pair_classification", "reranking")


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are done; each is described at the argument of its name of `lightning_e5.stages.evaluate.evaluate`."""

    split: str = "test"
    rules: Mapping[str, str] = field(default_factory=dict)
    k: int = 100
    metrics: Sequence[str] = DEFAULT_METRICS
    index: VectorIndex | None = None
    cache_dir: Path | str | None = None
    cosines: bool = False
    samples_per_label: Mapping[str, int] = field(default_factory=dict)
    normalize_features: bool = False
    zero_shot: Mapping[str, ZeroShotPrompts] = field(default_factory=dict)
    nano_beir: Path | str | None = None
    nano_sets: Sequence[str] = ()


def load_tasks(data: Mapping[str, Mapping[str, Path]], settings: TaskSettings, warn: Callable[[str], None] = say) -> Iterable[EvalTask]:
    """The tasks: retrieval's collections and NanoBEIR's sets, each read when it is its turn, then the others, read before them.

    Args:
        data: one of `KINDS` -> name -> file or folder.
        settings: of the tasks.
        warn: called with messages for the user.

    Raises:
        UserError: at once for a wrong name and for no data; when they are read, for data that are none.
    """
    folders = data.get("classification", {})
    for argument, chosen in (("samples_per_label", settings.samples_per_label), ("zero_shot", settings.zero_shot)):
        for name in chosen:
            if name not in folders:
                raise UserError(f"evaluate.{argument}: {name!r} is not one of the classification sets{suggestion(name, folders)}")
    if settings.nano_beir is None and settings.nano_sets:
        raise UserError(f"evaluate.nano_sets: {', '.join(settings.nano_sets)} are sets of NanoBEIR, and nano_beir does not say where it is")
    nano = [] if settings.nano_beir is None else nano_set_names(settings.nano_beir, settings.nano_sets)
    if not any(data.values()) and not nano:
        raise UserError(f"evaluate: nothing to evaluate on (give {', '.join(KINDS)} or nano_beir)")
    names = [*AVERAGES, *nano, *(name for kind in KINDS for name in data.get(kind, {}))]
    for name in names:
        check_component(name, "evaluate: a set")
        if names.count(name) > 1:  # the metrics of one would be the other's
            raise UserError(f"evaluate: two sets are named {name!r}")
    check_rules(settings.rules, {**data.get("collections", {}), **dict.fromkeys(nano)})
    return _read(data, settings, warn)


def _read(data: Mapping[str, Mapping[str, Path]], settings: TaskSettings, warn: Callable[[str], None]) -> Iterator[EvalTask]:
    split, folders = settings.split, data.get("classification", {})
    nano = [] if settings.nano_beir is None else nano_files(settings.nano_beir, settings.nano_sets)
    probes = {name: (settings.samples_per_label.get(name, SAMPLES_PER_LABEL), settings.normalize_features) for name in folders}
    others: list[EvalTask] = [
        *(STSTask(load_sts(path, name, split)) for name, path in data.get("sts", {}).items()),
        *(ClassificationTask(load_split(path, "train", name), load_split(path, split, name), *probes[name]) for name, path in folders.items()),
        *(ZeroShotTask(load_split(folders[name], split, name), prompts) for name, prompts in settings.zero_shot.items()),
        *(PairClassificationTask.load(path, name, split) for name, path in data.get("pair_classification", {}).items()),
        *(RerankingTask.load(path, name, split) for name, path in data.get("reranking", {}).items()),
        *(ClusteringTask.load(path, name, split) for name, path in data.get("clustering", {}).items()),
    ]
    for name, folder in data.get("collections", {}).items():
        collection = load_collection(folder, name, split=split, rules=rules_of(name, settings.rules))
        if without := collection.data.left_out.get("queries_without_text"):
            warn(f"{name}: {without:,} judged queries are left out, since the queries file has no text of them")
        yield _task(collection, settings)
    for files in nano:
        collection = load_nano_set(files, rules_of(files.name, settings.rules))
        if without := collection.data.left_out.get("documents_without_text"):
            warn(f"{files.name}: {without:,} documents without a text are left out; {collection.data.missing_documents:,} judgements name one of them")
        yield _task(collection, settings)
    yield from others


def _task(collection: Collection, settings: TaskSettings) -> CollectionTask:
    return CollectionTask(collection, settings.k, settings.metrics, settings.index, settings.cache_dir, settings.cosines)
