"""The library from Python: the recipe of a YAML step by step, with equal weights, and the scripts of ``docs/examples/``."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from torch import nn

import lightning_e5 as e5
from lightning_e5.config.experiment import load_experiment
from lightning_e5.files.parquet import read_parquet
from lightning_e5.models.pair_scorer import load_pair_scorer
from lightning_e5.pipeline.runner import run_experiment

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 1}
ADAMW = {"_target_": "lightning_e5.training.optimizer.AdamWConfig", **OPTIMIZER}


def recipe(small: dict[str, Any]) -> dict[str, Any]:
    """The whole recipe at the smallest size, with dropout."""
    partial = {"_partial_": True}
    pairs = {"_target_": "data_modules.ccpairs.datamodule.CCPairsDataModule", **partial, "batch_size": 8, "max_steps": 3}
    ranked = {"_target_": "data_modules.finetune.datamodule.RankedDataModule", **partial, "batch_size": 8, "negatives": 2, "epochs": 1}
    pretrain = {
        "_target_": "lightning_e5.stages.pretrain.pretrain", "data": pairs, "optimizer": ADAMW,
        "module": {"_target_": "lightning_e5.modules.in_batch.InBatchModule", **partial, "temperature": 0.05},
    }  # fmt: skip
    start = {"encoder": "vocabulary/encoder", "tokens": "vocabulary/tokens"}
    vocabulary = small["stages"]["vocabulary"]
    return {
        **{key: value for key, value in small.items() if key != "stages"}, "final_encoder": "finetune",
        "stages": {
            "pairs": small["stages"]["pairs"],
            "vocabulary": {**vocabulary, "encoder": {**vocabulary["encoder"], "dropout": 0.1, "max_length": 40}},
            "noisy": {**pretrain, "inputs": start},
            "filter": {
                "_target_": "lightning_e5.stages.consistency_filter.consistency_filter", "inputs": {"pairs": "pairs", "encoder": "noisy/encoder"},
                "pool_size": 20, "k": 8,
            },
            "pretrain": {**pretrain, "inputs": {**start, "keep": "filter/ranks.parquet"}},
            "negatives": {
                "_target_": "lightning_e5.stages.hard_negatives.hard_negatives", "count": 2, "first_rank": 2, "last_rank": 12,
                "inputs": {"pairs": "pairs", "keep": "filter/ranks.parquet", "encoder": "pretrain/encoder"},
            },
            "teacher": {
                "_target_": "lightning_e5.stages.teacher.teacher", "inputs": {"encoder": "pretrain/encoder", "ranked": "negatives/ranked.parquet"},
                "data": ranked, "optimizer": ADAMW, "module": {"_target_": "lightning_e5.modules.cross_encoder.CrossEncoderModule", **partial},
            },
            "scores": {
                "_target_": "lightning_e5.stages.teacher.teacher_scores", "inputs": {"teacher": "teacher", "ranked": "negatives/ranked.parquet"},
                "retriever_scale": 20.0,
            },
            "finetune": {
                "_target_": "lightning_e5.stages.finetune.finetune", "inputs": {"encoder": "pretrain/encoder", "ranked": "scores/ranked.parquet"},
                "data": ranked, "optimizer": ADAMW, "module": {"_target_": "lightning_e5.modules.distilled.DistilledModule", **partial, "temperature": 0.05},
            },
        },
    }  # fmt: skip


def train(scheme: Any, model: nn.Module, data: Any, seed: int, **options: float) -> None:
    """With Lightning's own Trainer, and nothing of ours around it."""
    module = scheme(model, optimizer=e5.AdamWConfig(**OPTIMIZER), max_steps=data.max_steps, seed=seed, **options)
    L.Trainer(max_steps=data.max_steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(module, data)


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of the parameters that are not the same to the last bit."""
    others = dict(other.named_parameters())
    return [name for name, p in one.named_parameters() if not torch.equal(p.detach().cpu(), others[name].detach().cpu())]


def test_python_trains_what_the_yaml_trains(tmp_path: Path, small_experiment: dict[str, Any]) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(small_experiment), sort_keys=False))
    run_experiment(load_experiment(tmp_path / "recipe.yaml"), say=lambda line: None)
    stages = tmp_path / "runs" / "small" / "stages"
    columns = dict.fromkeys(("query", "passage", "source", "passage_kind"), "string")
    pairs = [e5.TextPair(**row) for row in read_parquet(stages / "pairs" / "pairs.parquet", columns).to_pylist()]
    start = stages / "vocabulary" / "encoder"
    # As in a program that nothing of ours has prepared, whatever it has drawn before.
    torch.set_flush_denormal(False)
    torch.manual_seed(987)

    def pretrained(pairs: list[e5.TextPair], seed: int) -> e5.TextEncoder:
        encoder = e5.TextEncoder.from_pretrained(start, training_start=True)
        data = e5.CCPairsDataModule.from_pairs(pairs, encoder.tokenizer, batch_size=8, max_steps=3, seed=seed)
        train(e5.InBatchModule, encoder, data, seed, temperature=0.05)
        return encoder

    def yaml_encoder(stage: str) -> e5.TextEncoder:
        return e5.TextEncoder.from_pretrained(stages / stage / "encoder")

    noisy = pretrained(pairs, e5.stage_seed(1, "noisy"))
    assert differing(noisy, yaml_encoder("noisy")) == []
    assert differing(noisy, pretrained(pairs, e5.stage_seed(2, "noisy"))), "another seed must be seen"

    filtered = e5.filter_pairs(noisy, pairs, pool=20, keep_top=8, seed=e5.stage_seed(1, "filter"))
    ranks = read_parquet(stages / "filter" / "ranks.parquet", {"rank": "int64", "keep": "bool"})
    assert filtered.rank_N.tolist() == ranks["rank"].to_pylist() and filtered.keep_N.tolist() == ranks["keep"].to_pylist()
    assert 8 <= len(filtered.kept) < len(pairs) and filtered.kept == [p for p, kept in zip(pairs, filtered.keep_N, strict=True) if kept]

    encoder = pretrained(filtered.kept, e5.stage_seed(1, "pretrain"))
    assert differing(encoder, yaml_encoder("pretrain")) == []

    queries, passages = [pair.query for pair in filtered.kept], [pair.passage for pair in filtered.kept]
    groups = e5.mine_hard_negatives(encoder, queries, passages, count=2, first_rank=2, last_rank=12, seed=e5.stage_seed(1, "negatives"))
    mined = {"query": "string", "positive": "string", "negatives": "list<string>", "teacher_scores": "list<float>"}
    rows = read_parquet(stages / "scores" / "ranked.parquet", mined).to_pylist()
    assert [(g.query, g.positive, list(g.negatives)) for g in groups] == [(r["query"], r["positive"], r["negatives"]) for r in rows]

    seed = e5.stage_seed(1, "teacher")
    encoder.save_pretrained(tmp_path / "mine")
    e5.seed_torch(seed)
    teacher = e5.CrossEncoder.from_start(tmp_path / "mine")
    data = e5.RankedDataModule.from_groups(groups, teacher.tokenizer, batch_size=8, negatives=2, epochs=1, seed=seed)
    train(e5.CrossEncoderModule, teacher, data, seed)
    assert differing(teacher, load_pair_scorer(stages / "teacher")) == []

    scored = e5.score_groups(teacher, groups, retriever_scale=20.0)
    np.testing.assert_array_equal([g.teacher_scores for g in scored], [r["teacher_scores"] for r in rows])

    seed = e5.stage_seed(1, "finetune")
    data = e5.RankedDataModule.from_groups(scored, encoder.tokenizer, batch_size=8, negatives=2, epochs=1, seed=seed)
    train(e5.DistilledModule, encoder, data, seed, temperature=0.05)
    assert differing(encoder, yaml_encoder("finetune")) == []
    assert differing(encoder, yaml_encoder("pretrain")), "and it did train"


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_a_script_is_short_and_runs(
    script: Path, tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    trains = "FOLDER" in script.read_text(encoding="utf-8").splitlines()[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), *(["trained"] if trains else []), str(encoder_folder), "jinja2"])
    runpy.run_path(str(script), run_name="__main__")
    if trains:
        before, after = (e5.TextEncoder.from_pretrained(folder) for folder in (encoder_folder, tmp_path / "trained"))
        assert differing(before, after)
    else:
        assert re.search(r"encoder: ndcg@10 0\.\d{3} \[.*\n  to bm25: [+-]0\.\d{3} .*\nbm25: ndcg@10 0\.\d{3} \[", capsys.readouterr().out)
    assert {p.name for p in tmp_path.iterdir()} <= {"encoder", "trained"}, "nothing else is left behind"


def test_every_script_is_told_of_in_the_documentation() -> None:
    page = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 3 and [p for p in EXAMPLES if f"(examples/{p.name})" not in page] == []
