"""What a run proposes at its end is what can be done in the state that it is in."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from lightning_e5.files.storage import write_text
from lightning_e5.report.tables.summary import summary_table


def proposed(run: Path) -> list[list[str]]:
    return [shlex.split(line) for line in summary_table(run, ["ndcg@10"]).partition("try next:\n")[2].splitlines()]


def test_only_what_is_there_is_proposed(make_run: Callable[..., Path]) -> None:
    """No report, no encoder, no collection: no command that would need it."""
    run = make_run()
    assert proposed(run) == []
    write_text(run / "report.html", "<html></html>")
    assert [words[2] for words in proposed(run)] == ["webbrowser"]
    (run / "encoder").mkdir()
    assert [words[2:4] for words in proposed(run)] == [["lightning_e5", "search"], ["webbrowser", str(run / "report.html")], ["lightning_e5", "evaluate"]]
    assert "--corpus" not in proposed(run)[0]
    shutil.rmtree(run / "stages" / "pairs" / "test")
    assert [words[2] for words in proposed(run)] == ["webbrowser"]
