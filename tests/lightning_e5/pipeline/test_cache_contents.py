"""What is listed is what lies there, and what is pruned is what nobody has or works with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_e5.files.storage import write_manifest, write_text
from lightning_e5.pipeline.cache_contents import cache_entries, own_bytes, prune
from lightning_e5.pipeline.lock import locked
from lightning_e5.pipeline.stage import TIMING
from lightning_e5.pipeline.stage_cache import StageCache
from tests.lightning_e5.pipeline.tiny_stages import Tiny

KEYS = {name: f"{name}-{digit * 32}" for name, digit in (("small", "1"), ("large", "2"), ("removed", "3"))}


def make(runs: Path, name: str, key: str, letters: int, run: str) -> Path:
    """A finished stage in a run's directory that became an entry."""
    out = runs / run / "stages" / name
    out.mkdir(parents=True)
    write_text(out / "result", "x" * letters)
    write_text(out / TIMING, f'{{"seconds": 1.0, "peak_memory_gb": 1.0, "computed_by": "{run}", "computed_at": "2026-11-20T10:00:00+00:00"}}')
    write_text(out / "started.json", "{}")
    write_manifest(out, kind="test", files=["result"], fingerprint={"k": 1})
    StageCache(runs / ".stages", print).publish(key, out)
    return out


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs, two of which have a stage that is shared, and a third was removed."""
    for name, letters in (("small", 10), ("large", 10_000), ("removed", 5_000)):
        make(tmp_path / "runs", name, KEYS[name], letters, f"run-{name}")
    shutil.rmtree(tmp_path / "runs" / "run-removed")
    return tmp_path / "runs"


def names(runs: Path) -> set[str]:
    return {p.name for p in (runs / ".stages").iterdir()}


def test_sizes_and_users_are_those_of_the_disk(runs: Path) -> None:
    by_stage = {entry.stage: entry for entry in cache_entries(runs / ".stages", runs)}
    assert set(by_stage) == set(KEYS)
    large, removed = by_stage["large"], by_stage["removed"]
    assert (large.origin.run, large.origin.made) == ("run-large", "2026-11-20T10:00:00+00:00")
    assert large.is_used and large.elsewhere == 1, "linked by a folder that records no key"
    assert not removed.is_used and removed.own == removed.size >= 5_000
    linked = sum((runs / ".stages" / KEYS["large"] / n).stat().st_size for n in ("result", "manifest.json"))
    assert large.size - large.own == linked, "records of time are copies"
    assert own_bytes(runs / ".stages") == sum(entry.own for entry in by_stage.values())


def test_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, monkeypatch)
    tiny.run("first")
    tiny.run("second")
    (entry,) = cache_entries(tiny.runs / ".stages", tiny.runs)
    assert (entry.stage, entry.origin.run, entry.runs, entry.elsewhere) == ("make", "first", ("first", "second"), 0)
    shutil.rmtree(tiny.runs / "first")
    (entry,) = cache_entries(tiny.runs / ".stages", tiny.runs)
    assert entry.runs == ("second",) and not prune(tiny.runs / ".stages", tiny.runs).entries
    shutil.rmtree(tiny.runs / "second")
    done = prune(tiny.runs / ".stages", tiny.runs)
    assert [e.stage for e in done.entries] == ["make"] and done.freed > 0 and names(tiny.runs) == set()


def test_prune_takes_what_no_run_has(runs: Path) -> None:
    root = runs / ".stages"
    before = names(runs)
    dry = prune(root, runs, dry_run=True)
    assert names(runs) == before and [e.stage for e in dry.entries] == ["removed"]
    done = prune(root, runs)
    assert done.freed == dry.freed >= 5_000 and names(runs) == {KEYS["small"], KEYS["large"]}
    assert (runs / "run-large" / "stages" / "large" / "result").read_text() == "x" * 10_000


def test_prune_by_age_and_size_and_of_all(runs: Path) -> None:
    root = runs / ".stages"
    os.utime(root / KEYS["small"], (1e9, 1e9))
    assert prune(root, runs, older_than=60.0).entries == [], "the unused one is young"
    assert [e.stage for e in prune(root, runs, used=True, older_than=60.0).entries] == ["small"]
    done = prune(root, runs, used=True, larger_than=6_000)
    assert [e.stage for e in done.entries] == ["large"] and done.freed < 1_000, "its run keeps the file"
    assert names(runs) == {KEYS["removed"]} and (runs / "run-large" / "stages" / "large" / "result").is_file()


def test_what_another_process_holds_stays(runs: Path) -> None:
    """A lock of another process: the test's own would be its holder's again."""
    root = runs / ".stages"
    script = (
        "import sys; from pathlib import Path; from lightning_e5.pipeline.lock import locked\n"
        "with locked(Path(sys.argv[1]), wait=False, held='x'), locked(Path(sys.argv[2]), wait=False, held='x'):\n    print('held', flush=True); sys.stdin.read()"
    )
    computing = f"other-{'4' * 32}.lock"
    command = [sys.executable, "-c", script, str(root / f"{KEYS['removed']}.lock"), str(root / computing)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = prune(root, runs)
        assert done.entries == [] and f"process {holder.pid} on" in done.held[KEYS["removed"]]
        assert {KEYS["removed"], computing} <= names(runs), "neither the entry nor the lock of one that is being computed"
        holder.communicate("")
    assert [e.stage for e in prune(root, runs).entries] == ["removed"]
    assert not any(name.endswith(".lock") for name in names(runs))


def test_what_killed_processes_left_goes(runs: Path) -> None:
    root, dead = runs / ".stages", subprocess.Popen(["true"])
    dead.wait()
    left = root / f".{KEYS['small']}.{platform.node()}.{dead.pid}.tmp"
    running = root / f".{KEYS['small']}.{platform.node()}.{os.getppid()}.tmp"
    foreign, old = (root / f".{KEYS['small']}.{host}.7.tmp" for host in ("elsewhere", "longago"))
    for folder in (left, running, foreign, old):
        folder.mkdir()
        (folder / "result").write_text("x" * 100)
    os.utime(old, (1e9, 1e9))
    done = prune(root, runs)
    assert set(done.leftovers) == {left, old} and done.freed >= 5_200
    assert running.is_dir() and foreign.is_dir() and not left.exists() and not old.exists()


def test_there_may_be_no_folder(tmp_path: Path) -> None:
    assert cache_entries(tmp_path / "none", tmp_path) == [] and own_bytes(tmp_path / "none") == 0
    assert prune(tmp_path / "none", tmp_path).freed == 0 and not (tmp_path / "none").exists()


def test_an_entry_that_is_taken_counts_as_used(runs: Path, tmp_path: Path) -> None:
    cache, entry = StageCache(runs / ".stages", print), runs / ".stages" / KEYS["large"]
    os.utime(entry, (1e9, 1e9))
    with cache.locked(KEYS["large"]) as held:
        assert held and cache.link(KEYS["large"], {"k": 1}, tmp_path / "out") is not None
    assert entry.stat().st_mtime > 1.7e9
    with locked(entry.with_name(f"{entry.name}.lock"), wait=False, held="free again"):
        pass
