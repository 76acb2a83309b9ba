"""An ablation's directory as data: the one module through which ``compare``, the notebooks and the dashboard read one.

The directory holds ``ablation.json`` (what was planned), ``status.json`` (how the runs went) and one run directory per
variant and seed. A run is finished if and only if its ``metrics.json`` is there, whatever the status says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_e5.config import ablation_spec as ablation_file
from lightning_e5.config.experiment import Node, read_yaml
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.run_layout import ABLATION, METRICS, STATUS
from lightning_e5.results import result_files as shapes
from lightning_e5.results.result_files import read_result
from lightning_e5.results.run import RunData

RUNS_DIR = "runs"


def is_ablation(path: Path) -> bool:
    """Whether a path names an ablation: its directory, or its YAML."""
    path = Path(path)
    if path.is_dir():
        return (path / ABLATION).is_file()
    return path.suffix in (".yaml", ".yml") and path.is_file() and ablation_file.is_ablation(path)


@dataclass
class AblationData:
    """An ablation, read when asked.

    Args:
        path: its directory, or its YAML, which stands for the directory of one scale under ``runs_dir``.
        at_scale: where ``path`` is a YAML: another scale than its default one.
        runs_dir: where ``path`` is a YAML: the folder of run directories.

    Raises:
        UserError: no such directory, no ``ablation.json`` in it, or one that lacks a key.
    """

    path: Path
    at_scale: str | None = None
    runs_dir: Path | str = RUNS_DIR
    plan: Node = field(init=False, repr=False)
    _runs: dict[str, RunData] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if self.path.suffix in (".yaml", ".yml") and not self.path.is_dir():
            self.path = _directory(self.path, self.at_scale, Path(self.runs_dir))
        elif not self.path.is_dir():
            raise UserError(f"{self.path}: no such ablation directory")
        file = self.path / ABLATION
        if not file.is_file():
            raise UserError(f"{self.path}: is no ablation directory (has no {ABLATION})")
        self.plan = read_result(file, shapes.ABLATION)
        if self.baseline not in self.variants:
            raise UserError(f"{file}: the baseline {self.baseline!r} is no variant{suggestion(self.baseline, self.variants)}")
        for two in self.plan.get("also_compare") or ():
            if len(two) != 2 or not {*two} <= self.variants.keys():
                raise UserError(f"{file}: also_compare: {two} is no pair of variants")

    @property
    def name(self) -> str:
        """The ablation's name."""
        return str(self.plan["ablation"])

    @property
    def scale(self) -> str:
        """The scale it was run at, such as ``laptop``."""
        return str(self.plan["scale"])

    @property
    def question(self) -> str:
        """What the ablation asks, in one sentence."""
        return str(self.plan["question"])

    @property
    def held_constant(self) -> list[str]:
        """What all variants have in common, as phrases."""
        return [str(phrase) for phrase in self.plan["held_constant"] or ()]

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return str(self.plan["baseline"])

    @property
    def report(self) -> list[str]:
        """Full names of the metrics that the ablation is about; the first is its headline."""
        return [str(metric) for metric in self.plan["report"]]

    @property
    def seeds(self) -> list[int]:
        """The planned seeds."""
        return [int(seed) for seed in self.plan["seeds"]]

    @property
    def paper(self) -> Node | None:
        """The paper's own figures: ``source``, ``note`` and ``figures`` (column -> variant -> value), where it has any."""
        paper = self.plan.get("paper")
        if not paper or not paper.get("figures"):
            return paper
        figures = paper["figures"]
        order = [column for column in self.plan.get("paper_order") or () if column in figures]  # JSON's keys are sorted
        return {**paper, "figures": {column: figures[column] for column in dict.fromkeys([*order, *figures])}}

    @property
    def variants(self) -> dict[str, str]:
        """Variant -> what it is, in the order of the ablation's file."""
        nodes = self.plan["variants"]
        order = [name for name in self.plan.get("order") or () if name in nodes]  # JSON's keys are sorted
        return {name: str(nodes[name].get("description") or "") for name in dict.fromkeys([*order, *nodes])}

    @property
    def also_compare(self) -> list[tuple[str, str]]:
        """Beside every variant with the baseline: pairs of a variant and another one that it is compared with."""
        return [(variant, reference) for variant, reference in self.plan.get("also_compare") or ()]

    @property
    def skipped(self) -> dict[str, str]:
        """Variants of the ablation's file that are not run at this scale -> why."""
        return {str(name): str(reason) for name, reason in (self.plan.get("skipped") or {}).items()}

    def run_name(self, variant: str, seed: int) -> str:
        """The name of a run's directory; UserError for a variant or a seed that was not planned."""
        variants = self.plan["variants"]
        if variant not in variants:
            raise UserError(f"{self.path}: has no variant {variant!r}{suggestion(variant, variants)}")
        runs = variants[variant]["runs"]
        if str(seed) not in runs:
            raise UserError(f"{self.path}: {variant} was not planned with seed {seed}{suggestion(seed, runs)}")
        return str(runs[str(seed)])

    def run(self, variant: str, seed: int) -> RunData:
        """A finished run; UserError for one that is not there or unfinished."""
        name = self.run_name(variant, seed)
        if not (self.path / name / METRICS).is_file():
            raise UserError(f"{self.path / name}: the run is not finished ({self.state(variant, seed)})")
        if name not in self._runs:
            self._runs[name] = RunData(self.path / name)
        return self._runs[name]

    def finished(self, variant: str) -> list[int]:
        """The seeds whose runs are finished, in order."""
        return [s for s in self.planned(variant) if (self.path / self.run_name(variant, s) / METRICS).is_file()]

    def planned(self, variant: str) -> list[int]:
        """The seeds that a variant was planned with."""
        return sorted(int(seed) for seed in self.plan["variants"][variant]["runs"])

    def missing(self) -> list[tuple[str, int]]:
        """Every planned (variant, seed) without a finished run."""
        return [(v, s) for v in self.variants for s in self.planned(v) if s not in self.finished(v)]

    def status(self) -> dict[str, Node]:
        """Run -> ``state``, ``exit_code``, ``message``, ``seconds``, as last written; empty before the first run starts."""
        path = self.path / STATUS
        return dict(read_result(path, shapes.STATUS)) if path.is_file() else {}

    def state(self, variant: str, seed: int) -> str:
        """How a run stands, for a reader: ``finished``, ``missing``, ``running`` or ``failed: its last error line``."""
        name = self.run_name(variant, seed)
        if (self.path / name / METRICS).is_file():
            return "finished"
        row: dict[str, Any] = self.status().get(name) or {}
        if row.get("state") == "failed":
            return f"failed: {row.get('message') or 'exit code {}'.format(row.get('exit_code'))}"
        return "missing" if row.get("state") in (None, "finished") else str(row["state"])


def ablation_directory(name: str, scale: str, runs_dir: Path) -> Path:
    """Where an ablation's runs lie."""
    return runs_dir / "ablations" / f"{name}-{scale}"


def overrides_of(arguments: Sequence[str]) -> dict[str, str]:
    """``scale=...`` and ``runs_dir=...`` of a command line; UserError for anything else."""
    found = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or key not in ("scale", "runs_dir"):
            raise UserError(f"compare: {argument!r}: beside one ablation only scale=... and runs_dir=... may stand")
        found[key] = value
    return found


def _directory(file: Path, scale: str | None, runs_dir: Path) -> Path:
    tree = read_yaml(file)
    if "ablation" not in tree:
        raise UserError(f"{file}: is no ablation (has no key 'ablation')")
    chosen = str(scale or tree.get("scale"))
    scales = tree.get("scales") or {}
    if scale is not None and chosen not in scales:
        raise UserError(f"{file}: scale={chosen}: there is no such scale{suggestion(chosen, scales)}")
    directory = ablation_directory(str(tree["ablation"]), chosen, runs_dir)
    if not (directory / ABLATION).is_file():
        raise UserError(f"{directory}: {file} was not run at the scale {chosen!r} yet; start it with ablate {file} scale={chosen}")
    return directory
