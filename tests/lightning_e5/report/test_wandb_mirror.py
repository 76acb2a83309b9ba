"""A finished run at W&B, read back from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.files.storage import read_json, write_json
from lightning_e5.report.wandb_mirror import mirror, tables
from lightning_e5.results.run import RunData
from lightning_e5.tracking.wandb_run import read_records, run_files


def read(directory: Path, kind: str) -> list[Any]:
    return [record[kind] for path in run_files(directory) for record in read_records(path, kind)]


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in read(directory, "summary"):
        found |= record["update"]
    return found


def test_the_smoke_run_is_mirrored(smoke_run: Path) -> None:
    """Every metric of ``metrics.json``, the tables, the filter's ranks, the pictures and the report."""
    [run] = read(smoke_run, "run")
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("smoke", "results", "smoke/results")
    assert run["config"]["update"]["stages"]["finetune"]["module"]["alpha"] == 0.2
    found, metrics = summary(smoke_run), read_json(smoke_run / "metrics.json")
    assert {name: found.get(name) for name in metrics} == metrics
    assert "pretrain/seconds" in found
    assert [record.get("exit_code", 0) for record in read(smoke_run, "exit")] == [0]
    [row] = [record["item"] for record in read(smoke_run, "history")]
    kinds = {name.removesuffix("._type"): kind for name, kind in row.items() if name.endswith("._type")}
    assert kinds.pop("filter/ranks") == "histogram" and kinds.pop("report") == "html-file"
    assert {name for name, kind in kinds.items() if kind == "table-file"} == {"results", "per_query/python-docs"}
    pictures = {name for name, kind in kinds.items() if kind == "image-file"}
    assert pictures == {f"figures/{n}" for n in ("ndcg", "validation", "loss", "cosines", "filter_ranks", "filter_sources")}
    files = run_files(smoke_run)[0].parent / "files"
    assert (files / row["report.path"]).read_bytes() == (smoke_run / "report.html").read_bytes()
    assert all((files / row[f"{name}.path"]).read_bytes().startswith(b"\x89PNG") for name in pictures)
    table = json.loads((files / row["per_query/python-docs.path"]).read_text())
    data = RunData(smoke_run)
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    for model in ("bm25", "e5"):
        assert {r["query"]: r["ndcg@10"] for r in rows if r["model"] == model} == data.per_query(model, "python-docs")


def test_a_state_is_mirrored_once(make_run: Any) -> None:
    run, settings = make_run(), {"mode": "offline", "group": "negatives-laptop"}
    assert mirror(run, {"mode": "disabled"}) is False and not (run / "wandb").exists()
    assert mirror(run, settings) is True and mirror(run, settings) is False
    changed = read_json(run / "metrics.json") | {"tuned/docs/ndcg@10": 0.123}
    write_json(run / "metrics.json", changed)
    assert mirror(run, settings) is True
    assert [record["_step"] for record in (r["item"] for r in read(run, "history"))] == [0, 1]
    assert summary(run)["tuned/docs/ndcg@10"] == 0.123
    assert [r["run_group"] for r in read(run, "run")] == ["negatives-laptop"] * 2
    assert not read(run, "artifact") or all(r["type"] == "run_table" for r in read(run, "artifact"))


def test_the_encoder_is_sent_on_request_only(make_run: Any) -> None:
    run = make_run()
    (run / "encoder").mkdir(exist_ok=True)
    (run / "encoder" / "config.json").write_text("{}")
    assert mirror(run, {"mode": "offline", "log_model": True})
    [model] = [r for r in read(run, "artifact") if r["type"] == "model"]
    assert model["name"] == "tiny-encoder" and "config.json" in [c["path"] for c in model["manifest"]["contents"]]


def test_a_failure_is_a_warning(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    (run / "stages" / "evaluate" / "table.json").write_text("{ torn")
    assert mirror(run, {"mode": "offline"}) is False
    assert "results are not mirrored" in capsys.readouterr().err
    assert [record.get("exit_code", 0) for record in read(run, "exit")] == [1], "a half mirror is not finished"


def test_tables_of_a_run(make_run: Any) -> None:
    found = {name: (columns, rows) for name, columns, rows in tables(RunData(make_run()))}
    columns, rows = found["per_query/docs"]
    assert columns[:2] == ["model", "query"] and "ndcg@10" in columns and len({tuple(r[:2]) for r in rows}) == len(rows)
    assert len(found["results"][1]) == len(RunData(make_run()).results())
