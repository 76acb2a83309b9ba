"""SIGKILL at random moments, resume, and compare with the uninterrupted run: weights, optimizer, every logged loss and validation.

Trainings of three schemes (in-batch, MoCo, distilled), with 0 and 2 data workers, dropout on, over more than two epochs
of real text, a checkpoint and a validation on held-out rows every few steps. A third of the kills fall at random times, a third inside the writing
of a checkpoint, whose temporary file the killer waits for, a third inside a validation, which leaves a mark while it runs; TMPDIR is
on another file system where there is one (/dev/shm). ``--writer background``: checkpoints are written by a thread while training goes
on, and half of the kills fall inside the writing; what a run resumes from is then as many steps behind as the writing takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCHEMES = ("in_batch", "moco", "distilled")
PAIRS, BATCH, EPOCHS, CHECKPOINT_STEPS, HELD_OUT, VALIDATION_STEPS = 240, 16, 2.5, 3, 32, 4
#: Where a kill may fall: at a random time, while a checkpoint is written, within a validation.
PLACES = ("at a random time", "while a checkpoint was written", "in a validation")
#: Who writes the checkpoints -> where the kills fall, in turn.
WRITERS = {"direct": (0, 1, 2), "background": (1, 0, 1, 2)}
_MARK = "validating"


def main() -> int:
    """Command line; returns 0 where every resumed run is bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills in all (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=SCHEMES)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--writer", default="direct", choices=list(WRITERS), help="who writes the checkpoints: the step, or a thread (default direct)")
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"], help="where it trains (default cpu); cuda: with deterministic kernels")
    parser.add_argument("--child", nargs=4, metavar=("OUT", "SCHEME", "WORKERS", "WRITER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        train(Path(chosen.child[0]), chosen.child[1], int(chosen.child[2]), chosen.child[3], chosen.accelerator)
        return 0
    draw = random.Random(chosen.seed)
    modes = [(scheme, workers) for scheme in chosen.schemes for workers in chosen.workers]
    shares = [chosen.kills // len(modes) + (i < chosen.kills % len(modes)) for i in range(len(modes))]
    equal, resumes = True, 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "data")
        for (scheme, workers), kills in zip(modes, shares, strict=True):
            whole, killed = (Path(folder) / f"{scheme}-{workers}-{kind}" for kind in ("whole", "killed"))
            _run(whole, scheme, workers, "direct", chosen.accelerator)
            places = WRITERS[chosen.writer]
            for _ in range(kills):
                where = _run_and_kill(killed, (scheme, workers, chosen.writer, chosen.accelerator), draw, place=places[resumes % len(places)])
                resumes += 1
                print(f"resume {resumes:2}: {scheme}, {workers} workers, killed {where}", flush=True)
            _run(killed, scheme, workers, chosen.writer, chosen.accelerator)
            reason = differences(whole, killed)
            print(f"{scheme}, {workers} workers: {'bit-equal' if reason is None else 'DIFFERS: ' + reason}", flush=True)
            equal &= reason is None
    print(f"{resumes} resumes: {'bit-equal' if equal else 'NOT EQUAL'}")
    return 0 if equal else 1


def prepare(folder: Path) -> None:
    """A tokenizer, pairs, and groups with made-up teacher scores, from real text."""
    import numpy as np
    import pyarrow as pa

    from benchmarks.common import real_pairs
    from data_modules.token_cache import write_token_cache
    from lightning_e5.files.parquet import write_parquet

    pairs = real_pairs(32, ("networkx",))
    queries, passages = pairs.query_texts[:PAIRS], pairs.passage_texts[:PAIRS]
    _encoder(pairs.tokenizer).save_pretrained(folder / "encoder")
    write_token_cache(folder / "tokens", {"query": (queries, "query"), "passage": (passages, "passage")}, pairs.tokenizer)
    scores = np.random.default_rng(0).normal(size=(PAIRS, 3)).astype(np.float32)
    write_parquet(
        folder / "ranked.parquet",
        {
            "query": queries, "positive": passages,
            "negatives": [[passages[(i + 1) % PAIRS], passages[(i + 7) % PAIRS]] for i in range(PAIRS)],
            "teacher_scores": pa.array(scores.tolist(), pa.list_(pa.float32())),
        },
    )  # fmt: skip


def _encoder(tokenizer: Any) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    from lightning_e5.models.encoder import TextEncoder

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.backend.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    return TextEncoder(BertModel(config, add_pooling_layer=False), tokenizer)


def train(out: Path, scheme: str, workers: int, writer: str = "direct", accelerator: Any = "cpu") -> None:
    """One training, resumed from what ``out`` holds; its last state lands in ``final.pt``."""
    import torch

    from data_modules.ccpairs.datamodule import CCPairsDataModule
    from data_modules.finetune.datamodule import RankedDataModule
    from lightning_e5.files.storage import atomic_path
    from lightning_e5.models.encoder import TextEncoder
    from lightning_e5.modules.distilled import DistilledModule
    from lightning_e5.modules.fit import fit
    from lightning_e5.modules.in_batch import InBatchModule
    from lightning_e5.modules.moco import MoCoModule
    from lightning_e5.modules.validation import Validation, ValidationCallback
    from lightning_e5.rng import use_deterministic_kernels
    from lightning_e5.tracking.metrics_log import JsonlLogger
    from lightning_e5.training.optimizer import AdamWConfig

    use_deterministic_kernels(accelerator == "cuda")
    torch.set_num_threads(1)
    data_folder = out.parent / "data"
    encoder = TextEncoder.from_pretrained(data_folder / "encoder").train()
    common: dict[str, Any] = {"batch_size": BATCH, "seed": 5, "epochs": EPOCHS, "num_workers": workers, "hold_out": HELD_OUT}
    if scheme == "distilled":
        data: Any = RankedDataModule(
            ranked=data_folder / "ranked.parquet", tokenizer=encoder.tokenizer, cache_dir=out / "tokens", negatives=2, **common
        )
    else:
        data = CCPairsDataModule(tokens=data_folder / "tokens", **common)
    classes: dict[str, Any] = {"in_batch": InBatchModule, "moco": MoCoModule, "distilled": DistilledModule}
    extra: dict[str, Any] = {"queue_size": 64} if scheme == "moco" else {}
    module = classes[scheme](
        encoder, temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=data.max_steps, seed=3, **extra
    )
    logger = JsonlLogger(out)
    module.validation_tasks = [_Marked(out / _MARK)]
    validation = ValidationCallback(Validation(every_n_steps=VALIDATION_STEPS, monitor="val/mrr@10"), encoder)
    fit(
        module, data, checkpoints=out / "checkpoints", title=f"{scheme}-{workers}", logs=[logger], resumed=logger.truncate,
        accelerator=accelerator, devices=1, checkpoint_steps=CHECKPOINT_STEPS, chunk_tokens=256, graph_tokens=512, validation=validation,
        background_checkpoints=writer == "background",
    )  # fmt: skip
    logger.finalize("success")
    with atomic_path(out / "final.pt") as temporary:
        torch.save({"module": module.state_dict(), "optimizer": module.optimizers().state_dict(), "validation": validation.state_dict()}, temporary)


class _Marked:
    """A validation task that takes a moment, in which its file is there."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def values(self, model: Any) -> dict[str, float]:
        """One value, always the same."""
        self.mark.touch()
        time.sleep(0.05)
        self.mark.unlink()
        return {"marked/constant": 0.5}

    def identities(self) -> dict[str, str]:
        """Of nothing."""
        return {"marked": "items none"}


def _start(out: Path, scheme: str, workers: int, writer: str, accelerator: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.kill_loop", "--child", str(out), scheme, str(workers), writer, "--accelerator", accelerator]
    elsewhere = Path("/dev/shm")
    environment = {**os.environ, **({"TMPDIR": str(elsewhere)} if elsewhere.is_dir() else {})}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def _run(out: Path, scheme: str, workers: int, writer: str, accelerator: str) -> None:
    """To the end."""
    process = _start(out, scheme, workers, writer, accelerator)
    errors = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"the training ended with {process.returncode}:\n{errors.decode()[-3000:]}")


def _run_and_kill(out: Path, mode: tuple[str, int, str, str], draw: random.Random, *, place: int) -> str:
    """Start, wait for the drawn moment, SIGKILL the whole session; a run that ended first is taken back and run again."""
    while True:
        before = _rows(out)
        process = _start(out, *mode)
        target = before + draw.randint(0, max(1, round(PAIRS * EPOCHS / BATCH) // 3))
        delay = draw.uniform(0.0, 0.2)
        while process.poll() is None:
            there = [True, any(out.glob("checkpoints/.*")), (out / _MARK).exists()][place]
            if there and _rows(out) >= target:
                time.sleep(0.0 if place else delay)
                break
            time.sleep(0.0 if place and _rows(out) >= target else 0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            (out / _MARK).unlink(missing_ok=True)
            return f"{PLACES[place]}, after {_rows(out)} logged steps"
        process.communicate()
        shutil.rmtree(out)  # it ended before the moment came: from the start again


def _rows(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def differences(whole: Path, killed: Path) -> str | None:
    """What differs between two trainings, None where nothing does: weights, optimizer, every step's loss."""
    import torch

    from lightning_e5.tracking.metrics_log import TIMED

    ours, theirs = (torch.load(p / "final.pt", weights_only=True) for p in (whole, killed))
    reason = _unequal(ours, theirs, "final state")
    if reason:
        return reason
    logs = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, killed)]
    rows = [[{k: v for k, v in row.items() if k not in TIMED} for row in log] for log in logs]
    if [r["step"] for r in rows[0]] != [r["step"] for r in rows[1]]:
        return f"logged steps: {len(rows[0])} rows and {len(rows[1])}"
    return next((f"step {a['step']}: {a} and {b}" for a, b in zip(*rows, strict=True) if a != b), None)


def _unequal(a: Any, b: Any, where: str) -> str | None:
    import torch

    if isinstance(a, torch.Tensor):
        return None if torch.equal(a, b) else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return where
        return next((r for k in a if (r := _unequal(a[k], b[k], f"{where}.{k}"))), None)
    if isinstance(a, list):
        return next((r for i, (x, y) in enumerate(zip(a, b, strict=True)) if (r := _unequal(x, y, f"{where}[{i}]"))), None)
    return None if a == b else where


if __name__ == "__main__":
    sys.exit(main())
