"""lightning_e5: E5 text embeddings (arXiv 2212.03533) as a PyTorch Lightning experiment project.

What a user of the library needs can be imported from here, and is loaded at its first use.

.. include:: ../docs/terms.md
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

#: Public name -> its module. They are written once, in the stub that type checkers and editors read.
_PLACES = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
