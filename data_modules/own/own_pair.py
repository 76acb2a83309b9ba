"""What every reader of own texts gives: a pair with the place that it came from."""

from __future__ import annotations

from dataclasses import dataclass

#: Sources of own pairs: rows of a table, a title or heading with its text, a first sentence with the rest, relevance judgements.
PAIRS, TITLES, SECTIONS, SENTENCES, JUDGED = "pairs", "titles", "sections", "first sentences", "judgements"


@dataclass(frozen=True, slots=True)
class OwnPair:
    """A query and a passage that answers it.

    id: the place in the user's files, ``faq.csv:17``, ``guide/install.md#Linux`` or the id in a BEIR corpus. document: what is never
    on two sides of a split; empty where the passage alone decides. negatives: passages that the user gave as no answers.
    """

    query: str
    passage: str
    source: str
    id: str
    document: str = ""
    negatives: tuple[str, ...] = ()
