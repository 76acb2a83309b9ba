"""Embedding on a GPU has the next texts tokenised by a thread meanwhile; the embeddings are the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.models import encoder as encoders
from lightning_e5.models.encoder import TextEncoder

TEXTS = [f"text number {i} of {i % 5 * 'many '}words" for i in range(23)]


@pytest.fixture
def model(small_bert: Any, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> TextEncoder:
    for name in ("TEXTS_AT_ONCE", "TEXTS_AHEAD"):
        monkeypatch.setattr(encoders, name, 5)
    return TextEncoder(small_bert, small_tokenizer)


def test_the_same_tokens_in_the_same_parts(model: TextEncoder) -> None:
    plain, ahead = (list(model._tokenised(TEXTS, "query", ahead=way)) for way in (False, True))
    assert [part for part, _ in plain] == [part for part, _ in ahead] and len(plain) == 5 and plain[-1][0] == slice(20, 23)
    for (_, one), (_, other) in zip(plain, ahead, strict=True):
        assert torch.equal(one.ids_T, other.ids_T) and torch.equal(one.lengths_B, other.lengths_B)
    assert list(model._tokenised([], "query", ahead=True)) == []


def test_embeddings_are_the_same_and_the_tokens_come_from_a_thread(model: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.embed(TEXTS, "passage")
    seen: set[str] = set()
    encode, tokenised = model.tokenizer.encode, model._tokenised
    monkeypatch.setattr(model.tokenizer, "encode", lambda *given: seen.add(threading.current_thread().name) or encode(*given))
    monkeypatch.setattr(model, "_tokenised", lambda texts, kind, ahead: tokenised(texts, kind, ahead=True))
    assert torch.equal(model.embed(TEXTS, "passage"), expected)
    assert len(seen) == 1 and seen.pop().startswith("tokens")


def test_an_error_of_the_thread_is_the_caller_s(model: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = model.tokenizer.encode

    def broken(texts: Any, kind: Any) -> Any:
        if TEXTS[12] in texts:
            raise UserError("row 12 is no text")
        return encode(texts, kind)

    monkeypatch.setattr(model.tokenizer, "encode", broken)
    before = threading.active_count()
    with pytest.raises(UserError, match="row 12"):
        list(model._tokenised(TEXTS, "query", ahead=True))
    assert threading.active_count() == before
