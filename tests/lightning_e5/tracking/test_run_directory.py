"""What a run leaves behind: one row per step whatever happened, and no secret anywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.tracking.run_directory import (
    JsonlLogger,
    check_logger,
    environment,
    numerics,
    read_metrics_log,
    record_environment,
)

ROOT = Path(__file__).resolve().parents[3]


def test_the_environment_is_facts_only() -> None:
    facts = environment()
    assert set(facts) == {"commit", "uncommitted_changes", "python", "platform", "processor", "cpus", "threads", "gpus", "packages", "numerics"}
    assert facts["packages"]["torch"] and json.dumps(facts)
    deciding = {"torch", "torch_git", "threads", "interop_threads", "instruction_set", "device", "compute_capability", "cuda", "cudnn", "deterministic"}
    assert deciding <= set(facts["numerics"]) and "ATEN_CPU_CAPABILITY" in facts["numerics"]


def test_a_run_that_continues_under_other_conditions_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    record_environment(tmp_path, said.append)
    record_environment(tmp_path, said.append)
    assert said == []
    facts = read_json(tmp_path / "environment.json")
    facts["numerics"] |= {"threads": 64, "instruction_set": "AVX512"}
    write_json(tmp_path / "environment.json", facts)
    record_environment(tmp_path, said.append)
    now = numerics()
    assert len(said) == 1 and "\n" not in said[0] and "is not byte-equal" in said[0]
    assert f"threads 64 -> {now['threads']}" in said[0] and f"instruction_set AVX512 -> {now['instruction_set']}" in said[0]
    for damaged in ("{", "[]", '{"numerics": 3}', '{"numerics": []}'):
        (tmp_path / "environment.json").write_text(damaged)
        record_environment(tmp_path, said.append)
    assert len(said) == 1 and read_json(tmp_path / "environment.json")["numerics"] == now


def test_another_instruction_set_is_in_the_record(tmp_path: Path) -> None:
    code = "import json; from lightning_e5.tracking.run_directory import numerics; print(json.dumps(numerics()))"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["ATEN_CPU_CAPABILITY"] == "default" and found["instruction_set"] == "DEFAULT" and found["threads"] == 1


def log(logger: JsonlLogger, first: int, last: int) -> None:
    for step in range(first, last + 1):
        logger.log_metrics({"loss": 1 / step}, step=step)


def steps(directory: Path) -> list[Any]:
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tail", ["", '{"step": 8, "lo', '{"step": 8, "loss": 0.125}', "\0" * 40, '{"step": 8,\n'])
def test_a_resumed_log_has_one_row_per_step(tmp_path: Path, tail: str) -> None:
    killed = JsonlLogger(tmp_path)
    log(killed, 1, 7)
    killed.finalize("killed")
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write(tail)
    resumed = JsonlLogger(tmp_path)
    resumed.truncate(5)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    log(resumed, 6, 9)
    resumed.finalize("success")
    assert steps(tmp_path) == list(range(1, 10))
    assert [row["loss"] for row in read_metrics_log(tmp_path)] == [1 / step for step in range(1, 10)]


def test_truncate_of_an_open_log_and_from_the_start(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "new")
    logger.truncate(0)
    log(logger, 1, 4)
    logger.truncate(2)
    log(logger, 3, 3)
    assert steps(tmp_path / "new") == [1, 2, 3]
    logger.truncate(0)
    assert steps(tmp_path / "new") == [] and read_metrics_log(tmp_path / "absent") == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    logger = JsonlLogger(tmp_path)
    log(logger, 1, 3)
    logger.finalize("killed")
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [row["step"] for row in read_metrics_log(tmp_path)] == [1, 2]


def test_rows_are_exact(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path)
    logger.log_metrics({"loss": 0.1 + 0.2, "accuracy": 1e-300}, step=1)
    logger.log_metrics({"loss": math.nan}, step=2)
    first, second = read_metrics_log(tmp_path)
    assert first == {"step": 1, "loss": 0.1 + 0.2, "accuracy": 1e-300} and math.isnan(second["loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"log_model": "yes"}, "'yes' is not true or false"), ({"mod": "auto"}, "unknown key 'mod'; did you mean 'mode'"), ({"mode": "on"}, "'on' is not one of auto, online"), ({1: 2}, "unknown key 1")],
)
def test_logger_settings(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_logger(settings)
    check_logger({"mode": "offline", "tags": ["a"], "project": "p"})


def test_a_finished_stage_keeps_one_row_per_step(smoke_run: Path) -> None:
    for stage in ("noisy", "pretrain", "teacher", "finetune"):
        directory = smoke_run / "stages" / stage
        total = int(read_json(directory / "metrics.json")["steps"])
        assert steps(directory) == list(range(1, total + 1))
