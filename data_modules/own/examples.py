"""Some pairs drawn by a seed, as a person looks at them before training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from data_modules.own.own_pair import OwnPair
from lightning_e5.progress import printable
from lightning_e5.rng import generator

#: Pairs that are shown, and characters of each side.
SHOWN = 10
_QUERY_CHARACTERS, _PASSAGE_CHARACTERS = 160, 240


def draw_examples(pairs: Sequence[OwnPair], seed: int) -> list[dict[str, str]]:
    """At most ten pairs: ``query``, ``passage``, ``source``, ``id``, and ``negative`` where there is one; in the pairs' order."""
    rows = generator(seed, "examples").choice(len(pairs), size=min(SHOWN, len(pairs)), replace=False)
    return [_row(pairs[row]) for row in sorted(rows.tolist())]


def format_examples(examples: Sequence[Mapping[str, str]], width: int = 100) -> str:
    """The examples as text for a terminal of ``width`` columns."""
    shown = []
    for number, example in enumerate(examples, 1):
        sides = [("query", example["query"], _QUERY_CHARACTERS), ("passage", example["passage"], _PASSAGE_CHARACTERS)]
        sides += [("not", example["negative"], _QUERY_CHARACTERS)] if example.get("negative") else []
        shown.append(f"{number:>2}. {example['source']}: {example['id']}"[:width])
        for name, text, most in sides:
            head = f"    {name:<8}"
            shown += textwrap.wrap(textwrap.shorten(text, most, placeholder=" ..."), width, initial_indent=head, subsequent_indent=" " * len(head))
    return printable("\n".join(shown))


def _row(pair: OwnPair) -> dict[str, str]:
    row = {"query": pair.query, "passage": pair.passage, "source": pair.source, "id": pair.id}
    return row | ({"negative": pair.negatives[0]} if pair.negatives else {})
