"""Natural language inference as training data: entailed sentences are positives, contradicted ones hard negatives.

SimCSE's CSV (https://huggingface.co/datasets/princeton-nlp/datasets-for-simcse) has a triplet a line, sentence-transformers'
AllNLI.tsv (https://sbert.net/datasets/AllNLI.tsv.gz) and SNLI (https://nlp.stanford.edu/projects/snli) a labelled pair::

    sent0,sent1,hard_neg
    A man eats.,Someone eats.,Nobody eats.

    {"gold_label": "entailment", "sentence1": "A man eats.", "sentence2": "Someone eats."}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_modules.finetune.records import existing, files_identity, string
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.rows import SplitRows, number_of
from lightning_e5.ranges import CountOrZero, Seed
from lightning_e5.rng import generator
from lightning_e5.text import text_id
from lightning_e5.types import RankedExample, ReadReport

#: The labels, and how data sets word them (SNLI and MNLI; XNLI; verbs); any case.
_LABELS = {
    **dict.fromkeys(("entailment", "entailed", "entails"), "entailment"),
    "neutral": "neutral",
    **dict.fromkeys(("contradiction", "contradictory", "contradicted", "contradicts"), "contradiction"),
}
#: What stands for "no agreed label": SNLI's own sign, and that of copies of it.
_UNLABELLED = ("-", "", "-1", "-1.0")
_TRIPLETS = (("anchor", "entailment", "contradiction"), ("sent0", "sent1", "hard_neg"), ("anchor", "positive", "negative"))
_TEXTS, _LABEL_KEYS = (("sentence1", "sentence2"), ("premise", "hypothesis")), ("gold_label", "label")
_PAIRS = tuple((*texts, label) for label in _LABEL_KEYS for texts in _TEXTS)


class _Triplet(NamedTuple):
    anchor: str
    entailed: str
    contradicted: str


@configurable("ranked source")
class Nli:
    """Triplets of sentences, each with random sentences as further negatives; both sides get the query's prefix.

    A file has triplets (``sent0``, ``sent1``, ``hard_neg`` as SimCSE's CSV; ``anchor``, ``entailment``, ``contradiction``) or
    labelled pairs as SNLI, MNLI and XNLI (``sentence1``, ``sentence2`` or ``premise``, ``hypothesis``, with ``gold_label`` or
    ``label``). Of labelled pairs, every entailed sentence of a premise makes a triplet with one of the contradicted ones, in turn.
    Rows without an agreed label (``-``, -1, null) are counted and left out.

    Args:
        paths: CSV, TSV, JSONL or Parquet files by their endings; text files may be gzipped.
        random_negatives: sentences drawn from the whole corpus beside the contradiction (E5: 6); never one that is known
            to be entailed by the anchor.
        seed: the draw of a row depends on it and on the row's number alone.
        name: of the source.
        label_names: of labels that are numbers, beginning with 0. They are needed for such a file, since data sets differ:
            SNLI, MNLI and XNLI on the hub have ``[entailment, neutral, contradiction]``, transformers' and
            sentence-transformers' copies ``[contradiction, entailment, neutral]``.
        split: of files with a column ``split`` (AllNLI.tsv), the rows that are read.

    Source: paper section 4.2 (SimCSE's version; 1 hard negative and 6 random sentences); no teacher.
    """

    def __init__(
        self, *, paths: Sequence[Path], random_negatives: CountOrZero = 6, seed: Seed = 0, name: str = "nli",
        label_names: Sequence[str] | None = None, split: str = "train",
    ) -> None:  # fmt: skip
        if not paths or random_negatives < 0:
            raise UserError(f"nli: needs at least one path and random_negatives >= 0, not {random_negatives}")
        self.split, self.label_names = split, None if label_names is None else [_LABELS.get(str(n).lower()) for n in label_names]
        if label_names is not None and sorted(map(str, self.label_names or [])) != sorted({*_LABELS.values()}):
            raise UserError(f"label_names: {list(label_names)} are not the three labels entailment, neutral and contradiction in some order")
        self.paths = [existing(p, "paths") for p in paths]
        self.random_negatives, self.seed, self.name = random_negatives, seed, name

    def fingerprint(self) -> Mapping[str, Any]:
        """The files, and the settings."""
        return {"files": files_identity(self.paths), "settings": [self.random_negatives, self.seed, self.name, self.label_names, self.split]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per triplet, in the files' order.

        Raises:
            UserError: a file of another layout, an unknown label, a number as label without ``label_names``, or a corpus with too few sentences for the random negatives.
        """
        triplets = [t for path in self.paths for t in self._read(path, report)]
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
                report.skip(f"{self.paths[0]}: triplet {row}", "contradiction is entailed elsewhere")
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

    def _read(self, path: Path, report: ReadReport) -> Iterator[_Triplet]:
        rows = SplitRows(path, self.split, report)
        hypotheses: dict[str, dict[str, list[str]]] = {}
        places: dict[str, str] = {}
        for number, (place, row) in enumerate(rows):
            triplet = next((keys for keys in _TRIPLETS if all(k in row for k in keys)), None)
            pair = next((keys for keys in _PAIRS if all(k in row for k in keys)), None)
            keys = triplet or pair
            if keys is None:
                known = "; ".join(" ".join(keys) for keys in (*_PAIRS, *_TRIPLETS))
                if number == 0:
                    raise UserError(f"{place}: has the keys {', '.join(map(str, row))[:200]}, which are none of: {known}")
                report.reject(place, "keys of no known layout")
                continue
            texts = [string(row[k]) for k in (keys if triplet else keys[:2])]
            label = self._label(row[keys[2]], place) if not triplet else None
            if not triplet and label is None:
                report.skip(place, "no agreed label")
            elif None in texts:
                report.reject(place, "a sentence is missing")
            elif label is None:
                yield _Triplet(*texts)  # type: ignore[arg-type]
            else:
                premise, hypothesis = map(str, texts)
                places.setdefault(premise, place)
                hypotheses.setdefault(premise, {}).setdefault(label, []).append(hypothesis)
        report.skip(str(path), "another split", rows.others.total())
        for premise, found in hypotheses.items():
            contradicted = found.get("contradiction")
            if not contradicted:
                report.skip(places[premise], "premise without contradiction")
                continue
            for turn, sentence in enumerate(found.get("entailment", [])):
                yield _Triplet(premise, sentence, contradicted[turn % len(contradicted)])

    def _label(self, value: Any, place: str) -> str | None:
        """The label's name, None where there is no agreed one.

        Raises:
            UserError: an unknown label, or a number without ``label_names``.
        """
        word = str(value).strip().lower()
        if value is None or word in _UNLABELLED or value != value:  # NaN, pandas' null
            return None
        number = number_of(value)
        if number is not None and self.label_names is None:
            raise UserError(
                f"{place}: the label {word[:40]} is a number, and data sets number labels differently; say how by label_names: [entailment, "
                "neutral, contradiction] (SNLI, MNLI, XNLI on the hub) or [contradiction, entailment, neutral] (transformers, sentence-transformers)"
            )
        if number in (0, 1, 2) and self.label_names is not None:
            return self.label_names[int(number)]
        if word not in _LABELS:
            raise UserError(f"{place}: the label {str(value)[:60]!r} is none of entailment, neutral, contradiction (nor '-' or -1 for none)")
        return _LABELS[word]
