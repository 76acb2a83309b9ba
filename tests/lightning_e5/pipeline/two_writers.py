"""Run by `test_lock`: two processes on one run directory, begun at random moments; some are killed. Prints what each start left."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import lightning_e5.pipeline.training
import lightning_e5.stages.vocabulary  # noqa: F401 - imported once, before the processes part
from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.pipeline.runner import run_experiment


def run(experiment: Path, runs: Path, delay: float, wait: bool) -> int:
    """In a child: one run; its exit code."""
    time.sleep(delay)
    try:
        run_experiment(load_experiment(experiment, [f"runs_dir={runs}"]), wait=wait, say=lambda text: None)
    except UserError as error:
        assert "another process is at work there (process " in str(error), error
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(experiment: Path, folder: Path, starts: int, longest: float) -> None:
    """``starts`` times two processes, the second up to ``longest`` seconds after the first."""
    draw = random.Random(0)
    for number in range(starts):
        runs = folder / str(number)
        wait, kill = number % 2 == 0, number % 3 == 2
        pids = []
        for delay in (0.0, draw.uniform(0, longest)):
            pids.append(os.fork())
            if not pids[-1]:
                os._exit(run(experiment, runs, delay, wait))
        if kill:
            time.sleep(draw.uniform(0, longest))
            os.kill(pids[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if 0 not in codes:  # the one was killed, the other refused before: the same command continues
            codes.append(run(experiment, runs, 0.0, False))
        (out,) = (p for p in runs.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = ["metrics.json", *(f"stages/{p.parent.name}/manifest.json" for p in sorted(out.glob("stages/*/manifest.json")))]
        digest = hashlib.sha256(b"".join((out / name).read_bytes() for name in files)).hexdigest()
        rows = [json.loads(line)["step"] for line in (out / "stages/pretrain/metrics.jsonl").read_text().splitlines()]
        left = [p.name for p in out.rglob("*") if p.name.endswith(".tmp") or p.name == ".lock.json"]
        print(json.dumps({"wait": wait, "killed": kill, "codes": codes, "digest": digest, "rows": rows, "left": left}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
