"""The progress line of a training: its figures, and that they fit a terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_e5 import progress
from lightning_e5.modules.callbacks import ProgressLine, figures, short_number
from lightning_e5.progress import stage_title


def test_the_progress_line_shows_rates_memory_and_the_last_validation() -> None:
    row = {"loss": 0.4285, "accuracy": 0.9, "pairs_per_second": 12345.0, "tokens_per_second": 1.96e6, "memory_gb": 61.2}
    assert figures(row, {}) == "loss 0.43, acc 0.90, 12k pairs/s, 2.0M tok/s, 61 GB"
    validated = {"val/accuracy": 0.5, "val/nano_beir/ndcg@10": 0.4123}
    assert figures(row, validated) == "loss 0.43, val acc 0.500, 12k pairs/s, 2.0M tok/s, 61 GB"
    assert figures(row, validated, "val/nano_beir/ndcg@10") == "loss 0.43, ndcg@10 0.412, 12k pairs/s, 2.0M tok/s, 61 GB"
    assert figures(row, validated, "val/other").startswith("loss 0.43, val acc 0.500")
    assert figures({}, {}) == ""
    assert [short_number(x) for x in (0.0, 7.51, 9.96, 999.4, 999.6, 45_400, 999_600)] == ["0.0", "7.5", "10", "999", "1.0k", "45k", "1.0M"]


def test_a_line_of_a_large_run_fits_a_terminal_of_100_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    row = {"loss": 10.4285, "accuracy": 0.9, "pairs_per_second": 12345.0, "tokens_per_second": 1.96e6, "memory_gb": 61.2}
    module = SimpleNamespace(last_metrics=row, last_validation={"val/ndcg@10": 0.4123})
    trainer: Any = SimpleNamespace(max_steps=20_000, global_step=1233, is_global_zero=True)
    line, bare = ProgressLine(""), ProgressLine("")
    with stage_title("[3/4] pretrain:"):
        for callback, of in ((line, module), (bare, SimpleNamespace(last_metrics=row))):
            trainer.global_step = 1233
            callback.on_train_start(trainer, of)  # type: ignore[arg-type]
            assert callback._bar is not None
            on_screen = callback._bar._bar
            on_screen.dynamic_ncols = lambda stream: (99, 30)  # as tqdm asks a terminal of 100
            on_screen.mininterval, on_screen.last_print_t, on_screen.start_t = 0, on_screen.last_print_t - 0.6, on_screen.start_t - 0.6  # the step took 0.6 s
            trainer.global_step = 1234
            callback.on_train_batch_end(trainer, of)  # type: ignore[arg-type]
            callback.on_train_end(trainer, of)  # type: ignore[arg-type]
    shown = [part for part in capsys.readouterr().err.split("\r") if "loss" in part]
    assert len(shown) == 2 and all(len(part) < 100 for part in shown)
    assert shown[0].startswith("[3/4] pretrain: 1.23k/20.0k") and " ETA 3:" in shown[0]
    assert shown[0].endswith(", loss 10.4, ndcg@10 0.412, 12k pairs/s, 2.0M tok/s, 61 GB")
    assert shown[1].endswith(", loss 10.4, acc 0.90, 12k pairs/s, 2.0M tok/s, 61 GB")
