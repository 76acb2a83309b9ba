"""The end of an adaptation to own texts: the table of models, what to use, what was forgotten, and the queries that changed."""

from __future__ import annotations

from collections.abc import Callable

from lightning_e5.report.tables.escaping import shortened
from lightning_e5.report.tables.evaluation import NONE_SHOWN_NOTE, difference_cell, interval
from lightning_e5.report.tables.outcomes import example_table
from lightning_e5.report.tables.table import Column, Table, number
from lightning_e5.result_row import MAIN_METRIC, ResultRow
from lightning_e5.results.adaptation import ADAPTED, BOTH, SHOWN, START, WORDS, Adaptation, General
from lightning_e5.results.outcomes import Outcomes, QueryOutcome

_RECALL = "recall@100"
#: Letters of a query and of a passage on the terminal.
_LETTERS = 110
_ORDER = (START, WORDS, ADAPTED, BOTH)


def adaptation_table(found: Adaptation) -> Table:
    """Start, BM25, the adapted encoder and both together on the own test, with paired differences."""

    def compared(other: str) -> Callable[[ResultRow], str]:
        def cell(row: ResultRow) -> str:
            difference = found.compared(row.model, other)
            return "" if difference is None else difference_cell(difference.as_json())

        return cell

    rows = [found.rows[name] for name in (*_ORDER, *(n for n in found.rows if n not in _ORDER)) if name in found.rows]
    queries = next((row.queries for row in rows if row.queries), 0)
    table = Table.of(rows, [
        Column("model", lambda row: row.model), number("nDCG@10", lambda row: row.metrics.get(MAIN_METRIC), ".3f"),
        number("95% interval", lambda row: interval(row.as_json())), number(_RECALL, lambda row: row.metrics.get(_RECALL), ".3f"),
        *(Column(f"to {other}", compared(other)) for other in (START, WORDS, ADAPTED) if any(found.compared(row.model, other) for row in rows)),
    ], title=f"your test, {queries:,} queries; differences are paired, with 95% intervals")  # fmt: skip
    table.notes = [NONE_SHOWN_NOTE]
    return table


def decision_lines(found: Adaptation) -> list[str]:
    """What to use, in sentences with their figures; what was forgotten, where that was evaluated."""
    lines = [_decision(found), *_search_lines(found)]
    return lines + ([_general_line(found.general)] if found.general is not None else [])


def _decision(found: Adaptation) -> str:
    difference = found.compared(ADAPTED, START)
    figures = "" if difference is None else f" ({difference.difference:+.3f} nDCG@10 [{difference.low:+.3f}, {difference.high:+.3f}])"
    if found.better:
        return f"use {found.encoder}: it is better than the start on your test{figures}"
    if found.best_step == 0:
        return f"keep the start: no step of the training was better on the validation, so {found.encoder} has the start's weights"
    if found.shown(ADAPTED, START) == "lower":
        return f"keep the start: the adapted encoder is worse on your test{figures}"
    return f"keep the start: the adapted encoder is not shown to be better on your test{figures}"


def _search_lines(found: Adaptation) -> list[str]:
    """What BM25 alone and beside the encoder reach, where that is shown to be better than the encoder."""
    better, said = ADAPTED if found.better else START, "the adapted encoder" if found.better else "the start"
    both, words = found.compared(BOTH, better), found.compared(better, WORDS)
    if found.shown(BOTH, better) == "higher" and both is not None:
        return [f"with BM25 beside it is better still: rank by both ({BOTH}, reciprocal rank fusion): {both.difference:+.3f} to {said} [{both.low:+.3f}, {both.high:+.3f}]"]
    if found.shown(better, WORDS) == "lower" and words is not None:
        return [f"BM25 alone is better than {said}: {-words.difference:+.3f} [{-words.high:+.3f}, {-words.low:+.3f}]; search your texts with it"]
    if WORDS not in found.rows:
        return []
    shown = "better than" if found.shown(better, WORDS) == "higher" else "not shown to differ from"
    fused = "worse" if found.shown(BOTH, better) == "lower" else "not shown to be better"
    return [f"{said} is {shown} BM25 on your test; ranking by both is {fused}"]


def _general_line(general: General) -> str:
    difference = general.difference
    said = {"higher": "more than before", "lower": "some of it was forgotten (keep_general: 0.5 mixes the weights)"}.get(str(general.decision), "no difference shown")
    return (
        f"general: {general.metric} {general.before:.3f} before, {general.after:.3f} after over {general.items:,} items, "
        f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]: {said}"
    )


def changed_lines(changed: Outcomes) -> list[str]:
    """The queries that got better and worse most, shortened for a terminal."""
    lines: list[str] = []
    for won in (True, False):
        rows = changed.largest(SHOWN, won=won)
        count = changed.won if won else changed.lost
        lines.append(f"{count:,} queries got {'better' if won else 'worse'}" + (f", the {len(rows)} that changed most:" if rows else ""))
        for row in rows:
            lines.append(f"  {row.difference:+.2f}  {shortened(row.query, _LETTERS)}")
            lines += [f"         {what}: {shortened(text, _LETTERS)}" for what, text in _passages(changed, row) if what != "relevant" or won]
    return lines


def changed_tables(changed: Outcomes) -> dict[str, Table]:
    """Title -> the queries that got better, and those that got worse, with their passages in full."""
    return {
        f"The {len(rows)} queries that got {word} most": example_table(changed, rows)
        for won, word in ((True, "better"), (False, "worse"))
        if (rows := changed.largest(SHOWN, won=won))
    }


def changed_records(changed: Outcomes) -> list[dict[str, object]]:
    """The same queries as data, better ones first."""
    return [
        {
            "query_id": row.query_id, "query": row.query, "better": won, changed.metric: {changed.model: row.ours, changed.reference: row.theirs},
            "relevant": changed.passages.get(row.relevant), "first": {name: changed.passages.get(first or "") for name, first in _firsts(changed, row)},
        }
        for won in (True, False)
        for row in changed.largest(SHOWN, won=won)
    ]  # fmt: skip


def _firsts(changed: Outcomes, row: QueryOutcome) -> list[tuple[str, str | None]]:
    return [(changed.model, row.our_first), (changed.reference, row.their_first)]


def _passages(changed: Outcomes, row: QueryOutcome) -> list[tuple[str, str]]:
    """What each model ranked first, where that is not the relevant passage; and that one."""
    found = [("relevant", changed.passages.get(row.relevant, ""))]
    for model, first in _firsts(changed, row):
        text = "nothing found" if first is None else "the relevant passage" if first == row.relevant else changed.passages.get(first, "")
        found.append((f"first of {model}", text))
    return found
