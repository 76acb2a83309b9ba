"""The fast reading of a run's configuration is the slow one's."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.results.recorded_config import load_recorded

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"


@pytest.mark.parametrize("file", ["smoke.yaml", "quickstart.yaml", "pretrain/e5_base.yaml", "finetune/e5_small.yaml"])
def test_a_recorded_configuration_is_read_as_it_was_written(file, tmp_path):
    experiment = load_experiment(EXPERIMENTS / file, ["data_dir=/data"])
    experiment["variables"] = {
        "small": 1e-05, "text": "1e-5", "date": "2020-01-01", "yes": "yes", "number": "1_000", "big": 3e20, "none": None,
        "time": "12:30", "empty": "", "signed": "+5", "inf": float("inf"), "line": "a\nb",
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(experiment)))
    assert load_recorded(path) == load_experiment(path) == experiment


def test_what_is_wrong_is_said_as_ever(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: x\nstages: {one: {_target_: a.b, rate: 1e-5}}\n")
    assert load_recorded(path)["stages"]["one"]["rate"] == 1e-5 and load_recorded(path)["runs_dir"] == "runs"
    path.write_text("name: [x\n")
    with pytest.raises(UserError, match="line"):
        load_recorded(path)
    path.write_text("name: x\nseed: 1\n")
    with pytest.raises(UserError, match="stages"):
        load_recorded(path)
