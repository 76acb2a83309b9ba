"""An evaluation says the same for any order of its files, any cache and any interruption."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.files.storage import read_json
from lightning_e5.retrieval import stored_embeddings
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[3]


def shuffled(folder: Path, target: Path, seed: int) -> Path:
    """The collection with the lines of all its files in another order."""
    shutil.copytree(folder, target)
    draw = random.Random(seed)
    for path in (target / "corpus.jsonl", target / "queries.jsonl", target / "qrels" / "test.tsv"):
        head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        header, lines = ([head], lines) if path.suffix == ".tsv" else ([], [head, *lines])
        draw.shuffle(lines)
        path.write_text("".join([*header, *lines]), encoding="utf-8")
    return target


def run_of(path: Path) -> dict[str, list[tuple[str, float]]]:
    """query -> its documents in order, with scores."""
    run: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, []).append((document, float(score)))
    return run


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_of_documents_and_queries(tmp_path: Path, encoder_folder: Path, collection: Path, seed: int) -> None:
    given: dict[str, Any] = {"encoders": {"small": encoder_folder}, "baselines": {"bm25": BM25()}, "reference": "bm25", "seed": 0}
    expected = evaluate(tmp_path / "a", collections={"toy": collection}, **given)
    metrics = evaluate(tmp_path / "b", collections={"toy": shuffled(collection, tmp_path / "other", seed)}, **given)
    assert metrics == pytest.approx(expected, abs=1e-12)
    for model in ("small", "bm25"):
        ours, theirs = (run_of(tmp_path / folder / model / "toy/run.trec") for folder in ("b", "a"))
        assert ours.keys() == theirs.keys()
        for query in ours:  # batches are others, so the last digits of a score may be
            assert [d for d, _ in ours[query]] == [d for d, _ in theirs[query]]
            assert [s for _, s in ours[query]] == pytest.approx([s for _, s in theirs[query]], abs=1e-6)
    assert [row["verdict"] for row in read_json(tmp_path / "a/table.json")[:0:-1]] == [row["verdict"] for row in read_json(tmp_path / "b/table.json")[:0:-1]]


class Killed(BaseException):
    pass


def test_kept_shards_are_used_after_a_kill(tmp_path: Path, encoder_folder: Path, collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two shards of the passages' embeddings: what is there is not embedded again, and the result is equal."""
    given: dict[str, Any] = {"collections": {"toy": collection}, "encoders": {"small": encoder_folder}, "cosines": False, "seed": 0}
    expected = evaluate(tmp_path / "plain", **given)
    monkeypatch.setitem(stored_embeddings.store_embeddings.__kwdefaults__, "shard_rows", 7)
    from lightning_e5.models.encoder import TextEncoder

    embed, calls = TextEncoder.embed, []

    def counted(self: Any, texts: Any, kind: Any, **options: Any) -> Any:
        if kind == "passage":
            calls.append(len(texts))
            if len(calls) == 3 and stop:
                raise Killed
        return embed(self, texts, kind, **options)

    monkeypatch.setattr(TextEncoder, "embed", counted)
    stop = True
    with pytest.raises(Killed):
        evaluate(tmp_path / "killed", **given, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "killed" / "table.json").exists()
    stop, done = False, sum(calls[:2])
    calls.clear()
    assert evaluate(tmp_path / "killed", **given, cache_dir=tmp_path / "cache") == pytest.approx(expected, abs=1e-12)
    assert sum(calls) == 30 - done and done > 0


def files(folder: Path) -> dict[str, bytes]:
    left_out = {"timing.json", "timing_table.json", "started.json", "manifest.json"}
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in left_out}


@pytest.mark.slow
def test_a_killed_evaluation_continues_to_equal_files(tmp_path: Path, encoder_folder: Path, collection: Path) -> None:
    """SIGKILL while the first of twelve sets is on disk; the same command ends with the files of a run that was let be."""
    stage = {
        "_target_": "lightning_e5.stages.evaluate.evaluate",
        "inputs": {
            "collections": {f"toy{i:02d}": f"path:{collection}" for i in range(12)}, "encoders": {"small": f"path:{encoder_folder}"},
        },
        "baselines": {"bm25": {"_target_": "lightning_e5.retrieval.bm25.BM25"}}, "reference": "bm25",
    }  # fmt: skip
    command = {}
    for name in ("whole", "killed"):
        node = {"name": "evaluation", "runs_dir": str(tmp_path / name), "logger": {"mode": "disabled"}, "stages": {"evaluate": stage}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(node))
        command[name] = ["run", str(tmp_path / f"{name}.yaml")]
    assert main(command["whole"]) == 0
    process = subprocess.Popen([sys.executable, "-m", "lightning_e5", *command["killed"]], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    out, end = tmp_path / "killed/evaluation/stages/evaluate", time.monotonic() + 120
    while not (out / "bm25/toy00/run.trec").is_file():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (out / "table.json").exists() and not (tmp_path / "killed/evaluation/metrics.json").exists()
    assert main(command["killed"]) == 0
    whole = files(tmp_path / "whole/evaluation/stages")
    assert files(tmp_path / "killed/evaluation/stages") == whole and len(whole) > 12 * 5
    assert (tmp_path / "killed/evaluation/metrics.json").read_bytes() == (tmp_path / "whole/evaluation/metrics.json").read_bytes()
