"""Texts on several cores at a time: to the bits what one thread makes of the same chunks, whatever runs at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.sequence_classifier import SequenceClassifier
from lightning_e5.text import TextTokenizer
from tests.lightning_e5.models.test_sequence_classifier import save_classifier

CHUNK = 150
Compute = Callable[[Callable[[int], object]], Tensor]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def packed(encoder: TextEncoder, texts: list[str], folder: Path) -> tuple[Any, Compute]:
    assert encoder.packed is not None
    return encoder, lambda progress: encoder.embed(texts, "passage", chunk_tokens=CHUNK, progress=progress)


def packed_bf16(encoder: TextEncoder, texts: list[str], folder: Path) -> tuple[Any, Compute]:
    encoder.precision = "bf16"
    return packed(encoder, texts, folder)


def padded(encoder: TextEncoder, texts: list[str], folder: Path) -> tuple[Any, Compute]:
    encoder.packed = None
    return encoder, lambda progress: encoder.embed(texts, "query", chunk_tokens=CHUNK, progress=progress)


def cross_encoder(encoder: TextEncoder, texts: list[str], folder: Path) -> tuple[Any, Compute]:
    scorer = CrossEncoder.from_encoder(encoder)
    return scorer, lambda progress: scorer.score(texts, texts[::-1], chunk_tokens=CHUNK, progress=progress)


def classifier(encoder: TextEncoder, texts: list[str], folder: Path) -> tuple[Any, Compute]:
    scorer = SequenceClassifier.from_pretrained(save_classifier(folder / "reranker", encoder.tokenizer))
    return scorer.model, lambda progress: scorer.score(texts, texts[::-1], chunk_tokens=CHUNK, progress=progress)


KINDS = [packed, packed_bf16, padded, cross_encoder, classifier]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind: Any, small_bert: Any, small_tokenizer: TextTokenizer, texts: list[str], tmp_path: Path) -> None:
    _, compute = kind(TextEncoder(small_bert, small_tokenizer), texts[:80], tmp_path)
    done: list[int] = []
    torch.set_num_threads(1)
    alone = compute(lambda texts: None)
    torch.set_num_threads(4)
    for _ in range(5):
        done.clear()
        assert torch.equal(compute(done.append), alone)
        assert sum(done) == 80 and len(done) > 4
    assert alone.std() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_run_at_the_same_time(kind: Any, small_bert: Any, small_tokenizer: TextTokenizer, texts: list[str], tmp_path: Path) -> None:
    """Each chunk waits until another one runs; with one thread none does."""
    module, compute = kind(TextEncoder(small_bert, small_tokenizer), texts[:80], tmp_path)
    meeting, names = threading.Barrier(2), set[str]()

    def wait(*given: Any) -> None:
        if threading.current_thread().name not in names:
            names.add(threading.current_thread().name)
            meeting.wait(60)

    module.register_forward_pre_hook(wait)
    torch.set_num_threads(2)
    compute(lambda texts: None)
    assert len(names) == 2 and all(name.startswith("chunks") for name in names)


def test_an_autocast_of_the_caller_reaches_every_chunk(small_bert: Any, small_tokenizer: TextTokenizer, texts: list[str]) -> None:
    encoder = TextEncoder(small_bert, small_tokenizer, precision="fp32")
    torch.set_num_threads(1)
    whole = encoder.embed(texts[:80], "query", chunk_tokens=CHUNK)
    with torch.autocast("cpu", torch.bfloat16):
        alone = encoder.embed(texts[:80], "query", chunk_tokens=CHUNK)
        torch.set_num_threads(4)
        assert torch.equal(encoder.embed(texts[:80], "query", chunk_tokens=CHUNK), alone)
    assert not torch.equal(whole, alone), "a cast changes them, so the equality says something"
