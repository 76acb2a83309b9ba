"""The architecture: imports go down or stay inside, folders form no circle, files and folders stay small, prefixes are written once.

The rules look at texts (path -> source), never at a planted file: nothing is written into the source tree.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

import lightning_e5

ROOT = Path(__file__).resolve().parents[1]
#: Room of `lightning_e5` (a folder, or a file beside them) -> its layer. ``data_modules`` is of layer 1 and imports layer 0 only.
#: ``config`` and ``distributed`` are of layer 0: a data module declares what a YAML may say of it and waits for other ranks.
LAYERS = {
    **dict.fromkeys(["__init__", "types", "result_row", "text", "errors", "rng", "progress", "memory", "threads", "redaction", "interrupts", "configurable", "ranges", "vector_math"], 0),
    **dict.fromkeys(["files", "config", "distributed"], 0),
    **dict.fromkeys(["models", "losses", "training"], 1),
    **dict.fromkeys(["modules", "retrieval"], 2),
    **dict.fromkeys(["curation", "evaluation"], 3),
    **dict.fromkeys(["tracking", "pipeline"], 4),
    "stages": 5,
    # The model card shows what the report shows, so an export stands above it.
    **dict.fromkeys(["results", "report", "export"], 6),
    **dict.fromkeys(["ablation", "cli", "__main__"], 7),
}
DATA_MODULES = 1
#: Files past 300 lines, and why they are one concept.
LONG_FILES: dict[str, str] = {}
#: Folders past 15 files, and why they are one room.
LARGE_FOLDERS: dict[str, str] = {"lightning_e5/stages": "the stages that a YAML names, a file each"}
#: Layer 0 knows neither models nor training frameworks.
HEAVY = ("lightning", "transformers", "faiss", "mteb", "beir", "sentence_transformers", "wandb")

#: What ``results`` may import of the layers above 0, beside its own files: it reads what runs wrote, and computes statistics of it.
READABLE = ("lightning_e5/results/", "lightning_e5/evaluation/statistics/", "data_modules/")

Sources = Mapping[str, str]


@cache
def product() -> Sources:
    """Path -> source of every file of the two packages."""
    paths = [p for package in ("lightning_e5", "data_modules") for p in sorted((ROOT / package).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def module_name(path: str) -> str:
    return ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")


def imported(path: str, source: str) -> set[str]:
    """The dotted names that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def edges(sources: Sources) -> dict[str, set[str]]:
    """File -> the files of the two packages that it imports."""
    paths = {module_name(path): path for path in sources}
    found: dict[str, set[str]] = {}
    for path, source in sources.items():
        found[path] = set()
        for name in imported(path, source):
            while name and name not in paths:  # a function or class of a module
                name = name.rpartition(".")[0]
            if name:
                found[path].add(paths[name])
    return found


def layer(path: str) -> int:
    package, room, *_ = PurePosixPath(path).with_suffix("").parts
    return DATA_MODULES if package == "data_modules" else LAYERS[room]


def upward(sources: Sources) -> list[str]:
    """Imports of a higher layer, of anything above layer 0 by ``data_modules``, and of heavy libraries by layer 0."""
    found = [f"{a}: layer {layer(a)} imports {b} of layer {layer(b)}" for a, targets in edges(sources).items() for b in sorted(targets) if layer(b) > layer(a)]
    for a, targets in edges(sources).items():
        if a.startswith("data_modules"):
            found += [f"{a}: data_modules imports {b}, which is not of layer 0" for b in targets if not b.startswith("data_modules") and layer(b) > 0]
    for path, source in sources.items():
        if layer(path) == 0:
            found += [f"{path}: layer 0 imports {name}" for name in imported(path, source) if name.split(".")[0] in HEAVY]
    return found


def beyond_reading(sources: Sources) -> list[str]:
    """Imports by which ``results`` would do more than read: models, curation, W&B, a report."""
    return [
        f"{a}: results imports {b}, which does more than read"
        for a, targets in edges(sources).items()
        if a.startswith("lightning_e5/results/")
        for b in sorted(targets)
        if layer(b) > 0 and not b.startswith(READABLE)
    ]


def circle(sources: Sources) -> list[str]:
    """Folders that import one another in a circle (a file of the top folder counts as one of its own); empty where there is none."""

    def folder(path: str) -> str:
        parent = PurePosixPath(path).parent.as_posix()
        return path if parent in ("lightning_e5", "data_modules") else parent

    graph: dict[str, set[str]] = {}
    for a, targets in edges(sources).items():
        graph.setdefault(folder(a), set()).update(folder(b) for b in targets if folder(b) != folder(a))
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for target in sorted(graph.get(node, ())):
                if found := walk(target, [*way, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_imports_go_down() -> None:
    assert upward(product()) == []


def unresolved(sources: Sources) -> list[str]:
    """Imports of a module of ours that is not there: mypy passes over them inside functions."""
    known = {module_name(path) for path in product()}
    found = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("lightning_e5", "data_modules"):
                found += [f"{path}: {node.module}"] if node.module not in known else []
    return found


def test_imports_are_there() -> None:
    assert unresolved(product()) == []
    assert unresolved({"lightning_e5/x.py": "def f():\n    from lightning_e5.reprot import html"}) == ["lightning_e5/x.py: lightning_e5.reprot"]
def test_results_only_read() -> None:
    assert beyond_reading(product()) == []
    planted = {"lightning_e5/results/planted.py": "def f():\n    from lightning_e5.models.encoder import TextEncoder"}
    (found,) = beyond_reading({**product(), **planted})
    assert found == "lightning_e5/results/planted.py: results imports lightning_e5/models/encoder.py, which does more than read"


def by_public_names(sources: Sources) -> list[str]:
    """Files that import what the package offers to users, instead of the module that it is in: no other rule sees that way."""
    offered = {f"lightning_e5.{name}" for name in lightning_e5.__all__}
    return [f"{path}: imports {name}; name its module" for path, source in sources.items() for name in sorted(imported(path, source) & offered)]


def test_our_own_code_imports_from_modules() -> None:
    assert by_public_names(product()) == []
    planted = "def f():\n    from lightning_e5 import TextEncoder, interrupts"
    assert by_public_names({"lightning_e5/losses/planted.py": planted}) == ["lightning_e5/losses/planted.py: imports lightning_e5.TextEncoder; name its module"]


def test_folders_form_no_circle() -> None:
    assert circle(product()) == []


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("lightning_e5/losses/planted.py", "from lightning_e5.stages import pretrain", "layer 1 imports lightning_e5/stages/pretrain.py of layer 5"),
        ("lightning_e5/results/planted.py", "def f():\n    import lightning_e5.cli.run", "layer 6 imports lightning_e5/cli/run.py of layer 7"),
        ("data_modules/planted.py", "from lightning_e5.models.pooling import pool", "which is not of layer 0"),
        ("lightning_e5/files/planted.py", "from data_modules import order", "layer 0 imports data_modules/order.py of layer 1"),
        ("lightning_e5/rng.py", "import transformers", "layer 0 imports transformers"),
    ],
)  # fmt: skip
def test_an_import_upwards_is_noticed(path: str, source: str, said: str) -> None:
    assert any(said in violation for violation in upward({**product(), path: source}))


def test_a_circle_is_noticed() -> None:
    planted = {"lightning_e5/losses/planted.py": "from lightning_e5.training import chunks", "lightning_e5/training/planted.py": "import lightning_e5.losses.info_nce"}
    found = circle({**product(), **planted})
    assert {"lightning_e5/losses", "lightning_e5/training"} <= set(found)
    around = {"lightning_e5/a/x.py": "import lightning_e5.b.x", "lightning_e5/b/x.py": "import lightning_e5.c.x", "lightning_e5/c/x.py": "import lightning_e5.a.x"}
    assert circle(around) == ["lightning_e5/a", "lightning_e5/b", "lightning_e5/c", "lightning_e5/a"]


def test_every_lightning_module_lives_in_modules() -> None:
    assert [path for path, source in product().items() if "LightningModule)" in source and not path.startswith("lightning_e5/modules/")] == []


def test_stages_are_what_a_yaml_names() -> None:
    """Every file of ``stages/`` declares a stage; nothing else lives there."""
    without = [p for p, source in product().items() if p.startswith("lightning_e5/stages/") and "__init__" not in p and '@configurable("stage"' not in source]
    assert without == []


def test_files_are_one_concept() -> None:
    benchmarks = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in (ROOT / "benchmarks").rglob("*.py")}
    lines = {path: len(source.splitlines()) for path, source in {**product(), **benchmarks}.items()}
    assert {path: count for path, count in lines.items() if count > 300 and path not in LONG_FILES} == {}


def test_tests_mirror_the_tree() -> None:
    """Every folder of tests has a room of the same name."""
    tested = {p.parent.relative_to(ROOT / "tests").as_posix() for package in ("lightning_e5", "data_modules") for p in (ROOT / "tests" / package).rglob("*.py")}
    assert tested - {PurePosixPath(path).parent.as_posix() for path in product()} == set()


def test_folders_are_one_room() -> None:
    counts: dict[str, int] = {}
    for path in product():
        if not path.endswith(("__init__.py", "__main__.py")):
            folder = PurePosixPath(path).parent.as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > 15 and folder not in LARGE_FOLDERS} == {}


def test_prefixes_are_written_in_one_place() -> None:
    for path, source in product().items():
        constants = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert path == "lightning_e5/text.py" or not {"query: ", "passage: "} & constants, path


def test_public_things_have_docstrings() -> None:
    for path, source in product().items():
        tree = ast.parse(source)
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
