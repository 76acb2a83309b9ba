"""An ablation YAML becomes the runs that it says, and what is wrong in it is named in one sentence."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.ablation.dry_run import plan_text, shared_stages
from lightning_e5.ablation.plan import Plan, differences, plan_ablation
from lightning_e5.config.ablation_spec import load_ablation
from lightning_e5.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "experiments" / "ablations" / "smoke.yaml"
BASE = SMOKE.parent / "_base" / "smoke.yaml"
REPORTED = "e5-pt/python-docs/ndcg@10"


def ablation_tree() -> dict[str, Any]:
    return {
        "ablation": "ours",
        "question": "Which?",
        "held_constant": ["data"],
        "seeds": [1, 2],
        "baseline": "a",
        "scale": "small",
        "report": [REPORTED],
        "paper": {"source": "Table 1", "figures": {"nDCG": {"a": 50.0, "b": 40}}},
        "variants": {
            "a": {"description": "as it is"},
            "b": {"description": "hot", "over": {"stages": {"pretrain": {"module": {"temperature": 0.1}, "data": {"batch_size": 16}}}}},
        },
        "scales": {
            "small": {"base": str(BASE), "over": {"encoder": {"hidden_size": 16}, "stages": {"pretrain": {"data": {"batch_size": 8, "max_steps": 4}}}}},
            "large": {
                "base": str(BASE),
                "seeds": [7],
                "report": ["pretrain/final_loss"],
                "variants": {"b": {"over": {"stages": {"pretrain": {"module": {"temperature": 0.2}}}}}},
            },
        },
    }  # fmt: skip


def written(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "ours.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def planned(folder: Path, tree: dict[str, Any], *overrides: str, scale: str | None = None, **options: Any) -> Plan:
    return plan_ablation(load_ablation(written(folder, tree), scale), overrides, **options)


def test_the_order_of_merging_and_of_runs(tmp_path: Path) -> None:
    plan = planned(tmp_path, ablation_tree(), "stages.pretrain.data.max_steps=5", "runs_dir=elsewhere")
    assert [run.name for run in plan.every] == ["a-seed1", "b-seed1", "a-seed2", "b-seed2"]  # whole comparisons first
    a, b = (run.experiment for run in plan.every[:2])
    assert a["stages"]["vocabulary"]["encoder"]["hidden_size"] == 16  # the scale's, through ${encoder}
    assert [e["stages"]["pretrain"]["data"]["batch_size"] for e in (a, b)] == [8, 16]  # the variant's over the scale's
    assert [e["stages"]["pretrain"]["data"]["max_steps"] for e in (a, b)] == [5, 5]  # the command line's over both
    assert [e["stages"]["pretrain"]["module"]["temperature"] for e in (a, b)] == [0.05, 0.1]
    assert str(plan.directory) == a["runs_dir"] == "elsewhere/ablations/ours-small"
    assert a["stage_cache"] == "elsewhere/.stages"
    assert b["name"] == "b-seed1" and plan.every[3].experiment["seed"] == 2
    assert b["logger"] == {"group": "ours-small", "name": "b-seed1", "tags": ["ours", "small", "b"]}
    assert differences(plan, "b") == [("stages.pretrain.data.batch_size", 16), ("stages.pretrain.module.temperature", 0.1)]


def test_a_scale_has_its_own_values(tmp_path: Path) -> None:
    plan = planned(tmp_path, ablation_tree(), scale="large")
    assert [run.name for run in plan.every] == ["a-seed7", "b-seed7"]
    assert plan.ablation.report == ["pretrain/final_loss"]
    assert plan.every[1].experiment["stages"]["pretrain"]["module"]["temperature"] == 0.2
    skipping = ablation_tree()
    skipping["scales"]["large"]["skip"] = {"b": "too large"}
    plan = planned(tmp_path, skipping, scale="large")
    assert [run.variant for run in plan.every] == ["a"]
    assert "left out at this scale: b (too large)" in plan_text(plan)


def test_null_leaves_out_a_stage_and_an_input(tmp_path: Path) -> None:
    tree = ablation_tree()
    tree["variants"]["b"]["over"] = {"stages": {"pretrain": None, "evaluate": {"inputs": {"encoders": {"e5-pt": None, "untrained": "vocabulary"}}}}}
    stages = planned(tmp_path, tree).every[1].experiment["stages"]
    assert list(stages) == ["pairs", "vocabulary", "evaluate"]
    assert stages["evaluate"]["inputs"]["encoders"] == {"untrained": "vocabulary"}


def test_a_part_of_the_runs(tmp_path: Path) -> None:
    plan = planned(tmp_path, ablation_tree(), only=["b"], seeds=1)
    assert [run.name for run in plan.wanted] == ["b-seed1"]
    assert len(plan.every) == 4
    assert any("without the baseline a" in line for line in plan_text(plan))


@pytest.mark.parametrize(
    ("key", "value", "messages"),
    [
        ("ablation", "others", ["ablation", "'others'", "stem 'ours'"]),
        ("question", None, ["question", "None is not a text"]),
        ("seeds", [], ["seeds", "list of whole numbers"]),
        ("seeds", [1, 1], ["seeds: 1 is there twice"]),
        ("seeds", ["1"], ["seeds", "whole numbers"]),
        ("seeds", [2**31], ["variant a at scale small", "seed: 2147483648 is not an integer <= 2,147,483,647"]),
        ("baseline", "c", ["baseline: no variant 'c'", "known: a, b"]),
        ("scale", "smal", ["scale: no scale 'smal'", "did you mean 'small'"]),
        ("report", [], ["report: is empty"]),
        ("variants", {}, ["variants", "mapping of names"]),
        ("variants.b.ovr", {}, ["variants.b: unknown key 'ovr'", "did you mean 'over'"]),
        ("variants.b.description", None, ["variants.b.description"]),
        ("variants.b.over.seed", 3, ["variants.b.over: seed"]),
        ("variants.b.over.stagse", {}, ["variant b at scale small", "'stagse'", "did you mean 'stages'"]),
        ("variants.A", {"description": "x"}, ["'a' and 'A' differ in case alone"]),
        ("variants.x/y", {"description": "x"}, ["'x/y' is not a valid name"]),
        ("scales.small.base", "absent.yaml", ["scales.small.base", "absent.yaml: no such file"]),
        ("scales.small.variants", {"c": {}}, ["scales.small.variants: no variant 'c'"]),
        ("scales.small.skip", ["a"], ["scales.small.skip: 'a' is the baseline"]),
        ("scales.small.skip", {"c": "x"}, ["scales.small.skip: no variant 'c'"]),
        ("scales.small.sedes", [1], ["scales.small: unknown key 'sedes'", "did you mean 'seeds'"]),
        ("paper.figures.nDCG.c", 1.0, ["paper.figures.nDCG: no variant 'c'"]),
        ("paper.figures.nDCG.a", "50", ["paper.figures.nDCG.a: '50' is not a number"]),
        ("paper.beside", {REPORTED: "nDGC"}, [f"paper.beside.{REPORTED}: no column 'nDGC' in figures; did you mean 'nDCG'?"]),
        ("paper.beside", {REPORTED: ["nDCG"]}, ["no column ['nDCG'] in figures"]),
        ("paper.beside", {REPORTED[:-1]: "nDCG"}, [f"paper.beside: no scale reports the metric {REPORTED[:-1]!r}; did you mean {REPORTED!r}?"]),
        ("also_compare", ["a", "b"], ["also_compare", "is not a list of pairs of variants"]),
        ("also_compare", [["b", "c"]], ["also_compare: no variant 'c'"]),
        ("also_compare", [["b", "a"]], ["also_compare: ['b', 'a']: the rule is two different variants"]),
        ("repotr", [], ["unknown key 'repotr'", "did you mean 'report'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_sentence(tmp_path: Path, key: str, value: Any, messages: list[str]) -> None:
    tree = copy.deepcopy(ablation_tree())
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(UserError) as raised:
        planned(tmp_path, tree)
    assert "\n" not in str(raised.value) and "ours.yaml" in str(raised.value)
    for message in messages:
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale=larg"], "no scale 'larg'; did you mean 'large'?"),
        (["--only", "c"], "--only c: "),
        (["--seeds", "3"], "has 2 seeds at scale small"),
        (["--seeds", "0"], "--seeds 0"),
        (["name=x"], "get their name from it"),
        (["logger.group=x"], "get their logger.group from it"),
        (["stages.pretrian.k=1"], "did you mean 'pretrain'"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--slurm", "timeout_min=1"], "--slurm: is for --launcher slurm"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    path = written(tmp_path, ablation_tree())
    assert main(["ablate", str(path), *arguments, f"runs_dir={tmp_path}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1


def test_shared_stages_are_predicted() -> None:
    shared = shared_stages(plan_ablation(load_ablation(SMOKE)))
    assert shared == {
        "warm-seed1": {},
        "cold-seed1": {"pairs": "warm-seed1", "vocabulary": "warm-seed1"},
        "warm-seed2": {"pairs": "warm-seed1"},
        "cold-seed2": {"pairs": "warm-seed1", "vocabulary": "warm-seed2"},
    }


def test_the_dry_run_is_fast_light_and_makes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, lightning_e5.__main__ as m\n"
        f"m.main(['ablate', {str(SMOKE)!r}, '--dry-run', 'runs_dir={tmp_path}'])\n"
        "print([n for n in ('torch', 'lightning', 'transformers') if n in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - began < 20  # about 1 s on an idle machine
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    assert "differs: stages.pretrain.module.temperature=0.01" in done.stdout and "20 steps, 640 pairs" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_check_takes_ablations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SMOKE)]) == 0
    assert "scale laptop (default): 4 runs" in capsys.readouterr().out
    tree = ablation_tree()
    tree["scales"]["large"]["over"] = {"stages": {"pretrain": {"module": {"temprature": 1.0}}}}
    assert main(["check", str(written(tmp_path, tree))]) == 2
    printed = capsys.readouterr().err
    assert "variant a at scale large: stages.pretrain.module" in printed and "did you mean 'temperature'" in printed
