"""Stage: evaluate encoders and baselines on retrieval collections and on the other tasks, with intervals."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from lightning_e5.configurable import configurable
from lightning_e5.curation.engines.encoder import TasksOn
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.distributed.devices import Precision
from lightning_e5.evaluation import evaluate as evaluation
from lightning_e5.evaluation.beir.data import write_beir
from lightning_e5.evaluation.beir.metrics import DEFAULT_METRICS
from lightning_e5.evaluation.beir.retrieval import Searcher
from lightning_e5.evaluation.load_tasks import KINDS, TaskSettings, load_tasks
from lightning_e5.evaluation.loaded_models import ModelSpec, given_prefixes
from lightning_e5.evaluation.tasks.retrieval import CollectionTask
from lightning_e5.evaluation.tasks.task import EvalTask
from lightning_e5.evaluation.tasks.zero_shot import ZeroShotPrompts
from lightning_e5.files.run_layout import NANO_BEIR_SETS
from lightning_e5.files.storage import safe_component
from lightning_e5.ranges import Count, Length, Range, Size, WorkersOrZero
from lightning_e5.result_row import at_dimensions, flat
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.tracking.run_directory import warn
from lightning_e5.types import Embedder


@configurable("stage")
def evaluate(
    out: Path,
    *,
    collections: Mapping[str, Path] | None = None,
    nano_beir: Path | str | None = None,
    nano_sets: Sequence[str] = (),
    sts: Mapping[str, Path] | None = None,
    classification: Mapping[str, Path] | None = None,
    clustering: Mapping[str, Path] | None = None,
    pair_classification: Mapping[str, Path] | None = None,
    reranking: Mapping[str, Path] | None = None,
    zero_shot: Mapping[str, ZeroShotPrompts] | None = None,
    encoders: Mapping[str, Path] | None = None,
    word_vectors: Path | None = None,
    baselines: Mapping[str, Searcher | Embedder] | None = None,
    fusions: Mapping[str, Sequence[str]] | None = None,
    reference: str | None = None,
    previous: Mapping[str, str | Sequence[str]] | None = None,
    split: str = "test",
    rules: Mapping[str, str] | None = None,
    k: Count = 100,
    metrics: Sequence[str] = DEFAULT_METRICS,
    samples_per_label: Mapping[str, Count] | None = None,
    normalize_features: bool = False,
    precision: Precision = "bf16-gpu",
    prefixes: Mapping[str, str] | None = None,
    max_length: Length | None = None,
    prefix_ablation: bool = False,
    truncate_dim: Size | Sequence[Size] | None = None,
    published: Mapping[str, Mapping[str, Annotated[float, Range(-100, 100)]]] | None = None,
    training_texts: Mapping[str, Path] | None = None,
    trained_on: Mapping[str, Sequence[str]] | None = None,
    compare_tasks: bool = False,
    selected_on_this: bool = False,
    cosines: bool = True,
    index: VectorIndex | None = None,
    cache_dir: Path | str | None = None,
    engine: Engine | Literal["local", "ray"] | None = None,
    gpus_per_task: WorkersOrZero = 0,
    seed: int,
) -> dict[str, float]:
    """Write ``<model>/<set>/`` (TREC run, per-query or per-item values), ``table.json`` and ``tasks.json``; NanoBEIR's sets to ``nano_beir/``.

    Args:
        collections: name -> folder in BEIR layout. One with the name of a public set of BEIR is evaluated by that set's
            rules (`BEIR_SETS`), and its row says so; all 15 of them also give ``<model>/beir15/ndcg@10``.
        nano_beir: a folder of NanoBEIR's Parquet files or its name on the Hub (see `load_nano_beir`): 13 small collections
            ``nano-msmarco`` ..., each by the rules of the set that it is a sample of; all of them also give ``<model>/nano-beir/ndcg@10``.
        nano_sets: those of them that are evaluated; all 13 by default.
        sts, pair_classification: name -> file of sentence pairs (see `load_sts`, `PairClassificationTask.load`).
        classification: name -> folder with ``train.jsonl`` and ``<split>.jsonl`` of ``text`` and ``label``.
        clustering: name -> JSONL(.gz) file of ``text`` and ``label``.
        reranking: name -> JSONL(.gz) file of ``query``, ``positive`` and ``negative``.
        zero_shot: name of a classification set -> how its texts and labels are worded.
        encoders: model name -> stage folder or encoder folder.
        word_vectors: folder of the averaged word vectors; shown as ``word-vectors``.
        baselines: model name -> an object with ``retrieve`` (BM25).
        fusions: model name -> names of models of this evaluation whose rankings are fused by reciprocal ranks and evaluated as one more.
        reference: the model that all others are compared with, pairwise over queries.
        previous: model -> the step of the recipe before it, or several models, the step before it first: it is compared with
            them, too.
        split: of the judgements, of the classification sets, and of every other file that has a column ``split``; NanoBEIR has one only.
        rules: collection (or set of NanoBEIR) -> the set of BEIR whose rules it is evaluated by, or ``none``, instead of by its name.
        k: passages retrieved per query.
        metrics: of retrieval; ``ndcg@10`` is always one.
        samples_per_label: name of a classification set -> few-shot samples; 8 where not given.
        normalize_features: probe unit vectors (see `ClassificationTask`).
        precision: of the encoders' backbones; search and scores are always float32.
        prefixes: ``query`` and ``passage``, for all encoders; refused where a model folder stores others.
        max_length: tokens per text, for all encoders; as stored in their folders where not given.
        prefix_ablation: allow other prefixes; the rows are labelled.
        truncate_dim: the first values of the encoders' embeddings that are compared, of unit length again; of several numbers each is
            a model of its own, ``NAME@NUMBER``, which ``reference`` and the like call so. What the folders store where not given.
        published: model -> ``<set>/<metric>`` -> a published figure, shown beside ours.
        training_texts: name -> folder of pairs or ``ranked.parquet``. Test queries, pairs and texts that occur in them are
            counted for every model that read no other ones (its folder says what it read), and scores are given without
            all items that occur in any of them (see `lightning_e5.evaluation.contamination`).
        trained_on: model -> names of ``training_texts`` that it read, where its folder does not say.
        compare_tasks: compare the models with ``reference`` and ``previous`` on the other tasks, too, item by item (clustering's
            clusters alone cannot be); what is said of differences holds for those of all tasks together then.
        selected_on_this: evaluate models on a set that chose their weights in a validation, too; such rows say so.
        cosines: keep cosines of judged and of random pairs for the report.
        index: an empty index to search embeddings with (`FaissIndex`); its recall against exact search stands in the
            table. Exact search by default.
        cache_dir: folder to keep the passages' embeddings in, and to search them from.
        engine: ``local``, ``ray`` or an engine with settings embeds the texts of large sets (over 32,768) as tasks; None in this process.
        gpus_per_task: GPUs of each task.

    Returns:
        ``<model>/<set>/<metric>``, and of each set's main metric (``ndcg@10`` for retrieval) also ``_low`` and ``_high``,
        the 95% interval, and with ``training_texts`` ``<metric>_clean``. Decisions of the retrieval table hold for all its
        differences together (Holm).

    Raises:
        UserError: nothing to evaluate, a wrong name, a damaged file, or prefixes that are not the model's.
    """
    given = (collections, sts, classification, clustering, pair_classification, reranking)
    settings = TaskSettings(
        split, rules or {}, k, metrics, index, cache_dir, cosines, samples_per_label or {}, normalize_features, zero_shot or {},
        nano_beir, nano_sets,
    )  # fmt: skip
    tasks = load_tasks({kind: places or {} for kind, places in zip(KINDS, given, strict=True)}, settings, warn)
    own, parts = given_prefixes(prefixes), out / "parts"
    models = [
        *(ModelSpec(name, baseline) for name, baseline in (baselines or {}).items()),
        *([ModelSpec("word-vectors", word_vectors)] if word_vectors is not None else []),
        *(
            ModelSpec(
                name, folder, precision, own, max_length, prefix_ablation, dimensions,
                None if engine is None else TasksOn(engine, gpus_per_task, parts / safe_component(name)),
            )
            for name, (folder, dimensions) in at_dimensions(encoders or {}, truncate_dim).items()
        ),
    ]
    rows = evaluation.evaluate(
        models, _kept(tasks, out / NANO_BEIR_SETS, collections or {}), seed=seed, out=out, reference=reference, previous=previous, published=published,
        training_texts=training_texts, trained_on=trained_on, compare_tasks=compare_tasks, fusions=fusions,
        selected_on_this=selected_on_this,
    )  # fmt: skip
    shutil.rmtree(parts, ignore_errors=True)
    return flat(rows)


def _kept(tasks: Iterable[EvalTask], folder: Path, given: Mapping[str, Path]) -> Iterator[EvalTask]:
    """The tasks; collections that no input gave, which are NanoBEIR's, are written, so that a report finds their texts."""
    for task in tasks:
        if isinstance(task, CollectionTask) and task.name not in given:
            write_beir(folder / task.name, task.collection.data)
        yield task
