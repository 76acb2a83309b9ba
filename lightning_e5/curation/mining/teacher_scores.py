"""A cross-encoder's logits of mined groups, and how well it separates positives from negatives."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.inference import ScoreBy
from lightning_e5.curation.engines.run_parts import Function, parts_of, run_parts
from lightning_e5.errors import UserError
from lightning_e5.losses.distillation import COLLAPSED
from lightning_e5.types import PairScorer, TrainingGroup

#: Groups of a part; the scores of a finished part outlive a kill.
GROUPS = 2048


def group_scores(
    scorer: Function, queries: Sequence[str], groups: Sequence[Sequence[str]], folder: Path, **where: Any
) -> list[NDArray[np.float32]]:
    """float32 logits of each query's passages, group by group.

    Args:
        scorer: the cross-encoder (`ScoreGroups`, `ScoreBy`).
        folder: of the parts.
        where: `run_parts`' engine and GPUs.
    """
    parts = parts_of(
        folder / "scores", len(queries), GROUPS, lambda rows: (queries[rows], groups[rows]), what="groups",
        steps=lambda rows: sum(map(len, groups[rows])),
    )  # fmt: skip
    padded = (row for block in run_parts(scorer, parts, title="score", unit="pair", **where) for row in block["scores"])
    return [row[: len(group)] for row, group in zip(padded, groups, strict=True)]


def score_groups(teacher: PairScorer, groups: Sequence[TrainingGroup], *, retriever_scale: float = 0.0) -> list[TrainingGroup]:
    """The groups with a cross-encoder's logits as teacher scores, for distillation.

    Args:
        teacher: a `CrossEncoder` (on the device that it is to score on), or any other scorer of pairs.
        groups: with at least one negative each; scores that they have are replaced.
        retriever_scale: add the score by which mining found a passage, times this, to its logit (not in E5): a small teacher then
            corrects the retriever instead of replacing it. For cosines the reciprocal of the student's temperature; a group with a
            passage that was not retrieved, but filled in at random, gets NaN there, and so counts as one without a teacher.

    Raises:
        UserError: a group without negatives or (with a scale) without retriever scores, or a teacher that has collapsed.

    Source: paper section 3.3.
    """
    if not groups:
        raise UserError("groups: there is none")
    for number, group in enumerate(groups):
        if not group.negatives:
            raise UserError(f"groups: number {number} has no negatives to compare the positive with")
        if retriever_scale and (group.retriever_scores is None or len(group.retriever_scores) != 1 + len(group.negatives)):
            raise UserError(f"groups: number {number} has no retriever score for each of its passages, which retriever_scale needs")
    with tempfile.TemporaryDirectory(prefix="lightning_e5-scores-") as folder:
        texts = [(group.positive, *group.negatives) for group in groups]
        scores = group_scores(ScoreBy(teacher), [group.query for group in groups], texts, Path(folder))
    checked_separation("groups", scores)
    if retriever_scale:
        scores = [s + retriever_scale * np.array(group.retriever_scores, np.float32) for s, group in zip(scores, groups, strict=True)]
    return [dataclasses.replace(group, teacher_scores=tuple(s.tolist())) for group, s in zip(groups, scores, strict=True)]


def checked_separation(teacher: str, scores: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """`separation`; UserError where the teacher, named here, scores all passages of nearly every query alike."""
    return checked(teacher, separation(scores))


def checked(teacher: str, found: dict[str, float]) -> dict[str, float]:
    """A `separation`; UserError as `checked_separation`."""
    if found["score_spread"] < COLLAPSED:
        raise UserError(f"{teacher}: the teacher has collapsed (its scores differ by {found['score_spread']:.1e} within a query's passages)")
    return found


def separation(scores: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Share of positives (first in each group) above all negatives, mean margin over the best negative, mean spread in a group."""
    lists = [s.astype(np.float64) for s in scores]
    return separation_of([s[0] > s[1:].max() for s in lists], [s[0] - s[1:].max() for s in lists], [np.std(s) for s in lists])


def separation_of(first: Any, margin: Any, spread: Any) -> dict[str, float]:
    """A `separation` of what each group gives, a value per group each."""
    return {
        "groups": len(np.asarray(first)),
        "positive_first": float(np.mean(first)),
        "margin": float(np.mean(margin)),
        "score_spread": float(np.mean(spread)),
    }
