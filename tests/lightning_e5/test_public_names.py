"""What ``import lightning_e5`` offers: every name is there, is the thing of its module, and costs nothing before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lightning_e5

STUB = Path(lightning_e5.__file__).with_suffix(".pyi")
#: What the documentation promises.
PROMISED = {
    "TextEncoder", "CrossEncoder", "InBatchModule", "PreBatchModule", "MoCoModule", "DistilledModule", "CrossEncoderModule", "SymmetricModule",
    "AdamWConfig", "CCPairsDataModule", "RankedDataModule", "evaluate", "mine_hard_negatives", "filter_pairs", "Index",
}  # fmt: skip


@pytest.mark.parametrize("name", lightning_e5.__all__)
def test_a_name_is_the_thing_of_its_module(name: str) -> None:
    (module,) = [n.module for n in ast.parse(STUB.read_text(encoding="utf-8")).body if isinstance(n, ast.ImportFrom) and n.names[0].name == name]
    thing = getattr(lightning_e5, name)
    assert thing is getattr(import_module(str(module)), name) and thing.__module__ == module
    assert thing.__doc__, "it is public"
    names: dict[str, object] = {}
    exec(f"from lightning_e5 import {name}", names)
    assert names[name] is thing


def test_what_is_promised_is_offered() -> None:
    assert set(lightning_e5.__all__) >= PROMISED
    assert set(dir(lightning_e5)) >= {*lightning_e5.__all__, "__version__"}


def test_type_checkers_and_editors_see_the_same_names() -> None:
    """A name in a stub is exported by ``import X as X``; and a package says by ``py.typed`` that its types are meant to be read."""
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        assert not isinstance(node, ast.ImportFrom) or [(a.name, a.asname) for a in node.names] == [(node.names[0].name,) * 2]
    for package in ("lightning_e5", "data_modules"):
        assert Path(str(import_module(package).__file__)).with_name("py.typed").is_file()


def test_a_name_that_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="module 'lightning_e5' has no attribute 'TextEncodr'"):
        _ = lightning_e5.TextEncodr  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="TextEncodr"):
        exec("from lightning_e5 import TextEncodr")
    from lightning_e5 import text  # a module is no such name, and is found all the same

    assert text.__name__ == "lightning_e5.text"


def test_the_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "lightning", "transformers", "tokenizers", "numpy", "pyarrow", "data_modules")
    code = f"import sys, lightning_e5; dir(lightning_e5); print([n for n in {heavy} if n in sys.modules]); lightning_e5.UserError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=STUB.parents[1], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stdout + done.stderr
