"""Queries with hard negatives of public data sets, each layout through a folder and through a hub on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.finetune.msmarco import SimLMRanked, TevatronRanked
from data_modules.public.ranked import NomicTriples, SentenceTransformersTriplets, TrainingListGroups
from lightning_e5.errors import UserError
from lightning_e5.types import RankedExample
from tests.data_modules.public.public_data import lines, nomic_triples, parquet, ranked, split
from tests.lightning_e5.models.hub_server import hub

MSMARCO = "msmarco_distillation_simlm_rescored_reranked_min15"
LISTS = "sentence-transformers/embedding-training-data"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Data set -> its folder; and all of them on a hub."""
    root = tmp_path_factory.mktemp("public")
    nomic_triples(root / "nomic")
    columns = {"query": ["q0", "q1"], "positive": ["p0", "p1"]} | {f"negative_{n}": [f"n{n} of 0", f"n{n} of 1"] for n in range(1, 51)}
    split(root / "bm25" / "triplet-50", "train", columns, 2)
    split(root / "nli" / "triplet", "train", {"anchor": ["a"], "positive": ["b"], "negative": ["c"]})
    lines(root / "lists" / "AllNLI.jsonl.gz", [["A man eats.", "Someone eats.", "Nobody eats."], {"set": ["a", "b"]}, ["x", " ", "y"]])
    lines(root / "lists" / "msmarco.jsonl.gz", [{"query": "dune", "pos": ["A novel.", "A book."], "neg": ["A hill.", "", "A fish."]}])
    side = {"doc_id": ["1"], "score": [9.5]}
    lines(root / "simlm" / "kd_train.jsonl.gz", [{"query_id": "1", "query": "who wrote dune", "positives": side, "negatives": {"doc_id": ["0", "2"], "score": [3, 1.5]}}])
    lines(root / "simlm" / "passages.jsonl.gz", [{"id": str(n), "contents": f"passage {n}", "title": "-"} for n in range(3)])
    passages = [{"docid": str(n), "title": "Dune" if n else "", "text": f"passage {n}"} for n in range(3)]
    lines(root / "tevatron" / "train.jsonl.gz", [{"query_id": "1", "query": "dune", "positive_passages": passages[1:2], "negative_passages": [passages[0], passages[2]]}])
    folders = {
        "nomic-ai/nomic-embed-supervised-data": root / "nomic", "sentence-transformers/msmarco-bm25": root / "bm25",
        "sentence-transformers/all-nli": root / "nli", LISTS: root / "lists", "intfloat/simlm-msmarco": root / "simlm",
        "Tevatron/msmarco-passage": root / "tevatron",
    }  # fmt: skip
    with hub({f"datasets/{name}": folder for name, folder in folders.items()}, root / "cache"):
        yield folders


def both(places: dict[str, Path], name: str, make: Any) -> list[RankedExample]:
    """What a source of the folder gives, and with it the Hub's."""
    examples, report = ranked(make(str(places[name])))
    there, counted = ranked(make(name))
    assert there == examples and counted.counts == report.counts and examples
    assert make(str(places[name])).fingerprint() != make(name).fingerprint()
    return examples


def test_nomic_triples(places: dict[str, Path]) -> None:
    name = "nomic-ai/nomic-embed-supervised-data"
    examples = both(places, name, lambda place: NomicTriples(place=place, split=MSMARCO, max_negatives=7))
    assert len(examples) == 10 and examples[3] == RankedExample(
        f"who wrote {MSMARCO} 3", (f"{MSMARCO} 3 was written by author 3",),
        tuple(f"{MSMARCO} 3 was not written by author {n}" for n in range(7)), None, MSMARCO, "passage",
    )  # fmt: skip
    alike = both(places, name, lambda place: NomicTriples(place=place, split="medi_sts_flickr_sampled", name="flickr"))
    assert {(e.source, e.passage_kind, len(e.negatives)) for e in alike} == {("flickr", "query", 1)}
    assert ranked(NomicTriples(split="medi_sts_flickr_sampled", passage_kind="passage"))[0][0].passage_kind == "passage"


def test_rows_with_few_negatives_are_filled_up(places: dict[str, Path], tmp_path: Path) -> None:
    def filled(seed: int = 0, place: str = "nomic-ai/nomic-embed-supervised-data", fill_up_to: int = 7) -> list[RankedExample]:
        return ranked(NomicTriples(place=place, split="medi_sts_flickr_sampled", fill_up_to=fill_up_to, seed=seed))[0]

    before = filled(fill_up_to=0)
    documents = {e.positives[0] for e in before}
    for old, new in zip(before, filled(), strict=True):
        assert new.negatives[0] == old.negatives[0] and len(set(new.negatives)) == 7
        assert set(new.negatives[1:]) < documents - {new.positives[0]}
    assert filled() == filled() != filled(seed=1)
    # Two documents of one query are never its negatives; a row that has enough stands first and stays as it is.
    columns = {"query": ["q", "q", "r"], "document": ["one", "two", "three"], "negative": [["n"], [], ["a", "b"]]}
    split(tmp_path / "data", "medi_sts_flickr_sampled", columns)
    assert [(e.query, e.negatives) for e in filled(place=str(tmp_path), fill_up_to=2)] == [("r", ("a", "b")), ("q", ("n", "three")), ("q", ("three",))]
    # Of many documents, too, where places are drawn one after the other.
    many = {"query": [f"q{n}" for n in range(300)], "document": [f"d{n}" for n in range(300)], "negative": [["n"]] * 300}
    split(tmp_path / "data", "medi_sts_flickr_sampled", many)
    found = filled(place=str(tmp_path))
    assert all(len(set(e.negatives)) == 7 and e.positives[0] not in e.negatives for e in found)
    assert len({text for e in found for text in e.negatives}) > 290  # nearly all of them are drawn by some row


def test_sentence_transformers_triplets(places: dict[str, Path]) -> None:
    examples = both(places, "sentence-transformers/msmarco-bm25", lambda place: SentenceTransformersTriplets(data_set="msmarco-bm25/triplet-50", place=place))
    assert [(e.query, e.positives, len(e.negatives), e.negatives[49]) for e in examples] == [("q0", ("p0",), 50, "n50 of 0"), ("q1", ("p1",), 50, "n50 of 1")]
    (few, _) = ranked(SentenceTransformersTriplets(data_set="msmarco-bm25/triplet-50", max_negatives=2))[0]
    assert few.negatives == ("n1 of 0", "n2 of 0")
    assert ranked(SentenceTransformersTriplets(data_set="all-nli/triplet", name="nli"))[0] == [RankedExample("a", ("b",), ("c",), None, "nli", "query")]


def test_training_lists(places: dict[str, Path]) -> None:
    examples = both(places, LISTS, lambda place: TrainingListGroups(file="AllNLI.jsonl.gz", place=place, passage_kind="query"))
    assert examples == [RankedExample("A man eats.", ("Someone eats.",), ("Nobody eats.",), None, "AllNLI", "query")]
    counts = ranked(TrainingListGroups(file="AllNLI.jsonl.gz"))[1].counts
    assert counts["skipped: a set of texts, which has no query"] == counts["bad: no positive"] == counts["skipped: passage without text"] == 1
    (found,) = both(places, LISTS, lambda place: TrainingListGroups(file="msmarco.jsonl.gz", place=place, name="ms"))
    assert found == RankedExample("dune", ("A novel.", "A book."), ("A hill.", "A fish."), None, "ms")


def test_simlm_and_tevatron_files_may_be_on_the_hub(places: dict[str, Path]) -> None:
    def simlm(root: str) -> SimLMRanked:
        return SimLMRanked(examples=Path(f"{root}/kd_train.jsonl.gz"), passages=Path(f"{root}/passages.jsonl.gz"), teacher_scores=True)

    expected = RankedExample("who wrote dune", ("passage 1",), ("passage 0", "passage 2"), (9.5, 3.0, 1.5), "msmarco")
    assert ranked(simlm(str(places["intfloat/simlm-msmarco"])))[0] == ranked(simlm("hf://datasets/intfloat/simlm-msmarco"))[0] == [expected]
    here = TevatronRanked(path=places["Tevatron/msmarco-passage"] / "train.jsonl.gz")
    there = TevatronRanked(path="hf://datasets/Tevatron/msmarco-passage@main/train.jsonl.gz")  # type: ignore[arg-type]
    assert ranked(here)[0] == ranked(there)[0] == [RankedExample("dune", ("Dune passage 1",), ("passage 0", "Dune passage 2"), None, "msmarco")]
    with pytest.raises(UserError, match=r"^hf:/datasets/Tevatron/msmarco/train.jsonl.gz: .* it cannot be had from the Hub"):
        TevatronRanked(path=Path("hf://datasets/Tevatron/msmarco/train.jsonl.gz"))


def test_what_is_wrong_is_one_sentence(places: dict[str, Path], tmp_path: Path) -> None:
    nomic = str(places["nomic-ai/nomic-embed-supervised-data"])
    for make, message in (
        (lambda: NomicTriples(place=nomic, split="fever"), r"^split: 'fever' is no split of .*did you mean 'fever_hn_mine'|known: fever_hn_mine"),
        (lambda: NomicTriples(split="fever_hn_mine", max_negatives=3, fill_up_to=7), "^fill_up_to: 7 is more than max_negatives: 3$"),
        (lambda: SentenceTransformersTriplets(data_set="all-nl/triplet"), "did you mean 'all-nli/triplet'"),
        (lambda: TrainingListGroups(file="AllNL.jsonl.gz"), f"^files: {LISTS} has no 'AllNL.jsonl.gz'; did you mean 'AllNLI.jsonl.gz'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as raised:
            ranked(make())  # type: ignore[no-untyped-call]
        assert "\n" not in str(raised.value)
    for columns, message in (
        ({"query": ["q"], "document": ["d"]}, r"own-00000-of-00001\.parquet: lacks the column 'negative'"),
        ({"query": ["q"], "document": ["d"], "negative": ["n"]}, "column 'negative' holds string, and the rule is lists of texts$"),
        ({"query": ["q"], "document": ["d"], "negative": [[1]]}, r"column 'negative' holds list<.*int64>, and the rule is lists of texts$"),
    ):
        parquet(tmp_path / "own-00000-of-00001.parquet", columns)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            ranked(NomicTriples(place=str(tmp_path), split="own"))
    parquet(tmp_path / "own-00000-of-00001.parquet", {"query": ["q", None, "r"], "document": ["d", "d", " "], "negative": [["n", " ", None], [], None]})
    examples, report = ranked(NomicTriples(place=str(tmp_path), split="own"))
    assert examples == [RankedExample("q", ("d",), ("n",), None, "own")]
    assert report.counts == {"records": 3, "skipped: passage without text": 2, "bad: no query": 1, "bad: no positive": 1}
