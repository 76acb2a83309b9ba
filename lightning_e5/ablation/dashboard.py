"""A W&B workspace that compares the variants of an ablation: one bar per report metric, and the curves of every training.

It is made from the ablation alone, so it can be saved before its first run; its panels name the metrics that
`lightning_e5.tracking.wandb_run` gives to runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_e5.ablation.plan import plan_ablation
from lightning_e5.config.ablation_spec import is_ablation, load_ablation
from lightning_e5.config.experiment import Node
from lightning_e5.errors import UserError
from lightning_e5.files.run_layout import VALIDATED
from lightning_e5.files.storage import write_json
from lightning_e5.report.tables.escaping import markdown
from lightning_e5.report.tables.table import Column, Table
from lightning_e5.result_row import MAIN_METRIC
from lightning_e5.results import result_files as shapes
from lightning_e5.results.recorded_config import load_recorded
from lightning_e5.results.result_files import read_result
from lightning_e5.tracking.wandb_run import PROJECT, first_line, history_name, key_present

#: Curves of every training stage: column of ``metrics.jsonl`` -> title.
CURVES = {
    "loss": "Loss",
    "accuracy": "Accuracy in the batch",
    "pairs_per_second": "Pairs per second",
    "tokens_per_second": "Tokens per second",
    "gradient_norm": "Gradient norm",
    "learning_rate": "Learning rate",
}
_SMOOTHED = ("loss", "accuracy", "gradient_norm")
#: Okabe and Ito's colours, which colour-blind readers tell apart; the baseline is grey.
_BASELINE_COLOUR = "#6E7781"
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")


@dataclass(frozen=True, slots=True)
class Compared:
    """What a dashboard compares: an ablation at one scale, its training stages with the values of their validations, its directory and
    the W&B project of its runs."""

    name: str
    scale: str
    question: str
    held_constant: list[str]
    baseline: str
    report: list[str]
    variants: dict[str, str]
    paper: Node | None
    trainings: dict[str, list[str]]
    directory: Path
    project: str
    entity: str | None

    @property
    def group(self) -> str:
        """The W&B group of the runs."""
        return f"{self.name}-{self.scale}"


def dashboard(
    ablation: Path,
    *,
    scale: str | None = None,
    project: str | None = None,
    entity: str | None = None,
    out: Path | None = None,
    online: bool = False,
) -> str:
    """Write a workspace's specification as JSON; online, save it at W&B as well.

    Args:
        ablation: an ablation's directory, or its YAML, for which no run is needed.
        scale: where it is a YAML: another scale than its default.
        project, entity: instead of those of the ablation's ``logger``.
        out: the JSON file; ``dashboard.json`` in the ablation's directory, which a YAML names and need not be there yet.
        online: needs a login.

    Returns:
        What was done, for the user.

    Raises:
        UserError: no such ablation, ``wandb-workspaces`` is missing, or W&B refuses.
    """
    compared = read_compared(ablation, scale)
    compared = replace(compared, project=project or compared.project, entity=entity or compared.entity)
    if online:
        compared = replace(compared, entity=compared.entity or _own_entity())
    workspace = build(compared)
    target = out or compared.directory / "dashboard.json"
    if target.is_dir():
        raise UserError(f"--out {target}: is a directory, not a file")
    write_json(target, specification(workspace))
    where = f"project {compared.project}, group {compared.group}"
    if not online:
        options = "".join(f" --{name} {shlex.quote(value)}" for name, value in (("project", project), ("entity", entity)) if value)
        chosen = "" if scale is None else f" {shlex.quote(f'scale={scale}')}"
        return (
            f"{target}: a W&B workspace of {where}\nto save it at W&B, log in once with `wandb login`, then\n"
            f"  python -m lightning_e5 dashboard {shlex.quote(str(ablation))}{chosen}{options} --online"
        )
    try:
        workspace.save()
    except Exception as error:
        raise UserError(f"dashboard: W&B did not save the workspace of {where} ({first_line(error)}); its specification is {target}") from None
    return f"{workspace.url}\n{target}: its specification"


def read_compared(path: Path, scale: str | None = None) -> Compared:
    """What is compared, from an ablation's directory or its YAML; UserError says what is missing."""
    if not path.is_dir():
        if not is_ablation(path):
            raise UserError(f"{path}: is no ablation (has no key 'ablation')")
        ablation = load_ablation(path, scale)
        stated = {name: getattr(ablation, name) for name in ("name", "scale", "question", "held_constant", "baseline", "report", "paper")}
        plan = plan_ablation(ablation)
        return _compared(stated, ablation.descriptions, [run.experiment for run in plan.every], plan.directory)
    file = path / "ablation.json"
    if not file.is_file():
        raise UserError(f"{path}: is no ablation directory (has no ablation.json)")
    facts = read_result(file, shapes.ABLATION)
    experiments = [load_recorded(p) for p in sorted(path.glob("*/config.yaml"))]
    if not experiments and Path(facts["file"]).is_file():
        experiments = [run.experiment for run in plan_ablation(load_ablation(Path(facts["file"]), facts["scale"])).every]
    variants = {name: str(node.get("description") or "") for name, node in facts["variants"].items()}
    return _compared({**facts, "name": facts["ablation"]}, variants, experiments, path)


def _compared(plan: Node, variants: dict[str, str], experiments: list[Node], directory: Path) -> Compared:
    stages = [(name, node) for experiment in experiments for name, node in experiment["stages"].items()]
    logger = (experiments[0].get("logger") or {}) if experiments else {}
    return Compared(
        name=plan["name"], scale=plan["scale"], question=plan["question"], held_constant=list(plan.get("held_constant") or ()),
        baseline=plan["baseline"], report=list(plan["report"]), paper=plan.get("paper"), variants=variants,
        trainings={name: validation_values(node) for name, node in stages if isinstance(node, Mapping) and "module" in node}, directory=directory,
        project=logger.get("project") or PROJECT, entity=logger.get("entity"),
    )  # fmt: skip


def validation_values(stage: Mapping[str, Any]) -> list[str]:
    """What a training stage's validations are drawn by: the monitored value, its collections, and its held-out pairs."""
    settings = stage.get("validation") or {}
    collections = dict((stage.get("inputs") or {}).get("validation_collections") or {})
    for task in settings.get("tasks") or ():
        collections |= task.get("collections") or {}
    found = [settings["monitor"]] if settings.get("monitor") else []
    found += [f"{VALIDATED}{name}/{MAIN_METRIC}" for name in collections]
    found += [f"{VALIDATED}mrr@10", f"{VALIDATED}loss"] if settings.get("pairs") else []
    return list(dict.fromkeys(found))


def build(compared: Compared) -> Any:
    """The workspace, a ``wandb_workspaces.workspaces.Workspace``; needs no login."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(f"dashboard: needs the package wandb-workspaces ({error}); install it with pip install -r requirements.txt") from None

    by_variant: dict[str, Any] = {"groupby": wr.Config("variant"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    bars = [wr.BarPlot(title=metric, metrics=[metric], title_x=metric, **by_variant) for metric in compared.report]
    sections = [ws.Section("Results", panels=[wr.MarkdownPanel(markdown=_text(compared)), *bars], is_open=True)]
    for stage, validated in compared.trainings.items():
        curves: list[Any] = [
            wr.LinePlot(
                title=f"{title} ({stage})", x=history_name(stage, "pairs"), y=[history_name(stage, column)], title_x="pairs seen",
                smoothing_factor=0.6 if column in _SMOOTHED else 0.0, smoothing_type="exponentialTimeWeighted", **by_variant,
            )
            for column, title in ({name: f"Validation: {name.removeprefix(VALIDATED)}" for name in validated} | CURVES).items()
        ]  # fmt: skip
        sections.append(ws.Section(f"Training: {stage}", panels=curves, is_open=True))
    columns = ["config:variant", "config:seed", *(f"summary:{metric}" for metric in compared.report)]
    runs = ws.RunsetSettings(
        filters=[expr.Metric("Group") == compared.group],
        groupby=[expr.Config("variant")],
        group_colors=_colours(compared),
        pinned_columns=["run:displayName", *columns],
    )
    return ws.Workspace(
        entity=compared.entity or "", project=compared.project, name=f"Ablation {compared.group}", sections=sections, runset_settings=runs
    )


def specification(workspace: Any) -> Node:
    """The workspace as W&B stores it: entity, project, name and ``spec``."""
    view = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**{key: view[key] for key in ("entity", "project", "displayName")}, "spec": view["spec"]}


def _colours(compared: Compared) -> dict[object, object]:
    others = [name for name in compared.variants if name != compared.baseline]
    return {compared.baseline: _BASELINE_COLOUR, **{name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(others)}}


def _text(compared: Compared) -> str:
    """The question, what is compared, and the paper's own figures, as Markdown; every text in it stays a text."""
    lines = [f"**{markdown(compared.question)}**", "", f"Scale: {markdown(compared.scale)}. Baseline: {markdown(compared.baseline)}."]
    lines += [f"Held constant: {markdown(', '.join(compared.held_constant))}."] if compared.held_constant else []
    lines += ["", *(f"- **{markdown(name)}**: {markdown(description)}" for name, description in compared.variants.items())]
    figures = (compared.paper or {}).get("figures") or {}
    if compared.paper and figures:
        lines += ["", markdown(f"The paper, {compared.paper.get('source', 'its tables')}. {compared.paper.get('note', '')}"), ""]
        rows = [[name, *(column.get(name) for column in figures.values())] for name in compared.variants]
        lines.append(Table([Column("variant"), *map(Column, figures)], rows).markdown())
    return "\n".join(lines)


def _own_entity() -> str:
    if not key_present():
        raise UserError("dashboard: --online needs a login at W&B: run `wandb login` first")
    import wandb

    try:
        return str(wandb.Api().default_entity or "")
    except Exception as error:
        raise UserError(f"dashboard: W&B did not answer ({first_line(error)})") from None
