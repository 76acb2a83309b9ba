"""What the documentation names is there, and its examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("lightning_e5", "data_modules")
    for path in sorted((ROOT / package).rglob("*.py"))
    if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.M)
]
#: Rows of `docs/terms.md`: term, file, name in it.
TERMS = re.findall(r"^\| (.+?) \| `([\w./]+)` \| `(\w+)` \|", (ROOT / "docs" / "terms.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0 and found.failed == 0


def test_the_main_rooms_have_examples() -> None:
    rooms = {name.rsplit(".", 1)[0] for name in EXAMPLES}
    assert {f"lightning_e5.{room}" for room in ("losses", "models", "retrieval", "training", "evaluation.beir")} <= rooms


def names_of(path: Path) -> set[str]:
    """What a file defines: functions, classes, methods, and names that it assigns at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = {n.id for s in tree.body if isinstance(s, ast.Assign | ast.AnnAssign) for n in ast.walk(s) if isinstance(n, ast.Name)}
    return assigned | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(("term", "file", "name"), TERMS, ids=[term for term, _, _ in TERMS])
def test_a_term_of_the_paper_is_where_it_is_said_to_be(term: str, file: str, name: str) -> None:
    assert name in names_of(ROOT / file), f"{term}: {file} has no {name}"


def test_every_row_of_terms_is_looked_at() -> None:
    rows = [line for line in (ROOT / "docs" / "terms.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(TERMS) == len(rows) - 1 >= 30  # but the head
