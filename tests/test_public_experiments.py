"""The experiments on public data run as they lie there, on small files in the publishers' layouts, and `check` says what they would take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from data_modules.pair_store import PairStore
from data_modules.public.published import NOMIC_FILTER, NOMIC_PAIR_SPLITS
from lightning_e5.__main__ import main
from lightning_e5.config.experiment import load_experiment
from lightning_e5.config.known_encoders import KNOWN_ENCODERS
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.pipeline.runner import run_experiment
from lightning_e5.stages.consistency_filter import consistency_filter
from lightning_e5.text import TextTokenizer
from lightning_e5.training.cost import parameters
from tests.data_modules.public.public_data import nomic_pairs, nomic_triples
from tests.lightning_e5.models.hub_server import hub

ROOT = Path(__file__).resolve().parents[1] / "experiments"
ONE = "engine={_target_: lightning_e5.curation.engines.engine.LocalEngine, workers: 1}"
SMALL = [
    ONE, "threads=1", "logger={mode: disabled}", "encoder.pretrained=null", "encoder.vocab_size=1100", "encoder.layers=1", "encoder.hidden_size=32",
    "encoder.heads=2", "encoder.intermediate_size=32", "encoder.max_length=16",
]  # fmt: skip


def small(training: str, **data: Any) -> list[str]:
    values = {"precision": "fp32", "trainer.accelerator": "cpu", "trainer.devices": 1, "data.num_workers": 0, "optimizer.warmup_steps": 0}
    values |= {f"data.{key}": value for key, value in data.items()}
    return [f"stages.{training}.{key}={value}" for key, value in values.items()]


def run(path: str, overrides: list[str]) -> Path:
    experiment = load_experiment(ROOT / path, overrides)
    run_experiment(experiment)
    return Path(experiment["runs_dir"]) / experiment["name"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pairs`` and ``triples`` in nomic's layout."""
    root = tmp_path_factory.mktemp("toy")
    nomic_pairs(root / "pairs", rows=8)
    nomic_triples(root / "triples", rows=8)
    return root


@pytest.fixture(scope="module")
def pretrained(toy: Path) -> Iterator[Path]:
    """A run of ``e5_base_public.yaml`` on the folder; its runs share the pairs with those of the other sizes."""
    yield run("pretrain/e5_base_public.yaml", pretraining(toy))


def pretraining(toy: Path, **data: Any) -> list[str]:
    given = {"batch_size": 8, "max_steps": 2, **data}
    return [f"data_dir={toy / 'pairs'}", f"runs_dir={toy / 'runs'}", *SMALL, *small("pretrain", **given)]


def test_the_pairs_alone(toy: Path) -> None:
    folder = run("data/public_pairs.yaml", [f"data_dir={toy / 'pairs'}", f"runs_dir={toy / 'runs'}", "logger={mode: disabled}", ONE])
    store = PairStore(folder / "stages" / "pairs")
    assert store.sources == dict.fromkeys(NOMIC_PAIR_SPLITS, 8) and store.filtered_before() == {"filtered_before": NOMIC_FILTER}


def test_pretraining_from_a_folder(toy: Path, pretrained: Path) -> None:
    assert read_json(pretrained / "stages" / "pretrain" / "metrics.json")["steps"] == 2
    assert (pretrained / "encoder" / "config.json").is_file()


@pytest.mark.parametrize("name", ["e5_small_public", "e5_large_public"])
def test_pretraining_of_the_other_sizes(name: str, toy: Path, pretrained: Path) -> None:
    folder = run(f"pretrain/{name}.yaml", pretraining(toy))
    assert read_json(folder / "stages" / "pretrain" / "metrics.json")["steps"] == 2
    assert read_json(folder / "stages" / "pairs" / "timing.json")["reused_from"]


def tiny_modernbert(folder: Path, tokenizer: TextTokenizer) -> Path:
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=tokenizer.backend.get_vocab_size(), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3,
    )  # fmt: skip
    TextEncoder(ModernBertModel(config), tokenizer).save_pretrained(folder)
    return folder


def test_modernbert_trains_one_source_per_batch(toy: Path, pretrained: Path, tmp_path: Path) -> None:
    model = tiny_modernbert(tmp_path / "modernbert", TextEncoder.from_pretrained(pretrained / "encoder").tokenizer)
    # One pass over 29 x 8 pairs is 58 steps of 4; a tenth of one 6.
    overrides = pretraining(toy, batch_size=4, max_steps="null", epochs=0.1)
    folder = run("pretrain/modernbert_public.yaml", [*overrides, f"encoder.pretrained={model}"])
    assert read_json(folder / "stages" / "pretrain" / "metrics.json")["steps"] == 6
    encoder = TextEncoder.from_pretrained(folder / "encoder")
    assert isinstance(encoder.backbone, ModernBertModel) and encoder.tokenizer.prefixes.query == "search_query: "


def test_pretraining_from_the_hub_equals_that_from_the_folder(toy: Path, pretrained: Path, tmp_path: Path) -> None:
    with hub({"datasets/nomic-ai/nomic-embed-unsupervised-data": toy / "pairs"}, tmp_path / "cache"):
        overrides = [o for o in pretraining(toy) if not o.startswith(("data_dir", "runs_dir"))]
        folder = run("pretrain/e5_base_public.yaml", [*overrides, "variables.revision=null", f"runs_dir={tmp_path / 'runs'}"])
    for name in ("stages/pairs/shards/squad/part-00000.parquet", "encoder/model.safetensors"):
        assert (folder / name).read_bytes() == (pretrained / name).read_bytes()
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_fine_tuning_from_a_folder(toy: Path, pretrained: Path) -> None:
    overrides = [f"data_dir={toy / 'triples'}", f"runs_dir={toy / 'runs' / 'finetune'}", "logger={mode: disabled}", "threads=1"]
    overrides += [f"stages.finetune.inputs.encoder=path:{pretrained / 'encoder'}", "stages.finetune.max_length=16"]
    folder = run("finetune/e5_base_public.yaml", overrides + small("finetune", batch_size=8))
    assert read_json(folder / "stages" / "finetune" / "metrics.json")["steps"] == 10  # 80 queries, each once
    assert read_json(folder / "stages" / "flickr" / "metrics.json")["ranked"] == 8  # of one negative a row, filled up


def test_a_filter_says_what_another_one_before_it_means(toy: Path, pretrained: Path, tmp_path: Path) -> None:
    pairs = pretrained / "stages" / "pairs"
    given: dict[str, Any] = {"pairs": pairs, "encoder": pretrained / "encoder", "pool_size": 16, "seed": 1}
    consistency_filter(tmp_path / "filter", **given)
    assert read_json(tmp_path / "filter" / "sources.json")["filtered_before"] == NOMIC_FILTER
    consistency_filter(tmp_path / "filter", filtered_before="our own model", **given)
    assert read_json(tmp_path / "filter" / "sources.json")["filtered_before"] == "our own model"


def checked(capsys: pytest.CaptureFixture[str], path: str, *overrides: str) -> str:
    assert main(["check", str(ROOT / path), *overrides]) == 0
    return capsys.readouterr().out


def test_check_says_what_a_training_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    said = checked(capsys, "pretrain/e5_base_public.yaml")
    assert "20,000 steps x 32,768 rows = 655,360,000 = 2.74 passes over the 238,998,494 that their publisher states" in said
    assert "at most 167.8 G tokens = 655,360,000 rows x 2 texts x 128 tokens" in said
    # Of a token: 12 layers of 2 x (4 x 768^2 + 2 x 768 x 3,072) + 4 x 128 x 768 FLOPs forward, four times.
    flops = 4 * 12 * (2 * (4 * 768**2 + 2 * 768 * 3072) + 4 * 128 * 768)
    days = 655_360_000 * 256 * flops / (0.4 * 989e12) / 86400
    assert f"at most {days:,.1f} GPU-days on one H100 in bf16" in said and "the utilisation of 0.4 is an assumption, not measured" in said
    assert re.search(r"memory per GPU: at least \d+\.\d GiB on 1 GPU, \d+\.\d GiB on each of 8", said)
    assert "days on 1:" not in said
    large = checked(capsys, "pretrain/e5_large_public.yaml")
    whole, each = map(float, re.search(r"at least (\S+) GiB on 1 GPU, (\S+) GiB on each of 8 \(16 bytes a parameter, sharded", large).groups())  # type: ignore[union-attr]
    assert whole - each > 16 * 334e6 * 7 / 8 / 2**30
    modern = checked(capsys, "pretrain/modernbert_public.yaml")
    assert "14,588 steps x 16,384 rows" in modern and "= 1.00 passes over" in modern and "149.0 M parameters (22 layers x 768)" in modern
    tuned = checked(capsys, "finetune/e5_base_public.yaml")
    assert "6,625 steps x 256 rows = 1,696,000 = 1.00 passes over the 1,695,819 that their publisher states" in tuned and "x 9 texts x 192 tokens" in tuned
    assert "GPU-days" in checked(capsys, "pretrain/e5_small_public.yaml")


def test_check_says_nothing_of_what_it_cannot_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert "passes" not in checked(capsys, "pretrain/e5_base.yaml")
    filtered = checked(capsys, "pretrain/e5_base_public.yaml", "stages.pretrain.inputs.keep=path:ranks.parquet")
    assert "passes" not in filtered and "days on 1:" in filtered
    assert "passes" not in checked(capsys, "pretrain/e5_base_public.yaml", "stages.pairs.max_pairs_per_source=1000")


def test_parameters_are_those_of_the_models() -> None:
    with torch.device("meta"):
        for name, model in (
            ("google-bert/bert-base-uncased", BertModel(BertConfig(), add_pooling_layer=False)),
            ("answerdotai/ModernBERT-base", ModernBertModel(ModernBertConfig())),
        ):
            assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters(KNOWN_ENCODERS[name]), abs=2 * 768)
