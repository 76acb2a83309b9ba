"""A W&B group becomes an ablation's directory that reads like any other; without W&B one clear sentence says so."""

from __future__ import annotations

import pytest

from lightning_e5.errors import UserError
from lightning_e5.report.figures import comparison as comparison_figures
from lightning_e5.report.notebook import open_ablation
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.comparison import compare_ablation
from lightning_e5.tracking.wandb_group import GroupRun, _curve_columns, read_group, write_group

METRIC = "e5/docs/ndcg@10"


def group(**states: str) -> list[GroupRun]:
    """The runs of two variants with two seeds: a curve and the results of each."""
    runs = [GroupRun("something else", {"loss": 1.0})]
    for variant, level in (("warm", 0.5), ("cold", 0.3)):
        for seed in (1, 2):
            name = f"{variant}-seed{seed}"
            config = {"name": name, "seed": seed, "threads": None, "stages": {"pretrain": {"_target_": "x"}}, "logger": {}}
            curve = [{"pairs": 64.0 * step, "loss": 5 / step} for step in range(1, 6)]
            runs.append(GroupRun(f"{name}/pretrain", {"pretrain/loss": 1.0}, curve, "finished", config))
            runs.append(GroupRun(f"{name}/results", {METRIC: level + 0.01 * seed, "pretrain/seconds": 9.0}, (), states.get(f"{variant}{seed}", "finished"), config))
    return runs


def test_a_group_reads_like_a_directory(tmp_path):
    data = AblationData(write_group(group(), "temperature-laptop", tmp_path / "group", baseline="warm"))
    assert (data.name, data.scale, data.baseline, data.report, data.seeds) == ("temperature", "laptop", "warm", [METRIC], [1, 2])
    assert data.missing() == [] and list(data.variants) == ["warm", "cold"]
    assert data.run("cold", 2).metrics == {METRIC: 0.32, "pretrain/seconds": 9.0}
    assert data.run("cold", 2).times() == {"pretrain": {"seconds": 9.0, "peak_memory_gb": 0.0}}
    assert data.run("cold", 2).learning_curves()["pretrain"][1] == {"step": 2, "pairs": 128.0, "loss": 2.5}
    comparison = compare_ablation(data)
    (warm, cold) = comparison.rows
    assert warm.cells[METRIC].per_seed == {1: 0.51, 2: 0.52} and warm.cells[METRIC].mean.mean == pytest.approx(0.515)
    assert cold.cells[METRIC].difference.mean == pytest.approx(-0.2) and not cold.cells[METRIC].mean.query_noise
    assert len(comparison_figures.learning_curves(comparison).axes) == 1
    write_group(group(), "temperature-laptop", tmp_path / "group")  # fetched anew over the old one


def test_a_run_that_is_not_finished_stays_missing(tmp_path):
    data = AblationData(write_group(group(cold2="running"), "temperature-laptop", tmp_path / "group"))
    assert data.missing() == [("cold", 2)] and data.state("cold", 2) == "running"


def test_the_columns_of_a_curve_by_either_name():
    assert _curve_columns({"noisy/loss": 1.0, "noisy/pairs_seen": 2.0, "loss": 3.0}, "noisy") == {"pairs": "noisy/pairs_seen", "loss": "noisy/loss"}
    assert _curve_columns({"loss": 1.0, "pairs": 2.0}, "noisy") == {"pairs": "pairs", "loss": "loss"}
    assert _curve_columns({"ndcg": 1.0}, "results") == {}


def test_what_is_no_ablations_group_is_refused(tmp_path):
    with pytest.raises(UserError, match="named VARIANT-seedN/STAGE"):
        write_group([GroupRun("quickstart/pretrain", {})], "quickstart", tmp_path / "group")
    with pytest.raises(UserError, match="'wram' is none of its variants; did you mean 'warm'"):
        write_group(group(), "temperature-laptop", tmp_path / "group", baseline="wram")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(UserError, match="holds something that is no ablation"):
        write_group(group(), "temperature-laptop", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["../../x-seed1/pretrain", "warm-seed1/../../../x", "warm-seed1/a/b", ".-seed1/x", "wa\x1brm-seed1/x"])
def test_a_runs_name_is_no_way_out_of_the_folder(tmp_path, name):
    with pytest.raises(UserError, match="is not a valid name"):
        write_group([*group(), GroupRun(name, {"loss": 1.0}, [{"pairs": 1.0, "loss": 2.0}])], "temperature-laptop", tmp_path / "a" / "group")
    with pytest.raises(UserError, match="is not a valid name"):
        write_group(group(), "..", tmp_path / "a" / "..")
    assert list(tmp_path.iterdir()) == []


def test_without_wandb_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be read while WANDB_MODE is 'offline'"):
        read_group("me/project", "temperature-laptop")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"W&B group 'temperature-laptop' of me/project: needs a login"):
        open_ablation("wandb:me/project/temperature-laptop")
    with pytest.raises(UserError, match="is given as wandb:ENTITY/PROJECT/GROUP"):
        open_ablation("wandb:temperature-laptop")
