"""Every ablation is right at each of its scales, and at test size each of its variants runs to its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from lightning_e5.ablation.plan import Plan, plan_ablation
from lightning_e5.config.ablation_spec import load_ablation, scale_names
from lightning_e5.config.experiment import load_experiment
from lightning_e5.files.parquet import write_parquet
from lightning_e5.pipeline.runner import check_experiment, run_experiment

ROOT = Path(__file__).resolve().parents[1]
#: `smoke.yaml` is for the tests of ``ablate`` alone.
FILES = [path for path in sorted((ROOT / "experiments" / "ablations").glob("*.yaml")) if path.stem != "smoke"]
SCALES = ["laptop", "one_gpu", "paper", "smoke"]
#: One variant of each, run in every test run; the others are slow.
QUICK = {
    "batch_size": ["small"], "data_filtering": ["small_unfiltered"], "finetune_data": ["none", "nli"], "model_size": ["small"],
    "negatives": ["moco"], "prefix": ["without_prefixes"], "pretraining": ["finetune_only"],
    "pretraining_signal": ["ccpairs", "simcse", "neighbours"],
}  # fmt: skip


def planned(name: str, scale: str, *overrides: str) -> Plan:
    return plan_ablation(load_ablation(ROOT / "experiments" / "ablations" / f"{name}.yaml", scale), overrides)


def test_there_are_eight() -> None:
    assert [path.stem for path in FILES] == sorted(QUICK)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_passes(path: Path, scale: str) -> None:
    assert sorted(scale_names(path)) == SCALES
    plan = planned(path.stem, scale)
    assert plan.ablation.baseline in plan.ablation.descriptions
    assert plan.ablation.paper and plan.ablation.paper["note"]
    for run in plan.every:
        check_experiment(run.experiment, paths=False)
        judged = {name for node in run.experiment["stages"].values() for name in (node.get("inputs") or {}).get("encoders", {})}
        sets = {
            name for node in run.experiment["stages"].values() for kind in ("collections", "sts", "classification")
            for name in (node.get("inputs") or {}).get(kind, {})
        }  # fmt: skip
        for metric in plan.ablation.report:
            model, collection, _ = metric.split("/")
            assert model in judged and collection in sets, f"{run.name} has no {metric}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_variants_differ_and_share_what_they_read(path: Path) -> None:
    runs = planned(path.stem, "laptop").every
    seeds = {run.seed for run in runs}
    stages = {run.variant: json.dumps(run.experiment["stages"], sort_keys=True) for run in runs}
    assert len(set(stages.values())) == len(stages) and len(runs) == len(seeds) * len(stages)
    trained = "finetune" if path.stem in ("finetune_data", "pretraining") else "pretrain"
    for run in runs:
        own = [name for name, node in run.experiment["stages"].items() if "seed" not in node]
        assert set(own) <= {trained, "evaluate"}, f"{run.name}: a stage of its own seed is not shared by all seeds"
        assert run.experiment["stages"]["pairs"] == runs[0].experiment["stages"]["pairs"]


def test_the_papers_scale_is_the_papers_pretraining() -> None:
    base = load_experiment(ROOT / "experiments" / "pretrain" / "e5_base.yaml")
    ours = load_experiment(ROOT / "experiments" / "ablations" / "_base" / "paper_pretrain.yaml")
    assert ours["encoder"] == base["encoder"]
    for name in ("tokens", "pretrain"):
        own, of_base = ({k: v for k, v in e["stages"][name].items() if k not in ("inputs", "seed")} for e in (ours, base))
        assert own == of_base
    modules = {run.variant: run.experiment["stages"]["pretrain"]["module"] for run in planned("negatives", "paper").every}
    for variant in ("moco", "pre_batch"):
        written = load_experiment(ROOT / "experiments" / "pretrain" / f"e5_base_{variant}.yaml")["stages"]["pretrain"]["module"]
        assert {key: modules[variant][key] for key in written} == written


def test_queues_keep_the_papers_proportion() -> None:
    for scale in ("laptop", "paper"):
        for run in planned("negatives", scale).every:
            node = run.experiment["stages"]["pretrain"]
            batches = node["module"].get("queue_size", 0) / node["data"]["batch_size"]
            assert batches == {"in_batch": 0, "pre_batch": 2, "moco": 4, "moco_short": 4}[run.variant]


def test_batches_keep_the_papers_proportion_and_the_pairs_seen() -> None:
    data = [run.experiment["stages"]["pretrain"]["data"] for run in planned("batch_size", "laptop").every]
    assert {d["batch_size"] for d in data} == {32, 256, 1024, 2048}
    assert {d["batch_size"] * d["max_steps"] for d in data} == {49152}


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A folder of data as `_base/laptop_finetune.yaml` reads it, of this project's own documentation."""
    folder = tmp_path_factory.mktemp("pack")
    lines = [" ".join(text.split())[:200] for text in texts]
    lines = list(dict.fromkeys(line for line in lines if len(line) > 40))[:160]
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in lines]
    columns = {"query": [q for q, _ in halves], "passage": [p for _, p in halves], "source": ["docs"] * len(halves)}
    write_parquet(folder / "pairs" / "docs.parquet", {name: pa.array(column, pa.string()) for name, column in columns.items()})
    for name in ("squad", "scifact"):
        (folder / "beir" / name / "qrels").mkdir(parents=True)
        rows = [{"_id": f"d{i}", "title": "", "text": line} for i, line in enumerate(lines)]
        questions = [{"_id": f"q{i}", "text": f"what is {line[:30]}"} for i, line in enumerate(lines[:60])]
        for file, content in (("corpus", rows), ("queries", questions)):
            (folder / "beir" / name / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        for split, numbers in (("train", range(40)), ("test", range(40, 60))):
            judged = "".join(f"q{i}\td{i}\t1\n" for i in numbers)
            (folder / "beir" / name / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (folder / "nli").mkdir()
    triplets = [{"anchor": f"a {a}", "entailment": f"b {a[:20]}", "contradiction": b} for a, b in halves[:30]]
    (folder / "nli" / "triplets.jsonl").write_text("".join(json.dumps(t) + "\n" for t in triplets))
    (folder / "sts").mkdir()
    scored = "".join(f"{i % 6}\t{a}\t{b}\n" for i, (a, b) in enumerate(halves[:30]))
    (folder / "sts" / "stsb_test.tsv").write_text("score\tsentence1\tsentence2\n" + scored)
    return folder


@pytest.fixture(scope="session")
def smoke_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all ablations lie here, so that they share their stages."""
    return tmp_path_factory.mktemp("ablations")


def runs_to_the_end(plan: Plan, variants: list[str]) -> None:
    for run in plan.every:
        if run.seed == plan.ablation.seeds[0] and run.variant in variants:
            metrics, computed = run_experiment(run.experiment, say=lambda text: None)
            assert computed
            for name in plan.ablation.report:
                assert name in metrics and -1 <= metrics[name] <= 1, f"{run.name}: {name}"


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_variant_runs_at_test_size(name: str, smoke_place: Path, pack: Path) -> None:
    overrides = [f"runs_dir={smoke_place}", f"stage_cache={smoke_place / 'stages'}"]
    if "finetune" in str(load_ablation(ROOT / "experiments" / "ablations" / f"{name}.yaml", "smoke").base):
        overrides.append(f"data_dir={pack}")
    runs_to_the_end(planned(name, "smoke", *overrides), QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(QUICK))
def test_all_variants_run_at_test_size(name: str, tmp_path: Path, pack: Path) -> None:
    overrides = [f"runs_dir={tmp_path}"]
    if "finetune" in str(load_ablation(ROOT / "experiments" / "ablations" / f"{name}.yaml", "smoke").base):
        overrides.append(f"data_dir={pack}")
    plan = planned(name, "smoke", *overrides)
    runs_to_the_end(plan, list(plan.ablation.descriptions))
    assert all((plan.directory / run.name / "metrics.json").is_file() for run in plan.every if run.seed == plan.ablation.seeds[0])
