"""What a run records of itself, and what its logger may be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.tracking.run_directory import check_logger, environment, numerics, record_environment

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
    others = facts["numerics"]["threads"] + 1
    facts["numerics"] |= {"threads": others, "instruction_set": "VSX"}
    write_json(tmp_path / "environment.json", facts)
    record_environment(tmp_path, said.append)
    now = numerics()
    assert len(said) == 1 and "\n" not in said[0] and "is not byte-equal" in said[0]
    assert f"threads {others} -> {now['threads']}" in said[0] and f"instruction_set VSX -> {now['instruction_set']}" in said[0]
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"log_model": "yes"}, "'yes' is not true or false"), ({"mod": "auto"}, "unknown key 'mod'; did you mean 'mode'"), ({"mode": "on"}, "'on' is not one of auto, online"), ({1: 2}, "unknown key 1")],
)
def test_logger_settings(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_logger(settings)
    check_logger({"mode": "offline", "tags": ["a"], "project": "p"})
