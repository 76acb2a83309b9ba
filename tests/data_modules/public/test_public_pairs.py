"""Pairs of public data sets, each layout through a folder and through a hub on the loopback interface, and what is wrong in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.public.pairs import NomicPairs, SentenceTransformersPairs, TrainingListPairs
from data_modules.public.published import NOMIC_PAIR_SPLITS, NOMIC_TRIPLE_SPLITS, SENTENCE_TRANSFORMERS
from lightning_e5.curation.building.parts import part_key
from lightning_e5.errors import UserError
from lightning_e5.files.hub import SCHEME
from lightning_e5.types import ReadReport
from tests.data_modules.public.public_data import lines, nomic_pairs, parquet, read, split
from tests.lightning_e5.models.hub_server import COMMIT, hub

LISTS = {
    "NQ_pairs.jsonl.gz": [["who wrote dune", "A novel by Frank Herbert."], ["who", "He."]],
    "AllNLI.jsonl.gz": [["A man eats.", "Someone eats.", "Nobody eats."]],
    "WikiAnswers.jsonl.gz": [{"set": ["how tall?", "what height?", "how high?"]}, {"set": ["alone"]}],
    "msmarco.jsonl.gz": [{"query": "dune", "pos": ["A novel.", "A hill."], "neg": ["A fish."]}, {"query": "who", "pos": ["He."]}],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Data set -> its folder; and all of them on a hub."""
    root = tmp_path_factory.mktemp("public")
    nomic_pairs(root / "nomic")
    split(root / "gooaq" / "pair", "train", {"question": ["how tall?", "how far?"], "answer": ["Very.", "Not."]}, 2)
    split(root / "quora" / "triplet", "train", {"anchor": ["a?", "b?"], "positive": ["A?", "B?"], "negative": ["c?", "d?"]})
    for name, rows in LISTS.items():
        lines(root / "lists" / name, rows)
    folders = {
        "nomic-ai/nomic-embed-unsupervised-data": root / "nomic", "sentence-transformers/gooaq": root / "gooaq",
        "sentence-transformers/quora-duplicates": root / "quora", "sentence-transformers/embedding-training-data": root / "lists",
    }  # fmt: skip
    with hub({f"datasets/{name}": folder for name, folder in folders.items()}, root / "cache"):
        yield {**folders, "cache": root / "cache"}


def both(places: dict[str, Any], name: str, make: Any) -> Any:
    """A source of the folder, whose pairs are those of the Hub's, file by file."""
    here, there = make(str(places[name])), make(name)
    pairs, report = read(here)
    assert read(there) == (pairs, relocated(report, str(places[name]), f"{SCHEME}{name}@{COMMIT}"))
    assert [part.replace(f"{SCHEME}{name}@{COMMIT}", str(places[name])) for part in there.parts()] == here.parts()
    assert here.fingerprint()["files"] and not there.fingerprint()["files"]
    return here


def relocated(report: Any, old: str, new: str) -> Any:
    report.bad = [(place.replace(old, new), why) for place, why in report.bad]
    report.first = {key: place.replace(old, new) for key, place in report.first.items()}
    return report


def test_nomic_pairs(places: dict[str, Any]) -> None:
    name = "nomic-ai/nomic-embed-unsupervised-data"
    both(places, name, lambda place: NomicPairs(place, splits=["squad", "reddit_title_body"]))
    source = NomicPairs(str(places[name]))
    pairs, report = read(source)
    assert len(source.parts()) == 30 and report.counts == {"records": 29 * 12, "pairs": 29 * 12}
    assert {pair.source for pair in pairs} == set(NOMIC_PAIR_SPLITS)
    squad = [pair for pair in pairs if pair.source == "squad"]
    assert squad[1].query == "what is squad number 1" and squad[1].passage.startswith("squad number 1 is")
    assert "gte-base" in source.filtered_by
    chosen = NomicPairs(str(places[name]), splits=["squad", "reddit_title_body"])
    assert [Path(part).name for part in chosen.parts()] == [
        "squad-00000-of-00001.parquet", "reddit_title_body-00000-of-00002.parquet", "reddit_title_body-00001-of-00002.parquet",
    ]  # fmt: skip
    assert NomicPairs(str(places[name] / "data"), splits=["quora"]).parts() == [str(places[name] / "data" / "quora-00000-of-00001.parquet")]
    assert chosen.fingerprint() != source.fingerprint()


def test_a_part_is_a_file_that_any_process_reads_alone(places: dict[str, Any]) -> None:
    """So that a build that was killed goes on behind its last finished file (`lightning_e5.curation.building.parts`)."""
    source = NomicPairs(splits=["reddit_title_body"])
    keys = [part_key(source, part, [], None, None) for part in source.parts()]
    assert len(set(keys)) == 2 and keys == [part_key(NomicPairs(splits=["reddit_title_body"]), part, [], None, None) for part in source.parts()]
    other = pickle.loads(pickle.dumps(NomicPairs(splits=["reddit_title_body"])))
    alone = [list(other.read(part, ReadReport())) for part in reversed(source.parts())]
    assert [*alone[1], *alone[0]] == read(source)[0] and alone[0]


def test_parquet_is_streamed_and_lists_are_fetched(places: dict[str, Any]) -> None:
    read(NomicPairs(splits=["squad"]))
    read(TrainingListPairs(files=["AllNLI.jsonl.gz"]))
    kept = {path.name for path in places["cache"].rglob("*") if path.is_symlink()}
    assert "AllNLI.jsonl.gz" in kept and not any(name.endswith(".parquet") for name in kept)


def test_sentence_transformers(places: dict[str, Any]) -> None:
    source = both(places, "sentence-transformers/gooaq", lambda place: SentenceTransformersPairs("gooaq/pair", place=place))
    assert [(p.query, p.passage, p.source) for p in read(source)[0]] == [("how tall?", "Very.", "gooaq"), ("how far?", "Not.", "gooaq")]
    assert SentenceTransformersPairs("gooaq").parts() == SentenceTransformersPairs("gooaq/pair").parts()
    triplets = SentenceTransformersPairs("quora-duplicates/triplet", name="quora")
    assert [(p.query, p.passage, p.source) for p in read(triplets)[0]] == [("a?", "A?", "quora"), ("b?", "B?", "quora")]


def test_training_lists(places: dict[str, Any]) -> None:
    source = both(places, "sentence-transformers/embedding-training-data", lambda place: TrainingListPairs(place, files=sorted(LISTS)))
    pairs, report = read(source)
    found: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        found.setdefault(pair.source, []).append((pair.query, pair.passage))
    assert found == {
        "AllNLI": [("A man eats.", "Someone eats.")],
        "NQ_pairs": [("who wrote dune", "A novel by Frank Herbert."), ("who", "He.")],
        "WikiAnswers": [("how tall?", "what height?"), ("what height?", "how high?")],
        "msmarco": [("dune", "A novel."), ("dune", "A hill."), ("who", "He.")],
    }
    assert report.counts == {"records": 7, "pairs": 8, "skipped: no second text": 1}
    assert read(TrainingListPairs(str(places["sentence-transformers/embedding-training-data"])))[0] == pairs


def test_what_is_published_is_known_to_check() -> None:
    assert sum(NOMIC_PAIR_SPLITS.values()) == NomicPairs.published_rows({}) == 238_998_494
    assert sum(rows for rows, _ in NOMIC_TRIPLE_SPLITS.values()) == 1_695_819
    assert NomicPairs.published_rows({"splits": ["quora", "squad"]}) == 44_885 + 25_117
    assert NomicPairs.published_rows({"splits": ["quora", "ours"]}) is None
    assert SentenceTransformersPairs.published_rows({"data_set": "gooaq"}) == 3_012_496
    assert all(len({*columns[:2], *columns.negatives}) == 2 + len(columns.negatives) for columns in SENTENCE_TRANSFORMERS.values())


def test_wrong_names(places: dict[str, Any], tmp_path: Path) -> None:
    nomic = str(places["nomic-ai/nomic-embed-unsupervised-data"])
    lists = str(places["sentence-transformers/embedding-training-data"])
    (tmp_path / "empty").mkdir()
    for make, message in (
        (lambda: NomicPairs(nomic, splits=["quorra"]).parts(), rf"^splits: 'quorra' is no split of {re.escape(nomic)}; did you mean 'quora'\?$"),
        (lambda: NomicPairs(nomic, splits=["quora", "quora"]).parts(), "^splits: 'quora' is named twice$"),
        (lambda: NomicPairs(nomic, splits=[]).parts(), "^splits: is an empty list; leave it out"),
        (lambda: NomicPairs(str(tmp_path / "none")).parts(), r"none: no such folder \(a data set on the Hub is named OWNER/NAME\)$"),
        (lambda: NomicPairs(str(tmp_path / "empty")).parts(), r"empty: has no data/\*\.parquet or \*\.parquet of the form SPLIT-00000-of-00001"),
        (lambda: NomicPairs("nomic-ai/nomic-embed").parts(), "^nomic-ai/nomic-embed: no such folder, and it cannot be had from the Hub"),
        (lambda: SentenceTransformersPairs("goaq"), "^data_set: 'goaq' is none of sentence-transformers' sets that are known here; did you mean 'gooaq'"),
        (lambda: SentenceTransformersPairs("quora-duplicates"), "'quora-duplicates' has several subsets; name one of quora-duplicates/pair, "),
        (lambda: SentenceTransformersPairs("gooaq", split="test").parts(), r"^split: 'test' is no split of sentence-transformers/gooaq"),
        (lambda: TrainingListPairs(), "^files: names none of the lists of sentence-transformers/embedding-training-data"),
        (lambda: TrainingListPairs(lists, files=["AllNL.jsonl.gz"]).parts(), "has no 'AllNL.jsonl.gz'; did you mean 'AllNLI.jsonl.gz'"),
        (lambda: TrainingListPairs(str(tmp_path / "empty")).parts(), r"empty: holds no \*\.jsonl\.gz"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as raised:
            make()  # type: ignore[no-untyped-call]
        assert "\n" not in str(raised.value)


def test_wrong_files(tmp_path: Path) -> None:
    good = {"query": ["q"], "document": ["d"]}
    for columns, message in (
        ({"querry": ["q"], "document": ["d"]}, r"quora-00000-of-00001\.parquet: lacks the column 'query'; did you mean 'querry'"),
        ({"query": ["q"], "document": [3]}, r"column 'document' holds int64, and the rule is texts$"),
        ({"query": ["q"], "document": [["d"]]}, r"column 'document' holds list<.*string>, and the rule is texts$"),
    ):
        parquet(tmp_path / "data" / "quora-00000-of-00001.parquet", columns)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            read(NomicPairs(str(tmp_path)))
    parquet(tmp_path / "data" / "quora-00000-of-00001.parquet", {"query": ["q", None, "r"], "document": ["d", "e", " "]})
    pairs, report = read(NomicPairs(str(tmp_path)))
    assert [p.query for p in pairs] == ["q"] and report.counts == {"records": 3, "pairs": 1, "skipped: no query": 1, "skipped: no passage": 1}
    parquet(tmp_path / "data" / "squad-00001-of-00002.parquet", good)
    with pytest.raises(UserError, match=r"lacks data/squad-00000-of-00002\.parquet, one of the 2 files of squad$"):
        NomicPairs(str(tmp_path)).parts()
    (tmp_path / "data" / "squad-00000-of-00002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"squad-00000-of-00002\.parquet: is no readable Parquet file \("):
        read(NomicPairs(str(tmp_path)))
    lines(tmp_path / "lists" / "a.jsonl.gz", [["a", "b"], ["a"], {"query": "q"}, [1, 2], b"{", {"query": "q", "pos": "p"}])
    pairs, report = read(TrainingListPairs(str(tmp_path / "lists")))
    assert [p.query for p in pairs] == ["a", "q"]
    assert report.counts["bad: a line of no known layout"] == 3 and report.counts["bad: not JSON"] == 1
    for first, message in (({"text": "a"}, r"a\.jsonl\.gz:1: it is none of .*it has the keys text\)$"), (["a"], r"a\.jsonl\.gz:1: it is none of")):
        lines(tmp_path / "lists" / "a.jsonl.gz", [first])
        with pytest.raises(UserError, match=message):
            read(TrainingListPairs(str(tmp_path / "lists")))
