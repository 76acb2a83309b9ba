"""The verb ``cache`` as it is typed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lightning_e5.__main__ import main
from lightning_e5.cli.cache import size
from tests.lightning_e5.pipeline.test_cache_contents import KEYS, make


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, letters in (("small", 10), ("removed", 2_000_000)):
        make(tmp_path / "runs", name, KEYS[name], letters, f"run-{name}")
    shutil.rmtree(tmp_path / "runs" / "run-removed")
    return tmp_path / "runs"


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["cache", *words]) == 0
    return capsys.readouterr().out


def test_list_and_prune(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs-dir", str(runs)]
    listed = told(capsys, "list", *where)
    assert re.search(r"removed +run-removed +2026-11-20 +\d{4}-\d\d-\d\d \d\d:\d\d +2\.0 MB +none", listed)
    assert re.search(r"small +run-small .* 1 elsewhere", listed)
    assert "2 stages, 2.0 MB, of which 2.0 MB are in no run; `lightning-e5 cache prune` removes 1 stage" in listed
    assert "would remove 1 stage; 2.0 MB freed" in told(capsys, "prune", *where, "--dry-run")
    assert "removed 0 stages; 0 B freed" in told(capsys, "prune", *where, "--older-than", "30d")
    assert "removed 0 stages; 0 B freed" in told(capsys, "prune", *where, "--larger-than", "2GB")
    pruned = told(capsys, "prune", "--stage-cache", str(runs / ".stages"))
    assert "removed: 2.0 MB, made by run-removed (made 2026-11-20), in none of the runs\n" in pruned and "removed 1 stage; 2.0 MB freed" in pruned
    assert "no shared stages" not in told(capsys, "list", *where)


def test_what_earlier_versions_shared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shared_stages").mkdir()
    told_of = told(capsys, "list", "--runs-dir", str(tmp_path))
    assert ".stages: no shared stages" in told_of and "shared_stages: stages that ablations of an earlier version shared" in told_of


@pytest.mark.parametrize(("option", "value"), [("--older-than", "30"), ("--older-than", "-1d"), ("--larger-than", "big"), ("--larger-than", "1e999")])
def test_wrong_values_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert main(["cache", "prune", "--runs-dir", str(tmp_path), f"{option}={value}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {option}: {value!r} is no ")


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".stages").write_text("")
    assert main(["cache", "list", "--runs-dir", str(tmp_path)]) == 2
    assert "cannot be read (Not a directory)" in capsys.readouterr().err


def test_sizes_for_a_reader() -> None:
    assert [size(n) for n in (0, 999, 1_500, 2_000_000, 3_210_000_000)] == ["0 B", "999 B", "1.5 kB", "2.0 MB", "3.2 GB"]
