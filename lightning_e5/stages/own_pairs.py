"""Stage: a user's own texts as training pairs, with a test and a validation collection that share no document with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from data_modules.own.beir_folder import Collection, own_test_split, read_collection, validation_split
from data_modules.own.documents import UNREADABLE
from data_modules.own.examples import draw_examples
from data_modules.own.inspect import inspect
from data_modules.own.own_pair import JUDGED, OwnPair
from data_modules.own.reading import read_pairs
from data_modules.own.recognise import Inputs, recognise, tables_of
from lightning_e5.config.experiment import outside_path
from lightning_e5.configurable import configurable
from lightning_e5.curation.building.held_out import half_width
from lightning_e5.curation.building.own_collection import write_collection
from lightning_e5.curation.building.own_sides import (
    HeldOutSizes,
    OwnSides,
    asking,
    collection_of_tables,
    draw_pairs,
    make_sides,
)
from lightning_e5.curation.cleaning.duplicates import NearDuplicates
from lightning_e5.curation.cleaning.repeated_pairs import without_repeats
from lightning_e5.curation.mining.training_groups import training_groups
from lightning_e5.errors import UserError
from lightning_e5.files.beir_layout import either, is_beir, stored_texts
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.run_layout import DROPPED, EXAMPLES, OWN_TEXTS
from lightning_e5.files.storage import write_json
from lightning_e5.progress import printable, say
from lightning_e5.ranges import Count, CountOrZero, Range, Share
from lightning_e5.text import text_id
from lightning_e5.types import RankedExample, ReadReport

#: Near copies as `NearDuplicates` finds them by default.
NEAR_DUPLICATES = NearDuplicates()
#: A score of a pair, on whatever scale.
Score = Annotated[float, Range(-1e9, 1e9)]
Paths = str | Path | Sequence[str | Path]


@configurable("stage")
def own_pairs(
    out: Path,
    *,
    pairs: Paths | None = None,
    documents: Paths | None = None,
    collection: Paths | None = None,
    test: Paths | None = None,
    query: str | None = None,
    passage: str | None = None,
    negative: str | Sequence[str] | None = None,
    score: str | None = None,
    document: str | None = None,
    min_score: Score | None = None,
    max_pairs: Count | None = None,
    test_queries: Count = 400,
    validation_queries: CountOrZero = 300,
    test_share: Share = 0.2,
    validation_share: Share = 0.1,
    test_passages: Count = 2000,
    validation_passages: Count = 1000,
    near_duplicates: NearDuplicates | None = NEAR_DUPLICATES,
    max_bad_share: Share = 0.01,
    seed: int,
) -> dict[str, float]:
    """Write ``pairs.parquet``, the collections ``test/`` and ``validation/`` (BEIR's layout), and what was read and left out.

    ``ranked.parquet`` (training groups, see `RankedDataModule`) is there where the pairs bring negatives. ``own_texts.json`` says what
    the input was taken for and how it was split, ``dropped.json`` how many were left out for each reason and where the first one is,
    ``examples.json`` has ten training pairs. Ids lead back to the input: ``faq.csv:17``, ``guide/install.md#Linux``.

    The test is the user's own where there is one: ``test``, else the split ``test`` (or ``dev``) of ``collection``. Then pairs with
    its queries are kept out of training, and its passages stay: they are the user's own texts. Else documents are held out (see
    `lightning_e5.curation.building.held_out`, also on how many queries a test needs).

    Args:
        out: the stage's folder.
        pairs: tables (CSV, TSV, JSONL, Parquet) or folders of them; a path, ``path:FILE``, or a list.
        documents: folders or files (Markdown, reStructuredText, HTML, text, notebooks, PDF), in the same way.
        collection: one BEIR folder, whose documents and ``train`` judgements give pairs.
        test: one BEIR folder, or tables of pairs, with the user's own queries.
        query, passage, negative, score, document: columns of the tables; by default guessed from their names. An empty ``negative``,
            ``score`` or ``document`` says that there is none. A document's pairs are never on two sides.
        min_score: with scores, a pair of at least this one is a positive; by default 80 % of a scale to 1 or to 5.
        max_pairs: at most this many training pairs, drawn by ``seed``.
        test_queries, validation_queries: held out at most; 0 makes no validation collection.
        test_share, validation_share: of the pairs, held out at most.
        test_passages, validation_passages: of a collection made of held-out pairs, filled up with passages of training pairs.
        near_duplicates: how near copies are found; null keeps them.
        max_bad_share: of rows of tables that cannot be read; more stop the stage. A document that cannot be read is left out and named.
        seed: of every draw.

    Returns:
        ``pairs``, ``documents``, ``triplets`` (pairs with negatives; ``negatives``: the least number that one has), ``test_queries``,
        ``test_passages``, ``validation_queries``, ``validation_passages``, and ``dropped_*`` by reason.

    Raises:
        UserError: nothing to read, columns that cannot be told, too many bad rows, or too few pairs for a test.
    """
    inputs = _inputs(pairs, documents, collection)
    options = {"query": query, "passage": passage, "negative": negative, "score": score, "document": document}
    sizes = HeldOutSizes(test_queries, test_share, test_passages, validation_queries, validation_share, validation_passages)
    report = ReadReport()
    said = list(inspect([*inputs.pairs, *inputs.documents, *inputs.collections], **options).lines)
    read = read_pairs(inputs, options, min_score, report, said)
    _check_bad(report, max_bad_share)
    kept = without_repeats(read, near_duplicates, report)
    if not kept:
        raise UserError("; ".join(report.warnings("own texts", 0)))
    own_test = _own_test(_paths(test), inputs, kept, options, min_score, test_passages, seed)
    own_validation = _own_validation(inputs) if test is None else None
    whole = None if own_test and own_validation else _whole_texts(inputs, kept)
    sides = make_sides(kept, sizes, report, seed=seed, test=own_test, validation=own_validation, whole=whole)
    train = draw_pairs(sides.train, max_pairs, seed)

    _write_pairs(out / "pairs.parquet", train)
    write_collection(out / "test", sides.test)
    if sides.validation is not None:
        write_collection(out / "validation", sides.validation)
    triplets = _write_ranked(out / "ranked.parquet", train, sides, report)
    write_json(out / EXAMPLES, draw_examples(train, seed))
    dropped: dict[str, Any] = {_reason(name): {"count": count, "first": report.first.get(name, "")} for name, count in report.counts.items() if _reason(name)}
    write_json(out / DROPPED, dropped)
    counts = _counts(train, triplets, sides, read)
    split = {"test": "own" if own_test else f"held out by {sides.by}", "validation": "own" if own_validation else f"held out by {sides.by}", "half_width": half_width(len(sides.test.queries))}
    said += [f"{count:,} documents are left out: {_reason(name)}; the first is {report.first[name]}" for name, count in report.counts.items() if UNREADABLE in name]
    said += _sentences(sides, train, split)
    write_json(out / OWN_TEXTS, {"lines": said, "counts": counts, "split": split, "sources": dict(Counter(pair.source for pair in train)), "read": report.as_json()})
    for line in said:
        say(printable(line))
    return counts | {f"dropped_{re.sub(r'[^a-z0-9]+', '_', reason.lower()).strip('_')}": float(entry["count"]) for reason, entry in dropped.items()}


def _paths(given: Paths | None) -> list[Path]:
    """The paths of an argument: ``path:FILE``, a path, or several."""
    several = [given] if isinstance(given, str | Path) else list(given or ())
    return [Path(item) if isinstance(item, Path) else (outside_path(item) or Path(item)).expanduser() for item in several]


def _inputs(pairs: Paths | None, documents: Paths | None, collection: Paths | None) -> Inputs:
    """What is to be read; UserError where an argument holds something else than it says."""
    tables: list[Path] = []
    for path in _paths(pairs):
        if not path.exists():
            raise UserError(f"pairs: {path}: no such file or directory")
        found = tables_of(path)
        if not found:
            raise UserError(f"pairs: {path}: holds no table of pairs")
        tables += found
    folders = _paths(collection)
    if len(folders) > 1:
        raise UserError(f"collection: {', '.join(map(str, folders))}: one BEIR folder is taken, whose ids are those of one corpus")
    for folder in folders:
        if not is_beir(folder):
            raise UserError(f"collection: {folder}: holds no corpus.jsonl, so it is no BEIR folder")
    inputs = Inputs(tuple(tables), tuple(_paths(documents)), tuple(folders))
    if inputs == Inputs():
        raise UserError("own_pairs: give pairs, documents or collection (or several of them)")
    return inputs


def _check_bad(report: ReadReport, most: float) -> None:
    bad, records = sum(n for name, n in report.counts.items() if name.startswith("bad: ")), max(1, report.counts["records"])
    if bad > most * records and bad:
        place, reason = report.bad[0]
        raise UserError(f"own texts: {bad:,} of {records:,} rows are bad, more than max_bad_share = {most:g}; the first is {place}: {reason}")


def _own_test(
    paths: Sequence[Path], inputs: Inputs, kept: Sequence[OwnPair], options: Mapping[str, Any], min_score: float | None, most_passages: int, seed: int
) -> Collection | None:
    """The user's own queries and judgements, where there are any."""
    if not paths:
        folder = inputs.collections[0] if inputs.collections else None
        split = own_test_split(folder) if folder else None
        return read_collection(folder, split) if folder and split else None
    found = recognise(paths)
    if found.documents or len(found.collections) > 1 or (found.collections and found.pairs):
        raise UserError(f"test: {', '.join(map(str, paths))}: is neither one BEIR folder nor tables of pairs")
    if found.collections:
        (folder,) = found.collections
        split = own_test_split(folder)
        if split is None:
            raise UserError(f"test: {folder / 'qrels'}: has no judgements of the split test or dev")
        return read_collection(folder, split)
    report = ReadReport()
    own = without_repeats(read_pairs(found, options, min_score, report, []), None, report)
    _check_bad(report, 0.0)
    if not own:
        raise UserError("; ".join(report.warnings("test", 0)))
    return collection_of_tables(own, kept, most_passages, seed)


def _own_validation(inputs: Inputs) -> Collection | None:
    folder = inputs.collections[0] if inputs.collections else None
    split = validation_split(folder) if folder else None
    return read_collection(folder, split) if folder and split else None


def _whole_texts(inputs: Inputs, kept: Sequence[OwnPair]) -> dict[str, str] | None:
    """Of a BEIR corpus whose judged queries ask, id -> ``title text``: they are searched for among whole documents."""
    asks_N = asking(kept)
    if not inputs.collections or not any(pair.source == JUDGED and asks for pair, asks in zip(kept, asks_N.tolist(), strict=True)):
        return None
    return {row.id: row.with_title() for row in stored_texts(either(inputs.collections[0], "corpus.jsonl"), ReadReport())}


def _write_pairs(path: Path, pairs: Sequence[OwnPair]) -> None:
    import pyarrow as pa

    write_parquet(path, {name: pa.array([getattr(pair, name) for pair in pairs], pa.string()) for name in ("query", "passage", "source", "id")})


def _write_ranked(path: Path, pairs: Sequence[OwnPair], sides: OwnSides, report: ReadReport) -> list[int]:
    """Write the training groups of pairs with negatives, if there are any; returns the number of negatives of each.

    No negative is a positive of its query, nor an answer of a query that was held out.
    """
    import pyarrow as pa

    positives: dict[int, list[str]] = {}
    for pair in pairs:
        positives.setdefault(text_id(pair.query), []).append(pair.passage)
    held_out = {text_id(side.passages[key]) for side in (sides.test, sides.validation) if side for grades in side.qrels.values() for key in grades}
    groups, counts = [], Counter[str]()
    for pair in pairs:
        kept = tuple(negative for negative in pair.negatives if text_id(negative) not in held_out)
        counts["negative that answers a query of the test or validation"] += len(pair.negatives) - len(kept)
        others = tuple(text for text in positives[text_id(pair.query)] if text != pair.passage)
        if kept:
            (group,) = training_groups(RankedExample(pair.query, (pair.passage, *others), kept, None, pair.source), "first", counts)
            groups += [group] if group.negatives else []
    for reason, count in counts.items():
        report.skip("", reason.replace("_", " "), count)
    if groups:
        types = {
            "query": pa.string(), "positive": pa.string(), "negatives": pa.list_(pa.string()), "source": pa.string(),
            "passage_kind": pa.string(), "teacher_scores": pa.list_(pa.float32()),
        }  # fmt: skip
        write_parquet(path, {name: pa.array([getattr(group, name) for group in groups], kind) for name, kind in types.items()})
    return [len(group.negatives) for group in groups]


def _reason(name: str) -> str:
    """A count's reason, without what it begins with; empty for a count of what was read."""
    return name.partition(": ")[2] if name.startswith(("bad: ", "skipped: ", "cut: ")) else ""


def _counts(train: Sequence[OwnPair], triplets: Sequence[int], sides: OwnSides, read: Sequence[OwnPair]) -> dict[str, float]:
    validation = sides.validation
    return {
        "pairs_read": float(len(read)),
        "pairs": float(len(train)),
        "documents": float(len({pair.document or text_id(pair.passage) for pair in train})),
        "triplets": float(len(triplets)),
        "negatives": float(min(triplets, default=0)),
        "test_queries": float(len(sides.test.queries)),
        "test_passages": float(len(sides.test.passages)),
        "validation_queries": float(len(validation.queries) if validation else 0),
        "validation_passages": float(len(validation.passages) if validation else 0),
    }


def _sentences(sides: OwnSides, train: Sequence[OwnPair], split: Mapping[str, Any]) -> list[str]:
    test, by = sides.test, "no document" if sides.by == "document" else "no text (documents are too few or too large to hold some out)"
    said = [f"{len(train):,} pairs to train on; test: {len(test.queries):,} queries among {len(test.passages):,} passages ({split['test']})"]
    if split["test"] != "own":
        said.append(f"{by} is on two sides; a difference of nDCG@10 can be told to about +-{split['half_width']:.2f}")
    if sides.validation is not None:
        said.append(f"validation: {len(sides.validation.queries):,} queries among {len(sides.validation.passages):,} passages ({split['validation']})")
    return said
