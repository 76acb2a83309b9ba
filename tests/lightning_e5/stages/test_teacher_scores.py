"""The teacher's scores beside each group: those of a released cross-encoder too, after a kill too, and never all alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import lightning_e5.curation.mining.teacher_scores as scores_module
from lightning_e5.curation.engines.engine import LocalEngine
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.pair_scorer import load_pair_scorer
from lightning_e5.stages.teacher import teacher_scores
from lightning_e5.text import TextTokenizer

ROWS = 25


@pytest.fixture
def ranked(tmp_path: Path, texts: list[str]) -> Path:
    """Groups of 2 to 5 passages, with scores of another teacher."""
    columns = {
        "query": texts[:ROWS], "positive": texts[30 : 30 + ROWS], "negatives": [texts[60 + i : 61 + i + i % 4] for i in range(ROWS)],
        "source": ["s"] * ROWS, "teacher_scores": pa.array([None] * ROWS, pa.list_(pa.float32())),
    }  # fmt: skip
    write_parquet(tmp_path / "ranked.parquet", columns)
    return tmp_path / "ranked.parquet"


@pytest.fixture
def released(tmp_path: Path, small_tokenizer: TextTokenizer) -> Path:
    torch.manual_seed(3)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=small_tokenizer.backend.get_vocab_size(), num_labels=1, initializer_range=0.3, **size)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "released")
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    backend = type(small_tokenizer.backend).from_str(small_tokenizer.backend.to_str())
    backend.no_truncation()
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special).save_pretrained(tmp_path / "released")
    return tmp_path / "released"


def scored(out: Path) -> list[dict[str, Any]]:
    columns = {"query": "string", "positive": "string", "negatives": "list<string>", "source": "string", "teacher_scores": "list<float>"}
    return read_parquet(out / "ranked.parquet", columns).to_pylist()


@pytest.mark.parametrize("ours", [True, False])
def test_each_passage_has_its_logit(tmp_path: Path, ranked: Path, released: Path, small_tokenizer: TextTokenizer, small_bert: Any, ours: bool) -> None:
    name = tmp_path / "stage" if ours else released
    if ours:
        CrossEncoder.from_encoder(TextEncoder(small_bert, small_tokenizer)).save_pretrained(name / "cross_encoder")
    metrics = teacher_scores(tmp_path / "out", teacher=name, ranked=ranked)
    scorer = load_pair_scorer(name)
    before = read_parquet(ranked, {"query": "string", "positive": "string", "negatives": "list<string>"}).to_pylist()
    rows = scored(tmp_path / "out")
    assert [{k: r[k] for k in ("query", "positive", "negatives")} for r in rows] == before and metrics["groups"] == ROWS
    first, margins = 0, []
    for row in rows:
        passages = [row["positive"], *row["negatives"]]
        wanted = scorer.score([row["query"]] * len(passages), passages).tolist()
        assert row["teacher_scores"] == pytest.approx(wanted, abs=1e-4)
        first += wanted[0] >= max(wanted[1:])
        margins.append(wanted[0] - max(wanted[1:]))
    assert metrics["positive_first"] == pytest.approx(first / ROWS) and metrics["margin"] == pytest.approx(np.mean(margins), abs=1e-4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ranked.parquet"]


def test_a_killed_scoring_continues(tmp_path: Path, ranked: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "GROUPS", 4)
    teacher_scores(tmp_path / "whole", teacher=released, ranked=ranked)
    written, savez = 0, np.savez

    def dies(handle: Any, **arrays: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            handle.write(b"half")
            raise KeyboardInterrupt
        savez(handle, **arrays)

    monkeypatch.setattr(np, "savez", dies)
    with pytest.raises(KeyboardInterrupt):
        teacher_scores(tmp_path / "killed", teacher=released, ranked=ranked)
    assert len(list((tmp_path / "killed/parts").iterdir())) == 3 and not (tmp_path / "killed/ranked.parquet").exists()
    written = 100
    teacher_scores(tmp_path / "killed", teacher=released, ranked=ranked)
    assert written == 104, "7 blocks, of which 3 were there"
    assert (tmp_path / "killed/ranked.parquet").read_bytes() == (tmp_path / "whole/ranked.parquet").read_bytes()


@pytest.mark.slow  # stages/test_consistency_filter.py compares the engines
def test_an_engine_scores_the_same(tmp_path: Path, ranked: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers and one, each computing blocks of groups; what is in this process only gathers them."""
    monkeypatch.setattr(scores_module, "GROUPS", 8)
    for workers in (1, 2):
        teacher_scores(tmp_path / f"{workers}", teacher=released, ranked=ranked, engine=LocalEngine(workers=workers))
    one, two = ((tmp_path / f"{workers}/ranked.parquet").read_bytes() for workers in (1, 2))
    assert one == two
    teacher_scores(tmp_path / "here", teacher=released, ranked=ranked)
    here = [row["teacher_scores"] for row in scored(tmp_path / "here")]
    assert [row["teacher_scores"] for row in scored(tmp_path / "2")] == [pytest.approx(scores, abs=1e-4) for scores in here]


def test_a_collapsed_teacher_is_reported(tmp_path: Path, ranked: Path, released: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(released)
    torch.nn.init.zeros_(model.classifier.weight)
    model.save_pretrained(released)
    with pytest.raises(UserError, match=r"released: the teacher has collapsed \(its scores differ by 0\.0e\+00"):
        teacher_scores(tmp_path / "out", teacher=released, ranked=ranked)


def test_a_group_of_one_is_refused(tmp_path: Path, released: Path) -> None:
    write_parquet(tmp_path / "alone.parquet", {"query": ["a", "b"], "positive": ["c", "d"], "negatives": [["e"], []]})
    with pytest.raises(UserError, match=r"alone\.parquet: row 1 has no negatives"):
        teacher_scores(tmp_path / "out", teacher=released, ranked=tmp_path / "alone.parquet")


def test_the_retriever_s_scores_are_added_where_every_passage_has_one(tmp_path: Path, ranked: Path, released: Path) -> None:
    teacher_scores(tmp_path / "alone", teacher=released, ranked=ranked)
    with pytest.raises(UserError, match=r"ranked.parquet: lacks the column 'retriever_scores'|no column"):
        teacher_scores(tmp_path / "lacking", teacher=released, ranked=ranked, retriever_scale=20.0)
    table = pq.read_table(ranked)
    found = [[0.5 + 0.01 * row, *[0.1 * n for n in range(len(negatives))]] for row, negatives in enumerate(table["negatives"].to_pylist())]
    found[3][1] = float("nan")  # filled in at random, never retrieved
    write_parquet(ranked, table.append_column("retriever_scores", pa.array(found, pa.list_(pa.float32()))))
    metrics = teacher_scores(tmp_path / "both", teacher=released, ranked=ranked, retriever_scale=20.0)
    for row, (alone, both) in enumerate(zip(scored(tmp_path / "alone"), scored(tmp_path / "both"), strict=True)):
        wanted = np.array(alone["teacher_scores"]) + 20.0 * np.array(found[row])
        np.testing.assert_allclose(both["teacher_scores"], wanted, rtol=1e-5)
        assert np.isnan(both["teacher_scores"]).any() == (row == 3)
    assert metrics["with_retriever_groups"] == ROWS - 1 and metrics["with_retriever_margin"] > metrics["margin"]
    found[5] = found[5][:1]
    write_parquet(ranked, table.append_column("retriever_scores", pa.array(found, pa.list_(pa.float32()))))
    with pytest.raises(UserError, match="row 5 has 1 retriever_scores for"):
        teacher_scores(tmp_path / "short", teacher=released, ranked=ranked, retriever_scale=20.0)
