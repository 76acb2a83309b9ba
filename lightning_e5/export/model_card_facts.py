"""What a model card says of a run: results of the exported model, data, recipe, provenance; read from its directory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_modules.pair_store import SHARDS
from lightning_e5.config.experiment import Node
from lightning_e5.errors import UserError
from lightning_e5.redaction import redact
from lightning_e5.report.filter_report import filter_summary
from lightning_e5.report.tables.evaluation import validity_table
from lightning_e5.report.tables.provenance import environment_facts
from lightning_e5.report.tables.table import Column, Table, key_values, number
from lightning_e5.result_row import evaluated_encoders
from lightning_e5.results import result_files as shapes
from lightning_e5.results.durations import duration
from lightning_e5.results.recorded_config import recorded_text
from lightning_e5.results.result_files import read_result
from lightning_e5.results.run import METRICS, RunData

#: What `build_pairs` writes of its packages.
PACKAGES = "packages.json"
#: Retrieval's metrics in the card.
SHOWN = ("ndcg@10", "recall@100", "map@100", "mrr@10")
LEXICAL = "bm25"
_NOT_SETTINGS = ("_target_", "_partial_")
_MACHINE = ("python", "processor", "gpus")


@dataclass(frozen=True, slots=True)
class CardResult:
    """One metric of the model on one set; ``bm25``: BM25's value, None where it was not evaluated; ``dimensions``: the first values
    of an embedding that were compared, None for all."""

    task: str
    set: str
    split: str | None
    metric: str
    value: float
    low: float | None
    high: float | None
    bm25: float | None
    dimensions: int | None = None


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says of a run."""

    name: str
    description: str
    seed: int
    base_model: str | None
    results: list[CardResult]
    validity: Table
    remarks: list[str]
    sources: Table
    data_notes: list[str]
    recipe: Table
    environment: Table
    configuration: str = field(repr=False)

    def results_table(self) -> Table:
        """The results, with BM25's beside them."""
        return Table.of(self.results, [
            Column("set", lambda one: one.set), Column("split", lambda one: one.split), Column("task", lambda one: one.task),
            Column("metric", lambda one: one.metric), number("value", lambda one: one.value, ".3f"),
            number("95% interval", lambda one: None if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"),
            number("BM25", lambda one: one.bm25, ".3f"),
            number("dimensions", lambda one: one.dimensions, ",") if any(one.dimensions for one in self.results) else None,
        ])  # fmt: skip


def card_facts(run: RunData) -> CardFacts:
    """Read a run; UserError where it is unfinished or damaged."""
    models = exported_models(run)
    retrieval = [r for r in run.results() if r.model in models]
    tasks = [row for row in run.tasks() if row["model"] in models]
    rows = [*(r.row for r in retrieval), *tasks]
    pretrained = (run.config.get("encoder") or {}).get("pretrained")
    trained_by = _chain(run, run.config.get("final_encoder"))
    return CardFacts(
        name=run.name, description=str(run.config.get("description") or ""), seed=int(run.config["seed"]),
        base_model=pretrained if isinstance(pretrained, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained) else None,
        results=_results(run, models), validity=validity_table(rows), remarks=_remarks(rows),
        sources=_sources(run), data_notes=_data_notes(run),
        recipe=Table([Column("stage"), Column("what"), Column("value")], [row for stage in trained_by for row in _recipe(run, stage)]),
        environment=_environment(run), configuration=recorded_text(run.path / "config.yaml"),
    )  # fmt: skip


def exported_models(run: RunData) -> set[str]:
    """The names under which the run evaluated its final encoder; UserError where the run is unfinished."""
    _ = run.metrics
    final = run.config.get("final_encoder")
    found = set()
    for node in run.config["stages"].values():
        for model, (reference, _) in evaluated_encoders(node).items():
            if final is not None and isinstance(reference, str) and reference.split("/")[0] == final:
                found.add(str(model))
    return found


def fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _results(run: RunData, models: set[str]) -> list[CardResult]:
    lexical = {r.collection: r.metrics for r in run.results() if r.model == LEXICAL}
    averages = {row["set"]: row["value"] for row in run.tasks() if row["model"] == LEXICAL}
    found = []
    for result in (r for r in run.results() if r.model in models):
        for metric in (name for name in SHOWN if name in result.metrics):
            interval = (result.row.get("low"), result.row.get("high")) if metric == SHOWN[0] else (None, None)
            beside = lexical.get(result.collection, {}).get(metric)
            found.append(CardResult("retrieval", result.collection, result.row.get("split"), metric, result.metrics[metric], *interval, beside, result.row.get("dimensions")))
    for row in (row for row in run.tasks() if row["model"] in models):
        beside = averages.get(row["set"])
        found.append(CardResult(row["task"], row["set"], row.get("split"), row["metric"], row["value"], row["low"], row["high"], beside, row.get("dimensions")))
    return found


def _remarks(rows: Sequence[Node]) -> list[str]:
    """Rules and contamination of each row that has them."""
    said = []
    for row in rows:
        name = row.get("collection") or row.get("set")
        if rules := row.get("rules"):
            said.append(f"{name}: by the rules of BEIR's {rules['beir']} ({_listed({k: v for k, v in rules.items() if k != 'beir'})})")
        if (status := row.get("contamination")) is not None:
            said.append(f"{name}: {_contamination(str(status), row.get('contaminated') or {})}")
    return list(dict.fromkeys(said))


def _contamination(status: str, found: Node) -> str:
    if status == "measured" and "share" in found:
        return f"{found['share']:.1%} of the test items ({found['count']:,}) also lie in the training texts"
    return {"none": "the model was trained on nothing"}.get(status, "whether test items lie in the training texts is not known")


def _listed(values: Node) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {len(v) if isinstance(v, list) else v}" for key, v in values.items())


def _sources(run: RunData) -> Table:
    rows: list[list[Any]] = []
    for stage in run.stages_with(SHARDS):
        for source in read_result(run.stage(stage) / SHARDS, shapes.SHARDS)["sources"]:
            rows.append([str(source["name"]), stage, source["pairs"], source["candidates"]])
    for stage in run.stages_with(PACKAGES):
        for name, facts in read_result(run.stage(stage) / PACKAGES, shapes.PACKAGES)["packages"].items():
            version = f" {facts['version']}" if facts.get("version") else ""
            used = "held out for the test" if facts["held_out"] else stage
            rows.append([f"{name}{version}", used, facts["pairs"], None])
    return Table([Column("source"), Column("used in"), number("pairs", format=","), number("candidates before the rules", format=",")], rows)


def _data_notes(run: RunData) -> list[str]:
    notes = []
    for stage in run.stages_with(PACKAGES):
        counts = _metrics(run, stage)
        if "train_pairs" in counts:
            notes.append(f"{counts['train_pairs']:,.0f} pairs to train on; pairs with a text of the test collection were taken out.")
    for stage in [*run.stages_with(PACKAGES), *run.stages_with(SHARDS)]:
        if planted := _metrics(run, stage).get("planted"):
            notes.append(f"{planted:,.0f} of them had their passage exchanged on purpose, to evaluate the filter by.")
    for stage in run.filters():
        try:
            notes.append(f"Consistency filter ({stage}): {filter_summary(run, stage)}")
        except UserError:  # the pairs are gone; the counts are still there
            counts = _metrics(run, stage)
            notes.append(f"Consistency filter ({stage}): kept {counts.get('kept', 0):,.0f} of {counts.get('pairs', 0):,.0f} pairs.")
    return notes


def _chain(run: RunData, final: Any) -> list[str]:
    """The training stages that the final weights went through, in order."""
    found: list[str] = []
    reference = final
    while isinstance(reference, str) and (name := reference.split("/")[0]) in run.config["stages"] and name not in found:
        if "pairs_seen" in _metrics(run, name):
            found.append(name)
        reference = (run.config["stages"][name].get("inputs") or {}).get("encoder")
    return list(reversed(found))


def _recipe(run: RunData, stage: str) -> list[list[str]]:
    """(stage, what, value) of every setting given and of what was seen."""
    node, counts = run.config["stages"][stage], _metrics(run, stage)
    rows = []
    for part in ("data", "optimizer", "module"):
        given = node.get(part)
        if isinstance(given, dict):
            rows += [[part, str(given.get("_target_", "")).rsplit(".", 1)[-1]]]
            rows += [[key.replace("_", " "), _listed(value) if isinstance(value, dict) else str(value)]
                     for key, value in given.items() if key not in _NOT_SETTINGS]  # fmt: skip
    rows += [[key, str(node[key])] for key in ("precision", "max_length") if node.get(key) is not None]
    rows += [[key.replace("_", " "), f"{counts[key]:,.0f}"] for key in ("steps", "pairs_seen", "tokens_seen") if key in counts]
    rows += _kept(counts)
    rows += [["final loss", f"{counts['final_loss']:.3f}"]] if "final_loss" in counts else []
    seconds = run.times().get(stage, {}).get("seconds")
    rows += [["time", duration(seconds)]] if seconds is not None else []
    return [[stage, *row] for row in redact(rows)]


def _kept(counts: Mapping[str, float]) -> list[list[str]]:
    """Which step's weights a validation kept, and by what."""
    monitored = next((name for name in counts if f"{name}_start" in counts), None)
    if monitored is None:
        return []
    start = counts[f"{monitored}_start"]
    return [["weights of step", f"{counts['best_step']:,.0f}, by {monitored} {counts[monitored]:.4f} (step 0: {start:.4f})"]]


def _environment(run: RunData) -> Table:
    environment = run.environment
    there = {key: environment[key] for key in ("commit", "uncommitted_changes", *_MACHINE) if environment.get(key)}
    packages = {name: version for name, version in (environment.get("packages") or {}).items() if version}
    return key_values(environment_facts({**there, "packages": packages}, _MACHINE))


def _metrics(run: RunData, stage: str) -> dict[str, float]:
    path = run.stage(stage) / METRICS
    return dict(read_result(path, shapes.METRICS)) if path.is_file() else {}
