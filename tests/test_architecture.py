"""The house: imports go down or stay inside, files stay small, prefixes are written once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    **dict.fromkeys(
        [
            "types", "text", "errors", "storage", "parquet", "digests", "pairs", "config", "yaml_files", "overrides", "configurable", "ranges", "annotations",
            "instantiate", "rng", "progress", "memory", "launch", "ranks", "interrupts", "ending", "distributed", "redaction", "charset", "streams", "lines", "rows", "beir_layout",
            "__init__",
        ],
        0,
    ),
    **dict.fromkeys(["models", "losses", "training"], 1),
    **dict.fromkeys(["modules", "retrieval"], 2),
    **dict.fromkeys(["curation", "evaluation"], 3),
    **dict.fromkeys(["tracking", "stages"], 4),
    **dict.fromkeys(["ablation", "__main__"], 5),
}
#: Files past 300 lines, and why they are one concept.
LONG_FILES: dict[str, str] = {}
#: Layer 0 knows neither models nor training frameworks.
HEAVY = ("lightning", "transformers", "faiss", "mteb", "beir", "sentence_transformers", "wandb")


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import")
    return names


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS[parts[1] if len(parts) > 1 else "__init__"]


def violations(path: Path, text: str | None = None) -> list[str]:
    own = path.relative_to(ROOT).with_suffix("").parts
    found = []
    for name in sorted(imported(path)):
        package = name.split(".")[0]
        if package == "lightning_e5" and name != "lightning_e5":
            if own[0] == "data_modules" and layer(name) > 0:
                found.append(f"{path}: data_modules imports {name}, which is not of layer 0")
            if own[0] == "lightning_e5" and layer(name) > LAYERS[own[1]]:
                found.append(f"{path}: layer {LAYERS[own[1]]} imports {name} of layer {layer(name)}")
        if package == "data_modules" and own[0] == "lightning_e5":
            found.append(f"{path}: lightning_e5 imports {name}")
        if own[0] == "lightning_e5" and LAYERS[own[1]] == 0 and package in HEAVY:
            found.append(f"{path}: layer 0 imports {name}")
    return found


@pytest.mark.parametrize("package", ["lightning_e5", "data_modules"])
def test_imports_go_down(package: str) -> None:
    assert [v for path in python_files(package) for v in violations(path)] == []


def test_the_import_rule_notices() -> None:
    path = ROOT / "lightning_e5" / "losses" / "planted_violation.py"
    path.write_text("from lightning_e5.stages import runner\nimport data_modules.order\n")
    try:
        packages = [v.rsplit(" imports ")[1].split()[0] for v in violations(path)]
        assert {"lightning_e5.stages", "data_modules.order"} <= {p.rstrip(",") for p in packages}
    finally:
        path.unlink()


def test_every_lightning_module_lives_in_modules() -> None:
    for path in python_files("lightning_e5"):
        if "LightningModule)" in path.read_text(encoding="utf-8"):
            assert "modules" in path.relative_to(ROOT).parts, path


def test_files_are_one_concept() -> None:
    for package in ("lightning_e5", "data_modules", "benchmarks"):
        for path in python_files(package):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= 300 or str(path.relative_to(ROOT)) in LONG_FILES, f"{path}: {lines} lines"


def test_prefixes_are_written_in_one_place() -> None:
    for package in ("lightning_e5", "data_modules"):
        for path in python_files(package):
            constants = [n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)]
            if path.name != "text.py":
                assert not {"query: ", "passage: "} & {c for c in constants if isinstance(c, str)}, path


def test_public_things_have_docstrings() -> None:
    for package in ("lightning_e5", "data_modules"):
        for path in python_files(package):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), f"{path}: no module docstring"
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_help_is_fast_and_light() -> None:
    import subprocess
    import sys

    code = "import sys, lightning_e5.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\nprint([n for n in ('torch', 'lightning', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    for verb in ("run", "ablate", "check", "compare", "evaluate", "dashboard", "search", "export"):
        assert verb in done.stdout
