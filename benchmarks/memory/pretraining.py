"""The stages between pairs and pre-training: vocabulary, tokens, the consistency filter, a draw of pairs, the order of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory.stage import Inputs
from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.pair_store import PairStore
from lightning_e5.files.parquet import write_parquet
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.models.training_record import UNTRAINED
from lightning_e5.stages import consistency_filter as filtering
from lightning_e5.stages import draw_pairs as drawing
from lightning_e5.stages import vocabulary as tokenising
from lightning_e5.text import TextTokenizer

#: Small, so that texts and not weights are what is measured.
SPEC = EncoderSpec(max_length=64, vocab_size=8000, layers=1, hidden_size=64, heads=2, intermediate_size=128, initialisation="bert")
_BATCH, _BATCHES = 1024, 300


def encoder(inputs: Inputs, out: Path) -> None:
    """An untrained encoder with `pool_tokenizer`."""
    tokenizer = pool_tokenizer(inputs.pairs)
    model = SPEC.build(tokenizer, np.ones(tokenizer.backend.get_vocab_size(), np.int64), 1)
    model.save_pretrained(out)
    UNTRAINED.save(out)


def pool_tokenizer(pairs: Path, max_length: int = 64) -> TextTokenizer:
    """With a vocabulary of the first 10,000 pairs."""
    first = next(PairStore(pairs).iter_batches(["query", "passage"], 10_000))
    backend = tokenising.train_wordpiece(first["query"].to_pylist(), first["passage"].to_pylist(), SPEC.vocab_size)
    return TextTokenizer(backend, SPEC.text_prefixes, max_length)


def ranks(inputs: Inputs, out: Path) -> None:
    """What the consistency filter leaves, drawn: ``ranks.parquet``, 6 of 10 pairs kept."""
    rank = np.random.default_rng(0).integers(1, 6, inputs.rows)
    write_parquet(out / "ranks.parquet", {"rank": rank, "keep": rank <= 3})


def token_cache(inputs: Inputs, out: Path) -> None:
    """Every pair's tokens."""
    tokens(inputs, out)


def vocabulary(inputs: Inputs, out: Path) -> dict[str, Any]:
    """A WordPiece vocabulary of the pairs, their tokens, an untrained encoder."""
    return tokenising.vocabulary(out, pairs=inputs.pairs, encoder=SPEC, seed=0)


def tokens(inputs: Inputs, out: Path) -> dict[str, Any]:
    """The pairs' tokens by a tokenizer that is there."""
    return tokenising.tokens(out, pairs=inputs.pairs, encoder=inputs.folder / "encoder", seed=0)


def consistency_filter(inputs: Inputs, out: Path) -> dict[str, Any]:
    """Ranks of all pairs among 2,000 passages."""
    return filtering.consistency_filter(
        out, pairs=inputs.pairs, encoder=inputs.folder / "encoder", pool_size=2000, exact_up_to=2, rows_per_part=8192, seed=0
    )


def draw_pairs(inputs: Inputs, out: Path) -> dict[str, Any]:
    """A third of the pairs, of those that the filter keeps."""
    keep = inputs.folder / "ranks" / "ranks.parquet"
    return drawing.draw_pairs(out, pairs=inputs.pairs, keep=keep, count=inputs.rows // 3, seed=0)


def order(inputs: Inputs, out: Path) -> dict[str, Any]:
    """The data module opened, with a mask of kept pairs and 1,000 held out, and 300 batches, each of one source."""
    data = CCPairsDataModule(
        tokens=inputs.folder / "token_cache" / "tokens", keep=inputs.folder / "ranks" / "ranks.parquet", batch_size=_BATCH, seed=0,
        max_steps=_BATCHES, hold_out=1000, one_source_per_batch=True, alpha=0.5,
    )  # fmt: skip
    read = sum(int(data.batch(step, 0, 1).passages.lengths_B.sum()) for step in range(_BATCHES))
    return {"rows": _BATCHES * _BATCH, "tokens": read}
