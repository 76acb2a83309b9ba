"""What a run on own texts says: whether the adapted encoder is better than its start, what BM25 and both together reach, what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_e5.evaluation.statistics.decision import Decision, stored_decision
from lightning_e5.evaluation.statistics.paired_test import Difference
from lightning_e5.files import run_layout as layout
from lightning_e5.result_row import Comparison, ResultRow
from lightning_e5.results import result_files as shapes
from lightning_e5.results.outcomes import Outcomes, outcomes
from lightning_e5.results.run import RunData

#: What the evaluation of ``experiments/own_texts.yaml`` names its models and collections.
START, ADAPTED, WORDS, BOTH = "start", "adapted", "bm25", "bm25+adapted"
OWN, GENERAL = "own-texts", "general"
#: Queries that are shown of each kind.
SHOWN = 10


@dataclass(frozen=True)
class Adaptation:
    """A run's adapted encoder beside the encoder that it started from.

    ``rows``: model -> its row on the own test; ``best_step``: the latest training step whose weights a validation kept (0: the start's), None
    without a validation; ``general``: before and after on what is not of the own texts, and the paired difference.
    """

    run: RunData
    rows: dict[str, ResultRow]
    best_step: int | None
    general: General | None

    @property
    def encoder(self) -> Path:
        """The adapted encoder's folder."""
        return self.run.path / "encoder"

    def compared(self, model: str, other: str) -> Comparison | None:
        """The paired difference of a model to another, with what it shows among all of the evaluation's; None where it was not asked."""
        row = self.rows.get(model)
        found = [] if row is None else [c for c in row.previous if c.model == other]
        if row is not None and row.difference is not None and other == WORDS:
            found.append(row.difference)
        return found[0] if found else None

    def shown(self, model: str, other: str) -> Decision | None:
        """Whether the model was shown to be higher or lower than the other."""
        found = self.compared(model, other)
        return None if found is None else stored_decision(found.as_json())

    @property
    def better(self) -> bool:
        """Whether the adapted encoder was shown to be better than the start."""
        return self.best_step != 0 and self.shown(ADAPTED, START) == "higher"

    def changed_queries(self) -> Outcomes:
        """The own test query by query, the adapted encoder against the start."""
        return outcomes(self.run, ADAPTED, START, OWN)


@dataclass(frozen=True, slots=True)
class General:
    """An evaluation that is not of the own texts, before and after; ``difference``: paired, over queries or sentence pairs."""

    metric: str
    items: int
    before: float
    after: float
    difference: Difference
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class ReadTexts:
    """What a stage took the own texts for, in sentences; what it left out: reason, count, first place; and some training pairs."""

    lines: list[str]
    dropped: list[tuple[str, int, str]]
    examples: list[dict[str, str]]


def read_texts(run: RunData) -> list[ReadTexts]:
    """What was read, of every stage of the run that read own texts."""
    found = []
    for name in run.stages_with(layout.OWN_TEXTS):
        stage = run.stage(name)
        dropped = shapes.read_result(stage / layout.DROPPED, shapes.DROPPED)
        found.append(
            ReadTexts(
                shapes.read_result(stage / layout.OWN_TEXTS, shapes.OWN_TEXTS)["lines"],
                [(reason, entry["count"], entry["first"]) for reason, entry in dropped.items()],
                shapes.read_result(stage / layout.EXAMPLES, shapes.EXAMPLES),
            )
        )
    return found


def adaptation(run: RunData) -> Adaptation | None:
    """What the run says of its adaptation; None for a run that adapted nothing to own texts."""
    rows = {row.model: row for row in run.rows() if row.is_retrieval and row.collection == OWN}
    if START not in rows or ADAPTED not in rows:
        return None
    steps = [run.metrics[f"{stage}/best_step"] for stage in run.config["stages"] if f"{stage}/best_step" in run.metrics]
    return Adaptation(run, rows, int(max(steps)) if steps else None, _general(run))


def _general(run: RunData) -> General | None:
    rows = {row.model: row for row in run.rows() if row.collection == GENERAL}
    if START not in rows or ADAPTED not in rows:
        return None
    before, after = rows[START], rows[ADAPTED]
    found = next((c for c in after.previous if c.model == START), None)
    if found is None:
        return None
    difference = Difference(found.difference, found.low, found.high, float(found.p_value or 0.0))
    return General(after.metric, int(after.queries or 0), before.value, after.value, difference, stored_decision(found.as_json()))
