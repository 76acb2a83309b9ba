"""Progress where stderr is no terminal: a line now and then, with what is left."""

from __future__ import annotations

import pytest

from lightning_e5 import progress as module
from lightning_e5.progress import progress, stage_title


def test_lines_come_after_a_while_and_say_what_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with stage_title("[2/3] noisy:", "train"), progress(1000, "", "step") as bar:
        for _ in range(6):
            now[0] += 10
            bar(100)
            bar.note("loss 1.5")  # type: ignore[attr-defined]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[2/3] noisy: 300 of 1,000 steps, about 1:10 min left, loss 1.5", "[2/3] noisy: 600 of 1,000 steps, about 40 s left, loss 1.5"]
    with progress(None, "read", "file") as bar:
        now[0] += 31
        bar(1234)
    assert capsys.readouterr().err == "read: 1,234 files\n"


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_title("[1/1] x:"), progress(3, "read", "file") as bar:
        bar(3)
    assert capsys.readouterr().err == ""


def test_work_that_goes_on_counts_only_what_it_did_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bar = module.Bar(100, "train", "step", done=50)
    now[0] += 40
    bar(10)
    assert capsys.readouterr().err == "train: 60 of 100 steps, about 2:40 min left\n"


def test_on_a_terminal_a_line_says_what_is_done_and_goes_away(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    with stage_title("[2/3] noisy:", "train on unfiltered pairs"):
        with progress(4, "", "step") as bar:
            bar(4)
        shown = capsys.readouterr().err
        assert shown.startswith("[2/3] noisy: train on unfilte\r") and "[2/3] noisy:   0%" in shown  # cut, else it could not be overwritten
        assert shown.endswith("\r") and "\n" not in shown
    assert capsys.readouterr().err == "\x1b[2K\r"
