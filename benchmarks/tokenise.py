"""Pairs tokenised per second: the stage's token cache against ``datasets.map(batched=True, num_proc=...)`` with the same tokenizer.

Ours reads Parquet, tokenises, hashes every normalised text and every text for the manifest, and writes Arrow; the peer reads its own
Arrow copy of the same pairs, tokenises and writes Arrow. Both use all ``--threads``: ours as threads of one process, the peer as processes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, arguments, report
from benchmarks.memory import corpus
from benchmarks.memory.pretraining import pool_tokenizer
from benchmarks.memory.stage import Inputs
from data_modules.pair_store import PairStore
from data_modules.token_cache import TokenCache, stream_token_cache
from data_modules.token_shards import TOKENISED_ROWS
from lightning_e5.types import Kind

_LENGTH = 128
_KINDS: dict[str, Kind] = {"query": "query", "passage": "passage"}


def main() -> None:
    """Command line."""
    chosen = arguments(__doc__ or "", pairs={"type": int, "default": 100_000}, folder={"type": Path, "help": "of pairs (default: made)"})
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen.folder is None:
            corpus.pairs(Inputs(folder, chosen.pairs, chosen.threads), folder / "pairs")
        store = PairStore(chosen.folder or folder / "pairs")
        tokenizer, count = pool_tokenizer(store.folder, _LENGTH), store.rows
        backend = tokenizer.stored_backend()
        peer_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_LENGTH, pad_token="[PAD]")
        files = [str(shard.path) for shard in store.shards()]
        rows = datasets.Dataset.from_parquet(files, columns=["query", "passage"], cache_dir=str(folder / "copy"))

        def encoded(batch: dict[str, list[str]]) -> dict[str, Any]:
            of = {name: [tokenizer.prefixes.of(kind) + text for text in batch[name]] for name, kind in _KINDS.items()}
            return {name: peer_tokenizer(texts, truncation=True, return_attention_mask=False, return_token_type_ids=False)["input_ids"] for name, texts in of.items()}

        def peer() -> Any:
            out = folder / "peer.arrow"
            out.unlink(missing_ok=True)
            return rows.map(
                encoded, batched=True, num_proc=chosen.threads, remove_columns=["query", "passage"], load_from_cache_file=False,
                cache_file_name=str(out),
            )  # fmt: skip

        def ours() -> None:
            # ``datasets.map`` leaves the tokenizers of this process on one thread: it sets "false" before its processes start.
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
            shutil.rmtree(folder / "tokens", ignore_errors=True)
            tables = store.iter_batches(list(_KINDS), TOKENISED_ROWS)
            stream_token_cache(folder / "tokens", ({n: t[n].to_pylist() for n in _KINDS} for t in tables), _KINDS, store.rows, tokenizer)

        ours()
        found, expected = TokenCache(folder / "tokens"), peer()
        step = max(1, count // 1000)
        places = np.arange(0, count, step)
        same = all(np.array_equal(found.gather(name, places)[0], np.concatenate(expected[::step][name])) for name in _KINDS)
        times = alternate({"ours": ours, "peer": peer}, chosen.rounds, warm_up=0)
    rates = {name: count / timing.wall for name, timing in times.items()}
    report(
        [{"name": "tokenise", "pairs": count, "ours_rows_per_s": rates["ours"], "peer_rows_per_s": rates["peer"],
          "ratio": rates["ours"] / rates["peer"], "ours_s": times["ours"].wall, "peer_s": times["peer"].wall, "equal_tokens": str(same)}],
        chosen.json, threads=chosen.threads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
