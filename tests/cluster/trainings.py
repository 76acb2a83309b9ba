"""A small experiment whose training runs on some ranks, and the comparison of two of its runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.processes import outside_of_jobs

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "experiments" / "ablations" / "_base" / "smoke.yaml"


def environment(**more: str) -> dict[str, str]:
    """This process's, as a user's shell would have it, with one thread per process."""
    return {**outside_of_jobs(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", **more}


def experiment(folder: Path, name: str, trainer: str) -> Path:
    """The YAML of an experiment of four stages whose training has this ``trainer``; its runs lie in ``folder``."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"extends: {BASE}\nname: {name}\nruns_dir: {folder}\nstage_cache: null\nthreads: 1\nlogger: {{mode: disabled}}\n"
        f"stages: {{pretrain: {{trainer: {trainer}}}}}\n"
    )
    return path


def run_command(path: Path) -> list[str]:
    """Runs an experiment."""
    return [sys.executable, "-u", "-m", "lightning_e5", "run", str(path)]


def rows(run: Path) -> list[dict[str, Any]]:
    """The training's logged steps."""
    path = run / "stages" / "pretrain" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def assert_same_training(one: Path, other: Path) -> None:
    """Both ended with the losses of every step and the weights that the other has, up to the order of float32 sums."""
    ours, theirs = rows(one), rows(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(1, 21))
    np.testing.assert_allclose([row["loss"] for row in theirs], [row["loss"] for row in ours], rtol=1e-5)
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"], "the control: it learns, so equal losses say something"
    weights, same = (load_file(run / "stages" / "pretrain" / "encoder" / "model.safetensors") for run in (one, other))
    assert weights.keys() == same.keys()
    for name, values in weights.items():
        np.testing.assert_allclose(same[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
