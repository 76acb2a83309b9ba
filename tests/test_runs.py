"""A run is the same file for the same seed, whether or not it was killed; a finished one is left alone."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def command(runs: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-u", "-m", "lightning_e5", "run", "experiments/smoke.yaml", f"runs_dir={runs}", *overrides]


def run_until(runs: Path, marker: str | None, *overrides: str) -> str:
    """Run; SIGKILL at the line that holds ``marker``."""
    process = subprocess.Popen(command(runs, *overrides), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if marker is not None and marker in line:
            time.sleep(0.3)
            process.send_signal(signal.SIGKILL)
            break
    process.wait(timeout=300)
    assert marker is not None or process.returncode == 0, "".join(lines)
    return "".join(lines)


@pytest.mark.parametrize("stages", [("teacher",), pytest.param(("noisy", "teacher", "finetune"), marks=pytest.mark.slow)], ids=len)
def test_killed_it_ends_with_the_same_file(smoke_run: Path, tmp_path: Path, stages: tuple[str, ...]) -> None:
    for marker in (f"{stage}: starts" for stage in stages):
        run_until(tmp_path, marker, "logger.mode=disabled")
        assert not (tmp_path / "smoke" / "metrics.json").exists()
    assert "skipped" in run_until(tmp_path, None, "logger.mode=disabled")
    assert (tmp_path / "smoke" / "metrics.json").read_bytes() == (smoke_run / "metrics.json").read_bytes()


def test_a_run_says_nothing_that_is_not_ours(smoke_run: Path) -> None:
    """Every stage is in it: no library's warning, report or progress bar, and nothing at all on stderr but progress."""
    errors = (smoke_run.parent / "stderr.txt").read_text().splitlines()
    assert [line for line in errors if not re.match(r"\[\d+/10\] \w+: .*\d", line)] == []
    progress, _, table = (smoke_run.parent / "stdout.txt").read_text().partition("\n\n")
    assert all(re.match(r"\[\d+/10\] \w+: (starts: |done in )", line) for line in progress.splitlines())
    assert not re.search(r"warning|deprecat|lightning\.|transformers|weights_only|dataloader|num_workers", table, re.I)


def test_a_finished_run_is_left_alone(smoke_run: Path) -> None:
    before = (smoke_run / "metrics.json").stat().st_mtime_ns
    started = time.monotonic()
    assert "nothing to do" in run_until(smoke_run.parent, None)
    assert time.monotonic() - started < 15
    assert (smoke_run / "metrics.json").stat().st_mtime_ns == before


def test_the_exported_encoder_is_the_same_in_sentence_transformers(smoke_run: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from lightning_e5.__main__ import main
    from lightning_e5.models.encoder import TextEncoder

    assert main(["export", str(smoke_run), str(tmp_path / "exported")]) == 0
    texts = ["split a string on whitespace", "Return a new array of given shape.", "x"]
    ours, theirs = TextEncoder.from_pretrained(smoke_run / "encoder"), SentenceTransformer(str(tmp_path / "exported"), trust_remote_code=False)
    for kind in ("query", "passage"):
        found = theirs.encode(texts, prompt_name=kind)
        assert np.abs(found - ours.embed(texts, kind).numpy()).max() < 1e-5


def test_search_and_check(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_e5.__main__ import main

    assert main(["search", str(smoke_run), "split a string on whitespace"]) == 0
    assert "5. " in capsys.readouterr().out
    assert main(["check", *map(str, sorted((ROOT / "experiments").rglob("*.yaml")))]) == 0


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_order_is_pure_and_the_same_for_all_ranks(world_size: int) -> None:
    from data_modules.order import BatchOrder, Permutation

    assert sorted(Permutation(1000, 7)(np.arange(1000)).tolist()) == list(range(1000))
    order = BatchOrder([100], 20, seed=3)
    epoch = np.concatenate([order.rows(s) for s in range(5)])
    assert sorted(epoch.tolist()) == list(range(100))
    assert np.array_equal(BatchOrder([100], 20, seed=3).rows(4), order.rows(4))
    mixed = BatchOrder([1000, 3000], 16, seed=1, weights=[1, 1], one_source_per_batch=True)
    first = [bool((mixed.rows(s) < 1000).all()) for s in range(1024)]
    assert sum(first) == 512


def test_the_filter_equals_brute_force() -> None:
    import torch

    from lightning_e5.curation.consistency_filter.rank_counting import RankPool

    draw = torch.Generator().manual_seed(0)
    q, p = (torch.nn.functional.normalize(torch.randn(60, 8, generator=draw), dim=1) for _ in range(2))
    texts = torch.arange(60) // 2  # every text twice: copies do not count against a pair
    expected = [
        1 + sum(float(q[i] @ p[j]) > float((q[i] * p[i]).sum()) for j in range(60) if texts[j] != texts[i]) for i in range(60)
    ]
    for block in (1, 500, 10**6):
        assert RankPool(p, texts, block_scores=block).ranks(q, p, texts).tolist() == expected


def test_what_a_run_says_at_its_end_is_readable_and_its_commands_work(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_e5.__main__ import main

    said = (smoke_run.parent / "stdout.txt").read_text()
    table = said[said.index("python-docs, 200 queries") : said.index("report: ")]
    assert max(map(len, table.splitlines())) <= 100
    for row in ("start", "e5-noisy", "e5-pt", "e5"):
        line = next(line for line in table.splitlines() if line.startswith(f"{row} "))
        differences = re.findall(r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\] (better|worse|no difference)", line)
        assert len(differences) == (1 if row == "start" else 2), line
    assert "e5-pt to start: " in table
    *commands, last = re.findall(r"^  python -m (.*)$", said, re.M)
    assert len(commands) == 2 and said.rstrip().endswith(last)
    search, page = (shlex.split(c) for c in commands)
    monkeypatch.setattr("sys.stdin", io.StringIO("split a string on whitespace\n\n"))
    assert main(search[1:]) == 0 and "1. " in capsys.readouterr().out
    environment = {**os.environ, "BROWSER": "true"}
    assert subprocess.run([sys.executable, "-m", *page], env=environment, timeout=60).returncode == 0 and Path(page[-1]).is_file()
    assert main(shlex.split(last)[1:]) == 0
    assert re.search(r"^bm25 +test +0\.\d{3}", capsys.readouterr().out, re.M)
