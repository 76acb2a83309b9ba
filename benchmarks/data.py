"""Ready batches per second from one process, what a step waits for its batch, and the cost of resuming far into 1.3 billion rows.

The waiting is that of a loop over the data module's own loader, as the training has it, whose step is a number of milliseconds in
which the processor is idle, as while a GPU computes; without and with batches that a thread makes ahead of the step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        step_ms={"type": float, "nargs": "+", "default": [20.0, 100.0], "help": "length of the step that waits (default 20 and 100)"},
        ahead={"type": int, "default": 2, "help": "batches that the thread has ready (default 2)"},
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
        waits = _waits(Path(folder) / "tokens", chosen.batch, chosen.step_ms, chosen.ahead, chosen.rounds)
    rates = sorted(rates[1:])
    started = time.perf_counter()
    order = BatchOrder([BILLION // 3, BILLION // 3, BILLION - 2 * (BILLION // 3)], 32768, seed=0, alpha=0.5)
    order.rows(1_000_000)
    resumed = time.perf_counter() - started
    report(
        [{
            "name": "pairs ready", "batch": chosen.batch, "rows_per_s": rates[len(rates) // 2],
            "resume_at_1M_ms": resumed * 1000, "resume_batch": 32768,
        }, *waits],
        chosen.json,
    )  # fmt: skip


def _waits(tokens: Path, batch: int, milliseconds: Sequence[float], ahead: int, rounds: int, steps: int = 30) -> list[dict[str, Any]]:
    """The share of its time that a step of each length waits for its batch, with each depth in turn; medians over the rounds."""
    rows = []
    for length in milliseconds:
        shares: dict[int, list[float]] = {0: [], ahead: []}
        for number in range(rounds + 1):
            for depth, taken in shares.items():
                data = CCPairsDataModule(tokens=tokens, batch_size=batch, seed=number, max_steps=steps, prefetch=depth)
                waited, started = 0.0, time.perf_counter()
                for _ in data.train_dataloader():
                    waited += data.data_seconds or 0.0
                    time.sleep(length / 1000)
                taken.append(waited / (time.perf_counter() - started))
        rows += [
            {"name": "waiting", "batch": batch, "step_ms": length, "ahead": depth, "waiting_share": statistics.median(taken[1:])}
            for depth, taken in shares.items()
        ]
    return rows


if __name__ == "__main__":
    main()
