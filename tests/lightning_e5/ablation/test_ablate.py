"""The ``ablate`` verb: killed and run again it ends with the same files, and what fails stops nothing else."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.ablation.launchers import LocalLauncher
from lightning_e5.ablation.slurm import SlurmLauncher
from lightning_e5.ablation.status import RunStatus, last_error_line
from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json
from lightning_e5.pipeline.lock import locked
from lightning_e5.pipeline.runner import run_experiment

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "experiments" / "ablations" / "smoke.yaml"


def ablation_with_a_failing_variant(folder: Path) -> Path:
    tree = yaml.safe_load(SMOKE.read_text())
    tree["ablation"] = "failing"
    tree["seeds"] = [1]
    tree["variants"]["broken"] = {"description": "fails", "over": {"stages": {"pairs": {"held_out": ["absent"]}}}}
    tree["scales"]["laptop"] = {"base": str(SMOKE.parent / "_base" / "smoke.yaml"), "over": {"logger": {"mode": "disabled"}}}
    path = folder / "failing.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def stop_when_there_is(path: Path) -> threading.Thread:
    """A thread that sends this process SIGTERM when ``path`` is there."""

    def watch() -> None:
        until = time.monotonic() + 120
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow  # test_runs.py kills a run, the notebooks' tests run an ablation
def test_killed_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401  (the stages are then checked in this process, which is faster)

    monkeypatch.chdir(ROOT)
    file = ablation_with_a_failing_variant(tmp_path)
    command = ["ablate", str(file), f"runs_dir={tmp_path}"]
    directory = tmp_path / "ablations" / "failing-laptop"

    stopper = stop_when_there_is(directory / "warm-seed1" / "stages" / "pretrain" / "metrics.jsonl")
    assert main(command) == 143
    stopper.join()
    status = read_json(directory / "status.json")
    assert {name: row["state"] for name, row in status.items()} == dict.fromkeys(["warm-seed1", "cold-seed1", "broken-seed1"], "waiting")
    assert not list(directory.glob("*/metrics.json"))

    assert main(command) == 1  # a run failed
    printed = capsys.readouterr()
    status = read_json(directory / "status.json")
    assert {name: row["state"] for name, row in status.items()} == {"warm-seed1": "finished", "cold-seed1": "finished", "broken-seed1": "failed"}
    assert status["broken-seed1"]["message"] == "held_out: 'absent' gives no pair (known: networkx, omegaconf)"
    assert status["broken-seed1"]["exit_code"] == 2 and status["warm-seed1"]["seconds"] > 0
    assert "broken-seed1: failed (held_out: 'absent' gives no pair" in printed.out
    assert "2 of 3 runs finished, 1 failed" in printed.err
    assert f"compare {directory}" in printed.out
    log = (directory / "warm-seed1.log").read_text()
    assert "vocabulary: finished before, skipped" in log
    assert "vocabulary: reused from ablations/" in (directory / "cold-seed1.log").read_text()

    facts = read_json(directory / "ablation.json")
    assert facts["variants"]["cold"] == {"description": "temperature 0.01, as in E5", "runs": {"1": "cold-seed1"}}
    assert [facts[key] for key in ("ablation", "scale", "baseline", "seeds", "paper")] == ["failing", "laptop", "warm", [1], None]

    for name in ("warm-seed1", "cold-seed1"):  # what neither was killed nor shares anything
        given = [f"runs_dir={tmp_path / 'alone'}", "stage_cache=null"]
        run_experiment(load_experiment(directory / f"{name}.yaml", given))
        assert (tmp_path / "alone" / name / "metrics.json").read_bytes() == (directory / name / "metrics.json").read_bytes()

    before = {p: p.stat().st_mtime_ns for p in directory.glob("*-seed1/metrics.json")}
    assert main([*command, "--only", "warm", "cold"]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert main([*command, "stages.pretrain.data.max_steps=3"]) == 2
    assert "was made by another configuration (it differs in stages.pretrain.data.max_steps)" in capsys.readouterr().err


def test_a_wrong_variant_is_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401

    monkeypatch.chdir(ROOT)
    file = ablation_with_a_failing_variant(tmp_path)
    tree = yaml.safe_load(file.read_text())
    tree["variants"]["cold"]["over"]["stages"]["pretrain"]["module"] = {"temprature": 0.01}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert main(["ablate", str(file), f"runs_dir={tmp_path}"]) == 2
    assert "cold-seed1.yaml: stages.pretrain.module" in capsys.readouterr().err
    assert not list((tmp_path / "ablations" / "failing-laptop").glob("*.log"))


def test_one_ablate_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path / "ablations" / "smoke-laptop" / ".lock", wait=False, held="the test"):
        assert main(["ablate", str(SMOKE), f"runs_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"another ablate is at work there (process {os.getpid()} on " in line and line.endswith("; pass --wait to wait for it")


def test_a_run_is_finished_by_its_metrics_alone(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"a": {"state": "finished", "exit_code": 0, "message": "", "seconds": 5.0}}')
    assert RunStatus(tmp_path, ["a"]).rows["a"]["state"] == "waiting"
    status = RunStatus(tmp_path, ["a", "b"])
    status.begin(["a", "b"], 1, "t")
    status.started("a")
    assert status.ended("a", 0, "", stopped=False) == "failed"  # exit code 0, and no metrics.json
    assert status.rows["a"]["message"] == "left no metrics.json"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.json").write_text("{}")
    status.started("b")
    assert status.ended("b", 0, "", stopped=True) == "finished"


def test_the_time_left_is_the_mean_of_the_finished_runs(tmp_path: Path) -> None:
    status = RunStatus(tmp_path, ["a", "b", "c", "d"])
    status.begin(["a", "b", "c", "d"], 1, "t")
    assert status.seconds_left(time.monotonic()) is None
    status.rows["a"] |= {"state": "finished", "seconds": 100.0}
    status.started("b")
    assert status.seconds_left(status.running["b"] + 30) == pytest.approx(270)  # 70 of b, c, d
    assert "1 of 4 runs finished, running b" in status.line()


def test_the_time_in_a_queue_is_none_of_a_run_s(tmp_path: Path) -> None:
    status = RunStatus(tmp_path, ["a", "b"])
    status.begin(["a", "b"], 2, "t")
    for name in "ab":
        status.started(name)
    status.queued({"a", "b"})
    assert status.line() == "t: 0 of 2 runs finished, 2 queued" and read_json(tmp_path / "status.json")["a"]["state"] == "waiting"
    status.running["a"] -= 1000  # in the queue
    status.queued({"b"})
    status.running["a"] -= 50
    assert "1 queued, running a (5" in status.line()
    status.queued({"a", "b"})  # preempted and requeued
    status.running["a"] -= 1000
    status.queued({"b"})
    status.running["a"] -= 7
    assert status.ended("a", 1, "", stopped=False) == "failed" and 57 <= status.rows["a"]["seconds"] < 500
    assert status.ended("b", 143, "", stopped=True) == "waiting" and status.rows["b"]["seconds"] < 500


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("error: of an earlier try\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("[1/4] pairs: starts\n10%|#\r20%|##\nTraceback (most recent call last):\nRuntimeError: no kernel\nlast words\n")
    assert last_error_line(log, start) == "RuntimeError: no kernel"
    log.write_text("one\rtwo\r\n")
    assert last_error_line(log, 0) == "two"
    assert last_error_line(tmp_path / "absent.log", 0) == ""


def test_every_job_has_gpus_of_its_own(tmp_path: Path) -> None:
    launcher = LocalLauncher(None, ["0", "1", "2", "3", "4"], 2)
    assert launcher.slots == 2
    for name in "ab":
        launcher.start(name, ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 0.2; exit 3"], tmp_path / name)
    ended: dict[str, int] = {}
    while len(ended) < 2:
        ended |= launcher.ended()
    assert ended == {"a": 3, "b": 3}
    assert {(tmp_path / name).read_text() for name in "ab"} == {"0,1\n", "2,3\n"}
    launcher.start("c", ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], tmp_path / "c")  # a set that is free again
    while not launcher.ended():
        time.sleep(0.01)
    assert (tmp_path / "c").read_text() in ("0,1\n", "2,3\n")
    with pytest.raises(UserError, match="--jobs 3: 2 GPUs each are more than the 5"):
        LocalLauncher(3, ["0", "1", "2", "3", "4"], 2)
    assert LocalLauncher(None, [], 1).slots == 1


def test_jobs_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's executor of local processes stands for SLURM; tests/cluster/test_slurm.py has SLURM itself."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)
    launcher = SlurmLauncher(tmp_path / "slurm", None, {"cluster": "local"}, None)
    launcher.start("bad", ["sh", "-c", "echo said; exit 3"], tmp_path / "bad.log")
    launcher.start("good", [sys.executable, "-c", "print('done')"], tmp_path / "good.log")
    ended: dict[str, int] = {}
    until = time.monotonic() + 60
    while len(ended) < 2 and time.monotonic() < until:
        ended |= launcher.ended()
        time.sleep(0.1)
    assert ended == {"bad": 3, "good": 0}
    assert (tmp_path / "bad.log").read_text() == "said\n" and (tmp_path / "good.log").read_text() == "done\n"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--launcher slurm: there is no sbatch"):
        SlurmLauncher(tmp_path / "slurm", None, {}, None)
    with pytest.raises(UserError, match="--slurm: "):
        SlurmLauncher(tmp_path / "slurm", None, {"cluster": "local", "tmeout": 1}, None)
