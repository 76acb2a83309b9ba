"""One row per step, whatever happened."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.files.storage import read_json
from lightning_e5.tracking.metrics_log import JsonlLogger, read_metrics_log


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


def test_a_finished_stage_keeps_one_row_per_step(smoke_run: Path) -> None:
    for stage in ("noisy", "pretrain", "teacher", "finetune"):
        directory = smoke_run / "stages" / stage
        total = int(read_json(directory / "metrics.json")["steps"])
        assert steps(directory) == list(range(1, total + 1))
