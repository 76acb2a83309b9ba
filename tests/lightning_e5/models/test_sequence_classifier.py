"""Released cross-encoders: their logits are Hugging Face's own for a pair of sentences, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lightning_e5.errors import UserError
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.pair_scorer import load_pair_scorer
from lightning_e5.models.sequence_classifier import SequenceClassifier
from lightning_e5.text import TextTokenizer


def save_classifier(folder: Path, tokenizer: TextTokenizer, *, labels: int = 1) -> Path:
    """A random BertForSequenceClassification with a tokenizer, as a released re-ranker's folder."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=tokenizer.backend.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, num_labels=labels, initializer_range=0.3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.no_truncation()
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **special).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, small_tokenizer: TextTokenizer) -> Path:
    return save_classifier(tmp_path / "reranker", small_tokenizer)


def alone(folder: Path, query: str, passage: str, max_length: int = 64) -> float:
    """The logit of one pair, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(model(**tokenizer(query, passage, truncation=True, max_length=max_length, return_tensors="pt")).logits)


@pytest.mark.parametrize("chunk_tokens", [1, 200, 8192])
def test_logits_are_those_of_each_pair_alone(folder: Path, texts: list[str], chunk_tokens: int) -> None:
    scorer = load_pair_scorer(folder)
    assert isinstance(scorer, SequenceClassifier) and scorer.max_length == 64
    scorer.train()
    queries, passages = texts[:12], [*texts[20:30], ".", texts[0] * 9]
    done: list[int] = []
    scores = scorer.score(queries, passages, chunk_tokens=chunk_tokens, progress=done.append)
    assert scores.dtype == torch.float32 and sum(done) == 12 and scorer.training
    wanted = [alone(folder, q, p) for q, p in zip(queries, passages, strict=True)]
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5) and scores.std() > 0.01
    with pytest.raises(ZeroDivisionError):
        scorer.score(queries, passages, progress=lambda count: 1 // 0)
    assert scorer.training
    shuffled = scorer.score(queries[::-1], passages[::-1]).flip(0)
    assert torch.allclose(shuffled, scores, atol=1e-5)


def test_titles_and_length(folder: Path, texts: list[str]) -> None:
    scorer = load_pair_scorer(folder, passage_format="-: {passage}", max_length=24)
    wanted = [alone(folder, texts[1], f"-: {p}", 24) for p in texts[5:9]]
    assert scorer.score([texts[1]] * 4, texts[5:9]).tolist() == pytest.approx(wanted, abs=1e-5)
    assert scorer.score([texts[1]], ["{passage} {}"]).tolist() == pytest.approx([alone(folder, texts[1], "-: {passage} {}", 24)], abs=1e-5)


def test_what_is_no_cross_encoder_is_refused_in_a_sentence(tmp_path: Path, folder: Path, small_tokenizer: TextTokenizer, small_bert: Any) -> None:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "absent", {}, "absent: no such model folder"),
        (tmp_path / "encoder", {}, r"encoder: no cross-encoder \(its config\.json names \['BertModel'\]"),
        (save_classifier(tmp_path / "three", small_tokenizer, labels=3), {}, "a model with 3 labels gives no relevance logit"),
        (folder, {"max_length": 65}, "max_length: 65 is above the model's 64 positions"),
        (folder, {"passage_format": "title: "}, "passage_format: 'title: ' does not hold {passage} once"),
        ("nobody/no-such-reranker", {}, "nobody/no-such-reranker: cannot be loaded .*hub cannot be reached"),
    ]
    for name, settings, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            load_pair_scorer(name, **settings)
        assert "\n" not in str(raised.value)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(UserError, match=r"config\.json: not a model's configuration"):
        load_pair_scorer(folder)


def test_ours_is_found_as_a_folder_and_in_its_stages_folder(tmp_path: Path, small_tokenizer: TextTokenizer, small_bert: Any, texts: list[str]) -> None:
    ours = CrossEncoder.from_encoder(TextEncoder(small_bert, small_tokenizer))
    ours.save_pretrained(tmp_path / "stage" / "cross_encoder")
    for name in (tmp_path / "stage", str(tmp_path / "stage" / "cross_encoder")):
        found = load_pair_scorer(name)
        assert isinstance(found, CrossEncoder)
        assert torch.allclose(found.score(texts[:5], texts[5:10]), ours.score(texts[:5], texts[5:10]), atol=1e-5)
