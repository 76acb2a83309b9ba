"""The search verb: its answer, and the embeddings that a run directory keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.stages.search import search


@pytest.fixture
def run_directory(tmp_path: Path, small_bert, small_tokenizer, texts: list[str]) -> Path:  # type: ignore[no-untyped-def]
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "run" / "encoder")
    folder = tmp_path / "run" / "stages" / "data" / "test"
    folder.mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(texts[:30])]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "run"


def test_a_run_keeps_the_embeddings_and_answers_the_same(run_directory: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = search(run_directory, texts[7], k=3)
    assert first.splitlines()[2].startswith("1. ") and len([line for line in first.splitlines() if line[:1].isdigit()]) == 4
    assert "30 passages" in first
    kept = list((run_directory / "search_cache").glob("*/shard-00000.npy"))
    assert len(kept) == 1
    embedded: list[int] = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, t, *a, **k: embedded.append(len(t)) or embed(self, t, *a, **k))
    assert search(run_directory, texts[7], k=3) == first
    assert embedded == [1]  # the query alone
    alone = search(run_directory / "encoder", texts[7], k=3, corpus=str(run_directory / "stages" / "data" / "test"))
    assert alone.splitlines()[2:] == first.splitlines()[2:]
    assert not (run_directory / "encoder" / "search_cache").exists()


def test_k_beyond_the_corpus_and_below_one(run_directory: Path) -> None:
    assert "30. " in search(run_directory, "a text", k=100)
    with pytest.raises(UserError, match="-k: 0"):
        search(run_directory, "a text", k=0)
