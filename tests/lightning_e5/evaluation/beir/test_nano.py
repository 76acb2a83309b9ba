"""NanoBEIR from files of both public layouts, in a folder and on a hub (a server on the loopback interface)."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.average import BEIR15, NANO_BEIR, beir_averages
from lightning_e5.evaluation.beir.data import load_beir, write_beir
from lightning_e5.evaluation.beir.nano import EACH, NANO_HUB, load_nano_beir, load_nano_set, nano_files
from lightning_e5.evaluation.beir.sets import BEIR_SETS, NANO_SETS
from lightning_e5.evaluation.tasks.retrieval import CollectionTask
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import read_json, sha256_file
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.report.tables.summary import summary_table
from lightning_e5.results.outcomes import judgements, outcomes
from lightning_e5.results.run import RunData
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate
from tests.lightning_e5.models.hub_server import hub_server

Texts = Mapping[str, str]
Pairs = Iterable[tuple[str, str]]
OWNER = "zeta-alpha-ai"
#: An argument of ArguAna that lies in its corpus, and its counterargument.
DEBATE: dict[str, Any] = {
    "corpus": {"a": "cars are loud in the city", "b": "cars are quiet in the city", "c": "fish"},
    "queries": {"a": "cars are loud in the city"}, "qrels": [("a", "b")],
}  # fmt: skip


def write(folder: Path, stem: str, corpus: Texts, queries: Texts, qrels: Pairs) -> None:
    """The three files of a set."""
    for part, texts in (("corpus", corpus), ("queries", queries)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        write_parquet(folder / part / f"{stem}-00000-of-00001.parquet", {"_id": list(texts), "text": list(texts.values())})
    (folder / "qrels").mkdir(exist_ok=True)
    pairs = list(qrels)
    columns = {"query-id": [query for query, _ in pairs], "corpus-id": [document for _, document in pairs]}
    write_parquet(folder / "qrels" / f"{stem}-00000-of-00001.parquet", columns)


def toy(number: int) -> dict[str, Any]:
    """Two queries, of which BM25 answers ``number % 3``: it finds their passage at rank 1, and that of the others never."""
    words = ["apple", "bridge"]
    corpus = {f"d{i}": f"{word} tree of set {number}" for i, word in enumerate(words)} | {"x": "nothing in common"}
    return {
        "corpus": corpus, "queries": {f"q{i}": word for i, word in enumerate(words)} | {"not judged": "tree"},
        "qrels": [(f"q{i}", f"d{i}" if i < number % 3 else "x") for i in range(2)],
    }  # fmt: skip


def one_data_set(folder: Path) -> Path:
    """The layout of sentence-transformers/NanoBEIR-en, where rankings of BM25 lie beside."""
    for number, file_name in enumerate(NANO_SETS.values()):
        write(folder, file_name, **toy(number))
        write_parquet(folder / "bm25" / f"{file_name}-00000-of-00001.parquet", {"query-id": ["q0"], "corpus-ids": [["d0"]]})
    return folder


def one_per_set(folder: Path) -> Path:
    """The layout of zeta-alpha-ai/Nano*."""
    for number, file_name in enumerate(NANO_SETS.values()):
        write(folder / file_name, "train", **toy(number))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_data_set(tmp_path_factory.mktemp("nano") / "NanoBEIR-en")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_per_set(tmp_path_factory.mktemp("zeta"))


def test_both_layouts_are_the_same_thirteen_sets(whole: Path, apart: Path) -> None:
    assert set(NANO_SETS) == {f"nano-{name}" for name in BEIR_SETS if name not in ("trec-covid", "cqadupstack")}
    collections = load_nano_beir(whole)
    assert [collection.data for collection in collections] == [collection.data for collection in load_nano_beir(apart)]
    assert [collection.data.name for collection in collections] == list(NANO_SETS)
    for number, collection in enumerate(collections):
        made = toy(number)
        assert dict(collection.data.corpus) == made["corpus"] and collection.data.split == ("dev" if collection.data.name == "nano-msmarco" else "test")
        assert collection.data.queries == {"q0": "apple", "q1": "bridge"}  # the judged ones
        assert collection.data.qrels == {query: {document: 1} for query, document in made["qrels"]}
        assert collection.benchmark_set == collection.data.name
    some = load_nano_beir(apart, ["nano-nq", "nano-fever"])
    assert [collection.data.name for collection in some] == ["nano-nq", "nano-fever"]
    (alone,) = load_nano_beir(apart / "NanoTouche2020")
    assert alone.data.name == "nano-webis-touche2020"


def test_the_identity_is_that_of_the_contents(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    assert [files.sha256() for files in nano_files(copy)] == [files.sha256() for files in nano_files(whole)]
    write(copy, "NanoNQ", **{**toy(0), "queries": {"q0": "apples", "q1": "bridge"}})
    names = [a.name for a, b in zip(nano_files(copy), nano_files(whole), strict=True) if a.sha256() != b.sha256()]
    assert names == ["nano-nq"]
    (collection,) = load_nano_beir(copy, names)
    assert collection.facts()["sha256"] == collection.sha256 == nano_files(copy, names)[0].sha256()


def test_a_set_has_the_rules_of_its_full_set(tmp_path: Path, encoder_folder: Path) -> None:
    write(tmp_path, "NanoArguAna", **DEBATE)
    write(tmp_path, "NanoQuoraRetrieval", {"d1": "how do I fly", "d2": "how do I walk"}, {"q1": "ways to fly"}, [("q1", "d1")])
    arguana, quora = nano_files(tmp_path, ["nano-arguana", "nano-quora"])
    assert load_nano_set(quora).texts() == {"query": ["ways to fly", "how do I fly", "how do I walk"]}
    assert load_nano_set(quora, "none").texts() == {"query": ["ways to fly"], "passage": ["how do I fly", "how do I walk"]}
    assert load_nano_set(quora, BEIR_SETS["quora"]).benchmark_set == "nano-quora"
    assert load_nano_set(quora, BEIR_SETS["nq"]).benchmark_set is load_nano_set(quora, "none").benchmark_set is None
    assert load_nano_set(arguana).facts()["rules"] == {"beir": "arguana", "split": "test", "queries_are_documents": True}
    for searcher in (BM25(), TextEncoder.from_pretrained(encoder_folder)):
        assert "a" not in CollectionTask(load_nano_set(arguana)).evaluate(searcher).found.run["a"]  # type: ignore[union-attr]
        assert next(iter(CollectionTask(load_nano_set(arguana, "none")).evaluate(searcher).found.run["a"])) == "a"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="nano-quora: the rules of cqadupstack are those of 12 forums, which no set of NanoBEIR has"):
        load_nano_set(quora, BEIR_SETS["cqadupstack"])


def test_documents_without_a_text_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = {"d0": "apple tree", "none": "", "blank": " ", "too": ""}
    write(tmp_path, "NanoSCIDOCS", corpus, {"q": "apple", "unread": ""}, [("q", "d0"), ("q", "none"), ("q", "d0")])
    (collection,) = load_nano_beir(tmp_path, ["nano-scidocs"])
    assert collection.data.corpus == {"d0": "apple tree", "blank": ""}
    assert collection.data.left_out == {"documents_without_text": 2, "repeated_judgements": 1} and collection.data.missing_documents == 1
    metrics = evaluate(tmp_path / "out", nano_beir=tmp_path, nano_sets=["nano-scidocs"], baselines={"bm25": BM25()}, seed=0)
    assert metrics["bm25/nano-scidocs/ndcg@10"] == pytest.approx(1 / (1 + 1 / np.log2(3)))  # found at rank 1, and none at rank 2
    assert "nano-scidocs: 2 documents without a text are left out; 1 judgements name one of them" in capsys.readouterr().err


def test_all_thirteen_give_their_mean(whole: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"baselines": {"bm25": BM25()}, "seed": 0, "nano_beir": str(whole)}
    metrics = evaluate(tmp_path / "out", published={"bm25": {"nano-beir/ndcg@10": 0.5}}, **given)
    shares = [number % 3 / 2 for number in range(13)]
    assert [metrics[f"bm25/{name}/ndcg@10"] for name in NANO_SETS] == shares
    assert metrics["bm25/nano-beir/ndcg@10"] == pytest.approx(np.mean(shares)) and "bm25/beir15/ndcg@10" not in metrics
    (row,) = read_json(tmp_path / "out" / "tasks.json")
    assert (row["set"], row["published"], row["items"]) == (NANO_BEIR, 0.5, 26)
    assert row["sets"] == pytest.approx(dict(zip(NANO_SETS, shares, strict=True))) and row["low"] < row["value"] < row["high"]
    first = read_json(tmp_path / "out" / "table.json")[0]
    assert first["rules"]["beir"] == "climate-fever" and first["sha256"] == nano_files(whole)[0].sha256()
    for part in ({"nano_sets": list(NANO_SETS)[1:]}, {"rules": {"nano-arguana": "none"}}):
        assert "bm25/nano-beir/ndcg@10" not in evaluate(tmp_path / next(iter(part)), **part, **given)


def test_each_benchmark_has_its_own_average() -> None:
    full = {name: {"m": [np.array([0.0, 1.0])]} for name in BEIR_SETS}
    nano = {name: {"m": [np.array([1.0, 1.0, 0.25])]} for name in NANO_SETS}
    assert [(row.collection, row.value) for row in beir_averages({**full, **nano}, 0)] == [(BEIR15, 0.5), (NANO_BEIR, pytest.approx(0.75))]
    del nano["nano-nq"]
    assert [row.collection for row in beir_averages({**nano, **full}, 0)] == [BEIR15]
    assert beir_averages(nano, 0) == beir_averages({}, 0) == []


@pytest.fixture
def at_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Call it with the address of the hub; what is fetched is kept in ``tmp_path / "hub"``."""
    from huggingface_hub import close_session, constants

    def connect(endpoint: str) -> None:
        close_session()  # it has read the environment
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    yield connect
    close_session()


def test_the_hub_gives_what_the_folders_hold(whole: Path, apart: Path, tmp_path: Path, at_hub: Callable[[str], None]) -> None:
    repositories = {f"datasets/{NANO_HUB}": whole} | {f"datasets/{OWNER}/{name}": apart / name for name in NANO_SETS.values()}
    with hub_server(repositories) as endpoint:
        at_hub(endpoint)
        some = load_nano_beir(sets=["nano-nq"])
        assert {path.name for path in (tmp_path / "hub").rglob("*.parquet")} == {"NanoNQ-00000-of-00001.parquet"}
        found = load_nano_beir()
        assert [c.data for c in found] == [c.data for c in load_nano_beir(whole)] and some[0] == found[list(NANO_SETS).index("nano-nq")]
        assert not list((tmp_path / "hub").rglob("bm25"))
        assert [c.data for c in load_nano_beir(f"{OWNER}/{EACH}")] == [c.data for c in found]
        (alone,) = load_nano_beir(f"{OWNER}/NanoFiQA2018")
        assert alone.data.name == "nano-fiqa"
        with pytest.raises(UserError, match=r"zeta-alpha-ai/NanoFiQA2018: lacks nano-nq \(there is neither"):
            load_nano_beir(f"{OWNER}/NanoFiQA2018", ["nano-nq"])
        with pytest.raises(UserError, match=r"^nobody/NanoNQ: no such folder, and it cannot be fetched \(the Hub cannot be reached or has no such data set\)"):
            load_nano_beir(f"nobody/{EACH}", ["nano-nq"])
    # The server is gone: what was fetched is found again, what was not ends in one sentence.
    assert load_nano_beir() == found
    with pytest.raises(UserError, match=r"^nobody/nano: no such folder, and it cannot be fetched .* holds NanoBEIR's Parquet files$") as raised:
        load_nano_beir("nobody/nano")
    assert "\n" not in str(raised.value)


def test_the_command_evaluates_on_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--model", "bm25", "--nano-beir"]
    assert main([*command, str(whole), "--details", str(tmp_path / "details")]) == 0
    printed = capsys.readouterr().out
    assert "nano-climate-fever" in printed and "nano-beir" in printed
    assert len(read_json(tmp_path / "details" / "table.json")) == 13
    assert main([*command, str(whole), "--nano-sets", "nano-nq", "nano-fiqa", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "nano-nq" in printed and "nano-fiqa" in printed and "nano-fever" not in printed and "nano-beir" not in printed
    assert main([*command, "--nano-sets", "nano-nq"]) == 2  # tests have no network
    said = capsys.readouterr().err
    assert f"{NANO_HUB}: no such folder, and it cannot be fetched" in said and "Traceback" not in said
    assert main([*command, str(whole), "--nano-sets", "nano-mq"]) == 2
    assert "'nano-mq' is not one of NanoBEIR's sets; did you mean 'nano-nq'" in capsys.readouterr().err
    assert main(["evaluate", "--model", "bm25", "--nano-sets", "nano-nq"]) == 2
    assert "evaluate.nano_sets: nano-nq are sets of NanoBEIR, and nano_beir does not say where it is" in capsys.readouterr().err
    assert main([*command, str(whole), "--beir", f"nano-nq={whole}"]) == 2
    assert "two sets are named 'nano-nq'" in capsys.readouterr().err


def test_an_experiment_keeps_the_sets_that_its_report_shows(whole: Path, tmp_path: Path) -> None:
    stage = {
        "_target_": "lightning_e5.stages.evaluate.evaluate", "nano_beir": str(whole), "nano_sets": ["nano-quora", "nano-msmarco"],
        "baselines": {"bm25": {"_target_": "lightning_e5.retrieval.bm25.BM25"}, "other": {"_target_": "lightning_e5.retrieval.bm25.BM25", "k1": 0.1}},
    }  # fmt: skip
    given = {"name": "nano", "seed": 0, "threads": 1, "runs_dir": str(tmp_path / "runs"), "logger": {"mode": "disabled"}, "stages": {"evaluate": stage}}
    (tmp_path / "nano.yaml").write_text(yaml.safe_dump(given))
    assert main(["run", str(tmp_path / "nano.yaml")]) == 0
    run = RunData(tmp_path / "runs" / "nano")
    for collection in load_nano_beir(whole, stage["nano_sets"]):  # type: ignore[arg-type]
        name = collection.data.name
        assert run.passages(name) == collection.data.corpus and run.queries(name) == collection.data.queries
        assert judgements(run, name) == collection.data.qrels
        assert load_beir(run.collection_folder(name), collection.data.split, name) == collection.data
        assert len(outcomes(run, "bm25", "other", name).rows) == 2
        before = run.collection_files(name)
        write_beir(tmp_path / "again" / name, collection.data)
        assert before == {p.relative_to(tmp_path / "again" / name).as_posix(): sha256_file(p) for p in sorted((tmp_path / "again" / name).rglob("*")) if p.is_file()}
    assert (run.path / "report.html").is_file()
    (run.path / "encoder").mkdir()
    *_, told = summary_table(run.path, ["ndcg@10"]).splitlines()
    words = shlex.split(told)
    assert words[-2:] == ["--rules", "nano-quora=quora"] and main(["evaluate", "--model", "bm25", *words[words.index("--beir") :]]) == 0
    with pytest.raises(UserError, match="has no collection 'nano-nq'"):
        run.queries("nano-nq")


def nq(**parts: Any) -> Callable[[Path], None]:
    """Write NanoNQ anew with other parts."""
    return lambda folder: write(folder, "NanoNQ", **{**toy(1), **parts})


def graded(folder: Path) -> None:
    write_parquet(folder / "qrels/NanoNQ-00000-of-00001.parquet", {"query-id": ["q0"], "corpus-id": ["d0"], "score": [2]})


def numbered(folder: Path) -> None:
    write_parquet(folder / "corpus/NanoNQ-00000-of-00001.parquet", {"_id": [1], "text": ["a"]})


def twice(folder: Path) -> None:
    write_parquet(folder / "queries/NanoNQ-00000-of-00001.parquet", {"_id": ["q0", "q0"], "text": ["a", "b"]})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nq(queries={"q0": "apple", "q1": " "}), r"qrels.NanoNQ-\S+: row 1: the query 'q1' is judged, and \S+queries.NanoNQ-\S+ has no text of it"),
        (nq(qrels=[("q0", "d0"), ("q9", "d0")]), r"row 1: the query 'q9' is judged"),
        (nq(qrels=[("q0", "gone")]), r"qrels.NanoNQ-\S+: row 0: the document 'gone' is judged, and \S+corpus.NanoNQ-\S+ lacks it"),
        (nq(corpus={"": "a", **toy(1)["corpus"]}), r"corpus.NanoNQ-\S+: row 0: the _id '' is empty or holds a control character"),
        (nq(queries={"q\n0": "a", **toy(1)["queries"]}), r"queries.NanoNQ-\S+: row 0: the _id 'q\\n0' is empty or holds a control character"),
        (nq(qrels=[]), "has no rows"),
        (twice, r"queries.NanoNQ-\S+: row 1: the _id 'q0' was there before"),
        (graded, r"has a column 'score', and NanoBEIR's judgements have no grades"),
        (numbered, r"column '_id' holds int64, not string"),
        (lambda folder: (folder / "corpus/NanoNQ-00000-of-00001.parquet").unlink(), r"lacks nano-nq \(there is neither corpus/NanoNQ-\*\.parquet nor NanoNQ/corpus/train"),
        (lambda folder: (folder / "qrels/NanoNQ-00000-of-00001.parquet").unlink(), r"qrels: holds no file NanoNQ-\*\.parquet, though \S+ is there"),
        (lambda folder: (folder / "corpus/NanoNQ-00000-of-00001.parquet").rename(folder / "corpus/NanoNQ-00000-of-00002.parquet"), "are not all files of NanoNQ"),
        (lambda folder: (folder / "corpus/NanoNQ-00000-of-00001.parquet").write_text("text"), "not a readable Parquet file"),
    ],
)  # fmt: skip
def test_what_is_not_nano_beir_ends_in_one_sentence(damage: Callable[[Path], None], message: str, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        load_nano_beir(folder)
    assert "\n" not in str(raised.value)


def test_a_place_that_is_none(whole: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "absent", "./absent", "absent", "path:absent/folder", "a/b/c"):
        with pytest.raises(UserError, match=r"no such folder$"):
            load_nano_beir(place)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        load_nano_beir(tmp_path / "file")
    with pytest.raises(UserError, match=r"lacks nano-climate-fever, .*, nano-webis-touche2020") as raised:
        load_nano_beir(tmp_path)
    assert "of NanoBEIR it has" not in str(raised.value)
    with pytest.raises(UserError, match="set 'nano-nq' is named twice"):
        load_nano_beir(whole, ["nano-nq", "nano-nq"])
    assert load_nano_beir(f"path:{whole}", ["nano-nq"]) == load_nano_beir(whole, ["nano-nq"])


def test_figures_are_those_of_the_public_evaluator(tmp_path: Path, encoder_folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """sentence-transformers' NanoBEIREvaluator on the same files, which it reads by a data set's card as from the Hub."""
    import datasets
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation.nano_beir import (
        DATASET_NAME_TO_HUMAN_READABLE,
        NanoBEIREvaluator,
    )

    assert {f"Nano{name}" for name in DATASET_NAME_TO_HUMAN_READABLE.values()} == set(NANO_SETS.values())
    folder, lines = tmp_path / "nano", [" ".join(text.split())[:80].strip() for text in dict.fromkeys(texts)]
    corpus = {f"d{i}": line for i, line in enumerate(lines[10:40])} | {"empty": "", "a": DEBATE["corpus"]["a"]}
    queries = {f"q{i}": line for i, line in enumerate(lines[:10])} | {"a": DEBATE["queries"]["a"]}
    qrels = [(query, f"d{(7 * n + extra) % 30}") for n, query in enumerate(queries) for extra in range(1 + n % 3)] + [("q0", "empty")]
    # All others answer the argument, so that its own place among the first is one too few, whatever the encoder has learned.
    qrels = [pair for pair in qrels if pair[0] != "a"] + [("a", f"d{i}") for i in range(30)]
    names = {"nano-arguana": "arguana", "nano-nq": "nq"}
    for name in names:
        write(folder, NANO_SETS[name], corpus, queries, qrels)
    card = [
        f"- config_name: {part}\n  data_files:\n" + "".join(f"  - split: {NANO_SETS[name]}\n    path: {part}/{NANO_SETS[name]}-*\n" for name in names)
        for part in ("corpus", "queries", "qrels")
    ]  # fmt: skip
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(card) + "---\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    prompts = {"query_prompts": "query: ", "corpus_prompts": "passage: "}
    evaluator = NanoBEIREvaluator(list(names.values()), dataset_id=str(folder), write_csv=False, **prompts)
    theirs = evaluator(SentenceTransformer(str(encoder_folder), device="cpu"))
    assert evaluator.primary_metric == "NanoBEIR_mean_cosine_ndcg@10"
    encoder = TextEncoder.from_pretrained(encoder_folder)
    for files, own in zip(nano_files(folder, list(names)), evaluator.evaluators, strict=True):
        collection = load_nano_set(files, "none")
        assert dict(zip(own.corpus_ids, own.corpus, strict=True)) == collection.data.corpus
        assert dict(zip(own.queries_ids, own.queries, strict=True)) == collection.data.queries
        assert own.relevant_docs == {query: set(documents) for query, documents in collection.data.qrels.items()}
        found = CollectionTask(collection, metrics=["ndcg@10", "mrr@10", "recall@5"]).evaluate(encoder)
        for metric, value in {"ndcg@10": found.value, **found.others}.items():
            assert value == pytest.approx(theirs[f"{own.name}_cosine_{metric}"], abs=1e-6), metric
    # By ArguAna's own rules the argument does not find itself, which that evaluator does not see to.
    by_rules, without = (CollectionTask(load_nano_set(nano_files(folder, ["nano-arguana"])[0], rules)).evaluate(encoder) for rules in (None, "none"))
    assert by_rules.found is not None and without.found is not None
    assert "a" in without.found.run["a"] and "a" not in by_rules.found.run["a"]
    assert by_rules.value >= theirs["NanoArguAna_cosine_ndcg@10"]
