"""One flipped bit in any manifest or record: what it belongs to is made again, or refused in one sentence; never used as it is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.pair_store import PairStore
from data_modules.token_cache import TokenCache, write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import read_manifest, write_checked, write_manifest
from lightning_e5.pipeline.runner import run_experiment
from lightning_e5.retrieval.stored_embeddings import StoredEmbeddings, store_embeddings
from lightning_e5.training.checkpointing import checkpoint_path, latest_checkpoint, save_checkpoint

Made = tuple[Path, Callable[[], Any]]


class Lengths:
    """An embedder of the texts' lengths."""

    def __init__(self) -> None:
        self.calls = 0

    def fingerprint(self) -> str:
        return "lengths"

    def embed(self, texts: list[str], kind: str, *, normalize: bool = True) -> torch.Tensor:
        self.calls += 1
        return torch.tensor([[float(len(t)), 1.0] for t in texts])


def tokens(folder: Path, texts: list[str], tokenizer: Any) -> Made:
    write_token_cache(folder, {"text": (texts[:20], "query")}, tokenizer, sources={"a": 12, "b": 8})

    def read() -> Any:
        cache = TokenCache(folder)
        return cache.rows, cache.sources, cache.gather("text", np.arange(20))[0].tolist()

    return folder / "manifest.json", read


def embeddings(folder: Path, texts: list[str], tokenizer: Any) -> Made:
    store_embeddings(folder, Lengths(), texts[:6], shard_rows=4)  # type: ignore[arg-type]
    return folder / "manifest.json", lambda: [StoredEmbeddings(folder, verify=False).shards()[0].tolist(), StoredEmbeddings(folder).model]


def shard_of_embeddings(folder: Path, texts: list[str], tokenizer: Any) -> Made:
    """Without the manifest, as a killed writer leaves it; the shard is made again."""
    store_embeddings(folder, Lengths(), texts[:6], shard_rows=4)  # type: ignore[arg-type]

    def read() -> Any:
        (folder / "manifest.json").unlink(missing_ok=True)
        return [s.tolist() for s in store_embeddings(folder, Lengths(), texts[:6], shard_rows=4).shards()]  # type: ignore[arg-type]

    return folder / "shard-00000.json", read


def pairs(folder: Path, texts: list[str], tokenizer: Any) -> Made:
    write_parquet(folder / "shards" / "one" / "part-00000.parquet", {"query": texts[:5], "passage": texts[5:10]})
    write_checked(folder / "pairs.json", {"sources": [{"name": "one", "shards": [{"file": "shards/one/part-00000.parquet", "rows": 5}]}]})
    return folder / "pairs.json", lambda: (PairStore(folder).rows, PairStore(folder).sources)


def checkpoint(folder: Path, texts: list[str], tokenizer: Any) -> Made:
    """The record of the newest; the one before it is used where it is damaged."""
    for step in (1, 2):
        save_checkpoint(checkpoint_path(folder, step), {"step": step})

    def read() -> Any:
        found = latest_checkpoint(folder)
        assert found is not None and found.step in (1, 2)
        if found.step == 1:
            raise UserError(f"{checkpoint_path(folder, 2).with_suffix('.json')}: refused")
        return found

    return checkpoint_path(folder, 2).with_suffix(".json"), read


def any_folder(folder: Path, texts: list[str], tokenizer: Any) -> Made:
    """As of downloads, word vectors, pools, buckets and caches of sources."""
    write_parquet(folder / "a.parquet", {"text": texts[:3]})
    write_manifest(folder, kind="k", files=["a.parquet"], rows=3, archive={"md5": "0"})
    return folder / "manifest.json", lambda: read_manifest(folder, "k")


@pytest.mark.parametrize("kind", [tokens, embeddings, shard_of_embeddings, pairs, checkpoint, any_folder])
def test_a_flipped_bit_is_never_read(tmp_path: Path, texts: list[str], small_tokenizer: Any, kind: Callable[..., Made]) -> None:
    path, read = kind(tmp_path / "made", texts, small_tokenizer)
    data, draw = path.read_bytes(), random.Random(0)
    before = read()
    path.write_bytes(data)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read() == before
        except UserError as error:
            refused += 1
            assert str(path.parent) in str(error) and "\n" not in str(error)
        path.write_bytes(data)
    assert read() == before and (refused > 30 or kind is shard_of_embeddings)


@pytest.fixture
def experiment(tmp_path: Path, texts: list[str]) -> dict[str, Any]:
    """A run of one stage on a few texts."""
    write_parquet(tmp_path / "pairs" / "pairs.parquet", {"query": texts[:30], "passage": texts[30:60]})
    encoder = {"_target_": "lightning_e5.models.factory.EncoderSpec", "vocab_size": 300, "layers": 1, "hidden_size": 8, "heads": 2, "intermediate_size": 8}
    node = {
        "_target_": "lightning_e5.stages.vocabulary.vocabulary", "inputs": {"pairs": f"path:{tmp_path / 'pairs'}"}, "encoder": encoder,
    }  # fmt: skip
    return {"name": "run", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "logger": {"mode": "disabled"}, "stages": {"vocabulary": node}}


FILES = ("manifest.json", "started.json", "metrics.json", "tokens/manifest.json", "encoder/training_record.json")


def test_what_a_flipped_bit_is_in_is_made_again(tmp_path: Path, experiment: dict[str, Any]) -> None:
    run_experiment(experiment, say=lambda text: None)
    run = tmp_path / "runs" / "run"
    metrics, draw = (run / "metrics.json").read_bytes(), random.Random(0)
    for path in [run / "metrics.json", *(run / "stages" / "vocabulary" / file for file in FILES)]:
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        found, _ = run_experiment(experiment, say=lambda text: None)
        assert (run / "metrics.json").read_bytes() == metrics and found == json.loads(metrics)
        assert path.read_bytes() == data or path.name == "started.json"  # which nothing reads of a finished stage
        path.write_bytes(data)
