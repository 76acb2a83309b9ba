"""What would end on the CPU, or in an error, on a machine with a GPU: factories that name no device, and decisions about devices in a second place.

The rules look at texts, as those of `tests/test_architecture.py` do.
"""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.test_architecture import Sources, product

#: Functions of torch that make a tensor where ``device`` says, and on the CPU where nothing says it.
FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm",
    "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
#: Files whose tensors are the CPU's on every machine, and why.
ON_THE_CPU = {
    "lightning_e5/curation/consistency_filter/bounded_scores.py": "screens a pool that lies in the memory of the CPU",
    "lightning_e5/curation/consistency_filter/filter_pairs.py": "text ids of a pool that lies in the memory of the CPU",
    "lightning_e5/curation/consistency_filter/leading_scores.py": "the screen of CPUs without fast formats",
    "lightning_e5/curation/consistency_filter/rank_counting.py": "counts among a pool that lies in the memory of the CPU",
    "lightning_e5/curation/consistency_filter/score_format.py": "measures the formats of CPUs",
    "lightning_e5/evaluation/baselines/word_vectors.py": "averaged word vectors are trained and looked up by the CPU",
    "lightning_e5/evaluation/embedding_space.py": "computes on a sample of embeddings that lie on the CPU",
    "lightning_e5/export/onnx.py": "exports, and compares with onnxruntime, on the CPU",
    "lightning_e5/stages/consistency_filter.py": "text ids beside embeddings that are read from files; what is counted on a device goes there in curation/consistency_filter",
}
#: What decides where and with what we compute, which `lightning_e5.distributed.devices` does ...
DECISIONS = (
    "torch.cuda.is_available", "torch.cuda.device_count", "torch.cuda.set_device", "torch.cuda.current_device", "torch.set_num_threads",
    "torch.set_default_device", "torch.set_float32_matmul_precision", "torch.backends.cuda.matmul", "torch.backends.fp32_precision",
)  # fmt: skip
DEVICES = "lightning_e5/distributed/devices.py"
#: ... and where the same is asked for another purpose.
ASKED_FOR = {
    "data_modules/prefetch.py": "the thread's own device, which is that of the training",
    "lightning_e5/distributed/cores.py": "shares out the threads that were decided",
    "lightning_e5/tracking/run_directory.py": "records what the machine has",
    "lightning_e5/training/grad_cache.py": "gives freed memory back to the GPU",
}


@cache
def nodes_of(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def dotted(node: ast.AST) -> str:
    """``torch.cuda.device_count`` of such a node; empty for what is no name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def bare_factories(source: str) -> list[str]:
    """``line: call`` of every factory without ``device``; those of a module's ``__init__`` make what moves with the module."""
    of_modules = {
        id(inner)
        for node in nodes_of(source)
        if isinstance(node, ast.ClassDef) and any(dotted(base).endswith("Module") for base in node.bases)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        for inner in ast.walk(method)
    }
    names = {alias.asname or alias.name for node in nodes_of(source) if isinstance(node, ast.ImportFrom) and node.module == "torch" for alias in node.names}
    found = []
    for node in nodes_of(source):
        if not isinstance(node, ast.Call) or id(node) in of_modules:
            continue
        called = dotted(node.func)
        is_factory = called.removeprefix("torch.") in FACTORIES and (called.startswith("torch.") or called in names)
        if is_factory and not any(keyword.arg == "device" for keyword in node.keywords):
            found.append(f"{node.lineno}: {called}")
    return found


def without_device(sources: Sources) -> list[str]:
    return [f"{path}:{call} names no device" for path, source in sources.items() if path not in ON_THE_CPU for call in bare_factories(source)]


def second_places(sources: Sources) -> list[str]:
    """Decisions about devices and threads elsewhere, and ``.cuda()`` anywhere."""
    found = []
    for path, source in sources.items():
        for node in nodes_of(source):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                found.append(f"{path}:{node.lineno}: .cuda(); the rule is .to(device)")
            elif isinstance(node, ast.Attribute) and path != DEVICES and path not in ASKED_FOR and dotted(node) in DECISIONS:
                found.append(f"{path}:{node.lineno}: {dotted(node)} is decided in {DEVICES}")
    return found


def test_every_factory_names_its_device() -> None:
    assert without_device(product()) == []


def test_devices_and_threads_are_decided_in_one_place() -> None:
    assert second_places(product()) == []


def test_every_exception_is_needed() -> None:
    assert [path for path in ON_THE_CPU if not bare_factories(product()[path])] == []
    assert [path for path in ASKED_FOR if not any(decision in product()[path] for decision in DECISIONS)] == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import torch\ndef f(x_T):\n    return torch.arange(len(x_T)) - x_T", ["3: torch.arange"]),
        ("from torch import zeros as nothing, ones\nones(3)", ["2: ones"]),
        ("import torch\nclass Mask:\n    def __init__(self):\n        self.rows = torch.zeros(3)", ["4: torch.zeros"]),
        ("import torch\nclass Head(nn.Module):\n    def __init__(self):\n        self.w = nn.Parameter(torch.ones(3))\n    def forward(self, x):\n        return x + torch.ones(3)", ["6: torch.ones"]),
        ("import torch\ntorch.tensor([1], device=device), torch.zeros_like(x), x.new_ones(3), np.arange(3), math.empty(1)", []),
    ],
)  # fmt: skip
def test_a_factory_without_a_device_is_noticed(source: str, said: list[str]) -> None:
    assert bare_factories(source) == said
    assert without_device({"lightning_e5/losses/planted.py": source}) == [f"lightning_e5/losses/planted.py:{call} names no device" for call in said]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = y.cuda()", ".cuda(); the rule is .to(device)"),
        ("import torch\ntorch.set_num_threads(2)", "torch.set_num_threads is decided in"),
        ("import torch\ntorch.backends.cuda.matmul.allow_tf32 = True", "torch.backends.cuda.matmul is decided in"),
        ("import torch\nd = 'cuda' if torch.cuda.is_available() else 'cpu'", "torch.cuda.is_available is decided in"),
    ],
)
def test_a_second_place_is_noticed(source: str, said: str) -> None:
    (found,) = second_places({"lightning_e5/models/planted.py": source})
    assert said in found
    assert second_places({"lightning_e5/models/planted.py": "import torch\nx = x.to(device); torch.cuda.synchronize(device)"}) == []
