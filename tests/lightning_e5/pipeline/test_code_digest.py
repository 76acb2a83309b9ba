"""The code behind a stage: every import is found, and an edit of any of its files, and of no other, changes the digest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lightning_e5
from lightning_e5.pipeline.code_digest import code_digest, code_files, imported_names, targets
from tests.lightning_e5.pipeline.tiny_stages import Tiny, forget

ROOT = Path(lightning_e5.__file__).resolve().parent
STAGE = "tiny_stages_package.make.make"


def test_imports_are_found_in_all_their_forms() -> None:
    text = (
        "import a; import b.c as d, e\nif x: import g\ntry:\n    from . import h, i as j\nfrom ..k import (  # x)\n    l,  # y\n    m,\n)\n"
        "from n \\\n    import o\nx = importlib.import_module('p.q')\nfrom r import *\n"
    )
    named = {"a", "b.c", "e", "g", "pkg.sub", "pkg.sub.h", "pkg.sub.i", "pkg.k", "pkg.k.l", "pkg.k.m", "n", "n.o", "p.q", "r"}
    assert set(imported_names(text, "pkg.sub.module", False)) == named
    assert imported_names("from .x import y\n", "pkg.sub", True) == ("pkg.sub.x", "pkg.sub.x.y")


@pytest.mark.parametrize("room", ["stages", "pipeline", "models", "modules"])
def test_no_import_of_ours_is_missed(room: str) -> None:
    """Against Python's own parser, on real files."""
    for path in sorted((ROOT / room).glob("*.py")):
        text, names = path.read_text(encoding="utf-8"), set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert names <= set(imported_names(text, f"lightning_e5.{room}.{path.stem}", path.stem == "__init__")), path


def test_a_training_depends_on_its_loss_and_not_on_the_report() -> None:
    node = {"_target_": "lightning_e5.stages.pretrain.pretrain", "module": {"_target_": "lightning_e5.modules.in_batch.InBatchModule"}, "x": [{"_target_": "a.b"}]}
    assert list(targets(node)) == ["lightning_e5.stages.pretrain.pretrain", "lightning_e5.modules.in_batch.InBatchModule", "a.b"]
    found, libraries = code_files(targets(node))
    assert {"lightning_e5", "lightning_e5.losses.info_nce", "lightning_e5.models.packed.bert", "lightning_e5.training.optimizer"} <= set(found)
    assert not any(name.startswith(("lightning_e5.report", "lightning_e5.results", "lightning_e5.cli")) for name in found)
    assert not libraries, "the fingerprint has the versions of what our own stages use"


def test_an_edit_of_a_file_that_is_imported_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, monkeypatch)
    found, _ = code_files([STAGE])
    own = {name for name in found if not name.startswith("lightning_e5")}
    assert own == {"tiny_stages_package", "tiny_stages_package.make", "tiny_stages_package.words", "helpers_of_tiny", "helpers_of_tiny.case"}
    first = code_digest([STAGE])
    for path in (tiny.package / "make.py", tiny.package / "words.py", tiny.package / "__init__.py", tiny.helpers / "case.py"):
        text = path.read_text()
        path.write_text(f"{text}# edited\n")
        assert code_digest([STAGE]) != first, path
        path.write_text(text)
        assert code_digest([STAGE]) == first, path
    (tiny.package / "unrelated.py").write_text("x = 1\n")
    assert code_digest([STAGE]) == first


def test_the_libraries_of_own_code_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, monkeypatch)
    assert code_files([STAGE])[1] == {}
    (tiny.helpers / "case.py").write_text("import json, numpy.linalg\nimport no_such_package\ndef upper(text):\n    return text.upper()\n")
    forget()
    import numpy

    assert code_files([STAGE])[1] == {"numpy": numpy.__version__, "no_such_package": None}
