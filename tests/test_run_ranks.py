"""An experiment with a stage on two ranks: the first process does everything, the other takes part in that stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_run_with_a_stage_on_two_ranks(smoke_run: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "two_ranks.yaml"
    experiment.write_text(
        f"extends: {ROOT / 'experiments' / 'smoke.yaml'}\nname: two_ranks\n"
        "stages:\n"
        "  noisy: {module: {token_dropout: 0.0}, trainer: {accelerator: cpu, devices: 2, backend: gloo}}\n"
        "  finetune: {trainer: {accelerator: cpu, devices: 2, backend: gloo}}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    command = [sys.executable, "-m", "lightning_e5", "run", str(experiment), f"runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("[10/10] evaluate: done") == 1, "every stage is done once, by one process"
    alone, together = (json.loads((p / "metrics.json").read_text()) for p in (smoke_run, tmp_path / "two_ranks"))
    assert together["noisy/steps"] == alone["noisy/steps"] and together["noisy/pairs_seen"] == alone["noisy/pairs_seen"]
    rows = [json.loads(line) for line in (tmp_path / "two_ranks/stages/noisy/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
