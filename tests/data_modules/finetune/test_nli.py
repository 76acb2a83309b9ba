"""Natural language inference files: every layout and format gives the same triplets, and labels mean what the file means."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_modules.finetune.nli import Nli
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.types import RankedExample, ReadReport
from tests.data_modules.finetune.written import read, write_lines

ORDER = ["entailment", "neutral", "contradiction"]


def sentences(i: int) -> tuple[str, str, str]:
    return f"anchor {i}", f"entailed {i}", f"contradicted {i}"


def check_nli(found: list[RankedExample], count: int) -> None:
    corpus = {s for i in range(count) for s in sentences(i)}
    assert [(e.query, e.positives[0], e.negatives[0]) for e in found] == [sentences(i) for i in range(count)]
    for i, e in enumerate(found):
        assert e.passage_kind == "query" and e.teacher_scores is None and len(e.positives) == 1
        assert len(set(e.negatives)) == 7 and set(e.negatives) <= corpus - {f"anchor {i}", f"entailed {i}"}


def test_nli_in_all_its_layouts(tmp_path: Path) -> None:
    with (tmp_path / "simcse.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("sent0", "sent1", "hard_neg"), *map(sentences, range(6))])
    write_lines(tmp_path / "triplets.jsonl", [dict(zip(("anchor", "entailment", "contradiction"), sentences(i), strict=True)) for i in range(6)])
    labelled = []
    for i in range(6):
        anchor, entailed, contradicted = sentences(i)
        labelled += [(anchor, contradicted, "contradiction"), (anchor, "undecided", "-"), (anchor, f"neutral {i}", "neutral"), (anchor, entailed, "entailment")]
    write_lines(tmp_path / "snli.jsonl", [{"sentence1": a, "sentence2": b, "gold_label": label} for a, b, label in labelled])
    numbers = {"entailment": 0, "neutral": 1, "contradiction": 2, "-": -1}
    write_lines(tmp_path / "mnli.jsonl.gz", [{"premise": a, "hypothesis": b, "label": numbers[label]} for a, b, label in labelled])
    draws = []
    for name in ("simcse.csv", "triplets.jsonl", "snli.jsonl", "mnli.jsonl"):
        found, report = read(Nli(paths=[tmp_path / name], label_names=ORDER if name == "mnli.jsonl" else None))
        check_nli(found, 6)
        draws.append([e.negatives for e in found])
        assert report.counts.get("skipped: no agreed label", 0) == (6 if "nli" in name else 0) and not report.bad
    assert draws[0] == draws[1] == draws[2] == draws[3], "a function of the seed and the row"
    assert draws[0] != [e.negatives for e in read(Nli(paths=[tmp_path / "simcse.csv"], seed=1))[0]]


def test_nli_never_draws_what_the_anchor_entails(tmp_path: Path) -> None:
    rows = [{"premise": "P", "hypothesis": f"entailed {i}", "label": "entailment"} for i in range(8)]
    rows += [{"premise": "p ", "hypothesis": f"Contra {i}", "label": "contradiction"} for i in range(2)]
    rows += [{"premise": "P", "hypothesis": f"contra {i}", "label": "contradiction"} for i in range(2)]
    rows += [{"premise": f"other {i}", "hypothesis": f"{label} of {i}", "label": label} for i in range(4) for label in ("entailment", "contradiction")]
    for seed in range(20):
        found, report = read(Nli(paths=[write_lines(tmp_path / "nli.jsonl", rows)], seed=seed))
        assert len(found) == 12 and [e.negatives[0] for e in found[:3]] == ["contra 0", "contra 1", "contra 0"]
        for e in found[:8]:
            assert not any(n.startswith("entailed") or n.lower() == "p" for n in e.negatives)
    assert report.counts["skipped: premise without contradiction"] == 0


def labelled_pairs(words: tuple[Any, Any, Any], none: Any, count: int = 6) -> list[dict[str, Any]]:
    """Pairs of every label, worded as ``words`` says (entailment, neutral, contradiction), and one without."""
    rows = [
        {"sentence1": f"anchor {i}", "sentence2": f"{name} {i}", "gold_label": word}
        for i in range(count)
        for name, word in zip(("entailed", "neutral", "contradicted"), words, strict=True)
    ]
    return [*rows, {"sentence1": "anchor 0", "sentence2": "undecided", "gold_label": none}]


@pytest.mark.parametrize(
    ("words", "none", "names"),
    [
        (("entailment", "neutral", "contradiction"), "-", None),
        (("ENTAILMENT", "Neutral", "contradictory"), None, None),
        ((" entailment ", "neutral", "Contradiction"), "", None),
        ((0, 1, 2), -1, ORDER),
        ((1, 2, 0), -1, ["contradiction", "entailment", "neutral"]),
        ((0.0, 1.0, 2.0), -1.0, ORDER),
        (("2", "1.0", "0"), "-1", ["Contradiction", "neutral", "entailment"]),
    ],
)
def test_labels_in_every_wording(tmp_path: Path, words: tuple[Any, Any, Any], none: Any, names: list[str] | None) -> None:
    rows = labelled_pairs(words, none)
    found, report = read(Nli(paths=[write_lines(tmp_path / "nli.jsonl", rows)], label_names=names))
    check_nli(found, 6)
    assert report.counts == {"records": 19, "skipped: no agreed label": 1} and report.first["skipped: no agreed label"] == f"{tmp_path}/nli.jsonl:19"
    cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
    for name, delimiter in (("nli.csv", ","), ("nli.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as handle:
            csv.writer(handle, delimiter=delimiter, lineterminator="\n").writerows([rows[0].keys(), *cells])
        assert read(Nli(paths=[tmp_path / name], label_names=names))[0] == found
    write_parquet(tmp_path / "nli.parquet", pa.Table.from_pylist(rows))
    assert read(Nli(paths=[tmp_path / "nli.parquet"], label_names=names))[0] == found


@pytest.mark.parametrize(
    ("words", "names", "message"),
    [
        (("entailment", "neutral", "not_entailment"), None, r"nli\.jsonl:3: the label 'not_entailment' is none of entailment, neutral, contradiction"),
        (("entailment", "neutral", ["contradiction"]), None, r"nli\.jsonl:3: the label .* is none of"),
        ((True, False, "contradiction"), None, r"nli\.jsonl:1: the label 'True' is none of"),
        ((0, 1, 2), None, r"nli\.jsonl:1: the label 0 is a number, .* label_names: \[entailment, neutral, contradiction\].*\[contradiction, entailment, neutral\]"),
        (("entailment", 1, 2), None, r"nli\.jsonl:2: the label 1 is a number"),
        ((1, 2, 3), ORDER, r"nli\.jsonl:3: the label '3' is none of"),
        ((0.5, 1, 2), ORDER, r"nli\.jsonl:1: the label '0\.5' is none of"),
    ],
)
def test_an_unknown_label_is_named_and_numbers_need_their_order(tmp_path: Path, words: Any, names: list[str] | None, message: str) -> None:
    source = Nli(paths=[write_lines(tmp_path / "nli.jsonl", labelled_pairs(words, "-"))], label_names=names)
    with pytest.raises(UserError, match=message) as raised:
        list(source.read(ReadReport()))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("names", [["entailment", "neutral"], ["entailment", "neutral", "neutral"], ["a", "b", "c"], []])
def test_label_names_are_the_three_labels(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UserError, match=r"label_names: .* are not the three labels"):
        Nli(paths=[write_lines(tmp_path / "nli.jsonl", [])], label_names=names)


def test_the_order_of_the_labels_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "nli.jsonl", [])
    assert Nli(paths=[path], label_names=ORDER).fingerprint() != Nli(paths=[path], label_names=ORDER[::-1]).fingerprint()


def test_of_a_file_with_splits_the_training_part_is_read(tmp_path: Path) -> None:
    rows = [{"split": split, **row} for split in ("train", "dev") for row in labelled_pairs(("entailment", "neutral", "contradiction"), "-")]
    found, report = read(Nli(paths=[write_lines(tmp_path / "all.jsonl", rows)]))
    check_nli(found, 6)
    assert report.counts["skipped: another split"] == 19
    with pytest.raises(UserError, match=r"all\.jsonl: has no row of the split 'test' \(its column 'split' has: dev, train\)"):
        list(Nli(paths=[tmp_path / "all.jsonl"], split="test").read(ReadReport()))


def test_nli_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other\.jsonl:1: has the keys a, b, which are none of"):
        list(Nli(paths=[write_lines(tmp_path / "other.jsonl", [{"a": "x", "b": "y"}])]).read(ReadReport()))
    few = write_lines(tmp_path / "few.jsonl", [{"anchor": "a", "entailment": "b", "contradiction": "c"}])
    with pytest.raises(UserError, match=r"few\.jsonl: 3 different sentences are too few for 6 random negatives"):
        list(Nli(paths=[few]).read(ReadReport()))
    (tmp_path / "bad.csv").write_text("sent0,sent1,hard_neg\n" + "".join(f"a{i},b{i},c{i}\n" for i in range(5)) + "only,two\n,empty,cell\n")
    found, report = read(Nli(paths=[tmp_path / "bad.csv"]))
    assert len(found) == 5 and [place for place, _ in report.bad] == [f"{tmp_path}/bad.csv:7", f"{tmp_path}/bad.csv:8"]
    with pytest.raises(UserError, match=r"paths: .*absent\.csv: no such file"):
        Nli(paths=[tmp_path / "absent.csv"])


