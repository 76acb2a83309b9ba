"""A training's W&B run, read back from W&B's own files: every step once whatever happened, and never falsely finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.files.storage import read_log
from lightning_e5.pipeline.training import with_validations
from lightning_e5.tracking.metrics_log import read_metrics_log
from lightning_e5.tracking.wandb_live import WandbStage
from lightning_e5.tracking.wandb_run import log_columns, read_records, run_files, run_id, variant_of, wandb_mode

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("wandb_training.py")
CONFIG = {"name": "moco-seed2", "seed": 2, "stages": {"pretrain": {"temperature": 0.05}}}


def kinds(directory: Path, kind: str) -> list[list[Any]]:
    """The records of one kind, a list per process that wrote the run."""
    return [[record[kind] for record in read_records(path, kind)] for path in run_files(directory)]


def exit_codes(directory: Path) -> list[list[int]]:
    return [[record.get("exit_code", 0) for record in records] for records in kinds(directory, "exit")]


def history(directory: Path, stage: str) -> list[tuple[int, dict[str, float]]]:
    """Every row of history in all files, as a row of ``metrics.jsonl``; repetitions stay."""
    items = [record["item"] for records in kinds(directory, "history") for record in records]
    return [(i["_step"], log_columns(stage, {k: v for k, v in i.items() if not k.startswith("_")})) for i in items]


@pytest.mark.slow  # when W&B writes its buffers is W&B's affair: on a busy machine the kills can come before the first
def test_two_kills_leave_every_step_once(tmp_path: Path, small_bert: Any, small_tokenizer: Any, texts: list[str]) -> None:
    """Once W&B holds steps after the checkpoint, once it lost steps before it; its files hold ``metrics.jsonl`` exactly."""
    from data_modules.token_cache import write_token_cache
    from lightning_e5.models.encoder import TextEncoder

    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "data" / "encoder")
    columns = {"query": (texts[:120], "query"), "passage": (texts[1:121], "passage")}
    write_token_cache(tmp_path / "data" / "tokens", columns, small_tokenizer)
    out = tmp_path / "pretrain"
    command = [sys.executable, str(SCRIPT), str(out), "85", "95"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, _ = ([record["item"]["_step"] for record in records] for records in kinds(out, "history"))
    assert first and first[-1] > 45, f"W&B had written {first}: none after the checkpoint at 45, so nothing is tested"
    assert max(first + second) < 90, f"W&B had written {first + second}: none before the checkpoint at 90 is lost, so nothing is tested"
    rows = read_metrics_log(out)
    assert [row["step"] for row in rows] == list(range(1, 106))
    assert history(out, "pretrain") == [(row["step"], row) for row in rows]
    assert exit_codes(out) == [[], [], [0]], "a killed process has no exit record; W&B shows it as crashed"
    assert len({path.stem for path in run_files(out)}) == 1, "one run"


def stage(directory: Path, **settings: Any) -> WandbStage:
    return WandbStage({"mode": "offline", **settings}, directory=directory, stage="pretrain", config=CONFIG)


def test_processes_of_one_second_are_all_read(tmp_path: Path) -> None:
    """W&B gives the folder of a second process of one second another name: here every folder of the next minute is taken."""
    name, now = run_id(tmp_path), datetime.now()
    for second in range(60):
        (tmp_path / "wandb" / f"offline-run-{now + timedelta(seconds=second):%Y%m%d_%H%M%S}-{name}").mkdir()
    logger = stage(tmp_path)
    logger.start([])
    logger.log_metrics({"loss": 2.0, "pairs": 64}, step=1)
    logger.finish({"final_loss": 2.0})
    [path] = run_files(tmp_path)
    assert path.parent.name.endswith(f"-{name}-1")
    assert history(tmp_path, "pretrain") == [(1, {"loss": 2.0, "pairs": 64, "step": 1})]


def test_files_of_a_run_are_the_oldest_first(tmp_path: Path) -> None:
    """Online or offline, by the second and the number within it; neither another run's nor the link to the latest."""
    name = run_id(tmp_path)
    expected = [
        f"run-20260102_030405-{name}",
        f"offline-run-20260102_030406-{name}",
        *(f"offline-run-20260102_030406-{name}-{place}" for place in (1, 2, 10)),
        f"run-20260102_030407-{name}",
    ]
    for folder in [*reversed(expected), f"run-20260102_030405-0{name}", "staged"]:
        (tmp_path / "wandb" / folder).mkdir()
        (tmp_path / "wandb" / folder / f"run-{name}.wandb").touch()
    (tmp_path / "wandb" / "latest-run").symlink_to(expected[-1])
    (tmp_path / "wandb" / f"run-20260102_030408-{name}").mkdir()
    assert [path.parent.name for path in run_files(tmp_path)] == expected


def test_a_validation_joins_the_row_of_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = stage(tmp_path)
    logger.start([])
    logger.log_validation({"step": 0, "pairs": 0, "val/set/ndcg@10": 0.25})
    logger.log_metrics({"loss": 2.0, "pairs": 64}, step=1)
    logger.log_metrics({"loss": 1.0, "pairs": 128}, step=2)
    logger.log_validation({"step": 2, "pairs": 128, "val/set/ndcg@10": 0.5})
    logger.fail(SystemExit(143))
    rows = [
        (0, {"step": 0, "pairs": 0, "val/set/ndcg@10": 0.25}), (1, {"step": 1, "loss": 2.0, "pairs": 64}),
        (2, {"step": 2, "loss": 1.0, "pairs": 128, "val/set/ndcg@10": 0.5}),
    ]  # fmt: skip
    assert history(tmp_path, "pretrain") == rows
    again = stage(tmp_path)
    again.start([row for _, row in rows])  # nothing is logged twice
    again.log_metrics({"loss": 0.5, "pairs": 192}, step=3)
    again.log_validation({"step": 1, "pairs": 64, "val/set/ndcg@10": 0.75})  # as if the first process had been stopped in it
    assert "W&B: lacks the validation of step 1 of pretrain, which was stopped in it; validation.jsonl has it" in capsys.readouterr().err
    again.finish({})
    assert history(tmp_path, "pretrain") == [*rows, (3, {"step": 3, "loss": 0.5, "pairs": 192})]


def test_what_a_run_says_of_itself(tmp_path: Path) -> None:
    logger = stage(tmp_path, project="p", group="negatives-laptop", name="moco-seed2", tags=["negatives", "laptop"])
    assert logger.start([]) == {}
    logger.log_metrics({"loss": 0.1 + 0.2, "pairs": 64}, step=1)
    logger.finish({"final_loss": 0.5, "pairs_seen": 64})
    [[run]] = kinds(tmp_path, "run")
    assert (run["project"], run["run_group"], run["job_type"], run["display_name"]) == ("p", "negatives-laptop", "pretrain", "moco-seed2/pretrain")
    assert run["tags"] == ["negatives", "laptop"]
    config = run["config"]["update"]
    assert {k: v for k, v in config.items() if k != "_wandb"} == {**CONFIG, "variant": "moco", "stage": "pretrain"}
    [metrics] = kinds(tmp_path, "metric")
    assert {m["glob_name"]: m["step_metric"] for m in metrics if "glob_name" in m} == dict.fromkeys(("pretrain/*", "val/*"), "pretrain/pairs_seen")
    assert history(tmp_path, "pretrain") == [(1, {"loss": 0.1 + 0.2, "pairs": 64, "step": 1})]
    [summaries] = kinds(tmp_path, "summary")
    assert any(s["update"].get("pretrain/final_loss") == 0.5 for s in summaries)


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("x"), 1), (KeyboardInterrupt(), 130), (SystemExit(143), 143), (SystemExit(0), 1)])
def test_a_stopped_run_is_not_finished(tmp_path: Path, error: BaseException, code: int) -> None:
    logger = stage(tmp_path)
    logger.start([])
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("failed")
    logger.fail(error)
    assert exit_codes(tmp_path) == [[code]]
    assert bool(kinds(tmp_path, "preempting")[0]) == (code == 143)


def test_a_training_that_fails_ends_its_run_as_failed(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> None:
    import lightning as L

    from lightning_e5.models.encoder import TextEncoder
    from lightning_e5.modules.in_batch import InBatchModule
    from lightning_e5.pipeline import training
    from lightning_e5.pipeline.stage import StageContext
    from lightning_e5.training.optimizer import AdamWConfig

    class Broken(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            raise OSError("the disk is gone")

    module = InBatchModule(TextEncoder(small_bert, small_tokenizer), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=3, seed=1)
    context = StageContext("r", "pretrain", tmp_path, {"mode": "offline"}, {"seed": 1})
    with pytest.raises(OSError, match="the disk is gone"):
        training.train(tmp_path / "out", module, Broken(), context, accelerator="cpu", devices=1)
    assert exit_codes(tmp_path / "out") == [[1]]


def test_recomputed_steps_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = stage(tmp_path)
    first.start([])
    for step in (1, 2, 3):
        first.log_metrics({"loss": 1 / step, "pairs": 8 * step, "seconds": 1.0}, step=step)
    first.fail(RuntimeError())
    resumed = stage(tmp_path)
    held = resumed.start([{"step": 1, "loss": 1.0, "pairs": 8, "seconds": 1.0}])
    assert held[3] == {"step": 3, "loss": 1 / 3, "pairs": 24, "seconds": 1.0}
    resumed.log_metrics({"loss": 0.5, "pairs": 16, "seconds": 9.0}, step=2)
    assert "W&B" not in capsys.readouterr().err
    resumed.log_metrics({"loss": 0.25, "pairs": 24, "seconds": 9.0}, step=3)
    resumed.log_metrics({"loss": 0.125, "pairs": 32, "seconds": 9.0}, step=4)
    assert "step 3 of pretrain came out differently" in capsys.readouterr().err
    resumed.finish({})
    assert [step for step, _ in history(tmp_path, "pretrain")] == [1, 2, 3, 4]


def test_a_stage_made_again_is_another_run(tmp_path: Path) -> None:
    import shutil

    before = run_id(tmp_path)
    assert run_id(tmp_path) == before
    shutil.rmtree(tmp_path / "wandb")
    assert run_id(tmp_path) != before


def test_without_wandb_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wandb").write_text("a file where W&B's folder belongs")
    logger = stage(tmp_path)
    assert logger.start([]) == {}
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finish({"final_loss": 1.0})
    told = capsys.readouterr().err
    assert told.count("W&B:") == 1 and "goes on without it" in told


def test_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert (wandb_mode({}), wandb_mode({"mode": "offline"})) == ("disabled", "offline")
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_mode({}) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    assert wandb_mode({"mode": "auto"}) == "online"
    assert (variant_of("moco-seed2", 2), variant_of("moco-seed2", 1), variant_of("quickstart", 1)) == ("moco", "moco-seed2", "quickstart")


def test_the_smoke_run_at_wandb(smoke_run: Path) -> None:
    """All four trainings: every step with the values of ``metrics.jsonl``, and the whole configuration."""
    for name in ("noisy", "pretrain", "teacher", "finetune"):
        directory = smoke_run / "stages" / name
        assert history(directory, name) == [(row["step"], row) for row in with_validations(directory, 10**9)]
        [[run]] = kinds(directory, "run")
        assert (run["run_group"], run["job_type"], run["display_name"]) == ("smoke", name, f"smoke/{name}")
        config = run["config"]["update"]
        assert config["stages"]["pretrain"]["data"]["batch_size"] == 64 and config["variant"] == "smoke"
        assert exit_codes(directory) == [[0]]
        summary: dict[str, Any] = {}
        for record in kinds(directory, "summary")[0]:
            summary |= record["update"]
        final = json.loads((directory / "metrics.json").read_text())
        validations = read_log(directory / "validation.jsonl")
        assert len(validations) == (4 if name == "pretrain" else 0)  # steps 0, 3, 6, 8
        for value, best in (("val/mrr@10", max), ("val/loss", min)) if validations else ():
            assert summary[value][best.__name__] == best(row[value] for row in validations)
        assert summary[f"{name}/final_loss"] == final["final_loss"] and summary[f"{name}/pairs_seen"] == final["pairs_seen"]
