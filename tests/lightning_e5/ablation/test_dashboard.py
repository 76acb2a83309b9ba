"""The workspace that compares an ablation's variants: its panels name what runs log."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.ablation.dashboard import build, dashboard, read_compared, specification, validation_values
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.tracking.wandb_run import read_records, run_files

ROOT = Path(__file__).resolve().parents[3]
REPORT = ["e5-pt/python-docs/ndcg@10", "e5/python-docs/recall@100"]


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    """An ablation of the smoke experiment."""
    tree = {
        "ablation": "negatives", "question": "Which?", "held_constant": ["data"], "seeds": [1, 2], "baseline": "in_batch", "scale": "laptop",
        "report": REPORT, "paper": {"source": "Table 8", "figures": {"nDCG@10": {"in_batch": 51.6}}},
        "variants": {"in_batch": {"description": "the batch", "over": {}}, "moco": {"description": "a queue", "over": {}}},
        "scales": {
            "laptop": {"base": str(ROOT / "experiments" / "smoke.yaml"), "over": {"logger": {"project": "mine"}}},
            "paper": {"base": str(ROOT / "experiments" / "smoke.yaml"), "report": REPORT[:1], "skip": {"moco": "no time"}},
        },
    }  # fmt: skip
    path = tmp_path / "negatives.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def logged(run: Path) -> tuple[set[str], set[str]]:
    """Names in the history of the trainings, and in the summary of the results, of a run's W&B files."""
    history, summary = set(), set()
    for directory in (run / "stages").iterdir():
        if (directory / "wandb").is_dir():
            history |= {k for path in run_files(directory) for r in read_records(path, "history") for k in r["history"]["item"]}
    for record in read_records(run_files(run)[0], "summary"):
        summary |= set(record["summary"]["update"])
    return history, summary


def test_every_panel_shows_what_a_run_logs(ablation: Path, smoke_run: Path) -> None:
    shown = panels(specification(build(read_compared(ablation))))
    history, summary = logged(smoke_run)
    text, *bars = shown.pop("Results")
    assert [bar["metrics"] for bar in bars] == [[name] for name in REPORT] and set(REPORT) <= summary
    assert list(shown) == [f"Training: {name}" for name in ("noisy", "pretrain", "teacher", "finetune")]
    curves = [curve for section in shown.values() for curve in section]
    assert {name for curve in curves for name in (*curve["metrics"], curve["xAxis"])} <= history
    assert {curve["metrics"][0] for curve in shown["Training: pretrain"]} >= {
        f"pretrain/{name}" for name in ("loss", "accuracy", "tokens_per_second", "gradient_norm")
    }
    assert "Which?" in text["value"] and "51.6" in text["value"]
    assert all(panel["groupBy"] == "variant.value" for panel in (*bars, *curves))


def test_runs_are_filtered_grouped_and_coloured(ablation: Path) -> None:
    spec = specification(build(read_compared(ablation)))
    assert spec["project"] == "mine"
    [runs] = spec["spec"]["section"]["runSets"]
    [rule] = runs["filters"]["filters"]
    assert (rule["key"], rule["op"], rule["value"]) == ({"name": "group", "section": "run"}, "=", "negatives-laptop")
    assert runs["grouping"] == [{"name": "variant.value", "section": "config"}]
    colours = spec["spec"]["section"]["customRunColors"]
    assert len(set(colours.values())) == 2 and any("in_batch" in key for key in colours)


def test_a_directory_says_the_same_as_its_yaml(ablation: Path, tmp_path: Path) -> None:
    directory = tmp_path / "negatives-laptop"
    tree = yaml.safe_load(ablation.read_text())
    kept = {key: tree[key] for key in ("ablation", "scale", "question", "held_constant", "baseline", "report", "seeds", "paper")}
    variants = {name: {"description": node["description"], "runs": {"1": f"{name}-seed1"}} for name, node in tree["variants"].items()}
    write_json(directory / "ablation.json", {**kept, "file": str(ablation), "variants": variants})
    of_yaml = read_compared(ablation)
    assert of_yaml.directory == Path("runs/ablations/negatives-laptop")
    assert read_compared(directory) == replace(of_yaml, directory=directory)
    config = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text()) | {"name": "moco-seed1"}
    config["stages"] = {name: config["stages"][name] for name in ("pairs", "pretrain")}
    config["logger"] = {"project": "other"}
    (directory / "moco-seed1").mkdir()
    (directory / "moco-seed1" / "config.yaml").write_text(yaml.safe_dump(config))
    of_runs = read_compared(directory)
    assert (of_runs.trainings, of_runs.project) == ({"pretrain": []}, "other")


def test_what_a_validation_is_drawn_by() -> None:
    assert validation_values({}) == validation_values({"validation": {"every_n_steps": 5}}) == []
    collections = {"inputs": {"validation_collections": {"own": "pairs/validation"}}}
    assert validation_values({"validation": {"monitor": "val/sts/spearman", "pairs": {"hold_out": 5}}, **collections}) == [
        "val/sts/spearman", "val/own/ndcg@10", "val/mrr@10", "val/loss"
    ]  # fmt: skip
    assert validation_values({"validation": {"tasks": [{"collections": {"b": "x"}}]}}) == ["val/b/ndcg@10"]


def test_the_verb(ablation: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing is written here but where the runs are
    assert main(["dashboard", str(ablation), "scale=paper"]) == 0
    own = Path("runs/ablations/negatives-paper/dashboard.json")
    assert str(own) in capsys.readouterr().out and own.is_file() and not list(tmp_path.glob("*.json"))
    out = tmp_path / "there" / "board.json"
    assert main(["dashboard", str(ablation), "scale=paper", "--project", "p", "--entity", "e", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert str(out) in told and f"dashboard {ablation} scale=paper --project p --entity e --online" in told
    spec = read_json(out)
    assert (spec["project"], spec["entity"], spec["displayName"]) == ("p", "e", "Ablation negatives-paper")
    assert len(panels(spec)["Results"]) == 2 and "moco" not in json.dumps(spec)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["dashboard", str(ablation), "--out", str(out), "--online"]) == 2
    assert "wandb login" in capsys.readouterr().err


def test_mistakes(ablation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no scale 'pape'; did you mean 'paper'"):
        dashboard(ablation, scale="pape")
    with pytest.raises(UserError, match="is no ablation"):
        read_compared(ROOT / "experiments" / "smoke.yaml")
    with pytest.raises(UserError, match=r"has no ablation\.json"):
        read_compared(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "wandb_workspaces.reports.v2", raising=False)
    with pytest.raises(UserError, match="needs the package wandb-workspaces"):
        build(read_compared(ablation))
