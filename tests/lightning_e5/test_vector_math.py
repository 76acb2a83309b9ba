"""No thread computes before MKL's vector math is ready: with another one in its first call, a part of that call is of low accuracy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.test_architecture import Sources, edges, product

ROOT = Path(__file__).resolve().parents[2]
READY = "lightning_e5/vector_math.py"
#: What torch computes by MKL's vector math, or what may be computed by it in another version.
FUNCTIONS = {
    "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "erf",
    "erfc", "erfinv", "lgamma", "gelu", "logsumexp", "softmax", "log_softmax", "softplus", "logsigmoid", "normalize", "layer_norm", "cross_entropy", "AdamW",
}  # fmt: skip
#: It reads MKL's own note of the processor: -1 before the first call. Prints it after each import; then what one call gives if a thread reads it half made.
NOTE = """
import ctypes, struct, sys
import torch
library = ctypes.CDLL(torch.__path__[0] + "/lib/libtorch_cpu.so")
try:
    place = ctypes.cast(library.mkl_vml_serv_cpu_detect, ctypes.c_void_p).value
    found = library.mkl_serv_vml_cpu_detect()
except AttributeError:
    sys.exit("no such function")
code = ctypes.string_at(place, 6)
if code[:2] != b"\\x8b\\x05":
    sys.exit("another version")
note = ctypes.c_int.from_address(place + 6 + struct.unpack("<i", code[2:])[0])
print("torch", note.value)
for name in sys.argv[1:]:
    __import__(name)
    print(name, note.value)
values = torch.linspace(-9, 9, 2048)
torch.zeros(1).exp_()
right, note.value, made = values.exp(), found, note.value
wrong, note.value = values.exp(), made
print("differ", int((wrong != right).sum()), int((values.exp() != right).sum()), found == made)
"""


def computing(sources: Sources) -> set[str]:
    """The files that import torch at their top and call one of the functions, in whatever way."""
    found = set()
    for path, source in sources.items():
        tree = ast.parse(source)
        tops = {name.split(".")[0] for node in tree.body for name in _modules(node)}
        called = {n.func.attr.removesuffix("_") for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        if "torch" in tops and called & FUNCTIONS:
            found.add(path)
    return found


def _modules(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def reached(path: str, imports: dict[str, set[str]]) -> set[str]:
    """All files that an import of ``path`` runs, or may run, those of the packages that hold them included."""
    found, todo = set(), [path]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += imports.get(file, ())
            todo += [f"{folder}/__init__.py" for folder in map(str, PurePosixPath(file).parents) if f"{folder}/__init__.py" in imports]
    return found


def unready(sources: Sources) -> set[str]:
    imports = edges(sources)
    return {path for path in computing(sources) if READY not in reached(path, imports)}


def test_whatever_computes_by_it_makes_it_ready() -> None:
    assert len(computing(product())) > 20 and unready(product()) == set()


@pytest.mark.parametrize("source", ["import torch\ndef f(x):\n    return x.exp_()", "from torch import Tensor, nn\ndef f(x):\n    return nn.functional.gelu(x)"])
def test_a_file_that_does_not_is_noticed(source: str) -> None:
    assert unready({**product(), "lightning_e5/distributed/planted.py": source}) == {"lightning_e5/distributed/planted.py"}


def test_an_import_makes_it_ready_and_half_made_it_is_wrong() -> None:
    names = ["lightning_e5.types", "lightning_e5.losses.false_negatives"]
    done = subprocess.run([sys.executable, "-c", NOTE, *names], cwd=ROOT, capture_output=True, text=True, timeout=240)
    if done.stderr.strip() in ("no such function", "another version"):
        pytest.skip(f"torch's vector math: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr[-2000:]
    first, light, ready, differ = (line.split() for line in done.stdout.splitlines())
    assert first[1] == light[1] == "-1" and int(ready[1]) >= 0
    _, half_made, whole, no_table = differ
    assert whole == "0" and (no_table == "True" or int(half_made) > 1000)
