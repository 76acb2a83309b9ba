"""E5's rules for mteb's tasks: prefixes by task, lengths by task, and what stands in mteb's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mteb import get_task
from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol, SearchProtocol
from mteb.types import PromptType

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.mteb.adapter import MtebEncoder, encoder_revision, text_kind
from lightning_e5.models.encoder import TextEncoder
from tests.lightning_e5.evaluation.mteb import small_mteb_tasks as small

DATA = RetrievalData("small", "test", {"a": "x", "b": "y"}, {"q1": "x", "q2": "y"}, {"q1": {"a": 1}, "q2": {"b": 1}})


@pytest.mark.parametrize(
    ("task", "side", "kind"),
    [
        ("SciFact", PromptType.query, "query"),
        ("SciFact", PromptType.document, "passage"),
        ("CQADupstackAndroidRetrieval", PromptType.document, "passage"),
        ("QuoraRetrieval", PromptType.document, "query"),
        ("AskUbuntuDupQuestions", PromptType.document, "query"),
        ("STSBenchmark", None, "query"),
        ("SprintDuplicateQuestions", None, "query"),
        ("Banking77Classification", None, "query"),
        ("TwentyNewsgroupsClustering", None, "query"),
        ("SummEval", None, "query"),
    ],
)
def test_prefixes_of_mtebs_own_tasks(task: str, side: Any, kind: str) -> None:
    assert text_kind(get_task(task).metadata, side) == kind


def two(texts: list[str]) -> tuple[list[str], list[int]]:
    return texts, [0, 1] * (len(texts) // 2)


TASKS = {
    "retrieval": (lambda: small.retrieval(DATA), {("query", True), ("passage", True)}),
    "quora": (lambda: small.retrieval(DATA, name="QuoraRetrieval"), {("query", True)}),
    "re-ranking": (lambda: small.retrieval(DATA, {"q1": ["a", "b"], "q2": ["a", "b"]}, "Reranking"), {("query", True)}),
    "sts": (lambda: small.sts(["x", "y", "z"], ["y", "z", "w"], [1.0, 2.0, 3.0]), {("query", True)}),
    "pairs": (lambda: small.pair_classification(["x", "y"], ["y", "z"], [0, 1]), {("query", True)}),
    "clustering": (lambda: small.clustering(["x", "y", "z"], ["1", "2", "1"]), {("query", True)}),
    "classification": (lambda: small.classification(two(["x", "y"]), two(["z", "w"])), {("query", False)}),
}


@pytest.mark.parametrize("name", list(TASKS))
def test_prefixes_and_lengths_that_a_task_asks_for(name: str, table) -> None:  # type: ignore[no-untyped-def]
    make, calls = TASKS[name]
    embedder = table()
    found = small.scores(make(), MtebEncoder(embedder, "tests/small", "1"))
    assert set(embedder.calls) == calls
    assert "main_score" in found


def test_classification_with_unit_vectors_where_it_is_asked_for(table) -> None:  # type: ignore[no-untyped-def]
    embedder = table()
    task = small.classification(two(["x", "y"]), two(["z", "w"]))
    small.scores(task, MtebEncoder(embedder, "tests/small", "1", normalize_probes=True))
    assert set(embedder.calls) == {("query", True)}


@pytest.mark.parametrize(("name", "document"), [("SciFact", "A title and its text"), ("QuoraRetrieval", "and its text")])
def test_titles(name: str, document: str) -> None:
    class Recording:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def embed(self, texts, kind, *, normalize=True):  # type: ignore[no-untyped-def]
            import torch

            self.texts += texts
            return torch.eye(8)[: len(texts)]

    from datasets import Dataset

    task = small.retrieval(DATA, name=name)
    task.load_data()
    task.dataset["default"]["test"]["corpus"] = Dataset.from_dict({"id": ["a", "b"], "title": ["A title", ""], "text": ["and its text", " bare "]})
    embedder = Recording()
    small.scores(task, MtebEncoder(embedder, "tests/small", "1"))
    assert embedder.texts[2] == document and embedder.texts[3].strip() == "bare"


def test_mteb_takes_it_for_an_encoder_and_nothing_else(small_bert, small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    encoder = MtebEncoder(TextEncoder(small_bert, small_tokenizer), "tests/small", "abc")
    assert isinstance(encoder, EncoderProtocol)
    assert not isinstance(encoder, SearchProtocol) and not isinstance(encoder, CrossEncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim, meta.max_tokens, meta.use_instructions) == ("tests/small", "abc", 32, 48, True)
    assert meta.n_parameters == sum(p.numel() for p in small_bert.parameters())


def test_a_name_without_organisation_is_refused(table) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="organisation/name"):
        MtebEncoder(table(), "small", "1")


def test_a_revision_is_of_the_files_and_of_how_they_are_used(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = encoder_revision(tmp_path, {"max_length": 5})
    assert first == encoder_revision(tmp_path, {"max_length": 5}) and len(first) == 40
    assert first != encoder_revision(tmp_path, {"max_length": 6})
    (tmp_path / "a").write_text("2")
    assert first != encoder_revision(tmp_path, {"max_length": 5})
