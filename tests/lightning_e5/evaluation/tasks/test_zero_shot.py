"""Zero-shot classification: the nearest prompt, the paper's wording, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.labelled import LabelledTexts
from lightning_e5.evaluation.tasks.zero_shot import SST2_PROMPTS, ZeroShotPrompts, ZeroShotTask


def reviews(labels: list[int]) -> LabelledTexts:
    return LabelledTexts("sst2", [f"review {i}" for i in range(len(labels))], labels, [f"t.jsonl:{i + 1}" for i in range(len(labels))], Path("t.jsonl"))


def test_the_nearest_prompt_of_the_papers_wording(table) -> None:  # type: ignore[no-untyped-def]
    angles = {"movie review: review 0": [0.1, 1.0], "movie review: review 1": [5.0, 0.2], "movie review: review 2": [0.4, 0.9]}
    prompts = {"it is an example of terrible movie review": [1.0, 0.0], "it is an example of great movie review": [0.0, 1.0]}
    embedder = table(angles | prompts)
    result = ZeroShotTask(reviews([1, 0, 0])).evaluate(embedder)
    assert list(result.columns["predicted"]) == ["1", "0", "1"]
    assert result.metrics["zero_shot_accuracy"] == pytest.approx(2 / 3) and embedder.calls == [("query", True)]


def test_a_text_that_is_as_near_to_several_labels_is_wrong(table) -> None:  # type: ignore[no-untyped-def]
    """Of a collapsed encoder all are: the first label is not taken for its answer."""
    alike = {key: [1.0, 0.0] for key in ("movie review: review 0", "movie review: review 1", *SST2_PROMPTS.labels.values())}
    result = ZeroShotTask(reviews([0, 1])).evaluate(table(alike))
    assert (result.value, result.metrics["zero_shot_f1"], result.facts["tied"]) == (0.0, 0.0, 1.0)
    assert list(result.columns["predicted"]) == ["", ""]


def test_faults_are_named() -> None:
    with pytest.raises(UserError, match=r"t\.jsonl:2: the label '7' is not in zero_shot\.labels"):
        ZeroShotTask(reviews([1, 7]), SST2_PROMPTS)
    with pytest.raises(UserError, match=r"zero_shot\.text: 'movie review' has no \{text\}"):
        ZeroShotPrompts({"a": "x", "b": "y"}, "movie review")
    with pytest.raises(UserError, match="at least 2 labels"):
        ZeroShotPrompts({"a": "x"})
