"""Natural language inference as training data: entailed sentences are positives, contradicted ones hard negatives."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_modules.finetune.records import existing, files_identity, json_lines, string, text_lines
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import CountOrZero, Seed
from lightning_e5.rng import generator
from lightning_e5.text import text_id
from lightning_e5.types import RankedExample, ReadReport

#: Labels as SNLI and MNLI write them, and as numbers in copies of them.
_LABELS = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction", "0": "entailment", "1": "neutral", "2": "contradiction"}
_TRIPLETS = (("anchor", "entailment", "contradiction"), ("sent0", "sent1", "hard_neg"), ("anchor", "positive", "negative"))
_PAIRS = (("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"))


class _Triplet(NamedTuple):
    anchor: str
    entailed: str
    contradicted: str


@configurable("ranked source")
class Nli:
    """Triplets of sentences, each with random sentences as further negatives; both sides get the query's prefix.

    A file is SimCSE's CSV (``sent0,sent1,hard_neg``), JSONL of triplets (``anchor``, ``entailment``, ``contradiction``), or
    JSONL of labelled pairs as SNLI and MNLI (``sentence1``, ``sentence2``, ``gold_label``, or ``premise``, ``hypothesis``,
    ``label``). Of labelled pairs, every entailed sentence of a premise makes a triplet with one of the contradicted ones, in turn.

    Args:
        paths: the files, ``.csv`` or ``.jsonl``, plain or gzipped.
        random_negatives: sentences drawn from the whole corpus beside the contradiction (E5: 6); never one that is known
            to be entailed by the anchor.
        seed: the draw of a row depends on it and on the row's number alone.
        name: of the source.

    Source: paper section 4.2 (SimCSE's version; 1 hard negative and 6 random sentences); no teacher.
    """

    def __init__(self, *, paths: Sequence[Path], random_negatives: CountOrZero = 6, seed: Seed = 0, name: str = "nli") -> None:
        if not paths or random_negatives < 0:
            raise UserError(f"nli: needs at least one path and random_negatives >= 0, not {random_negatives}")
        self.paths = [existing(p, "paths") for p in paths]
        self.random_negatives, self.seed, self.name = random_negatives, seed, name

    def fingerprint(self) -> Mapping[str, Any]:
        """The files, and the settings."""
        return {"files": files_identity(self.paths), "settings": [self.random_negatives, self.seed, self.name]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per triplet, in the files' order.

        Raises:
            UserError: a file of another layout, or a corpus with too few sentences for the random negatives.
        """
        triplets = [t for path in self.paths for t in _read(path, report)]
        corpus = list({text_id(s): s for t in reversed(triplets) for s in reversed(t)}.items())[::-1]
        entailed: dict[int, set[int]] = {}
        for t in triplets:
            anchor = text_id(t.anchor)
            entailed.setdefault(anchor, {anchor}).add(text_id(t.entailed))
        largest = max((len(known) for known in entailed.values()), default=0)
        if triplets and len(corpus) <= self.random_negatives + largest + 1:
            raise UserError(f"{self.paths[0]}: {len(corpus)} different sentences are too few for {self.random_negatives} random negatives")
        for row, t in enumerate(triplets):
            known = entailed[text_id(t.anchor)]
            if text_id(t.contradicted) in known:
                report.counts["skipped: contradiction is entailed elsewhere"] += 1
                continue
            negatives = [t.contradicted, *self._random(row, {*known, text_id(t.contradicted)}, corpus)]
            yield RankedExample(t.anchor, (t.entailed,), tuple(negatives), None, self.name, "query")

    def _random(self, row: int, taken: set[int], corpus: Sequence[tuple[int, str]]) -> list[str]:
        draw = generator(self.seed, self.name, row)
        found: list[str] = []
        while len(found) < self.random_negatives:
            identity, sentence = corpus[int(draw.integers(len(corpus)))]
            if identity not in taken:
                taken.add(identity)
                found.append(sentence)
        return found


def _read(path: Path, report: ReadReport) -> Iterator[_Triplet]:
    rows = _csv_rows(path, report) if ".csv" in path.suffixes else json_lines(path, report)
    hypotheses: dict[str, dict[str, list[str]]] = {}
    for number, (place, row) in enumerate(rows):
        triplet = next((keys for keys in _TRIPLETS if all(k in row for k in keys)), None)
        pair = next((keys for keys in _PAIRS if all(k in row for k in keys)), None)
        if triplet is not None:
            texts = [string(row[k]) for k in triplet]
            if None in texts:
                report.reject(place, "a sentence is missing")
            else:
                yield _Triplet(*texts)  # type: ignore[arg-type]
        elif pair is not None:
            premise, hypothesis, label = string(row[pair[0]]), string(row[pair[1]]), _LABELS.get(str(row[pair[2]]))
            if label is None:
                report.counts["skipped: no agreed label"] += 1  # SNLI writes '-', copies of it -1
            elif premise is None or hypothesis is None:
                report.reject(place, "a sentence is missing")
            else:
                hypotheses.setdefault(premise, {}).setdefault(label, []).append(hypothesis)
        else:
            known = "; ".join(" ".join(keys) for keys in (*_PAIRS, *_TRIPLETS))
            if number == 0:
                raise UserError(f"{place}: has the keys {', '.join(map(str, row))}, which are none of: {known}")
            report.reject(place, "keys of no known layout")
    for premise, found in hypotheses.items():
        contradicted = found.get("contradiction")
        if not contradicted:
            report.counts["skipped: premise without contradiction"] += 1
            continue
        for turn, sentence in enumerate(found.get("entailment", [])):
            yield _Triplet(premise, sentence, contradicted[turn % len(contradicted)])


def _csv_rows(path: Path, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = (line for _, line in text_lines(path, report))
    reader = csv.DictReader((f"{line}\n" for line in lines), strict=True)
    try:
        for row in reader:
            report.counts["records"] += 1
            if None in row or None in row.values():
                report.reject(f"{path}:{reader.line_num}", "another number of cells than the header")
            else:
                yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from None
