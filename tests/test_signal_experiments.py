"""The experiments on training signals: each one's data stages run and give its kind of pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_modules.pair_store import PairStore
from lightning_e5.config.experiment import load_experiment
from lightning_e5.files.storage import read_json
from lightning_e5.pipeline.runner import run_experiment

SIGNALS = Path(__file__).resolve().parents[1] / "experiments" / "pretrain" / "signals"
#: Experiment -> the sources of its pairs.
SOURCES = {
    "simcse": {"simcse"}, "inverse_cloze": {"inverse-cloze"}, "neighbouring_spans": {"neighbours"}, "random_crops": {"crops"},
    "bm25_taught": {"bm25-taught"}, "signals": {"simcse", "inverse-cloze", "neighbours", "crops", "bm25-taught"},
}  # fmt: skip
THINGS = ("array", "graph", "matrix", "table", "tree", "image", "signal", "file", "string", "model")
BODY = (
    "The {0} given is read once from its start to its end, and nothing of it is changed. A new {0} is made whose {1} elements lie in "
    "the order in which they came, so that both may be compared afterwards. Where the {0} is empty, the answer is an empty {0} too. "
    "Raises an error of the {1} kind for anything that is no {0}."
)


def package(root: Path, deeds: tuple[str, ...]) -> str:
    """A package of documented functions."""
    root.mkdir()
    for thing in THINGS:
        functions = [f'def {d}_{thing}(value):\n    """{d.capitalize()} the elements of a {thing}.\n\n    {BODY.format(thing, d + "ed")}\n    """\n' for d in deeds]
        (root / f"{thing}.py").write_text("\n\n".join(functions))
    return str(root)


def data_stages(name: str, tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The experiment with its data stages alone, on documentation written here."""
    experiment = load_experiment(SIGNALS / f"{name}.yaml", [f"runs_dir={tmp_path}/runs", "logger={mode: disabled}", *overrides])
    docs = experiment["stages"]["docs"]
    docs["source"] = {
        "_target_": docs["source"]["_target_"], "workers": 1, "show_progress": False,
        "roots": {"one": package(tmp_path / "one", ("sort", "copy", "merge")), "held": package(tmp_path / "held", ("split",))},
    }  # fmt: skip
    docs["held_out"] = ["held"]
    experiment["stages"]["pairs"]["engine"] = {"_target_": "lightning_e5.curation.engines.engine.LocalEngine", "workers": 1}
    stages = {key: experiment["stages"][key] for key in ("docs", "pairs")}
    return {**experiment, "stages": stages, "final_encoder": None}


def test_all_are_listed_here() -> None:
    assert {path.stem for path in SIGNALS.glob("*.yaml")} == set(SOURCES)


@pytest.mark.parametrize("name", list(SOURCES))
def test_the_data_stages_make_its_pairs(name: str, tmp_path: Path) -> None:
    run_experiment(data_stages(name, tmp_path), say=lambda text: None)
    folder = tmp_path / "runs" / name / "stages"
    table = PairStore(folder / "pairs").read(["query", "passage", "source", "id"]).to_pylist()
    counts = Counter(row["source"] for row in table)
    assert set(counts) == SOURCES[name] and min(counts.values()) >= 8
    documents = set(PairStore(folder / "docs").read(["passage"])["passage"].to_pylist())
    held = [json.loads(line)["text"] for line in (folder / "docs/test/corpus.jsonl").read_text().splitlines()]
    assert not {row["passage"] for row in table} & set(held)
    for row in table:
        query, passage = row["query"], row["passage"]
        if row["source"] == "simcse":
            assert query == passage and query in documents
        elif row["source"] == "inverse-cloze":
            assert any(query in d and set(passage.split()) <= set(d.split()) for d in documents)
        elif row["source"] == "neighbours":
            assert any(f"{query} {passage}" in " ".join(d.split()) for d in documents)
        elif row["source"] == "bm25-taught":
            assert passage in documents and set(query.lower().split()) & set(passage.lower().split())
            own, found = row["id"].split()
            assert name == "signals" or own != found  # the sentence's own passage is left out
        else:
            assert query != passage and any(set(f"{query} {passage}".split()) <= set(d.split()) for d in documents)


def test_other_texts_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"{BODY.format('letter', thing)} It was written for the {thing}."}) + "\n" for thing in THINGS))
    texts = f"variables.corpus={{texts: {{_target_: data_modules.ccpairs.sources.signals.texts.JsonlTexts, paths: ['{path}']}}}}"
    experiment = data_stages("inverse_cloze", tmp_path, texts)
    run_experiment(experiment, say=lambda text: None)
    table = PairStore(tmp_path / "runs/inverse_cloze/stages/pairs").read(["query", "passage"]).to_pylist()
    assert table and all("letter" in f"{row['query']} {row['passage']}" for row in table)
    assert read_json(tmp_path / "runs/inverse_cloze/metrics.json")["pairs/pairs"] == len(table)
