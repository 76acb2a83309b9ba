"""A damaged result file ends in one sentence that names it, whichever way it is damaged and whoever reads it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.ablation.dashboard import read_compared
from lightning_e5.ablation.status import RunStatus
from lightning_e5.errors import UserError
from lightning_e5.export.model_card_facts import card_facts
from lightning_e5.files.storage import write_json
from lightning_e5.report.data_report import data_sections
from lightning_e5.report.tables.comparison import as_text
from lightning_e5.report.tables.results import results_table
from lightning_e5.report.tables.summary import summary_table
from lightning_e5.report.wandb_mirror import summary, tables
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.comparison import compare_ablation
from lightning_e5.results.result_files import COUNT, NUMBER, TEXT, check_shape
from lightning_e5.results.run import RunData
from tests.lightning_e5.results.ablations import make_ablation

BAD: list[Any] = [None, [], {"x": []}, "x", -1.5, float("nan"), 10**400]


def damaged(value: Any, depth: int = 0) -> Iterator[Any]:
    """Every version of a JSON value with one thing in it gone, or of another kind."""
    if isinstance(value, dict) and depth < 4:
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: inner} for inner in damaged(value[key], depth + 1))
    elif isinstance(value, list) and value and depth < 4:
        yield from ([*value[:-1], inner] for inner in damaged(value[-1], depth + 1))
    yield from BAD


def run_readers(run: Path) -> list[Callable[[], object]]:
    return [
        lambda: results_table(RunData(run), RunData(run).results(), ["ndcg@10"]).text(), lambda: summary_table(run, ["ndcg@10"]), lambda: card_facts(RunData(run)),
        lambda: [summary(RunData(run)), *tables(RunData(run))], lambda: data_sections(RunData(run)), lambda: RunData(run).learning_curves(),
    ]  # fmt: skip


def ablation_readers(directory: Path) -> list[Callable[[], object]]:
    return [lambda: as_text(compare_ablation(AblationData(directory))), lambda: read_compared(directory), lambda: RunStatus(directory, ["base-seed1"])]


def check(path: Path, content: bytes, readers: list[Callable[[], object]]) -> None:
    before = path.read_bytes()
    path.unlink()  # others may be links to it
    path.write_bytes(content)
    for read in readers:
        try:
            read()
        except UserError as error:
            assert path.name in str(error) or path.parent.name in str(error), error
    path.write_bytes(before)


def contents(path: Path, most: int) -> Iterator[bytes]:
    text = path.read_text()
    yield from (text[:cut].encode() for cut in (0, 1, len(text) // 2, len(text) - 2))
    yield from (b"\xff\xfe" + text[:9].encode(), b"[" * 20_000, b'{"a": ' + b"9" * 5000 + b"}")
    versions = list(damaged(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)))
    for version in random.Random(path.name).sample(versions, min(most, len(versions))):
        yield (json.dumps(version) if path.suffix == ".json" else yaml.safe_dump(version)).encode()


@pytest.mark.parametrize("most", [3, pytest.param(400, marks=pytest.mark.slow)])
def test_a_runs_files(make_run: Any, most: int) -> None:
    run = make_run(lift=0.2)
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "seed": 1, "runs_dir": "runs", "threads": None}))
    write_json(run / "stages/pairs/packages.json", {"packages": {"one": {"version": "1", "pairs": 4, "held_out": False}}})
    sources = [{"name": "a", "pairs": 4, "candidates": 5, "dropped": {"rule": 1}, "planted": 0, "shards": []}]
    write_json(run / "stages/noisy/pairs.json", {"sources": sources, "read": [{"name": "a", "parts": 1, "counts": {"rows": 5}, "bad": [["f:1", "why"]]}]})
    files = [p for p in sorted(run.rglob("*.json")) if p.name != "manifest.json"] + [config]
    assert len(files) > 10
    for read in run_readers(run):
        read()
    for path in files:
        for content in contents(path, most):
            check(path, content, run_readers(run))


@pytest.mark.parametrize("most", [4, pytest.param(400, marks=pytest.mark.slow)])
def test_an_ablations_files(tmp_path: Path, most: int) -> None:
    paper = {"source": "s", "note": "n", "figures": {"MRR": {"base": 1.0}}}
    directory = make_ablation(tmp_path, {"base": 0.0, "other": 0.05}, seeds=(1,), queries=10, paper=paper, skipped={"x": "why"})
    for path in [directory / "ablation.json", directory / "status.json", directory / "base-seed1/config.yaml", directory / "base-seed1/metrics.json"]:
        for content in contents(path, most):
            check(path, content, ablation_readers(directory))


def test_the_sentence_names_file_and_place(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    table = run / "stages/evaluate/table.json"
    rows = json.loads(table.read_text())
    rows[2]["difference_low"] = "low"
    table.write_text(json.dumps(rows))
    assert main(["compare", str(run)]) == 2
    assert f"error: {table}: [2].difference_low is 'low', not a number" in capsys.readouterr().err
    for value, shape in [(float("nan"), NUMBER), (1.5, COUNT), (True, COUNT), (None, TEXT), ([1], [TEXT]), ({"a": 1}, {"*": TEXT}), ({}, {"a": TEXT})]:
        with pytest.raises(UserError, match=r"^x\.json: "):
            check_shape(value, shape, Path("x.json"))
    check_shape({"a": 1.0, "b": None, "c": [2, 3], "more": object()}, {"a": COUNT, "b?": TEXT, "c": ([NUMBER], None), "d?": TEXT}, Path("x.json"))
