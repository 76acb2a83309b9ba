"""The mteb stage: mteb's own tasks from local files, results that its tools read, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mteb import get_benchmark
from mteb.cache import ResultCache
from mteb.results import TaskResult

from lightning_e5.__main__ import main
from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.evaluation.mteb import tasks as mteb_tasks
from lightning_e5.evaluation.mteb.tasks import averages, find_tasks
from lightning_e5.evaluation.tasks.sts import STSTask, load_sts
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.stages import mteb as stage

ROOT = Path(__file__).resolve().parents[3]
KINDS = {
    "SciFact": "Retrieval", "STSBenchmark": "STS", "Banking77Classification": "Classification", "SprintDuplicateQuestions": "PairClassification",
    "AskUbuntuDupQuestions": "Reranking", "TwentyNewsgroupsClustering": "Clustering",
}  # fmt: skip


@pytest.fixture
def local(collection: Path, sts_file: Path, task_files: dict[str, Path]) -> dict[str, Path]:
    """A small set for one of mteb's own tasks of every kind."""
    files = (collection, sts_file, task_files["classification"], task_files["pair_classification"], task_files["reranking"], task_files["clustering"])
    return dict(zip(KINDS, files, strict=True))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's clients know that there is no network, so they do not try for 20 s."""
    import datasets.config
    import huggingface_hub.constants

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


def evaluated(out: Path, encoder: Path, local: dict[str, Path], **more: Any) -> dict[str, float]:
    return stage.mteb(out, encoders={"small": encoder}, tasks=[*local], local=local, split="test", **more)


def test_every_kind_of_task_in_mtebs_layout(tmp_path: Path, encoder_folder: Path, local: dict[str, Path], collection: Path, sts_file: Path) -> None:
    metrics = evaluated(tmp_path / "out", encoder_folder, local)
    encoder = TextEncoder.from_pretrained(encoder_folder)
    assert metrics["small/SciFact/ndcg@10"] == pytest.approx(RetrievalTask(load_beir(collection)).evaluate(encoder).metrics["ndcg@10"], abs=1e-4)
    assert metrics["small/STSBenchmark/cosine_spearman"] == pytest.approx(STSTask(load_sts(sts_file)).evaluate(encoder).value, abs=1e-4)
    values = {name.split("/")[1]: value for name, value in metrics.items() if "/mteb/" not in name}
    assert values.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        assert metrics[f"small/mteb/{kind}"] == values[name]
    assert metrics["small/mteb/all"] == pytest.approx(np.mean(list(values.values())))
    cache = ResultCache(cache_path=tmp_path / "out")
    (folder,) = (tmp_path / "out" / "results" / "lightning_e5__small").iterdir()
    assert {p.name for p in folder.iterdir()} >= {"model_meta.json", *(f"{name}.json" for name in KINDS)}
    for name, value in values.items():
        assert TaskResult.from_disk(folder / f"{name}.json").get_score() == pytest.approx(value, abs=1e-5)
    loaded = cache.load_results(models=["lightning_e5/small"], tasks=list(KINDS), include_remote=False, require_model_meta=True)
    assert {r.task_name for r in loaded.model_results[0].task_results} == KINDS.keys()
    rows = {row["task"]: row for row in read_json(tmp_path / "out" / stage.TABLE)}
    assert rows["SciFact"]["prefix"] == {"query": "query: ", "document": "passage: "}
    assert rows["AskUbuntuDupQuestions"]["prefix"] == {"query": "query: ", "document": "query: "}
    assert rows["SciFact"]["data"] == "local" and rows["SciFact"]["data_revision"].startswith("local-")
    assert rows["SciFact"]["queries_are_documents"] is False and "queries_are_documents" not in rows["STSBenchmark"]
    assert all(row["revision"] == folder.name and row["max_length"] == 48 for row in rows.values())


def test_a_folder_without_prefixes_gets_none(tmp_path: Path, encoder_folder: Path, sts_file: Path) -> None:
    (encoder_folder / "config_sentence_transformers.json").unlink()
    bare = evaluated(tmp_path / "bare", encoder_folder, {"STSBenchmark": sts_file})
    given = evaluated(tmp_path / "given", encoder_folder, {"STSBenchmark": sts_file}, prefixes={"query": "query: ", "passage": "passage: "})
    rows = [read_json(tmp_path / name / stage.TABLE)[0] for name in ("bare", "given")]
    assert [row["prefix"]["query"] for row in rows] == ["", "query: "]
    assert rows[0]["revision"] != rows[1]["revision"] and bare != given


def test_other_prefixes_than_the_models_are_refused(tmp_path: Path, encoder_folder: Path, sts_file: Path) -> None:
    other = {"query": "q: ", "passage": "p: "}
    with pytest.raises(UserError, match="stores the prefixes"):
        evaluated(tmp_path / "out", encoder_folder, {"STSBenchmark": sts_file}, prefixes=other)
    evaluated(tmp_path / "out", encoder_folder, {"STSBenchmark": sts_file}, prefixes=other, prefix_ablation=True)
    assert read_json(tmp_path / "out" / stage.TABLE)[0]["prefix_ablation"] is True


def test_finished_tasks_are_kept_and_half_files_are_not(
    tmp_path: Path, encoder_folder: Path, local: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"results_dir": tmp_path / "kept"}
    first = evaluated(tmp_path / "one", encoder_folder, local, **kept)
    (folder,) = (tmp_path / "kept/results/lightning_e5__small").iterdir()
    half = folder / "SciFact.json"
    half.write_text(half.read_text()[:100])
    loaded: list[str] = []
    load = mteb_tasks._load

    def noted(task: Any) -> bool:
        loaded.append(task.metadata.name)
        return load(task)

    monkeypatch.setattr(mteb_tasks, "_load", noted)
    assert evaluated(tmp_path / "two", encoder_folder, local, **kept) == first
    assert loaded == ["SciFact"]
    copied = sorted(p.relative_to(tmp_path / "two").as_posix() for p in (tmp_path / "two").rglob("*.json") if p.parent.name == folder.name)
    assert [Path(name).stem for name in copied] == sorted([*KINDS, "model_meta"])
    local["STSBenchmark"].write_text(local["STSBenchmark"].read_text().replace("\n1\t", "\n5\t"))
    changed = evaluated(tmp_path / "three", encoder_folder, local, **kept)
    assert loaded == ["SciFact", "STSBenchmark"]
    assert {k for k in first if first[k] != changed[k]} == {"small/STSBenchmark/cosine_spearman", "small/mteb/STS", "small/mteb/all"}


def test_missing_data_are_named_and_the_rest_is_done(tmp_path: Path, encoder_folder: Path, sts_file: Path, no_hub: None) -> None:
    tasks = {"encoders": {"small": encoder_folder}, "tasks": ["BIOSSES", "STSBenchmark", "CQADupstackRetrieval"], "local": {"STSBenchmark": sts_file}}
    with pytest.raises(UserError, match=r"the data of BIOSSES \(mteb/biosses-sts\) can be had neither .* 1 of 3 tasks are done") as raised:
        stage.mteb(tmp_path / "out", **tasks, split="test")
    assert "\n" not in str(raised.value)
    assert len(list((tmp_path / "out" / "results").rglob("STSBenchmark.json"))) == 1


def test_from_the_command_line(tmp_path: Path, encoder_folder: Path, sts_file: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    node = {"_target_": "lightning_e5.stages.mteb.mteb", "tasks": ["STSBenchmark"], "split": "test"}
    node["inputs"] = {"encoders": {"small": f"path:{encoder_folder}"}, "local": {"STSBenchmark": f"path:{sts_file}"}}
    experiment = {"name": "evaluation", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "stages": {"mteb": node}}
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["check", str(tmp_path / "evaluation.yaml")]) == 0
    assert main(["run", str(tmp_path / "evaluation.yaml")]) == 0
    metrics = read_json(tmp_path / "runs/evaluation/metrics.json")
    assert set(metrics) == {"small/STSBenchmark/cosine_spearman", "small/mteb/STS", "small/mteb/all"}
    assert main(["run", str(tmp_path / "evaluation.yaml")]) == 0 and "nothing to do" in capsys.readouterr().out


def test_the_papers_56_sets_are_mtebs() -> None:
    node = load_experiment(ROOT / "experiments/evaluate/mteb_english.yaml")["stages"]["mteb"]
    ours = find_tasks(node["tasks"], **{key: node[key] for key in ("languages", "split", "splits", "subsets")})
    theirs = {task.metadata.name: task for task in get_benchmark("MTEB(eng, v1)").tasks}
    assert len(ours) == 56 and {task.metadata.name for task in ours} == theirs.keys()
    for task in ours:
        peer = theirs[task.metadata.name]
        assert (list(task.eval_splits), sorted(task.hf_subsets)) == (list(peer.eval_splits), sorted(peer.hf_subsets)), task.metadata.name
    kinds = [task.metadata.type for task in ours]
    counts = {"Classification": 12, "Clustering": 11, "PairClassification": 3, "Reranking": 4, "Retrieval": 15, "STS": 10, "Summarization": 1}
    assert {kind: kinds.count(kind) for kind in kinds} == counts  # the paper's Table 3
    assert [task.eval_splits for task in ours if task.metadata.name == "MSMARCO"] == [["dev"]]


def test_averages_are_over_tasks() -> None:
    found = averages({"a": 1.0, "b": 0.0, "c": 0.2}, {"a": "STS", "b": "STS", "c": "Retrieval"})
    assert found == pytest.approx({"STS": 0.5, "Retrieval": 0.2, "all": 0.4})
    assert averages({}, {}) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["SciFacts"]}, "mteb has no task 'SciFacts'; did you mean 'SciFact'"),
        ({"tasks": ["SciFact", "SciFact"]}, "'SciFact' is named twice"),
        ({"tasks": ["SciFact"], "split": "tset"}, "SciFact: has no split 'tset'"),
        ({"tasks": ["SciFact"], "splits": {"SciFac": ["test"]}}, "splits: 'SciFac' is not one of the tasks"),
        ({"tasks": ["STS17"], "subsets": {"STS17": ["en-xx"]}}, "STS17"),
        ({"tasks": ["SciFact"], "local": {"STS12": Path("x")}}, "'STS12' is not one of the tasks"),
        ({"tasks": []}, "no task is named"),
        ({"tasks": ["SummEval"], "local": {"SummEval": Path("x")}}, "SummEval: mteb's tasks of this kind .* cannot be read from files"),
        ({"tasks": ["STS17"], "local": {"STS17": Path("x")}}, "STS17: files give one split of one subset"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, tmp_path: Path, encoder_folder: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        stage.mteb(tmp_path / "out", encoders={"small": encoder_folder}, **given)
    assert "\n" not in str(raised.value)


def test_a_score_that_is_not_a_number_is_refused(tmp_path: Path, encoder_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(encoder_folder / "model.safetensors")
    save_file({k: v * 0 for k, v in weights.items()}, encoder_folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "same.tsv").write_text("score\tsentence1\tsentence2\n1\ta\tb\n2\tc\td\n3\te\tf\n")
    with pytest.raises(UserError, match=r"STSBenchmark: lightning_e5/small's cosine_spearman is not a number"):
        evaluated(tmp_path / "out", encoder_folder, {"STSBenchmark": tmp_path / "same.tsv"})


def test_labels_that_the_training_part_lacks_are_refused(tmp_path: Path, encoder_folder: Path, task_files: dict[str, Path]) -> None:
    folder = tmp_path / "other"
    shutil.copytree(task_files["classification"], folder)
    with (folder / "test.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": "x", "label": "new"}) + "\n")
    with pytest.raises(UserError, match="'new' is not in the training part"):
        evaluated(tmp_path / "out", encoder_folder, {"Banking77Classification": folder})
