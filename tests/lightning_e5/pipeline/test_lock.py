"""A directory has one writer; a second one waits or is refused, and a dead one's place is taken."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.pipeline import lock as module
from lightning_e5.pipeline.lock import locked

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENT = """
name: small
threads: 1
logger: {mode: disabled}
stages:
  vocabulary:
    _target_: lightning_e5.stages.vocabulary.vocabulary
    inputs: {pairs: "path:PAIRS"}
    encoder: {_target_: lightning_e5.models.factory.EncoderSpec, vocab_size: 400, layers: 1, hidden_size: 16, heads: 2, intermediate_size: 16}
  pretrain:
    _target_: lightning_e5.stages.pretrain.pretrain
    inputs: {encoder: vocabulary/encoder, tokens: vocabulary/tokens}
    data: {_target_: data_modules.ccpairs.datamodule.CCPairsDataModule, _partial_: true, batch_size: 8, max_steps: 6}
    optimizer: {_target_: lightning_e5.training.optimizer.AdamWConfig, learning_rate: 1.0e-3}
    module: {_target_: lightning_e5.modules.in_batch.InBatchModule, _partial_: true}
    trainer: {accelerator: cpu, checkpoint_steps: 2}
"""

HOLDER = """
import sys, time
from pathlib import Path
from lightning_e5.pipeline.lock import locked
with locked(Path(sys.argv[1]), wait=False, held="held"):
    print("holds", flush=True)
    time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


def test_the_holder_is_named_waited_for_and_replaced_when_it_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / ".lock"
    process = holder(path)
    record = read_json(tmp_path / "run" / ".lock.json")
    assert record["process"] == process.pid and record["host"] == platform.node() and record["since"][:2] == "20"
    began = time.monotonic()
    with pytest.raises(UserError) as raised, locked(path, wait=False, held="run: busy", hint="; do that"):
        pass
    assert str(raised.value) == f"run: busy (process {process.pid} on {platform.node()} since {record['since']}); do that"
    assert time.monotonic() - began < 20
    said: list[str] = []

    def ended(text: str) -> None:
        said.append(text)
        process.kill()

    with locked(path, wait=True, held="run: busy", say=ended):
        assert read_json(tmp_path / "run" / ".lock.json")["process"] == os.getpid()
    assert len(said) == 1 and f"process {process.pid} on" in said[0] and said[0].endswith("; waits for it")
    assert not (tmp_path / "run" / ".lock.json").exists()
    with locked(path, wait=False, held="run: busy"):  # free again
        pass


def test_a_dead_holder_whose_children_live_is_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data worker of a killed run holds the lock until it notices; nobody has to know of that."""
    path = tmp_path / ".lock"
    process = holder(path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_json(tmp_path / ".lock.json", {"host": platform.node(), "process": dead.pid, "since": "long ago"})
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.5)
    with pytest.raises(UserError, match=f"process {dead.pid}"), locked(path, wait=False, held="busy"):
        pass
    monkeypatch.setattr(module, "_GRACE_SECONDS", 60.0)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: process.kill())
    with locked(path, wait=False, held="busy"):
        pass
    process.wait()


def test_a_holder_that_has_just_begun_is_named_once_its_record_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    path, said = tmp_path / ".lock", []
    holding = FileLock(str(path))
    holding.acquire()

    def ended(text: str) -> None:
        said.append(text)
        holding.release()

    record = {"host": platform.node(), "process": os.getpid(), "since": "now"}
    monkeypatch.setattr(module.time, "sleep", lambda seconds: write_json(tmp_path / ".lock.json", record))
    with locked(path, wait=True, held="busy", say=ended):
        pass
    assert said == [f"busy (process {os.getpid()} on {platform.node()} since now); waits for it"]


def test_a_process_that_is_not_waited_for_is_dead() -> None:
    ended = subprocess.Popen(["true"])
    while " Z " not in Path(f"/proc/{ended.pid}/stat").read_text():
        time.sleep(0.01)
    assert module.is_dead(ended.pid) and not module.is_dead(os.getpid()) and not module.is_dead(1)
    ended.wait()
    assert module.is_dead(ended.pid)


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK"])
def test_a_file_system_without_locks_is_named_and_gets_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """A file that a killed process leaves would hold the directory for ever."""
    import errno
    import fcntl

    def none(*arguments: Any) -> None:
        raise OSError(getattr(errno, number), "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(UserError, match="this file system has no locks"), locked(tmp_path / ".lock", wait=False, held="busy"):
        pass


def two_writers(tmp_path: Path, texts: list[str], starts: int) -> list[dict[str, Any]]:
    write_parquet(tmp_path / "pairs" / "pairs.parquet", {"query": texts[:48], "passage": texts[48:96]})
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(EXPERIMENT.replace("PAIRS", str(tmp_path / "pairs")))
    script = str(Path(__file__).with_name("two_writers.py"))
    command = [sys.executable, script, str(experiment), str(tmp_path / "starts"), str(starts), "1.5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-1000:] + done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == starts and len({start["digest"] for start in found}) == 1, "one result"
    for start in found:
        assert start["rows"] == [1, 2, 3, 4, 5, 6], "no row is lost or doubled"
        assert start["left"] == [] and set(start["codes"]) <= {0, 2, -9} and 0 in start["codes"]
        assert not start["wait"] or start["killed"] or start["codes"] == [0, 0]
    return found


def test_two_processes_on_one_run_directory(tmp_path: Path, texts: list[str]) -> None:
    two_writers(tmp_path, texts, 2)


@pytest.mark.slow
def test_two_processes_on_one_run_directory_at_many_moments(tmp_path: Path, texts: list[str]) -> None:
    assert any(2 in start["codes"] for start in two_writers(tmp_path, texts, 20))
