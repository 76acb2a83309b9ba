"""A disk that is full in the middle of a run: one sentence, nothing half-written, and the same command ends as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_e5.files.parquet import write_parquet

ROOT = Path(__file__).resolve().parents[3]
#: Each run is a forked process, so that the libraries are imported once: (name of the run, limit of a file's bytes or None).
SCRIPT = """
import json, os, resource, sys
import lightning_e5.stages.draw_pairs, lightning_e5.pipeline.training, lightning_e5.stages.vocabulary
from lightning_e5.__main__ import main
for name, limit, *overrides in json.loads(sys.argv[1]):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(f"{sys.argv[3]}/{name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(main(["run", "--fresh", sys.argv[2], f"runs_dir={sys.argv[3]}", f"name={name}", *overrides]))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
EXPERIMENT = """
name: x
threads: 1
logger: {mode: disabled}
stages:
  draw: {_target_: lightning_e5.stages.draw_pairs.draw_pairs, inputs: {pairs: "path:PAIRS"}, count: 20}
  vocabulary:
    _target_: lightning_e5.stages.vocabulary.vocabulary
    inputs: {pairs: "path:PAIRS"}
    encoder: {_target_: lightning_e5.models.factory.EncoderSpec, vocab_size: 300, layers: 1, hidden_size: 32, heads: 2, intermediate_size: 32}
  pretrain:
    _target_: lightning_e5.stages.pretrain.pretrain
    inputs: {encoder: vocabulary/encoder, tokens: vocabulary/tokens, keep: draw/keep.parquet}
    data: {_target_: data_modules.ccpairs.datamodule.CCPairsDataModule, _partial_: true, batch_size: 8, max_steps: 60}
    optimizer: {_target_: lightning_e5.training.optimizer.AdamWConfig, learning_rate: 1.0e-3}
    module: {_target_: lightning_e5.modules.in_batch.InBatchModule, _partial_: true}
    trainer: {accelerator: cpu, checkpoint_steps: 20}
"""


@pytest.mark.slow
def test_a_disk_that_is_full_anywhere(tmp_path: Path, texts: list[str]) -> None:
    write_parquet(tmp_path / "pairs" / "pairs.parquet", {"query": texts[:40], "passage": texts[40:80]})
    experiment, runs = tmp_path / "experiment.yaml", tmp_path / "runs"
    runs.mkdir()
    experiment.write_text(EXPERIMENT.replace("PAIRS", str(tmp_path / "pairs")))

    def runs_of(*wanted: list[object]) -> list[int]:
        command = [sys.executable, "-c", SCRIPT, json.dumps(wanted), str(experiment), str(runs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        return [int(line) for line in done.stdout.split()]

    assert runs_of(["whole", None]) == [0]
    whole = runs / "whole"
    log, weights = ((whole / "stages/pretrain" / name).stat().st_size for name in ("metrics.jsonl", "encoder/model.safetensors"))
    assert weights > (whole / "report.html").stat().st_size, "else the report of the run is what has no room"
    cases = {
        "config": (300, "config.yaml", "File too large"),
        "log": (log - 100, "stages/pretrain/metrics.jsonl", "File too large"),
        "checkpoint": (weights + 500, "stages/pretrain/checkpoints/step-00000020.ckpt", "the checkpoint could not be written"),
    }
    rare = ["stages.pretrain.trainer.checkpoint_steps=1000", "stages.pretrain.trainer.checkpoint_seconds=1.0e+6"]
    assert runs_of(["log", None]) == [0]  # for the log the stages before are done already
    shutil.rmtree(runs / "log" / "stages" / "pretrain")
    (runs / "log" / "metrics.json").unlink()
    limited = ([name, limit, *(rare if name == "log" else [])] for name, (limit, _, _) in cases.items())
    assert runs_of(*limited) == [2] * len(cases)
    for name, (_, file, why) in cases.items():
        lines = (runs / f"{name}.err").read_text().replace("\r", "\n").strip().splitlines()
        assert lines[-1].startswith("error: ") and why in lines[-1] and f"/{name}/{file}" in lines[-1], (name, lines[-3:])
        assert not any("Traceback" in line for line in lines) and not list((runs / name).rglob("*.tmp"))
        assert not (runs / name / "metrics.json").exists() and (file.endswith(".jsonl") or not (runs / name / file).is_file())
    assert runs_of(*([name, None] for name in cases)) == [0] * len(cases)
    for name in cases:
        for file in ("metrics.json", "stages/draw/keep.parquet", "stages/pretrain/encoder/model.safetensors"):
            assert (runs / name / file).read_bytes() == (whole / file).read_bytes(), (name, file)
        rows = [json.loads(line)["step"] for line in (runs / name / "stages/pretrain/metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, 61))
