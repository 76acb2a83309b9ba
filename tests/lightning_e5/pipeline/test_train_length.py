"""Training on shorter texts than the encoder reads: the tokens are cut, the encoder's own limit stays."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from data_modules.finetune.datamodule import RankedDataModule
from data_modules.token_cache import TokenCache
from lightning_e5.files.parquet import write_parquet
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.stages.finetune import finetune
from lightning_e5.stages.vocabulary import vocabulary
from lightning_e5.text import E5_PREFIXES
from lightning_e5.training.optimizer import AdamWConfig


def test_the_start_of_a_recipe(tmp_path: Path, encoder_folder: Path, texts: list[str]) -> None:
    pairs = {"query": texts[:40], "passage": texts[40:80], "source": ["s"] * 40}
    (tmp_path / "pairs").mkdir()
    write_parquet(tmp_path / "pairs" / "pairs.parquet", pairs)
    spec = EncoderSpec(pretrained=str(encoder_folder), max_length=48)
    longest = {}
    for length in (12, None):
        out = tmp_path / f"start-{length}"
        vocabulary(out, pairs=tmp_path / "pairs", encoder=spec, train_length=length, seed=1)
        encoder = TextEncoder.from_pretrained(out / "encoder")
        assert (encoder.tokenizer.max_length, encoder.tokenizer.prefixes) == (48, E5_PREFIXES)
        cache = TokenCache(out / "tokens")
        longest[length] = max(cache.gather(column, range(40))[1].max() for column in ("query", "passage"))
    assert longest == {12: 12, None: 48}


def test_fine_tuning(tmp_path: Path, encoder_folder: Path, texts: list[str]) -> None:
    rows = {"query": texts[:8], "positive": texts[8:16], "negatives": [[t] for t in texts[16:24]], "source": ["s"] * 8}
    write_parquet(tmp_path / "ranked.parquet", rows)
    seen: list[int] = []

    class Watched(DistilledModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            seen.extend([*batch.queries.lengths_B.tolist(), *batch.passages.lengths_B.tolist()])
            super().training_step(batch, batch_idx)

    context = StageContext("run", "finetune", tmp_path, {"mode": "disabled"}, {})
    finetune(
        tmp_path / "out", encoder=encoder_folder, ranked=tmp_path / "ranked.parquet", train_length=10,
        data=partial(RankedDataModule, batch_size=4, negatives=1, epochs=1), module=partial(Watched), optimizer=AdamWConfig(learning_rate=1e-4),
        seed=1, context=context, trainer={"accelerator": "cpu", "devices": 1},
    )  # fmt: skip
    assert max(seen) == 10
    assert TextEncoder.from_pretrained(tmp_path / "out" / "encoder").tokenizer.max_length == 48
