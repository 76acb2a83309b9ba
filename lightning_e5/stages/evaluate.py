"""Stage: judge encoders and baselines on retrieval collections and on the other tasks, with intervals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from lightning_e5.configurable import configurable
from lightning_e5.curation.cleaning.contamination import Contamination, JudgedQueries, check_training_texts
from lightning_e5.distributed.devices import Precision
from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir.average import BEIR15, BeirAverage, metrics_of
from lightning_e5.evaluation.beir.collection import Collection, check_rules, load_collection, rules_of
from lightning_e5.evaluation.beir.cosine_sample import CosineSample, RememberingEncoder
from lightning_e5.evaluation.beir.metrics import DEFAULT_METRICS
from lightning_e5.evaluation.beir.model_differences import all_differences, checked_previous, compare_models
from lightning_e5.evaluation.beir.retrieval import RetrievalResult, Searcher
from lightning_e5.evaluation.loaded_models import Judged, load_models
from lightning_e5.evaluation.published import Published, check_published, published_of
from lightning_e5.evaluation.statistics.decision import decide_together
from lightning_e5.evaluation.tasks.classification import SAMPLES_PER_LABEL, ClassificationTask
from lightning_e5.evaluation.tasks.clustering import ClusteringTask
from lightning_e5.evaluation.tasks.labelled import load_split
from lightning_e5.evaluation.tasks.pair_classification import PairClassificationTask
from lightning_e5.evaluation.tasks.reranking import RerankingTask
from lightning_e5.evaluation.tasks.sts import STSTask, load_sts
from lightning_e5.evaluation.tasks.task import Task
from lightning_e5.evaluation.tasks.zero_shot import ZeroShotPrompts, ZeroShotTask
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import check_component, write_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.ranges import Count, Length, Range
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.tracking.run_directory import warn
from lightning_e5.types import Embedder

#: The metric that intervals and differences are given for.
MAIN_METRIC = "ndcg@10"
#: The rows of all tasks beside retrieval.
TASKS_TABLE = "tasks.json"


@configurable("stage")
def evaluate(
    out: Path,
    *,
    collections: Mapping[str, Path] | None = None,
    sts: Mapping[str, Path] | None = None,
    classification: Mapping[str, Path] | None = None,
    clustering: Mapping[str, Path] | None = None,
    pair_classification: Mapping[str, Path] | None = None,
    reranking: Mapping[str, Path] | None = None,
    zero_shot: Mapping[str, ZeroShotPrompts] | None = None,
    encoders: Mapping[str, Path] | None = None,
    word_vectors: Path | None = None,
    baselines: Mapping[str, Searcher | Embedder] | None = None,
    reference: str | None = None,
    previous: Mapping[str, str | Sequence[str]] | None = None,
    split: str = "test",
    rules: Mapping[str, str] | None = None,
    k: Count = 100,
    metrics: Sequence[str] = DEFAULT_METRICS,
    samples_per_label: Mapping[str, Count] | None = None,
    normalize_features: bool = False,
    precision: Precision = "fp32",
    prefixes: Mapping[str, str] | None = None,
    max_length: Length | None = None,
    prefix_ablation: bool = False,
    published: Mapping[str, Mapping[str, Annotated[float, Range(-100, 100)]]] | None = None,
    training_texts: Mapping[str, Path] | None = None,
    trained_on: Mapping[str, Sequence[str]] | None = None,
    cosines: bool = True,
    index: VectorIndex | None = None,
    cache_dir: Path | str | None = None,
    seed: int,
) -> dict[str, float]:
    """Write ``<model>/<set>/`` (TREC run, per-query or per-item values), ``table.json`` and ``tasks.json``.

    Args:
        collections: name -> folder in BEIR layout. One with the name of a public set of BEIR is judged by that set's
            rules (`BEIR_SETS`), and its row says so; all 15 of them also give ``<model>/beir15/ndcg@10``.
        sts, pair_classification: name -> file of sentence pairs (see `load_sts`, `PairClassificationTask.load`).
        classification: name -> folder with ``train.jsonl`` and ``<split>.jsonl`` of ``text`` and ``label``.
        clustering: name -> JSONL(.gz) file of ``text`` and ``label``.
        reranking: name -> JSONL(.gz) file of ``query``, ``positive`` and ``negative``.
        zero_shot: name of a classification set -> how its texts and labels are worded.
        encoders: model name -> stage folder or encoder folder.
        word_vectors: folder of the averaged word vectors; judged as ``word-vectors``.
        baselines: model name -> an object with ``retrieve`` (BM25).
        reference: the model that all others are compared with, pairwise over queries.
        previous: model -> the step of the recipe before it, or several models, the step before it first: it is compared with
            them, too.
        split: of the judgements, of the classification sets, and of every other file that has a column ``split``.
        rules: collection -> the set of BEIR whose rules it is judged by, or ``none``, instead of by its name.
        k: passages retrieved per query.
        metrics: of retrieval; ``ndcg@10`` is always one.
        samples_per_label: name of a classification set -> few-shot samples; 8 where not given.
        normalize_features: probe unit vectors (see `ClassificationTask`).
        precision: of the encoders' backbones; search and scores are always float32.
        prefixes: ``query`` and ``passage``, for all encoders; refused where a model folder stores others.
        max_length: tokens per text, for all encoders; as stored in their folders where not given.
        prefix_ablation: allow other prefixes; the rows are labelled.
        published: model -> ``<set>/<metric>`` -> a published figure, shown beside ours.
        training_texts: name -> folder of pairs or ``ranked.parquet``. Test queries, pairs and texts that occur in them are
            counted for every model that read no other ones (its folder says what it read), and scores are given without
            all items that occur in any of them (see `lightning_e5.curation.cleaning.contamination`).
        trained_on: model -> names of ``training_texts`` that it read, where its folder does not say.
        cosines: keep cosines of judged and of random pairs for the report.
        index: an empty index to search embeddings with (`FaissIndex`); its recall against exact search stands in the
            table. Exact search by default.
        cache_dir: folder to keep the passages' embeddings in, and to search them from.

    Returns:
        ``<model>/<set>/<metric>``, and of each set's main metric (``ndcg@10`` for retrieval) also ``_low`` and ``_high``,
        the 95% interval, and with ``training_texts`` ``<metric>_clean``. Decisions of the retrieval table hold for all its
        differences together (Holm).

    Raises:
        UserError: nothing to judge, a wrong name, a damaged file, or prefixes that are not the model's.
    """
    folders = classification or {}
    for argument, chosen in (("samples_per_label", [*(samples_per_label or {})]), ("zero_shot", [*(zero_shot or {})])):
        for name in chosen:
            if name not in folders:
                raise UserError(f"evaluate.{argument}: {name!r} is not one of the classification sets{suggestion(name, folders)}")
    if not any((collections, sts, classification, clustering, pair_classification, reranking)):
        raise UserError("evaluate: nothing to judge on (give collections, sts, classification, clustering, pair_classification or reranking)")
    _check_names((collections, sts, classification, clustering, pair_classification, reranking))
    check_rules(rules, collections)
    models = load_models(
        encoders or {}, word_vectors, baselines or {}, precision=precision, prefixes=prefixes, max_length=max_length,
        prefix_ablation=prefix_ablation,
    )  # fmt: skip
    if not collections and not any(judged.embeds for judged in models.values()):
        raise UserError(f"evaluate: {', '.join(models)} can only search, and there is no collection to search (give collections)")
    for name in models:
        if check_component(name, "evaluate: a model").endswith(".json"):
            raise UserError(f"evaluate: a model: {name!r} could be the name of a table; give it another")
    check_training_texts(training_texts or {}, trained_on or {}, models)
    compared_with = checked_previous(previous, list(models))
    if reference is not None and reference not in models:
        raise UserError(f"evaluate.reference: {reference!r} is not one of the models ({', '.join(models)})")
    probe = {"normalize": normalize_features}
    samples = samples_per_label or {}
    tasks: list[Task] = [
        *(STSTask(load_sts(p, n, split)) for n, p in (sts or {}).items()),
        *(ClassificationTask.load(p, split, n, samples_per_label=samples.get(n, SAMPLES_PER_LABEL), **probe) for n, p in folders.items()),
        *(ZeroShotTask(load_split(folders[n], split, n), wording) for n, wording in (zero_shot or {}).items()),
        *(PairClassificationTask.load(p, n, split) for n, p in (pair_classification or {}).items()),
        *(RerankingTask.load(p, n, split) for n, p in (reranking or {}).items()),
        *(ClusteringTask.load(p, n, split) for n, p in (clustering or {}).items()),
    ]
    found: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    average, queries = BeirAverage(), dict[str, JudgedQueries]()
    measured = [MAIN_METRIC, *(m for m in metrics if m != MAIN_METRIC)]
    for collection, folder in (collections or {}).items():
        judged_by = load_collection(folder, collection, split=split, rules=rules_of(collection, rules))
        if without := judged_by.data.left_out.get("queries_without_text"):
            warn(f"{collection}: {without:,} judged queries are left out, since the queries file has no text of them")
        results: dict[str, RetrievalResult] = {}
        sample = CosineSample(judged_by, seed) if cosines else None
        encoders_here = sum(isinstance(judged.model, TextEncoder) for judged in models.values())
        with progress(encoders_here * _texts_of(judged_by), collection, "text") as bar:
            for name, judged in models.items():
                started = time.perf_counter()
                model = judged.model
                if isinstance(model, TextEncoder) and index is None and cache_dir is None:
                    model = RememberingEncoder(model, sample.texts() if sample is not None else set(), progress=bar)
                results[name] = judged_by.evaluate(model, k=k, metrics=measured, index=index, cache_dir=cache_dir)
                results[name].save(out / name / collection)
                found |= {f"{name}/{collection}/{m}": v for m, v in results[name].metrics.items()}
                row = _retrieval_row(judged, judged_by, results[name], published_of(published or {}, name, collection))
                table.append({"model": name, "collection": collection, "seconds": time.perf_counter() - started, **row})
                if sample is not None and isinstance(judged.model, TextEncoder):
                    write_parquet(out / name / collection / "cosines.parquet", sample.cosines(model))
        rows = {row["model"]: row for row in table if row["collection"] == collection}
        found |= compare_models(
            judged_by, results, MAIN_METRIC, rows, reference=reference, previous=compared_with, seed=seed
        )  # fmt: skip
        average.add(judged_by, results)
        per_query = {name: result.per_query for name, result in results.items()}
        queries[collection] = JudgedQueries(judged_by.query_groups(), judged_by.data.queries, per_query)
    decide_together(all_differences(table))
    contamination = Contamination(queries, tasks, training_texts or {}, trained_on or {})
    found |= contamination.retrieval(table, models, MAIN_METRIC)
    found |= judge_tasks(
        out, tasks, models, published or {}, split if folders else None, seed, contamination, average.rows(seed)
    )  # fmt: skip
    check_published(published or {}, models, found)
    write_json(out / "timing_table.json", table)
    write_json(out / "table.json", [{k: v for k, v in row.items() if k != "seconds"} for row in table])
    return found


def _check_names(groups: Sequence[Mapping[str, Path] | None]) -> None:
    """UserError for two sets of one name, whose metrics would be one another's."""
    names = [BEIR15, *(name for group in groups for name in group or {})]
    for name in names:
        check_component(name, "evaluate: a set")
        if names.count(name) > 1:
            raise UserError(f"evaluate: two sets are named {name!r}")


def _texts_of(collection: Collection) -> int:
    """How many texts an encoder embeds to be evaluated on a collection."""
    return len(collection.data.queries) + len(collection.data.corpus)


def judge_tasks(
    out: Path, tasks: Sequence[Task], models: Mapping[str, Judged], published: Published, split: str | None, seed: int,
    contamination: Contamination, averages: Sequence[Mapping[str, Any]] = (),
) -> dict[str, float]:
    """Every task beside retrieval with every model that embeds: ``<model>/<set>/`` and ``tasks.json``; flat metrics.

    ``averages``: further rows of the table, of retrieval's averages.
    """  # fmt: skip
    found: dict[str, float] = metrics_of(averages)
    rows: list[dict[str, Any]] = []
    for average in averages:
        figure = published_of(published, average["model"], average["set"]).get(average["metric"])
        rows.append({**average} if figure is None else {**average, "published": figure})
    embedders = {name: judged for name, judged in models.items() if judged.embeds}
    for task in tasks:
        texts = task.texts()
        with progress(len(embedders), f"evaluate on {task.name}", "model") as bar:
            for name, judged in embedders.items():
                result = task.evaluate(judged.model, seed=seed)
                found |= {f"{name}/{task.name}/{m}": v for m, v in result.metrics.items()}
                write_parquet(out / name / task.name / result.file, result.columns)
                row = {"model": name, "set": task.name, **result.row(), **judged.seen, **judged.facts({"query": texts})}
                found |= contamination.task(row, judged, result)
                if split is not None and isinstance(task, ClassificationTask | ZeroShotTask):
                    row["split"] = split
                figure = published_of(published, name, task.name).get(result.metric)
                rows.append(row if figure is None else {**row, "published": figure})
                bar(1)
    if rows:
        write_json(out / TASKS_TABLE, rows)
    return found


def _retrieval_row(judged: Judged, collection: Collection, result: RetrievalResult, published: Mapping[str, float]) -> dict[str, Any]:
    """What a row of the retrieval table says beside the figures."""
    facts = {**judged.facts(collection.texts()), **collection.facts()}
    row = {**judged.seen, "split": result.split, **result.counts, "tied": result.tied.get(10), **facts}
    spread = {m: [low, result.highest[m]] for m, low in result.lowest.items() if low != result.highest[m]}
    row |= {"tie_range": spread} if spread else {}  # over all orders of equal scores
    return {**row, "published": dict(published)} if published else row
