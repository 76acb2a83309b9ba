"""A run that takes stages from others is the run it would have been, and each shared stage is computed once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_e5.config.experiment import load_experiment
from lightning_e5.files.storage import MANIFEST, read_json, write_manifest, write_text
from lightning_e5.pipeline.runner import run_experiment
from lightning_e5.pipeline.stage_cache import StageCache

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "experiments" / "ablations" / "_base" / "smoke.yaml"
STAGES = ("pairs", "vocabulary", "pretrain", "evaluate")


def run(folder: Path, name: str, cache: Path | None, *overrides: str) -> tuple[Path, str]:
    """A finished run of the small experiment, and what it said."""
    said: list[str] = []
    given = [f"name={name}", f"runs_dir={folder}", "logger={mode: disabled}", f"stage_cache={cache or 'null'}"]
    run_experiment(load_experiment(BASE, [*given, *overrides]), say=said.append)
    return folder / name, "\n".join(said)


def files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, str]:
    """The cache; a run without it, one that fills it, and what the second said."""
    folder = tmp_path_factory.mktemp("cache")
    plain, _ = run(folder / "somewhere", "plain", None)
    first, said = run(folder / "else", "first", folder / "cache")
    return folder / "cache", plain, first, said


def test_a_stage_says_nothing_of_its_run(runs: tuple[Path, Path, Path, str]) -> None:
    """Manifests, which hold the hash of every result and the fingerprint, are equal in runs of other names and places."""
    _, plain, first, said = runs
    assert said.count("starts") == len(STAGES)
    for stage in STAGES:
        texts = [(p / "stages" / stage / MANIFEST).read_text() for p in (plain, first)]
        assert texts[0] == texts[1], stage
    assert (plain / "metrics.json").read_bytes() == (first / "metrics.json").read_bytes()


def test_a_run_of_shared_stages_is_whole_and_the_same(runs: tuple[Path, Path, Path, str], tmp_path: Path) -> None:
    cache, plain, first, _ = runs
    second, said = run(tmp_path, "second", cache)
    assert said.count("reused from else/first (made ") == len(STAGES) and "starts" not in said
    assert (second / "metrics.json").read_bytes() == (plain / "metrics.json").read_bytes()
    for stage in STAGES:
        ours, theirs = (files(r / "stages" / stage) for r in (second, first))
        assert set(ours) == set(theirs)
        for name in read_json(second / "stages" / stage / MANIFEST)["files"]:
            assert ours[name].samefile(theirs[name]), "a result is one file on the disk"
    logs = [r / "stages" / "pretrain" / "metrics.jsonl" for r in (second, first)]
    assert logs[0].read_bytes() == logs[1].read_bytes() and not logs[0].samefile(logs[1])  # a log grows in place
    assert (second / "stages" / "pairs" / "timing.json").is_file()
    assert run_experiment(load_experiment(BASE, [f"runs_dir={tmp_path}", "name=second", f"stage_cache={cache}"]))[1] is False


def test_another_seed_shares_what_has_a_seed_of_its_own(runs: tuple[Path, Path, Path, str], tmp_path: Path) -> None:
    cache, plain, _, _ = runs
    other, said = run(tmp_path, "other", cache, "seed=2")
    assert [line.split(": ")[1].split(" (")[0] for line in said.splitlines() if ": done" not in line] == ["reused from else/first", *["starts"] * 3]
    assert (other / "metrics.json").read_bytes() != (plain / "metrics.json").read_bytes()


def test_a_damaged_entry_is_computed_again(runs: tuple[Path, Path, Path, str], tmp_path: Path) -> None:
    cache, plain, first, _ = runs
    entry = next(p for p in cache.iterdir() if p.name.startswith("vocabulary-") and p.is_dir() and (p / MANIFEST).samefile(first / "stages" / "vocabulary" / MANIFEST))
    write_text(entry / "encoder" / "config.json", "{}")
    again, said = run(tmp_path, "again", cache)
    assert "the shared stage is damaged" in said and said.count("starts") == 1
    assert (again / "metrics.json").read_bytes() == (plain / "metrics.json").read_bytes()
    assert StageCache(cache, print).link(entry.name, read_json(entry / MANIFEST)["fingerprint"], tmp_path / "linked")


def test_a_changed_result_of_one_run_is_not_written_into_another(runs: tuple[Path, Path, Path, str], tmp_path: Path) -> None:
    cache, _, first, _ = runs
    ours, _ = run(tmp_path, "ours", cache)
    before = (first / "stages" / "pretrain" / "encoder" / "config.json").read_bytes()
    (ours / "metrics.json").unlink()
    write_text(ours / "stages" / "pretrain" / "encoder" / "config.json", "{}")
    _, said = run(tmp_path, "ours", None)
    assert "continues" in said
    assert (first / "stages" / "pretrain" / "encoder" / "config.json").read_bytes() == before
    assert not (ours / "stages" / "pretrain" / "encoder" / "model.safetensors").samefile(first / "stages" / "pretrain" / "encoder" / "model.safetensors")


WORKER = """
import os, sys, time
from pathlib import Path
from lightning_e5.pipeline.stage_cache import StageCache
from lightning_e5.files.storage import write_manifest, write_text
root, out = Path(sys.argv[1]), Path(sys.argv[2])
cache = StageCache(root, lambda text: print(text, flush=True))
(arrived := root.parent / "arrived").mkdir(exist_ok=True)
(arrived / str(os.getpid())).touch()
with cache.locked("stage"):
    if cache.link("stage", {"k": 1}, out):
        print("linked")
    else:
        print("computes", flush=True)
        while len(list(arrived.iterdir())) < int(sys.argv[4]):
            time.sleep(0.02)
        time.sleep(float(sys.argv[3]))
        out.mkdir()
        write_text(out / "result", "42")
        write_manifest(out, kind="test", files=["result"], fingerprint={"k": 1})
        cache.publish("stage", out)
"""


def start(root: Path, out: Path, seconds: float, processes: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(root), str(out), str(seconds), str(processes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    processes = [start(tmp_path / "cache", tmp_path / f"out{n}", 0.5, 4) for n in range(4)]
    printed = [p.communicate(timeout=60)[0] for p in processes]
    assert sum("computes" in text.splitlines() for text in printed) == 1
    assert sum("linked" in text.splitlines() for text in printed) == 3
    computing = next(p.pid for p, text in zip(processes, printed, strict=True) if "computes" in text.splitlines())
    assert any(re.search(rf"another process computes this stage \(process {computing} on \S+ since [^)]+\); waits for it", text) for text in printed)
    assert all((tmp_path / f"out{n}" / "result").read_text() == "42" for n in range(4))


def test_a_killed_holder_frees_its_lock(tmp_path: Path) -> None:
    holder = start(tmp_path / "cache", tmp_path / "killed", 600.0)
    assert holder.stdout is not None and holder.stdout.readline() == "computes\n"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    assert start(tmp_path / "cache", tmp_path / "out", 0.0).communicate(timeout=60)[0] == "computes\n"
    assert time.monotonic() - began < 20


def test_files_are_copied_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def no_links(*paths: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    made = tmp_path / "made"
    (made / "checkpoints").mkdir(parents=True)
    write_text(made / "result", "42")
    write_text(made / "checkpoints" / "step1", "0")
    write_manifest(made, kind="test", files=["result"], fingerprint={"k": 1})
    cache = StageCache(tmp_path / "cache", print)
    cache.publish("stage", made)
    monkeypatch.setattr(os, "link", no_links)
    assert cache.link("stage", {"k": 1}, tmp_path / "out")
    assert (tmp_path / "out" / "result").read_text() == "42" and not (tmp_path / "out" / "result").samefile(made / "result")
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not cache.link("stage", {"k": 2}, tmp_path / "other")  # another fingerprint is never taken
