"""A vocabulary, tokens and document frequencies of texts that are read block by block are those of texts in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.pair_store import SHARDS, shard_name
from data_modules.token_cache import TokenCache
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.stages import vocabulary as stages
from lightning_e5.text import TextTokenizer

ROWS = 300
SPEC = EncoderSpec(max_length=32, vocab_size=600, layers=1, hidden_size=32, heads=2, intermediate_size=32, max_positions=64)


@pytest.fixture(scope="module")
def sides(texts: list[str]) -> tuple[list[str], list[str]]:
    passages = [text.replace("\n", " ") for text in texts if len(text) > 30][:ROWS]
    assert len(passages) == ROWS
    return [" ".join(text.split()[:4]) for text in passages], passages


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, sides: tuple[list[str], list[str]]) -> Path:
    """Two shards; blocks end inside them."""
    folder = tmp_path_factory.mktemp("pairs")
    shards = []
    for number, (first, stop) in enumerate([(0, 170), (170, ROWS)]):
        file = shard_name("docs", number)
        write_parquet(folder / file, {"query": sides[0][first:stop], "passage": sides[1][first:stop], "source": ["docs"] * (stop - first)})
        shards.append({"file": file, "rows": stop - first})
    write_json(folder / SHARDS, {"sources": [{"name": "docs", "shards": shards}]})
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "TOKENISED_ROWS", 23)


def frequency_in_memory(tokenizer: TextTokenizer, texts: list[str], most: int) -> np.ndarray:
    counts = np.zeros(tokenizer.backend.get_vocab_size(), dtype=np.int64)
    for text in texts[:: max(1, len(texts) // most)]:
        counts[np.unique(tokenizer.encode([text], "passage")[0])] += 1
    return counts


@pytest.mark.parametrize("most", [100_000, 200, 70])
def test_the_stage_is_that_of_texts_in_memory(tmp_path: Path, pairs: Path, sides: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    counted: dict[str, Any] = {}
    build = EncoderSpec.build

    def spied(self: EncoderSpec, tokenizer: TextTokenizer, counts: np.ndarray, documents: int) -> TextEncoder:
        counted.update(counts=counts, documents=documents, tokenizer=tokenizer)
        return build(self, tokenizer, counts, documents)

    monkeypatch.setattr(EncoderSpec, "build", spied)
    monkeypatch.setattr(stages, "COUNTED_TEXTS", most)
    metrics = stages.vocabulary(tmp_path, pairs=pairs, encoder=SPEC, seed=0)
    queries, passages = sides
    expected = stages.train_wordpiece(queries, passages, SPEC.vocab_size)
    assert counted["tokenizer"].stored_backend().to_str() == expected.to_str()
    texts = [*queries, *passages]
    assert np.array_equal(counted["counts"], frequency_in_memory(counted["tokenizer"], texts, most))
    assert not np.array_equal(counted["counts"], frequency_in_memory(counted["tokenizer"], texts[1:], most))  # negative control
    assert counted["documents"] == len(texts[:: max(1, len(texts) // most)])
    cache = TokenCache(tmp_path / "tokens")
    ids, lengths = cache.gather("passage", np.arange(ROWS))
    assert np.array_equal(ids, counted["tokenizer"].encode(passages, "passage")[0]) and cache.sources == {"docs": ROWS}
    assert metrics["tokens"] == lengths.sum() + cache.lengths("query").sum() and metrics["vocabulary_pairs"] == ROWS


@pytest.mark.parametrize("limit", [299, 100, 7])
def test_a_vocabulary_of_a_sample_is_that_of_every_nth_pair(tmp_path: Path, pairs: Path, sides: Any, limit: int) -> None:
    metrics = stages.vocabulary(tmp_path, pairs=pairs, encoder=SPEC, vocabulary_pairs=limit, seed=0)
    every = next(n for n in range(1, ROWS + 1) if len(sides[0][::n]) <= limit)
    expected = stages.train_wordpiece(sides[0][::every], sides[1][::every], SPEC.vocab_size)
    made = TextEncoder.from_pretrained(tmp_path / "encoder", training_start=True).tokenizer
    assert made.backend.get_vocab() == expected.get_vocab() and metrics["vocabulary_pairs"] == len(sides[0][::every])
    assert made.backend.get_vocab() != stages.train_wordpiece(*sides, SPEC.vocab_size).get_vocab()  # negative control
