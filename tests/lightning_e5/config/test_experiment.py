"""Experiment files: extending, overriding, references, and what counts as the same configuration."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.config.experiment import (
    MAX_EXTENDS,
    check_name,
    config_hash,
    differing_keys,
    load_experiment,
    merge,
    outside_path,
)
from lightning_e5.errors import UserError

STAGE = "stages: {one: {_target_: a.b, k: 1, deep: {x: 1, y: [1, 2]}}}\n"


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(directory: Path, text: str, *overrides: str) -> dict[str, Any]:
    return load_experiment(write(directory, "experiment.yaml", text), overrides)


def test_defaults(tmp_path: Path) -> None:
    experiment = load(tmp_path, "name: x\n" + STAGE)
    assert (experiment["seed"], experiment["runs_dir"], experiment["threads"]) == (1, "runs", None)


def test_extends_merges_node_by_node(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: base\nseed: 5\n" + STAGE)
    over = "extends: base.yaml\nname: x\nstages: {one: {deep: {y: [3]}}, two: {_target_: c.d}}\n"
    experiment = load(tmp_path, over)
    assert experiment["name"] == "x" and experiment["seed"] == 5 and "extends" not in experiment
    assert experiment["stages"]["one"] == {"_target_": "a.b", "k": 1, "deep": {"x": 1, "y": [3]}}
    assert list(experiment["stages"]) == ["one", "two"]


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: base\nseed: 5\n" + STAGE)
    write(tmp_path, "inner/middle.yaml", "extends: ../base.yaml\nseed: 6\n")
    assert load(tmp_path, "extends: inner/middle.yaml\nname: x\n")["seed"] == 6


def test_another_target_replaces_its_node(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: base\n" + STAGE)
    experiment = load(tmp_path, "extends: base.yaml\nname: x\nstages: {one: {_target_: c.d, z: 1}}\n")
    assert experiment["stages"]["one"] == {"_target_": "c.d", "z": 1}


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": [1]}}, {"a": {"c": [2]}}
    merged = merge(base, over)
    merged["a"]["b"].append(9)
    merged["a"]["c"].append(9)
    assert base == {"a": {"b": [1]}} and over == {"a": {"c": [2]}}


def test_extends_has_a_depth(tmp_path: Path) -> None:
    write(tmp_path, "0.yaml", "name: base\n" + STAGE)
    for level in range(1, MAX_EXTENDS + 2):
        write(tmp_path, f"{level}.yaml", f"extends: {level - 1}.yaml\nseed: {level}\n")
    assert load_experiment(tmp_path / f"{MAX_EXTENDS}.yaml")["seed"] == MAX_EXTENDS
    with pytest.raises(UserError, match=rf"1\.yaml: extends more than {MAX_EXTENDS} deep"):
        load_experiment(tmp_path / f"{MAX_EXTENDS + 1}.yaml")


def test_extends_of_itself_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="deep"):
        load(tmp_path, "extends: experiment.yaml\nname: x\n" + STAGE)


@pytest.mark.parametrize(
    ("extends", "message"),
    [("3", "extends: 3 is not a path"), ("[a.yaml]", "is not a path"), ("absent.yaml", r"absent\.yaml: no such file"), (".", "a directory")],
)
def test_extends_of_something_else(tmp_path: Path, extends: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, f"extends: {extends}\nname: x\n" + STAGE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("3.5", 3.5), ("1e-3", 1e-3), ("1.0e-3", 1e-3), ("true", True), ("null", None), ("", None),
        ("word", "word"), ("'3'", "3"), ("[1, two, null]", [1, "two", None]), ("{x: 2}", {"x": 2, "y": [1, 2]}),
        ("a=b", "a=b"), ("'two words'", "two words"), ("Grüße", "Grüße"),
    ],
)  # fmt: skip
def test_an_override_is_a_yaml_value(tmp_path: Path, text: str, value: Any) -> None:
    key = "stages.one.deep" if text.startswith("{") else "stages.one.k"
    node = load(tmp_path, "name: x\n" + STAGE, f"{key}={text}")["stages"]["one"][key.split(".")[-1]]
    assert node == value and type(node) is type(value)


def test_overrides_come_in_order_and_may_add_an_argument(tmp_path: Path) -> None:
    experiment = load(tmp_path, "name: x\n" + STAGE, "seed=2", "seed=3", "stages.one.new=1", "stages.one.deep.z=4")
    assert experiment["seed"] == 3 and experiment["stages"]["one"]["new"] == 1
    assert experiment["stages"]["one"]["deep"] == {"x": 1, "y": [1, 2], "z": 4}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "an override is key=value"),
        ("=3", "an override is key=value"),
        ("sed=3", "unknown key 'sed'; did you mean 'seed'"),
        ("stage.one.k=3", "no key 'stage' in the experiment; did you mean 'stages'"),
        ("stages.onne.k=3", "no key 'onne' in stages; did you mean 'one'"),
        ("stages.one.deeep.x=3", r"no key 'deeep' in stages\.one; did you mean 'deep'"),
        ("stages.one.k.x=3", r"stages\.one\.k holds no keys"),
        ("stages.one.k.x.y=3", r"no key 'x' in stages\.one\.k"),
        ("seed=[1", "is not a YAML value"),
        ("seed=one", "seed: 'one' is not an integer"),
        ("seed=true", "seed: True is not an integer"),
        ("stages.one.deep.y.2=3", r"stages\.one\.deep\.y is a list of 2, whose items are 0 to 1; it has no '2'"),
        ("stages.one.deep.y.x=3", r"stages\.one\.deep\.y is a list of 2"),
        ("variables.sise=3", "no key 'variables' in the experiment|no variable 'sise'"),
        ("logger=offline", "logger: 'offline' is not a mapping"),
        ("runs_dir=" + "x" * 300, "runs_dir: 'x+' is no path that a folder can have"),
        ("runs_dir=", "runs_dir"),
        ("stage_cache=a/" + "é" * 200, "stage_cache: .* is no path"),
        ("seed=-1", "seed: -1 is not an integer >= 0"),
        ("threads=two", "threads: 'two' is not an integer from 1 to 4096 or null"),
        ("stages=3", "stages: 3 is not a mapping"),
        ("stages.one=3", r"stages\.one: needs a _target_"),
        ('name="a\\0b"', "holds a character that no name"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, "name: x\n" + STAGE, override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "a\0b", "x" * 300, "x" * 101, "", " a", "a b", "-a", "a\n", "é", None, 3])
def test_names_that_are_no_path_component(name: Any) -> None:
    with pytest.raises(UserError, match=r"stages: .* is not a valid name"):
        check_name(name, "stages")


def test_names_that_are() -> None:
    for name in ("a", "A-1_b.c", "9", "x" * 100):
        assert check_name(name) == name


def test_an_override_reaches_what_is_not_written(tmp_path: Path) -> None:
    """Arguments of a target that its node does not hold, the logger, items of lists, and nodes behind a reference."""
    text = """
name: x
encoder: {_target_: lightning_e5.models.factory.EncoderSpec, layers: 1}
variables: {rules: [{_target_: data_modules.ccpairs.heuristics.MaxPassageChars, chars: 5}]}
stages:
  start: {_target_: lightning_e5.stages.vocabulary.vocabulary, encoder: "${encoder}"}
  train: {_target_: lightning_e5.stages.pretrain.pretrain, module: {_target_: lightning_e5.modules.distilled.DistilledModule}, trainer: null}
  build: {_target_: lightning_e5.stages.build_ccpairs.build_ccpairs, heuristics: "${variables.rules}"}
"""
    overrides = [
        "logger.mode=disabled", "stages.start.encoder.layers=2", "stages.train.trainer.devices=1", "stages.train.inputs.keep=a/b",
        "stages.train.module.temperature=0.02", "stages.train.optimizer.learning_rate=1e-4", "stages.build.heuristics.0.chars=7", "stages.build.near_duplicates.threshold=0.5",
    ]  # fmt: skip
    loaded = load(tmp_path, text, *overrides)
    stages = loaded["stages"]
    assert loaded["logger"] == {"mode": "disabled"} and loaded["encoder"]["layers"] == 1
    assert stages["start"]["encoder"]["layers"] == 2 and stages["train"]["trainer"] == {"devices": 1}
    assert stages["train"]["inputs"] == {"keep": "a/b"} and stages["train"]["module"]["temperature"] == 0.02
    assert stages["train"]["optimizer"] == {"learning_rate": 1e-4}
    assert stages["build"]["heuristics"][0]["chars"] == 7 and loaded["variables"]["rules"][0]["chars"] == 5
    for override, message in [
        ("stages.train.trainr.devices=1", "no key 'trainr' in stages.train; did you mean 'trainer'"),
        ("stages.start.encodr.layers=2", "no key 'encodr' in stages.start; did you mean 'encoder'"),
        ("stages.build.heuristics[1].chars=7", "is a list of 1, whose items are 0 to 0; it has no '1'"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            load(tmp_path, text, override)


def test_references(tmp_path: Path) -> None:
    text = "name: x\nvariables: {size: 3, node: {a: [1]}}\nstages: {one: {_target_: a.b, k: '${variables.size}', n: '${variables.node}'}}\n"
    one = load(tmp_path, text, "variables.size=4")["stages"]["one"]
    assert one["k"] == 4 and one["n"] == {"a": [1]} and type(one["n"]) is dict


@pytest.mark.parametrize(
    ("value", "message"), [("${variables.sise}", "sise"), ("${stages.one.k}", "."), ("${unclosed", "."), ("${no_such:1}", "no_such")]
)
def test_a_reference_to_nothing_is_named(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, f"name: x\nvariables: {{size: 3}}\nstages: {{one: {{_target_: a.b, k: '{value}'}}}}\n")
    assert "experiment.yaml" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an experiment"),
        ("- a\n", "not an experiment"),
        ("word", "not an experiment"),
        ("3", "not an experiment"),
        ("name: x\n", "stages: there is none to run"),
        ("name: x\nstages: {}\n", "stages: there is none to run"),
        ("name: x\nstages: {one: {k: 1}}\n", r"stages\.one: needs a _target_"),
        ("name: x\nstages: {a/b: {_target_: c.d}}\n", "stages: 'a/b' is not a valid name"),
        ("stages: {one: {_target_: a.b}}\n", "name: None is not a valid name"),
        ("name: x\nname: y\n" + STAGE, "duplicate|found"),
        ("name: x\nlogger: offline\n" + STAGE, "logger: 'offline' is not a mapping"),
        ("name: x\nrunsdir: a\n" + STAGE, "unknown key 'runsdir'; did you mean 'runs_dir'"),
        ("name: x\n3: a\n" + STAGE, "unknown key '3'"),
        ("name: x\n\tseed: 1\n", "line 2"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, text)
    assert "experiment.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_differing_keys() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": 1}
    assert differing_keys(old, {"e": 1, "b": {"d": None, "c": [1, 2]}, "a": 1}) == []
    new = {"a": 1.0, "b": {"c": [1, 3]}, "e": True, "f": {"g": 1}}
    assert differing_keys(old, new) == ["a", "b.c", "b.d", "e", "f"]
    assert differing_keys({"a": {"b": 1}}, {"a": 1}) == ["a"]


def test_the_hash_is_of_the_content() -> None:
    value = {"b": [1, 2.5, None, True, "ü"], "a": {"y": 1, "x": 2}}
    assert config_hash(value) == config_hash({"a": {"x": 2, "y": 1}, "b": [1, 2.5, None, True, "ü"]})
    # Finished runs on disk hold these hashes: another one would make every stage of them run again.
    assert config_hash({"a": [1, 2.5, None, True, "ü"]}) == "76af51164e33d33dbae80976aa3b176301c8caa082fc228c2cf6ddc1544258af"
    others = [{"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": [1]}, {"a": None}, {}]
    assert len({config_hash(o) for o in others}) == len(others)
    with pytest.raises(ValueError):
        config_hash({"a": math.nan})


def test_paths_outside_the_run(tmp_path: Path) -> None:
    """A path, a file of an installed package, a package that is not there, and a stage."""
    import networkx

    assert outside_path(f"path:{tmp_path}/a:b") == tmp_path / "a:b"
    assert outside_path("package:networkx/algorithms") == Path(networkx.__file__).parent / "algorithms"
    missing = outside_path("package:no_such_package_here/model")
    assert missing is not None and not missing.exists()
    assert outside_path("package:../../etc") == Path("package:../../etc")
    assert outside_path("pairs/test") is None
