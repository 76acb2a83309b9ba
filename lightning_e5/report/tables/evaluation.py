"""Evaluation rows as tables, for the terminal, the report and the model card: results of the tasks, and how figures were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_e5.config.experiment import Node
from lightning_e5.evaluation.statistics.decision import stored_decision
from lightning_e5.report.tables.table import Column, Table, number

#: What a cell says where a difference is not shown; `NONE_SHOWN_NOTE` explains it.
NONE_SHOWN = "no difference"
NONE_SHOWN_NOTE = f"“{NONE_SHOWN}”: no difference shown by these queries, all comparisons taken together (Holm)"


def task_table(rows: Sequence[Node]) -> Table:
    """The rows of ``tasks.json`` (all tasks beside retrieval) under one header; published figures where there are any."""
    beside = published_columns(rows, lambda row: row["value"], lambda row: row.get("published"))
    return Table.of(rows, [
        Column("model", labelled), _dimensions(rows), Column("set", "set"), Column("task", "task"), Column("metric", "metric"), number("value", "value", ".3f"),
        number("95% interval", interval), *beside, number("items", "items", ","),
    ])  # fmt: skip


def validity_table(rows: Sequence[Node]) -> Table:
    """What must be known to read the figures: split, prefixes, length limit, truncated texts, precision, ties, gaps.

    ``rows``: of ``table.json``, of ``tasks.json``, or both; rows without these facts (of older runs) are left out.
    """
    return Table.of([row for row in rows if "precision" in row], [
        Column("model", labelled), Column("set", set_name), Column("split", lambda row: row.get("split") or None),
        Column("prefixes", _prefixes), number("max length", "max_length", ","), number("truncated", "truncated", ".1%"),
        _dimensions(rows), Column("precision", lambda row: row["precision"] or None),
        number("tied at 10", lambda row: row.get("tied") if "collection" in row else None, ".1%"),
        number("missing", "missing", ","), number("qrels of missing documents", "dangling", ","),
    ])  # fmt: skip


def contamination_table(rows: Sequence[Node], metrics: Mapping[str, float]) -> Table:
    """What the models have seen: pairs and tokens, the share of test items among them, the score without those.

    Args:
        rows: of ``table.json``, of ``tasks.json``, or both; rows without these facts (of older runs) are left out.
        metrics: flat; the score of a retrieval row stands there alone.
    """

    def metric(row: Node) -> str:
        return str(row.get("metric", "ndcg@10"))

    def known(key: str) -> Callable[[Node], Any]:
        return lambda row: "unknown" if row.get(key) is None else row[key]

    def share(row: Node) -> str:
        seen = row.get("contaminated")
        return "unknown" if seen is None else f"{seen['share']:.1%} ({seen['count']:,})"

    return Table.of([row for row in rows if "contamination" in row], [
        Column("model", labelled), Column("set", set_name),
        number("pairs seen", known("pairs_seen"), ","), number("tokens seen", known("tokens_seen"), ","),
        number("seen in training", share), number("clean items", "clean_items", ","), Column("metric", metric),
        number("all", lambda row: row.get("value", metrics.get(f"{row['model']}/{set_name(row)}/{metric(row)}")), ".3f"),
        number("clean", lambda row: row.get(f"{metric(row)}_clean"), ".3f"),
    ])  # fmt: skip


def retrieval_table(rows: Sequence[Node], metrics: Mapping[str, float], names: Sequence[str]) -> Table:
    """The rows of ``table.json`` with some of their metrics.

    Args:
        rows: of ``table.json``.
        metrics: flat, ``<model>/<collection>/<metric>``.
        names: the metrics shown; the interval is the first one's.
    """

    def value(name: str) -> Callable[[Node], float]:
        return lambda row: metrics[f"{row['model']}/{row['collection']}/{name}"]

    beside = published_columns(rows, value(names[0]), lambda row: row.get("published", {}).get(names[0]))
    return Table.of(rows, [
        Column("model", labelled), _dimensions(rows), Column("set", "collection"), number(names[0], value(names[0]), ".3f"), number("95% interval", interval),
        *beside, *(number(name, value(name), ".3f") for name in names[1:]), number("queries", "queries", ","),
    ])  # fmt: skip


def evaluation_text(retrieval: Sequence[Node], tasks: Sequence[Node], metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """All tables of an evaluation for a terminal; arguments as above."""
    rows = [*retrieval, *tasks]
    parts = [retrieval_table(retrieval, metrics, names).text()] if retrieval else []
    parts += [task_table(tasks).text()] if tasks else []
    parts += [validity_table(rows).text()]
    parts += [seen.text()] if (seen := contamination_table(rows, metrics)).rows else []
    parts += ["\n".join(notes)] if (notes := retrieval_notes(retrieval, names[0])) else []
    return "\n\n".join(parts)


def retrieval_notes(rows: Sequence[Node], name: str) -> list[str]:
    """What else decided retrieval's figures: own documents left out, ids that are equal by chance, equal scores.

    Args:
        rows: of ``table.json``.
        name: the metric whose range over all orders of equal scores is told.
    """
    notes = []
    for row in rows:
        where, declared = row["collection"], "queries_are_documents" in row.get("rules", {})
        if count := row.get("self_excluded", 0):
            why = "the set's queries are documents" if declared else "document and query have one text"
            what = "query's own document is left out of its" if count == 1 else "queries' own documents are left out of their"
            notes.append(f"{where}: {count:,} {what} results ({why})")
        if count := row.get("same_id_kept", 0):
            what = "document has the id of a query and is" if count == 1 else "documents have the id of a query and are"
            notes.append(f"{where}: {count:,} {what} not left out of its results")
    for row in rows:
        if count := row.get("tie_queries", 0):
            low, high = row.get("tie_range", {}).get(name, (None, None))
            between = "" if low is None else f", {name} {low:.4f} to {high:.4f}"
            what = f"{count:,} {'query depends' if count == 1 else 'queries depend'} on the order of equal scores"
            notes.append(f"{row['model']}, {row['collection']}: {what} (falling ids, as in trec_eval){between}")
    return list(dict.fromkeys(notes))


def published_columns(
    records: Sequence[Any], value: Callable[[Any], float | None], published: Callable[[Any], float | None], difference: str = "difference"
) -> list[Column]:
    """A published figure and how far ours is above it (empty cells where there is none); no column where no record has one."""
    if all(published(record) is None for record in records):
        return []

    def above(record: Any) -> float | str:
        ours, theirs = value(record), published(record)
        return "" if ours is None or theirs is None else ours - theirs

    def figure(record: Any) -> float | str | None:
        return "" if above(record) == "" else published(record)

    return [number("published", figure, ".3f"), number(difference, above, "+.3f")]


def difference_cell(compared: Node) -> str:
    """A paired difference with its 95% interval, and in a word whether it shows one model to be better.

    Args:
        compared: a row of ``table.json`` against its reference, or one of its comparisons with other models.
    """
    shown = {"higher": "better", "lower": "worse"}.get(str(stored_decision(compared)), NONE_SHOWN)
    return f"{compared['difference']:+.3f} [{compared['difference_low']:+.3f}, {compared['difference_high']:+.3f}] {shown}"


def interval(row: Node) -> str | None:
    """The 95% interval of a row's main metric."""
    low, high = row.get("low"), row.get("high")
    return None if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def labelled(row: Node) -> str:
    """The model's name, marked where texts are not compared by cosine, where its embeddings were truncated (unless the name says so),
    where other prefixes than its own were used, and where the set chose its weights in a validation."""
    name, dimensions = str(row["model"]), row.get("dimensions")
    name = name if dimensions is None or name.endswith(f"@{dimensions}") else f"{name} ({dimensions} dimensions)"
    name = f"{name} (dot product)" if row.get("similarity") == "dot" else name
    name = f"{name} (prefix ablation)" if row.get("prefix_ablation") else name
    return f"{name} (chosen on this set)" if row.get("selected_on_this") else name


def set_name(row: Node) -> str:
    """The collection of a row of ``table.json``, or the set of one of ``tasks.json``."""
    return str(row.get("collection") or row["set"])


def _dimensions(rows: Sequence[Node]) -> Column | None:
    """How many first values of an embedding were compared, empty for all of them; no column where none was truncated."""
    return number("dimensions", lambda row: row.get("dimensions", ""), ",") if any(row.get("dimensions") for row in rows) else None


def _prefixes(row: Node) -> str:
    stored = row.get("prefix") or {}
    prefixes = [stored[kind] for kind in ("query", "passage") if kind in stored]
    return ", ".join(map(repr, prefixes)) if any(prefixes) else "none"
