"""All inputs of own texts read as pairs, in the order tables, documents, BEIR folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_modules.own.beir_folder import corpus_pairs, judged_pairs, splits
from data_modules.own.documents import document_pairs
from data_modules.own.own_pair import OwnPair
from data_modules.own.pair_tables import PairTable, pair_table, table_pairs
from data_modules.own.recognise import Inputs
from lightning_e5.errors import UserError
from lightning_e5.progress import progress
from lightning_e5.types import ReadReport

#: More pairs than a split in memory is made for.
MOST_PAIRS = 3_000_000


def read_pairs(inputs: Inputs, options: Mapping[str, Any], min_score: float | None, report: ReadReport, said: list[str]) -> list[OwnPair]:
    """The pairs of all inputs.

    Args:
        inputs: see `recognise`.
        options: columns that the user names (see `find_columns`).
        min_score: see `pair_tables.score_rule`.
        report: counts ``records`` and, by reason, what is no pair.
        said: gets sentences on how scores were understood.

    Raises:
        UserError: as the readers, or above 3,000,000 pairs.
    """
    tables = [pair_table(path, **options) for path in inputs.pairs]
    pairs: list[OwnPair] = []
    for pair in _all(tables, inputs, min_score, report, said):
        pairs.append(pair)
        if len(pairs) > MOST_PAIRS:
            raise UserError(f"own texts: give over {MOST_PAIRS:,} pairs, more than are split in memory; build them by the stage build_ccpairs")
    return pairs


def _all(tables: list[PairTable], inputs: Inputs, min_score: float | None, report: ReadReport, said: list[str]) -> Iterator[OwnPair]:
    for table in tables:
        with progress(None, f"read {table.path.name}", "pair") as bar:
            for pair in table_pairs(table, report, min_score, said):
                bar(1)
                yield pair
    for folder in inputs.documents:
        yield from document_pairs(folder, report)
    for folder in inputs.collections:
        yield from corpus_pairs(folder, report)
        if "train" in splits(folder):
            yield from judged_pairs(folder, "train", report)
