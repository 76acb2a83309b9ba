"""A drawn collection holds the drawn queries, all that was judged for them, and as many other passages as were asked for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.stages.draw_pairs import draw_collection


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """40 passages; 20 queries with a relevant one and one judged 0, of which q0 has no text and the passage of q1 is not there."""
    folder = tmp_path / "all"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": f"Title {i}", "text": f"text {i} – ä"} for i in range(40) if i != 1]
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": f"question {i}"}) + "\n" for i in range(1, 20)))
    lines = "".join(f"q{i}\td{i}\t2\nq{i}\td{39 - i}\t0\n" for i in range(20))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def drawn(collection: Path, out: Path, **options: int) -> dict[str, float]:
    return draw_collection(out, collection=collection, split="dev", **{"queries": 6, "seed": 1, **options})


def test_it_keeps_what_was_judged_as_it_was(collection: Path, tmp_path: Path) -> None:
    counts = drawn(collection, tmp_path / "a")
    whole, part = load_beir(collection, "dev"), load_beir(tmp_path / "a", "dev")
    assert counts == {"queries": 6, "of_queries": 18, "passages": 12, "of_passages": 39, "judgements": 12}
    assert len(part.queries) == 6 and not {"q0", "q1"} & set(part.queries)
    assert all(part.queries[q] == whole.queries[q] and part.qrels[q] == whole.qrels[q] for q in part.queries)
    assert set(part.corpus) == {p for grades in part.qrels.values() for p in grades}
    assert all(part.corpus[p] == whole.corpus[p] for p in part.corpus) and part.missing_documents == 0


def test_others_are_drawn_beside_and_the_seed_decides(collection: Path, tmp_path: Path) -> None:
    assert drawn(collection, tmp_path / "a", passages_per_relevant=3)["passages"] == 12 + 2 * 6
    drawn(collection, tmp_path / "b", passages_per_relevant=3)
    drawn(collection, tmp_path / "c", passages_per_relevant=3, seed=2)
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "abc"]
    assert list(files[0].values()) == list(files[1].values()) != list(files[2].values())
    assert drawn(collection, tmp_path / "d", queries=100, passages_per_relevant=9)["passages"] == 39  # all that there are


def test_a_split_without_a_relevant_passage_is_refused(collection: Path, tmp_path: Path) -> None:
    (collection / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\nq2\td2\t0\n")
    with pytest.raises(UserError, match="no query of the split 'dev' has both a text and a relevant passage"):
        drawn(collection, tmp_path / "a")
    with pytest.raises(UserError, match=r"test\.tsv: no such file"):
        draw_collection(tmp_path / "b", collection=collection, queries=1, seed=1)
