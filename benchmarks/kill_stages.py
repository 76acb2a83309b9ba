"""SIGKILL at random moments of a run that trains a teacher and scores with it; the files must be those of an uninterrupted run.

Every try is a process of its own, forked from one that has imported everything, so that most of its time is the stages' own.
The uninterrupted run is a fresh process, with other hash seeds and another process number.
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
import traceback
from pathlib import Path

from lightning_e5.tracking.metrics_log import TIMED

STAGES = ("teacher", "scores")
#: Groups of a kept block of scores, instead of thousands: there are several, and kills between them.
GROUPS = 48
EXPERIMENT = """
name: killed
threads: 1
logger: {mode: disabled}
stages:
  teacher:
    _target_: lightning_e5.stages.teacher.teacher
    inputs: {encoder: "path:DATA/encoder", ranked: "path:DATA/ranked.parquet"}
    max_length: 32
    data: {_target_: data_modules.finetune.datamodule.RankedDataModule, _partial_: true, batch_size: 16, negatives: 2, epochs: 1, hold_out: 16}
    optimizer: {_target_: lightning_e5.training.optimizer.AdamWConfig, learning_rate: 1.0e-3}
    module: {_target_: lightning_e5.modules.cross_encoder.CrossEncoderModule, _partial_: true}
    trainer: {accelerator: cpu, checkpoint_steps: 3}
  scores:
    _target_: lightning_e5.stages.teacher.teacher_scores
    inputs: {teacher: teacher/cross_encoder, ranked: "path:DATA/ranked.parquet"}
"""


def main() -> int:
    """Command line; returns 0 where every killed and continued run left the same files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills in all (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", nargs=2, metavar=("EXPERIMENT", "RUNS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return run(Path(chosen.child[0]), Path(chosen.child[1]))
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: this one is to fork, and must have no threads.
        subprocess.run([sys.executable, "-c", f"from pathlib import Path; from benchmarks.kill_loop import prepare; prepare(Path({name!r}, 'data'))"], check=True)
        experiment = folder / "experiment.yaml"
        experiment.write_text(EXPERIMENT.replace("DATA", str(folder / "data")))
        command = [sys.executable, "-m", "benchmarks.kill_stages", "--child", str(experiment), str(folder / "whole")]
        subprocess.run(command, check=True)
        began = time.monotonic()
        _forked(experiment, folder / "first")
        shortest = time.monotonic() - began
        reasons = [_differences(folder / "whole" / "killed", folder / "first" / "killed")]
        kills = 0
        while kills < chosen.kills:
            began = time.monotonic()
            killed = _forked(experiment, folder / "killed", draw.uniform(0.0, shortest))
            shortest = shortest if killed else min(shortest, time.monotonic() - began)
            if killed:
                kills += 1
                print(f"kill {kills:2}: {_place(folder / 'killed' / 'killed')}", flush=True)
            if not killed or kills == chosen.kills:
                _forked(experiment, folder / "killed")
                reasons.append(_differences(folder / "whole" / "killed", folder / "killed" / "killed"))
                print(f"{'equal' if reasons[-1] is None else 'DIFFERS: ' + reasons[-1]}", flush=True)
                shutil.rmtree(folder / "killed")
    wrong = [reason for reason in reasons if reason is not None]
    print(f"{kills} kills, {len(reasons)} runs: {'equal' if not wrong else 'NOT EQUAL'}")
    return 1 if wrong else 0


def run(experiment: Path, runs: Path) -> int:
    """One run, continued from what is there; 0, or 1 with a traceback."""
    import lightning_e5.curation.mining.teacher_scores as teacher_scores
    from lightning_e5.config.experiment import load_experiment
    from lightning_e5.pipeline.runner import run_experiment

    teacher_scores.GROUPS = GROUPS
    try:
        run_experiment(load_experiment(experiment, [f"runs_dir={runs}"]), say=lambda text: None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forked(experiment: Path, runs: Path, seconds: float | None = None) -> bool:
    """Run in a child, killed after ``seconds``; whether it was killed, False where it had ended before."""
    import lightning_e5.stages.teacher  # noqa: F401 - imported once, before the processes part

    pid = os.fork()
    if not pid:
        os._exit(run(experiment, runs))
    until = time.monotonic() + seconds if seconds is not None else float("inf")
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(ended[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run ended with {code}")
    return code != 0


def _place(directory: Path) -> str:
    for stage in STAGES:
        out = directory / "stages" / stage
        if not (out / "manifest.json").is_file():
            steps = (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").is_file() else 0
            return f"in {stage}, after {steps} steps and {len(list(out.glob('parts/*.npz')))} blocks"
    return "after the last stage"


def _differences(whole: Path, killed: Path) -> str | None:
    """What differs between two runs' results: the first file of which the bytes do, or a logged step."""
    for stage in STAGES:
        manifests = [json.loads((p / "stages" / stage / "manifest.json").read_text()) for p in (whole, killed)]
        for name, digest in manifests[0]["files"].items():
            if manifests[1]["files"].get(name) != digest:
                return f"{stage}/{name}"
        if manifests[0] != manifests[1]:
            return f"{stage}/manifest.json"
    if (whole / "metrics.json").read_bytes() != (killed / "metrics.json").read_bytes():
        return "metrics.json"
    logs = [(p / "stages" / "teacher" / "metrics.jsonl").read_text().splitlines() for p in (whole, killed)]
    rows = [[{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in log] for log in logs]
    return None if rows[0] == rows[1] else "teacher/metrics.jsonl"


if __name__ == "__main__":
    sys.exit(main())
