"""Tables of embedding spaces: their measures, and the passages nearest to a text."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_e5.evaluation.embedding_space import Neighbour, SpaceMeasures
from lightning_e5.report.tables.table import Column, Table, number, text


def measure_table(found: Sequence[SpaceMeasures]) -> Table:
    """One row per model and collection."""
    return Table.of(found, [
        Column("model", lambda m: m.model), Column("collection", lambda m: m.collection), number("pairs", lambda m: m.pairs, ","),
        number("alignment", lambda m: m.alignment, ".3f"), number("uniformity of passages", lambda m: m.uniformity, ".3f"),
        number("of queries", lambda m: m.query_uniformity, ".3f"), number("mean direction", lambda m: m.isotropy.mean_direction, ".3f"),
        number("mean cosine", lambda m: m.isotropy.mean_cosine, "+.3f"), number("dimensions", lambda m: m.isotropy.dimensions, ".0f"),
    ])  # fmt: skip


def neighbour_table(texts: Sequence[str], found: Sequence[Sequence[Neighbour]]) -> Table:
    """Each text with the passages nearest to it."""
    rows = [[one if not place else "", n.cosine, n.passage] for one, near in zip(texts, found, strict=True) for place, n in enumerate(near)]
    return Table([text("text"), number("cosine", format=".3f"), text("passage")], rows)
