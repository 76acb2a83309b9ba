"""A model folder is a promise: whatever it says of its use is computed as sentence-transformers does, or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fusion import StoredEncoder
from lightning_e5.evaluation.baselines.sentence_transformer import SentenceTransformerModel
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.search import retrieve
from lightning_e5.retrieval.stored_embeddings import model_fingerprint
from lightning_e5.text import E5_PREFIXES, Prefixes
from tests.lightning_e5.models.folders import write_folder

TEXTS = ["long bridge river", "the song about the Sea and the sun", "how to sort a list in python", "a", "the planet has a rock in its orbit " * 9]
PROMPTS = {"prompts": {"query": "query: ", "document": "text: "}}


def mode(*names: str, **more: Any) -> dict[str, Any]:
    return {"pooling": {**{f"pooling_mode_{name}": True for name in names}, **more}, "use": PROMPTS}


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean": ("bert", mode("mean_tokens")),
    "cls": ("bert", mode("cls_token")),
    "max, no length": ("bert", {**mode("max_tokens"), "length": None}),
    "root of the length": ("bert", mode("mean_sqrt_len_tokens")),
    "weighted mean": ("bert", mode("weightedmean_tokens")),
    "last token": ("bert", mode("lasttoken")),
    "several": ("bert", {"pooling": {"pooling_mode": ["mean", "cls"]}, "use": PROMPTS}),
    "without the prompt": ("bert", mode("mean_tokens", include_prompt=False)),
    "weighted without the prompt": ("bert", mode("weightedmean_tokens", "cls_token", "max_tokens", include_prompt=False)),
    "dense": ("bert", {**mode("mean_tokens"), "modules": ["Pooling", "Dense", "Normalize"]}),
    "dense layers": (
        "bert",
        {**mode("cls_token", "mean_tokens"), "modules": ["Pooling", "Normalize", "Dense"], "dense": {"use_residual": True, "activation_function": "torch.nn.modules.linear.Identity"}},
    ),
    "dot": ("bert", {**mode("mean_tokens"), "modules": ["Pooling"], "use": {**PROMPTS, "similarity_fn_name": "dot"}}),
    "default prompt": ("bert", {**mode("mean_tokens"), "use": {"prompts": {"all": "text: "}, "default_prompt_name": "all"}}),
    "lower case": ("cased", {**mode("mean_tokens"), "lower": True}),
    "t5": ("t5", mode("mean_tokens")),
    "roberta": ("roberta", {**mode("lasttoken"), "modules": ["Pooling"], "length": 40}),
    "xlmr": ("xlmr", mode("mean_tokens", include_prompt=False)),
}  # fmt: skip


def theirs(folder: Path, kind: str) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    if model.default_prompt_name is not None:
        return np.asarray(model.encode(TEXTS, show_progress_bar=False))
    encode = model.encode_query if kind == "query" else model.encode_document
    return np.asarray(encode(TEXTS, show_progress_bar=False))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    name, files = KINDS[kind]
    if kind == "roberta":  # its table of 40 positions has 38 for tokens, which is what 40 stands for
        files = {**files, "length": 38}
    folder = write_folder(tmp_path / "model", name, **files)
    encoder = TextEncoder.from_pretrained(folder)
    unit = encoder.head.settings.normalize
    query, passage = theirs(folder, "query"), theirs(folder, "document")
    assert np.abs(encoder.embed(TEXTS, "query", normalize=unit).numpy() - query).max() < 1e-5
    assert np.abs(encoder.embed(TEXTS, "passage", normalize=unit).numpy() - passage).max() < 1e-5
    assert kind == "default prompt" or np.abs(query - passage).max() > 1e-3  # the control: prompts matter
    encoder.save_pretrained(tmp_path / "again")
    again = TextEncoder.from_pretrained(tmp_path / "again")
    assert torch.equal(again.embed(TEXTS, "query"), encoder.embed(TEXTS, "query")) and again.similarity == encoder.similarity
    assert model_fingerprint(again) == model_fingerprint(encoder)
    if kind != "default prompt":
        assert np.abs(theirs(tmp_path / "again", "query") - query).max() < 1e-5


def test_a_dot_product_model_is_searched_by_dot_product(tmp_path: Path) -> None:
    kind, files = KINDS["dot"]
    encoder = TextEncoder.from_pretrained(write_folder(tmp_path / "model", kind, **files))
    corpus = {f"d{i}": text for i, text in enumerate(TEXTS)}
    found = retrieve(encoder, {"q": "the long song"}, corpus, k=5)["q"]
    query_D, texts_ND = encoder.embed(["the long song"], "query", normalize=False)[0], encoder.embed(TEXTS, "passage", normalize=False)
    assert encoder.similarity == "dot" and found == pytest.approx({f"d{i}": float(s) for i, s in enumerate(texts_ND @ query_D)}, rel=1e-5)
    stored = retrieve(encoder, {"q": "the long song"}, corpus, k=5, cache_dir=tmp_path / "cache")["q"]
    assert stored == pytest.approx(found, rel=1e-6)


def test_a_single_text_is_no_list_of_texts(tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(write_folder(tmp_path / "model", length=16))
    teacher = CrossEncoder.from_encoder(encoder)
    for call in (lambda: encoder.embed("a song", "query"), lambda: encoder.tokenizer.encode("a song", "query"), lambda: teacher.score("a song", ["sea"])):
        with pytest.raises(UserError, match="'a song' is one text, where a list of texts belongs"):
            call()
    with pytest.raises(UserError, match="texts: number 1 is a NoneType, not a text"):
        encoder.embed(["a", None], "query")  # type: ignore[list-item]
    assert encoder.embed([], "query").shape == (0, 16)


def test_a_fusion_searches_by_the_stored_models_similarity(tmp_path: Path) -> None:
    kind, files = KINDS["dot"]
    folder = write_folder(tmp_path / "model", kind, **files)
    queries, corpus = {"q": "the long song"}, {f"d{i}": text for i, text in enumerate(TEXTS)}
    expected = retrieve(TextEncoder.from_pretrained(folder), queries, corpus, k=5)
    assert retrieve(StoredEncoder(folder), queries, corpus, k=5) == expected
    theirs_too = retrieve(SentenceTransformerModel(str(folder), device="cpu"), queries, corpus, k=5)
    assert theirs_too["q"] == pytest.approx(expected["q"], rel=1e-4)


def test_a_start_of_a_training_is_an_e5(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kind, files = KINDS["dot"]
    del (files := dict(files))["use"]
    folder = write_folder(tmp_path / "model", kind, **files, use={"similarity_fn_name": "dot"})
    start = TextEncoder.from_pretrained(folder, training_start=True)
    assert start.similarity == "cosine" and start.tokenizer.prefixes == E5_PREFIXES
    assert "it is trained by cosine" in capfd.readouterr().err
    start.save_pretrained(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "cosine"
    with pytest.raises(UserError, match="include_prompt: false is not supported in training"):
        TextEncoder.from_pretrained(write_folder(tmp_path / "other", "bert", **KINDS["without the prompt"][1]), training_start=True)


@pytest.mark.parametrize("use", [None, {}, {"prompts": {}}, {"prompts": {"query": "", "document": ""}}])
def test_one_rule_for_a_folder_that_stores_no_prompts(use: dict[str, Any] | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {} if use is None else {"use": use}
    other = write_folder(tmp_path / "model", **files)
    assert TextEncoder.from_pretrained(other).tokenizer.prefixes == Prefixes("", "")
    assert f"{other}: stores no prompts for queries and passages; none are put before texts" in capfd.readouterr().err
    e5 = other.rename(tmp_path / "my-e5-small")
    assert TextEncoder.from_pretrained(e5).tokenizer.prefixes == E5_PREFIXES
    assert "E5's prefixes are put before texts" in capfd.readouterr().err
    plain = e5.rename(tmp_path / "plain")
    (plain / "README.md").write_text("---\nbase_model: intfloat/e5-small-v2\n---\n")
    assert TextEncoder.from_pretrained(plain).tokenizer.prefixes == E5_PREFIXES
    (plain / "README.md").write_text("---\nbase_model: intfloat/e5-mistral-7b-instruct\n---\n")
    assert TextEncoder.from_pretrained(plain).tokenizer.prefixes == Prefixes("", "")


def test_an_e5_that_sentence_transformers_saved_again_keeps_its_prefixes(tmp_path: Path) -> None:
    write_folder(tmp_path / "start", use={"prompts": {"query": "ask: ", "document": "text: "}})
    TextEncoder.from_pretrained(tmp_path / "start", prefixes=Prefixes("", "")).save_pretrained(tmp_path / "none")
    TextEncoder.from_pretrained(tmp_path / "start", prefixes=E5_PREFIXES).save_pretrained(tmp_path / "e5")
    for name, prefixes in (("none", Prefixes("", "")), ("e5", E5_PREFIXES)):
        SentenceTransformer(str(tmp_path / name), device="cpu", trust_remote_code=False).save(str(tmp_path / f"{name}-again"))
        again = TextEncoder.from_pretrained(tmp_path / f"{name}-again")
        assert again.tokenizer.prefixes == prefixes and again.tokenizer.max_length == 24
        assert torch.allclose(again.embed(TEXTS, "query"), TextEncoder.from_pretrained(tmp_path / name).embed(TEXTS, "query"), atol=1e-6)
