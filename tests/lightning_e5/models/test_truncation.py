"""Embeddings of the first values alone: those of sentence-transformers with ``truncate_dim``, of a folder that says it and of one that is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.sentence_transformer import SentenceTransformerModel
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.folder import stored_settings
from lightning_e5.retrieval.index import Index
from lightning_e5.retrieval.search import retrieve
from lightning_e5.retrieval.stored_embeddings import model_fingerprint
from lightning_e5.types import compares_by_cosine
from tests.lightning_e5.models.folders import write_folder
from tests.lightning_e5.models.test_folder import PROMPTS, TEXTS, mode

USE = "config_sentence_transformers.json"
DOT = {**PROMPTS, "similarity_fn_name": "dot"}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "mean": ("bert", mode("mean_tokens"), 5),
    "cls": ("bert", mode("cls_token"), 7),
    "last token, not normalised": ("roberta", {**mode("lasttoken"), "modules": ["Pooling"], "length": 38}, 4),
    "dense": ("bert", {**mode("mean_tokens"), "modules": ["Pooling", "Dense", "Normalize"]}, 3),
    "dot": ("bert", {**mode("mean_tokens"), "modules": ["Pooling"], "use": DOT}, 6),
    "dot of unit vectors": ("bert", {**mode("mean_tokens"), "use": DOT}, 6),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_similarities_are_those_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    name, files, dimensions = KINDS[kind]
    folder = write_folder(tmp_path / "told", name, **files)
    said = write_folder(tmp_path / "said", name, **{**files, "use": {**files["use"], "truncate_dim": dimensions}})
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False, truncate_dim=dimensions)
    cosine = theirs.similarity_fn_name == "cosine"
    query, passage = (np.asarray(encode(TEXTS, show_progress_bar=False, normalize_embeddings=cosine)) for encode in (theirs.encode_query, theirs.encode_document))
    scores = theirs.similarity(query, passage).numpy()
    for encoder in (TextEncoder.from_pretrained(folder, truncate_dim=dimensions), TextEncoder.from_pretrained(said)):
        assert encoder.width == dimensions == query.shape[1] and compares_by_cosine(encoder) == cosine
        ours = [encoder.embed(TEXTS, side, normalize=cosine).numpy() for side in ("query", "passage")]  # type: ignore[arg-type]
        for found, wanted in zip(ours, (query, passage), strict=True):
            assert np.abs(found - wanted).max() < 1e-6 * max(1.0, np.abs(wanted).max())
        assert np.abs(ours[0] @ ours[1].T - scores).max() < 2e-6 * max(1.0, np.abs(scores).max())
    whole = TextEncoder.from_pretrained(folder)
    assert whole.width == whole.head.full_width > dimensions
    assert model_fingerprint(whole) != model_fingerprint(encoder) == model_fingerprint(TextEncoder.from_pretrained(folder, truncate_dim=dimensions))
    if cosine:  # the control: whole embeddings have other cosines
        assert np.abs((whole.embed(TEXTS, "query") @ whole.embed(TEXTS, "passage").T).numpy() - scores).max() > 1e-3
    encoder.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / USE).read_text())["truncate_dim"] == stored_settings(tmp_path / "again").truncate_dim == dimensions
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=False)
    found = np.asarray(again.encode_query(TEXTS, show_progress_bar=False, normalize_embeddings=cosine))
    assert np.abs(found - query).max() < 1e-6 * max(1.0, np.abs(query).max())


def test_a_folder_that_says_nothing_of_it_is_written_as_before(tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(write_folder(tmp_path / "model", use=PROMPTS))
    encoder.save_pretrained(tmp_path / "again")
    assert "truncate_dim" not in json.loads((tmp_path / "again" / USE).read_text()) and "truncate" not in encoder.head.describe()


def test_search_takes_the_first_values_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", use={**PROMPTS, "truncate_dim": 5})
    encoder, corpus = TextEncoder.from_pretrained(folder), {f"d{i}": text for i, text in enumerate(TEXTS)}
    whole = TextEncoder.from_pretrained(folder, truncate_dim=16)
    query_D, passages_ND = (torch.nn.functional.normalize(whole.embed(texts, kind)[:, :5], dim=1) for texts, kind in ((["sort a list"], "query"), (TEXTS, "passage")))
    expected = {f"d{i}": float(score) for i, score in enumerate(passages_ND @ query_D[0])}
    for found in (retrieve(encoder, {"q": "sort a list"}, corpus), retrieve(encoder, {"q": "sort a list"}, corpus, cache_dir=tmp_path / "cache")):
        assert found["q"] == pytest.approx(expected, abs=1e-6)
    retrieve(whole, {"q": "sort a list"}, corpus, cache_dir=tmp_path / "cache")
    assert len([*(tmp_path / "cache").iterdir()]) == 2  # embeddings of another width are kept apart
    hits = Index(encoder, TEXTS).search(["sort a list"], 5)[0]
    assert {f"d{hit.row}": hit.score for hit in hits} == pytest.approx(expected, abs=1e-6)
    theirs = retrieve(SentenceTransformerModel(str(folder), device="cpu"), {"q": "sort a list"}, corpus)
    assert theirs["q"] == pytest.approx(expected, abs=1e-5)
    assert encoder.embed([], "query").shape == (0, 5)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (0, f"{USE}: truncate_dim: 0 is no number of values"), (-3, f"{USE}: truncate_dim: -3 is no number"), (17, "model: truncate_dim: 17 of the 16 values"),
        ("8", f"{USE}: truncate_dim: '8' is not a whole number"), (True, f"{USE}: truncate_dim: True is not a whole number"), (2.5, f"{USE}: truncate_dim: 2.5 is not a whole"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_truncated_so(stored: Any, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", use={**PROMPTS, "truncate_dim": stored})
    with pytest.raises(UserError, match=message):
        TextEncoder.from_pretrained(folder)


def test_dimensions_that_an_encoder_does_not_have(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", use=PROMPTS)
    for wrong in (0, -1, 17):
        with pytest.raises(UserError, match=f"model: truncate_dim: {wrong} of the 16 values of an embedding; the rule is from 1 to 16"):
            TextEncoder.from_pretrained(folder, truncate_dim=wrong)


def test_a_training_starts_from_whole_embeddings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "model", use={**PROMPTS, "truncate_dim": 5})
    start = TextEncoder.from_pretrained(folder, training_start=True)
    assert start.width == 16 and f"{folder}: embeddings are truncated to 5 values; it is trained, and kept, with all 16" in capfd.readouterr().err
    start.save_pretrained(tmp_path / "trained")
    assert TextEncoder.from_pretrained(tmp_path / "trained").width == 16
