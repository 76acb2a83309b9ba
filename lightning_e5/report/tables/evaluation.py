"""Evaluation rows as tables of text, for the terminal and the report: results of the tasks, and how figures were made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightning_e5.config.experiment import Node
from lightning_e5.results.run import Result

Rows = list[list[str]]
#: What a cell says where a difference is not shown; `NONE_SHOWN_NOTE` explains it.
NONE_SHOWN = "no difference"
NONE_SHOWN_NOTE = f"“{NONE_SHOWN}”: no difference shown by these queries, all comparisons taken together (Holm)"


def task_table(rows: Sequence[Node]) -> Rows:
    """The rows of ``tasks.json`` (all tasks beside retrieval) under one header; published figures where there are any."""
    shown = any("published" in row for row in rows)
    header = ["model", "set", "task", "metric", "value", "95% interval", *(["published", "difference"] if shown else []), "items"]
    return [header, *(_task_row(row, shown) for row in rows)]


def validity_table(rows: Sequence[Node]) -> Rows:
    """What must be known to read the figures: split, prefixes, length limit, truncated texts, precision, ties, gaps.

    ``rows``: of ``table.json``, of ``tasks.json``, or both; rows without these facts (of older runs) are left out.
    """
    header = ["model", "set", "split", "prefixes", "max length", "truncated", "precision", "tied at 10", "missing", "qrels of missing documents"]
    return [header, *(_validity_row(row) for row in rows if "precision" in row)]


def contamination_table(rows: Sequence[Node], metrics: Mapping[str, float]) -> Rows:
    """What the models have seen: pairs and tokens, the share of test items among them, the score without those.

    Args:
        rows: of ``table.json``, of ``tasks.json``, or both; rows without these facts (of older runs) are left out.
        metrics: flat; the score of a retrieval row stands there alone.
    """
    header = ["model", "set", "pairs seen", "tokens seen", "seen in training", "clean items", "metric", "all", "clean"]
    return [header, *(_contamination_row(row, metrics) for row in rows if "contamination" in row)]


def retrieval_table(rows: Sequence[Node], metrics: Mapping[str, float], names: Sequence[str]) -> Rows:
    """The rows of ``table.json`` with some of their metrics.

    Args:
        rows: of ``table.json``.
        metrics: flat, ``<model>/<collection>/<metric>``.
        names: the metrics shown; the interval is the first one's.
    """
    shown = any(names[0] in row.get("published", {}) for row in rows)
    header = ["model", "set", names[0], "95% interval", *(["published", "difference"] if shown else []), *names[1:], "queries"]
    table = [header]
    for row in rows:
        values = [metrics[f"{row['model']}/{row['collection']}/{name}"] for name in names]
        figure = row.get("published", {}).get(names[0])
        beside = published_cells(values[0], figure) if shown else []
        cells = [f"{values[0]:.3f}", interval(row), *beside, *(f"{v:.3f}" for v in values[1:]), f"{row['queries']:,}"]
        table.append([labelled(row), row["collection"], *cells])
    return table


def evaluation_text(retrieval: Sequence[Node], tasks: Sequence[Node], metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """All tables of an evaluation for a terminal; arguments as above."""
    parts = [aligned(retrieval_table(retrieval, metrics, names), texts=2)] if retrieval else []
    parts += [aligned(task_table(tasks), texts=4)] if tasks else []
    parts += [aligned(validity_table([*retrieval, *tasks]), texts=4)]
    parts += [aligned(seen, texts=2)] if len(seen := contamination_table([*retrieval, *tasks], metrics)) > 1 else []
    parts += [notes] if (notes := retrieval_notes(retrieval, names[0])) else []
    return "\n\n".join("\n".join(lines) for lines in parts)


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
            spread = "" if low is None else f", {name} {low:.4f} to {high:.4f}"
            what = f"{count:,} {'query depends' if count == 1 else 'queries depend'} on the order of equal scores"
            notes.append(f"{row['model']}, {row['collection']}: {what} (falling ids, as in trec_eval){spread}")
    return list(dict.fromkeys(notes))


def aligned(rows: Rows, texts: int | Collection[int]) -> list[str]:
    """Lines for a terminal, the header underlined; the first ``texts`` columns, or those of these numbers, left, the others right."""
    left = range(texts) if isinstance(texts, int) else texts
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join(v.ljust(w) if c in left else v.rjust(w) for c, (v, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def published_cells(value: float | None, figure: float | None) -> list[str]:
    """A published figure and how far ours is above it; empty cells where there is none."""
    return ["", ""] if figure is None or value is None else [f"{figure:.3f}", f"{value - figure:+.3f}"]


def difference_cell(compared: Node) -> str:
    """A paired difference with its 95% interval, and in a word whether it shows one model to be better.

    Args:
        compared: a row of ``table.json`` against its reference, or one of its comparisons with other models.
    """
    words = {"a is higher": "better", "b is higher": "worse"}
    shown = words.get(compared["verdict"], NONE_SHOWN)
    return f"{compared['difference']:+.3f} [{compared['difference_low']:+.3f}, {compared['difference_high']:+.3f}] {shown}"


def further_comparisons(result: Result) -> list[str]:
    """What a model is compared with beside the reference and the step before it."""
    return [f"{labelled(result.row)} to {other['model']}: {difference_cell(other)}" for other in result.previous[1:]]


def pairs_seen(result: Result) -> str:
    """The pairs that a model's weights saw; of a start of others, which does not say what it has seen, those of this run."""
    if "tokens_seen" in result.row and result.row["pairs_seen"] is None:
        return f"unknown + {result.pairs:,}" if result.trained_by else "unknown"
    return f"{result.row.get('pairs_seen') or result.pairs:,}"


def interval(row: Node) -> str:
    """The 95% interval of a row's main metric."""
    low, high = row.get("low"), row.get("high")
    return "–" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def labelled(row: Node) -> str:
    """The model's name, marked where other prefixes than its own were used, and where texts are not compared by cosine."""
    name = f"{row['model']} (dot product)" if row.get("similarity") == "dot" else str(row["model"])
    return f"{name} (prefix ablation)" if row.get("prefix_ablation") else name


def _task_row(row: Node, shown: bool) -> list[str]:
    beside = published_cells(row["value"], row.get("published")) if shown else []
    return [labelled(row), row["set"], row["task"], row["metric"], f"{row['value']:.3f}", interval(row), *beside, f"{row['items']:,}"]


def _validity_row(row: Node) -> list[str]:
    name = row.get("collection") or row["set"]
    stored = row.get("prefix") or {}
    prefix = [stored[kind] for kind in ("query", "passage") if kind in stored]
    prefixes = ", ".join(repr(p) for p in prefix) if any(prefix) else "none"
    length = row.get("max_length")
    counts = [_count(row.get(key)) for key in ("missing", "dangling")]
    return [
        labelled(row), name, row.get("split") or "–", prefixes, "–" if length is None else f"{length:,}",
        _share(row.get("truncated")), row["precision"] or "–", _share(row.get("tied")) if "collection" in row else "–", *counts,
    ]  # fmt: skip


def _contamination_row(row: Node, metrics: Mapping[str, float]) -> list[str]:
    name, metric = row.get("collection") or row["set"], row.get("metric", "ndcg@10")
    value, clean = row.get("value", metrics.get(f"{row['model']}/{name}/{metric}")), row.get(f"{metric}_clean")
    seen = row.get("contaminated")
    share = "unknown" if seen is None else f"{seen['share']:.1%} ({seen['count']:,})"
    counts = ["unknown" if row.get(key) is None else f"{row[key]:,}" for key in ("pairs_seen", "tokens_seen")]
    scores = ["–" if v is None else f"{v:.3f}" for v in (value, clean)]
    return [labelled(row), name, *counts, share, _count(row.get("clean_items")), metric, *scores]


def _share(value: Any) -> str:
    return "–" if value is None else f"{value:.1%}"


def _count(value: Any) -> str:
    return "–" if value is None else f"{value:,}"
