"""A small real training with W&B that is killed at steps and continued: ``python wandb_training.py OUT STEP...``.

Every attempt is a process of its own, forked after the imports; the last one runs to its end.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from data_modules.ccpairs.datamodule import CCPairsDataModule
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.pipeline.training import train
from lightning_e5.training.optimizer import AdamWConfig

STEPS, BATCH, CHECKPOINT_STEPS = 105, 8, 45


def attempt(out: Path) -> None:
    """Train, continuing what ``out`` holds; the data lies beside it."""
    torch.set_num_threads(1)
    encoder = TextEncoder.from_pretrained(out.parent / "data" / "encoder").train()
    data = CCPairsDataModule(tokens=out.parent / "data" / "tokens", batch_size=BATCH, seed=5, max_steps=STEPS)
    schedule: dict[str, Any] = {"temperature": 0.05, "optimizer": AdamWConfig(learning_rate=1e-3), "max_steps": data.max_steps, "seed": 3}
    context = StageContext("variant-seed3", "pretrain", out.parent, {"mode": "offline", "group": "g"}, {"seed": 3})
    train(out, InBatchModule(encoder, **schedule), data, context, accelerator="cpu", devices=1, checkpoint_steps=CHECKPOINT_STEPS)


def main(out: Path, kills: list[int]) -> None:
    """SIGKILL each attempt but the last once ``metrics.jsonl`` has the step."""
    log = out / "metrics.jsonl"
    for step in [*kills, None]:
        child = os.fork()
        if child == 0:
            attempt(out)
            os._exit(0)
        while step is not None and not (log.is_file() and f'"step": {step},' in log.read_text()):
            time.sleep(0.002)
        if step is not None:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != (0 if step is None else -signal.SIGKILL):
            raise SystemExit(f"the training until step {step} ended with {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(step) for step in sys.argv[2:]])
