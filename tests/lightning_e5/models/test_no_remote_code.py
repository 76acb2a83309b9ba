"""No call that could run a model repository's own code is left to a default."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: Our own classes, whose ``from_pretrained`` goes through the loader.
OWN = {"TextEncoder", "CrossEncoder", "SequenceClassifier", "cls"}
LOADERS = {"from_pretrained", "from_config", "pipeline", "SentenceTransformer", "SparseEncoder"}


def unsafe_calls(source: str) -> list[int]:
    """Lines of calls of a library's loader that do not say ``trust_remote_code=False``."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
        owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        given = {keyword.arg: keyword.value for keyword in node.keywords}.get("trust_remote_code")
        refused = isinstance(given, ast.Constant) and given.value is False
        if name in LOADERS and owner not in OWN and not refused:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("package", ["lightning_e5", "data_modules", "benchmarks", "notebooks"])
def test_every_loader_refuses_a_repositorys_code(package: str) -> None:
    found = {str(path): lines for path in sorted((ROOT / package).rglob("*.py")) if (lines := unsafe_calls(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_the_rule_notices() -> None:
    assert unsafe_calls("AutoModel.from_pretrained(x)\nSentenceTransformer(x, trust_remote_code=True)\nTextEncoder.from_pretrained(x)") == [1, 2]
    assert unsafe_calls("AutoModel.from_pretrained(x, trust_remote_code=False)") == []
