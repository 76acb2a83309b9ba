"""What is finished is left alone, what is not is done, and a directory belongs to one configuration."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.word_vectors import WordVectors
from lightning_e5.files.storage import read_json
from lightning_e5.pipeline.claim import _check_is_run, check_directory
from lightning_e5.pipeline.runner import run_experiment

Node = dict[str, Any]
ALL = ["pairs", "alone", "vectors", "vocabulary"]


def run(experiment: Node, **settings: Any) -> tuple[list[str], list[str]]:
    """The stages that were started, and those that were continued; every other one was skipped."""
    said: list[str] = []
    run_experiment(experiment, say=said.append, **settings)
    words = [line.split("] ")[1].split(": ", 1) for line in said]
    started = [name for name, text in words if text == "starts"]
    continued = [name for name, text in words if text == "continues"]
    skipped = [name for name, text in words if "skipped" in text]
    done = [name for name, text in words if text.startswith("done")]
    assert done == [name for name in ALL if name in started + continued]
    assert not said or sorted(done + skipped) == sorted(experiment["stages"])
    return started, continued


def directory(experiment: Node) -> Path:
    return Path(experiment["runs_dir"]) / experiment["name"]


def test_a_finished_run_is_left_alone(small_experiment: Node) -> None:
    assert run(small_experiment) == (ALL, [])
    out = directory(small_experiment)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    metrics, computed = run_experiment(small_experiment)
    assert not computed and metrics == read_json(out / "metrics.json")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert {name.split("/")[0] for name in metrics} == set(ALL)
    assert (out / "encoder" / "model.safetensors").read_bytes() == (out / "stages/vocabulary/encoder/model.safetensors").read_bytes()


def test_only_the_run_metrics_missing(small_experiment: Node) -> None:
    run(small_experiment)
    metrics = directory(small_experiment) / "metrics.json"
    before = metrics.read_bytes()
    metrics.unlink()
    assert run(small_experiment) == ([], [])
    assert metrics.read_bytes() == before


def test_what_killed_writers_had_begun_is_removed(small_experiment: Node) -> None:
    run(small_experiment)
    out = directory(small_experiment)
    (out / "metrics.json").unlink()
    ended = subprocess.Popen(["true"])
    ended.wait()
    folders = [out, *(p for p in out.rglob("*") if p.is_dir())]
    assert len(folders) > 3
    left = [folder / f".metrics.json.{ended.pid}-0123abcd.tmp" for folder in folders]
    others = [out / f".report.html.{os.getpid()}-0123abcd.tmp", out / ".notes.tmp", out / f"{ended.pid}-0123abcd.tmp"]
    for path in left + others:
        path.write_text("{")
    assert run(small_experiment) == ([], [])
    assert not any(path.exists() for path in left), "of a process that has ended"
    assert all(path.read_text() == "{" for path in others), "of one that runs, and of somebody else"


def test_a_changed_source_redoes_what_depends_on_it(small_experiment: Node, tmp_path: Path) -> None:
    run(small_experiment)
    (tmp_path / "one" / "extra.py").write_text('def f():\n    """Rotate the elements of a ring.\n\n    ' + "They move by one place. " * 5 + '\n    """\n')
    assert run(small_experiment) == (["pairs", "vectors", "vocabulary"], [])
    assert run(small_experiment) == ([], [])


@pytest.mark.parametrize("file", ["pairs.parquet", "metrics.json", "manifest.json", "test/qrels/test.tsv"])
def test_a_missing_file_is_made_again(small_experiment: Node, file: str) -> None:
    run(small_experiment)
    path = directory(small_experiment) / "stages" / "pairs" / file
    before = path.read_bytes()
    path.unlink()
    started, continued = run(small_experiment)
    assert started + continued == ["pairs"], "its files are what they were, so nothing that depends on it changes"
    assert path.read_bytes() == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["pairs/pairs.parquet", "vocabulary/encoder/model.safetensors"])
def test_a_damaged_file_is_made_again(small_experiment: Node, file: str, damage: str) -> None:
    run(small_experiment)
    path = directory(small_experiment) / "stages" / file
    before = path.read_bytes()
    path.write_bytes(DAMAGES[damage](before))
    started, continued = run(small_experiment)
    assert started + continued == [file.split("/")[0]]
    assert path.read_bytes() == before


def test_a_stage_that_was_killed_continues(small_experiment: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {**small_experiment, "name": "whole"}
    run(whole)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WordVectors, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(small_experiment)
    out = directory(small_experiment)
    assert not (out / "metrics.json").exists() and not (out / "stages" / "vectors" / "manifest.json").exists()
    assert run(small_experiment) == (["vocabulary"], ["vectors"])
    assert (out / "metrics.json").read_bytes() == (directory(whole) / "metrics.json").read_bytes()


def test_what_a_killed_stage_left_is_not_used_by_another_configuration(small_experiment: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: WordVectors, folder: Path) -> None:
        (folder.parent / "left").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WordVectors, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(small_experiment)
    left = directory(small_experiment) / "stages" / "vectors" / "left"
    assert left.exists()
    small_experiment["stages"]["vectors"]["config"]["width"] = 4
    assert run(small_experiment, update=True) == (["vectors", "vocabulary"], [])
    assert not left.exists()


def test_another_configuration_is_refused_and_update_redoes_what_changes(small_experiment: Node) -> None:
    run(small_experiment)
    metrics = (directory(small_experiment) / "metrics.json").read_bytes()
    other = copy.deepcopy(small_experiment)
    other["stages"]["vectors"]["config"]["epochs"] = 2
    del other["stages"]["vocabulary"]["encoder"]["intermediate_size"]
    with pytest.raises(UserError) as raised:
        run(other)
    for part in ("small", "stages.vectors.config.epochs", "stages.vocabulary.encoder.intermediate_size", "name=", "--update"):
        assert part in str(raised.value)
    assert "hidden_size" not in str(raised.value) and "\n" not in str(raised.value)
    assert (directory(small_experiment) / "metrics.json").read_bytes() == metrics
    assert run(small_experiment) == ([], [])
    assert run(other, update=True) == (["vectors", "vocabulary"], [])
    assert run(other) == ([], [])


def test_another_seed_is_another_configuration(small_experiment: Node) -> None:
    run(small_experiment)
    with pytest.raises(UserError, match="differs in seed"):
        run({**small_experiment, "seed": 2})
    assert run({**small_experiment, "seed": 2}, update=True) == (ALL, [])


def test_keys_that_change_nothing_computed_are_free(small_experiment: Node) -> None:
    run(small_experiment)
    assert run({**small_experiment, "description": "another", "headline": ["mrr@10"], "threads": 2, "logger": {"mode": "offline"}}) == ([], [])


def test_a_directory_that_is_no_run_is_not_touched(small_experiment: Node) -> None:
    out = directory(small_experiment)
    out.mkdir(parents=True)
    (out / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="small: exists and is no run directory"):
        run(small_experiment)
    assert [p.name for p in out.iterdir()] == ["letter.txt"]


def test_a_run_that_begins_while_its_directory_is_looked_at(small_experiment: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its lock, its configuration and more before the other process has listed what is there."""
    out = directory(small_experiment)
    out.mkdir(parents=True)
    listed = Path.iterdir

    def begun(path: Path) -> Iterator[Path]:
        if path == out:
            for name in (".lock", "config.yaml", "environment.json"):
                (out / name).touch()
        return iter(list(listed(path)))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", begun)
        check_directory(out)
    (out / "config.yaml").unlink()
    with pytest.raises(UserError, match="small: exists and is no run directory"):
        _check_is_run(out)


def test_a_wrong_configuration_leaves_no_directory(small_experiment: Node) -> None:
    small_experiment["stages"]["vocabulary"]["encoder"]["layer"] = 1
    with pytest.raises(UserError, match="did you mean 'layers'"):
        run(small_experiment)
    assert not Path(small_experiment["runs_dir"]).exists()


def test_a_part_that_a_stage_does_not_make_is_named(small_experiment: Node) -> None:
    small_experiment["stages"]["vectors"]["inputs"] = {"pairs": "pairs/nothing"}
    with pytest.raises(UserError, match="'pairs/nothing' is nothing that this stage makes"):
        run(small_experiment)


def test_a_path_from_outside(small_experiment: Node, tmp_path: Path) -> None:
    first = {**small_experiment, "name": "first"}
    run(first)
    outside = tmp_path / "outside"
    shutil.copytree(directory(first) / "stages" / "pairs", outside)
    small_experiment["stages"] = {"vectors": {**small_experiment["stages"]["vectors"], "inputs": {"pairs": f"path:{outside}"}}}
    del small_experiment["final_encoder"]
    assert run(small_experiment) == (["vectors"], [])
    assert run(small_experiment) == ([], [])
    shutil.copy(directory(first) / "stages" / "alone" / "pairs.parquet", outside / "pairs.parquet")
    assert run(small_experiment) == (["vectors"], [])
    shutil.rmtree(outside)
    with pytest.raises(UserError, match="outside: no such file or directory"):
        run(small_experiment)


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "a\0b", "x" * 300, "..", "."])
@pytest.mark.parametrize("key", ["name", "stages"])
def test_names_cannot_leave_the_runs_directory(
    small_experiment: Node, tmp_path: Path, key: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if key == "name":
        small_experiment["name"] = name
    else:
        small_experiment["stages"] = {name: small_experiment["stages"]["pairs"]}
    path = tmp_path / "experiment.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(small_experiment)))
    before = sorted(tmp_path.parent.iterdir())
    assert main(["run", str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and ("is not a valid name" in line or "holds a character that no name or path can have" in line)
    assert not (tmp_path / "runs").exists() and sorted(tmp_path.parent.iterdir()) == before
