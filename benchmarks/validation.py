"""What validation costs a training: the seconds of one validation beside those of a step, on real text, and their share at an interval.

    python -m benchmarks.validation --batch 1024 --threads 2 --json benchmarks/results/validation.json

One training of a random encoder; its validations look at held-out pairs and search a collection of those (every held-out passage
a document). Medians over the steps and the validations; the first of each, which tokenises and fetches memory, is shown apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import SHAPES, machine, make_encoder, real_pairs
from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.token_cache import write_token_cache
from lightning_e5.evaluation.beir.data import RetrievalData, write_beir
from lightning_e5.evaluation.validation_tasks import EvaluateOn
from lightning_e5.files.storage import write_json
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.validation import Validation, ValidationCallback
from lightning_e5.training.optimizer import AdamWConfig

#: Of a stage's `Validation`, where nothing else is said.
INTERVAL = Validation().every_n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="MiniLM-L6")
    parser.add_argument("--batch", type=int, default=1024, help="pairs of a step (default 1024)")
    parser.add_argument("--hold-out", type=int, default=2000, help="held-out pairs, and documents of the collection (default 2000)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), given)
    for name, value in found.items():
        print(f"{name}: {value}")
    if given.json is not None:
        write_json(given.json, {"machine": machine(), "threads": given.threads, **found})


def measured(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train, and take the times."""
    pairs = real_pairs(64)
    encoder = make_encoder(given.shape, pairs.tokenizer)
    write_token_cache(folder / "tokens", {"query": (pairs.query_texts, "query"), "passage": (pairs.passage_texts, "passage")}, pairs.tokenizer)
    data = CCPairsDataModule(tokens=folder / "tokens", batch_size=given.batch, seed=1, max_steps=given.steps, hold_out=given.hold_out)
    queries = {f"q{row}": pairs.query_texts[row] for row in data.held_out}
    corpus = {f"d{row}": pairs.passage_texts[row] for row in data.held_out}
    write_beir(folder / "collection", RetrievalData("held-out", "test", corpus, queries, {f"q{row}": {f"d{row}": 1} for row in data.held_out}, 0))
    module = InBatchModule(encoder, temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-4), max_steps=given.steps)
    module.validation_tasks = [EvaluateOn(collections={"held-out": folder / "collection"}, max_length=64)]
    timed = _Timed(Validation(every_n_steps=1, keep="last"), encoder)
    steps: list[float] = []
    log = type("Log", (), {"log_metrics": lambda self, metrics, step=None: steps.append(metrics["seconds"])})()
    fit(module, data, checkpoints=folder / "checkpoints", title="train", logs=[log], validation=timed, accelerator="cpu", devices=1, checkpoint_seconds=1e6)
    step, validation = statistics.median(steps[1:]), statistics.median(timed.seconds[1:])
    return {
        "shape": given.shape, "batch": given.batch, "held_out_pairs": given.hold_out, "step_seconds": round(step, 3),
        "validation_seconds": round(validation, 3), "first_validation_seconds": round(timed.seconds[0], 3),
        f"share_at_every_{INTERVAL}_steps": round(validation / (INTERVAL * step), 5),
    }  # fmt: skip


class _Timed(ValidationCallback):
    """Keeps the seconds of each validation, all that it does between two steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds: list[float] = []

    def _validate(self, trainer: Any, module: Any) -> None:
        started = time.perf_counter()
        super()._validate(trainer, module)
        self.seconds.append(time.perf_counter() - started)


if __name__ == "__main__":
    main()
