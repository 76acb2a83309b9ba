"""The memory benchmark sees what a process and its children hold, and says where it grows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory.pages import PROJECTED_PAIRS, page, summarised
from benchmarks.memory.stage import Stage
from benchmarks.memory.table import STAGES
from benchmarks.memory.watch import watch

#: Holds 60 MB itself, starts a child that holds 40, maps a file of 50 MB and reads it, and writes one of 3 MB.
_HOLDS = """
import mmap, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; held = bytes([1]) * 40_000_000; time.sleep(1.7)"])
held = bytes([1]) * 60_000_000
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
total = sum(mapped[at] for at in range(0, len(mapped), 4096))
open(os.path.join(sys.argv[2], "out"), "wb").write(bytes(3_000_000))
time.sleep(1.5)
child.wait()
"""


def test_peaks_are_of_all_processes_with_mapped_files_apart(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mapped").write_bytes(os.urandom(1) * 50_000_000)
    found = watch([sys.executable, "-c", _HOLDS, str(tmp_path / "mapped"), str(tmp_path / "out")], [tmp_path / "out"], os.environ)
    assert found.processes == 2 and found.disk == 3_000_000 and found.cpu_seconds > 0
    assert 100e6 < found.own < 140e6 and 150e6 < found.rss < 220e6
    with pytest.raises(subprocess.CalledProcessError):
        watch([sys.executable, "-c", "raise SystemExit(3)"], [], os.environ)


def test_the_page_says_what_grows() -> None:
    stages = [Stage("flat", "a:b", "a block"), Stage("grows", "a:b", "a list", parallel=True), Stage("known", "a:b", "an array", streams=False)]
    one = {"rss_bytes": 2e8, "start_bytes": 5e7, "seconds": 10.0, "cpu_seconds": 64.0, "disk_bytes": 1e6}
    measured = {
        name: {1000: one | {"own_bytes": 1e8, "rows": 1000}, 10_000: one | {"own_bytes": 1e8 * ratio, "rows": 10_000}}
        for name, ratio in (("flat", 1.1), ("grows", 3.0), ("known", 3.0))
    }
    rows = summarised(stages, measured)
    assert [(row["stage"], row["within"]) for row in rows] == [("flat", True), ("grows", False), ("known", None)]
    assert rows[1]["bytes_per_pair"] == pytest.approx(2e8 / 9000) and rows[1]["large_rows_per_s"] == 1000
    assert rows[0]["projected_hours"] == pytest.approx(64 * PROJECTED_PAIRS / 10_000 / 3600)
    assert rows[1]["projected_hours"] == pytest.approx(PROJECTED_PAIRS / 10_000 / 3600)
    text = page(rows, "here")
    assert "1.10 (1.00) |" in text and "3.00 (1.00), over 1.2 |" in text and "3.00 (1.00), grows |" in text


def test_every_stage_has_its_functions_in_a_file() -> None:
    folder = Path(sys.modules[Stage.__module__].__file__ or "").parent
    for stage in STAGES.values():
        for name in (stage.measured, *stage.needs):
            file, _, function = name.partition(":")
            assert f"\ndef {function}(" in (folder / f"{file}.py").read_text(), name
