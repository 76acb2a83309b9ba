"""A package with one stage, written for a test, whose code, inputs and arguments the test changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_e5 import configurable
from lightning_e5.pipeline import code_digest
from lightning_e5.pipeline.runner import run_experiment

MAKE = '''
import os
from pathlib import Path
from lightning_e5.configurable import configurable

@configurable("stage")
def make(out: Path, *, text: str = "", file: str | None = None, fail: bool = False) -> dict[str, float]:
    """Write a text."""
    from .words import upper

    if fail:
        raise RuntimeError("told to")
    if edit := os.environ.get("TINY_EDIT"):
        Path(edit).write_text(Path(edit).read_text() + "# edited while it runs\\n")
    (out / "result.txt").write_text(upper(text) + (Path(file).read_text() if file else ""))
    return {"letters": float(len(text))}
'''
WORDS = "import helpers_of_tiny.case as case\n\ndef upper(text):\n    return case.upper(text)\n"
CASE = "def upper(text):\n    return text.upper()\n"


def forget() -> None:
    """Let the next import read the files anew, as a new process would."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("tiny_stages_package", "helpers_of_tiny")]:
        del sys.modules[name]
    for cached in (code_digest._files, code_digest._top, code_digest._is_local, code_digest._version):
        cached.cache_clear()


class Tiny:
    """Runs of one stage below ``folder`` that share it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.package, self.helpers = folder / "code" / "tiny_stages_package", folder / "code" / "helpers_of_tiny"
        for path, text in ((self.package / "make.py", MAKE), (self.package / "words.py", WORDS), (self.helpers / "case.py", CASE)):
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").write_text("")
            path.write_text(text)
        monkeypatch.syspath_prepend(str(folder / "code"))
        # Bytecode is told from its source by seconds and size: an edit within the same second, of the same length, would not be seen.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setattr(configurable, "_allowed", ["tiny_stages_package"])
        forget()

    def experiment(self, name: str, arguments: dict[str, Any], **top: Any) -> dict[str, Any]:
        stages = {"make": {"_target_": "tiny_stages_package.make.make", "text": "abc", **arguments}}
        where = {"runs_dir": str(self.runs), "stage_cache": str(self.runs / ".stages")}
        return {"name": name, "seed": 1, "threads": 1, "logger": {"mode": "disabled"}, **where, "stages": stages, **top}

    def run(self, name: str, *, fresh: bool = False, top: dict[str, Any] | None = None, **arguments: Any) -> list[str]:
        """What a run says."""
        forget()
        said: list[str] = []
        run_experiment(self.experiment(name, arguments, **(top or {})), fresh=fresh, say=said.append)
        return [text.removeprefix("[1/1] make: ") for text in said]

    def out(self, name: str) -> Path:
        return self.runs / name / "stages" / "make"

    def entries(self) -> list[Path]:
        return sorted(p for p in (self.runs / ".stages").iterdir() if p.is_dir())
