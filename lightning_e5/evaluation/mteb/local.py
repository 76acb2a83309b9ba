"""mteb's own tasks fed from files in the layouts of our evaluation, instead of from the model hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.evaluation.mteb.adapter import is_quora
from lightning_e5.evaluation.tasks.labelled import LabelledTexts, load_labelled, load_split
from lightning_e5.evaluation.tasks.pair_classification import PairClassificationTask
from lightning_e5.evaluation.tasks.reranking import RerankingTask
from lightning_e5.evaluation.tasks.sts import load_sts
from lightning_e5.files.storage import sha256_file


def feed(task: Any, path: Path) -> None:
    """Give a task its data from files; its result then names them (``local-<hash>``) instead of the hub's revision.

    Args:
        task: one of mteb's tasks, of one split and one subset.
        path: retrieval: a folder in BEIR's layout; classification: a folder with ``train.jsonl`` and ``<split>.jsonl``;
            STS, pair classification, re-ranking and clustering: a file as the evaluation's own tasks read it. A clustering
            file is one set of texts.

    Raises:
        UserError: files that the loaders refuse, or a task of a kind or with splits that files cannot give.
    """
    from datasets import Dataset

    name = task.metadata.name
    if len(task.eval_splits) != 1 or len(task.hf_subsets) != 1:
        raise UserError(f"{name}: files give one split of one subset, not {', '.join(task.eval_splits)} of {', '.join(task.hf_subsets)}")
    split, subset = task.eval_splits[0], task.hf_subsets[0]
    kind = task.metadata.type
    nested = False
    if kind == "Retrieval":
        data, nested = {split: _retrieval(path, split, title=not is_quora(task.metadata))}, True
    elif kind == "Reranking":
        data, nested = {split: _reranking(path, split)}, True
    elif kind == "STS" and isinstance(task.column_names[0], str):
        pairs = load_sts(path, split=split)
        data = {split: Dataset.from_dict({task.column_names[0]: pairs.first, task.column_names[1]: pairs.second, "score": pairs.scores})}
    elif kind == "PairClassification":
        two = PairClassificationTask.load(path, split=split)
        columns = (task.input1_column_name, task.input2_column_name, task.label_column_name)
        data = {split: Dataset.from_dict(dict(zip(columns, (two.first, two.second, two.labels), strict=True)))}
    elif kind == "Classification":
        parts = {task.train_split: load_split(path, "train"), split: load_split(path, split)}
        order = {label: number for number, label in enumerate(np.unique(parts[task.train_split].array()).tolist())}
        data = {part: Dataset.from_dict(_labelled(task, texts, order)) for part, texts in parts.items()}
    elif kind == "Clustering" and task.input_column_name == "sentences":
        texts = load_labelled(path, split=split)
        row = {task.input_column_name: [texts.texts], task.label_column_name: [[str(label) for label in texts.labels]]}
        data = {split: Dataset.from_dict(row)}
    else:
        raise UserError(f"{name}: mteb's tasks of this kind ({kind}) cannot be read from files")
    task.dataset = {subset: data} if nested or task.metadata.is_multilingual else data
    revision = {"path": "local", "revision": f"local-{_digest(path)}"}
    task.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, **revision}})
    task.data_loaded = True


def _retrieval(path: Path, split: str, *, title: bool) -> dict[str, Any]:
    from datasets import Dataset

    data = load_beir(path, split, with_title=title)
    # the title is before the text already, as mteb itself puts it
    corpus = {"id": list(data.corpus), "title": [""] * len(data.corpus), "text": list(data.corpus.values())}
    queries = {"id": list(data.queries), "text": list(data.queries.values())}
    return {"corpus": Dataset.from_dict(corpus), "queries": Dataset.from_dict(queries), "relevant_docs": data.qrels, "top_ranked": None}


def _reranking(path: Path, split: str) -> dict[str, Any]:
    from datasets import Dataset

    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    judged: dict[str, dict[str, int]] = {}
    for number, one in enumerate(RerankingTask.load(path, split=split).lists):
        query = f"q{number}"
        queries[query] = one.query
        found = {f"a-{query}-{i:05d}": (text, 1) for i, text in enumerate(one.positive)}
        found |= {f"b-{query}-{i:05d}": (text, 0) for i, text in enumerate(one.negative)}
        corpus |= {document: text for document, (text, _) in found.items()}
        judged[query] = {document: grade for document, (_, grade) in found.items()}
    return {
        "corpus": Dataset.from_dict({"id": list(corpus), "title": [""] * len(corpus), "text": list(corpus.values())}),
        "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
        "relevant_docs": judged, "top_ranked": {query: list(documents) for query, documents in judged.items()},
    }  # fmt: skip


def _labelled(task: Any, texts: LabelledTexts, order: dict[Any, int]) -> dict[str, list[Any]]:
    unknown = next((label for label in texts.labels if label not in order), None)
    if unknown is not None:
        raise UserError(f"{texts.path}: the label {unknown!r} is not in the training part")
    return {task.input_column_name: texts.texts, task.label_column_name: [order[label] for label in texts.labels]}


def _digest(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(f"{p.name} {sha256_file(p)}\n" for p in files).encode()).hexdigest()[:32]
