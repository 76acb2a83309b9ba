"""Ready batches per second from one process, and the cost of resuming far into 1.3 billion rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.common import arguments, real_pairs, report
from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.order import BatchOrder
from data_modules.token_cache import write_token_cache

BILLION = 1_300_000_000


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "", batch={"type": int, "default": 1024}, rows={"type": int, "default": 200_000},
        steps={"type": int, "default": 100, "help": "batches timed per round"},
    )  # fmt: skip
    pairs = real_pairs(128)
    repeats = -(-chosen.rows // len(pairs.query_texts))
    columns = {
        "query": ((pairs.query_texts * repeats)[: chosen.rows], "query"),
        "passage": ((pairs.passage_texts * repeats)[: chosen.rows], "passage"),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_token_cache(Path(folder) / "tokens", columns, pairs.tokenizer)  # type: ignore[arg-type]
        data = CCPairsDataModule(tokens=Path(folder) / "tokens", batch_size=chosen.batch, seed=0, max_steps=10**6)
        rates = []
        for number in range(chosen.rounds + 1):
            started = time.perf_counter()
            for step in range(number * chosen.steps, (number + 1) * chosen.steps):
                data.batch(step, 0, 1)
            rates.append(chosen.batch * chosen.steps / (time.perf_counter() - started))
    rates = sorted(rates[1:])
    started = time.perf_counter()
    order = BatchOrder([BILLION // 3, BILLION // 3, BILLION - 2 * (BILLION // 3)], 32768, seed=0, alpha=0.5)
    order.rows(1_000_000)
    resumed = time.perf_counter() - started
    report(
        [{
            "name": "pairs ready", "batch": chosen.batch, "rows_per_s": rates[len(rates) // 2],
            "resume_at_1M_ms": resumed * 1000, "resume_batch": 32768,
        }],
        chosen.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
