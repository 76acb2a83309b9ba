"""What decides a stage's result, so that a result is reused exactly where computing it again would give the same.

Arguments, the contents of inputs and of the files and folders that arguments name, the stage's own version, the versions
of the libraries that compute it, and the precision that was left to the hardware. Not in it: on how many devices or workers it runs,
where it keeps temporary files, what it logs and shows.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from lightning_e5.config.experiment import Node, config_hash, outside_path
from lightning_e5.config.instantiate import instantiate
from lightning_e5.distributed.devices import has_cuda, native_bf16
from lightning_e5.errors import UserError
from lightning_e5.files.digests import FileDigests
from lightning_e5.files.storage import MANIFEST, read_manifest
from lightning_e5.redaction import redact

Function = TypeVar("Function", bound=Callable[..., Any])
#: Keys anywhere in a stage's node that change nothing in its result: who computes it, where it is put meanwhile, what is shown.
FREE_ARGUMENTS = (
    "engine", "description", "gpus_per_task", "workers", "num_workers", "device", "devices", "accelerator", "num_nodes", "strategy",
    "backend", "checkpoint_seconds", "checkpoint_steps", "background_checkpoints", "prefetch", "read_behind", "show_progress", "work_dir", "cache_dir",
    "results_dir",
)  # fmt: skip
#: Arguments of stages that name where data lies or goes to which the stage's own results lead by content.
_LEADING = {"lightning_e5.stages.beir_data.beir_data": ("folder",)}

_ROWS = ("numpy", "pyarrow")
_READERS = (*_ROWS, "datasketch", "lxml", "lxml_html_clean", "mwparserfromhell", "py3langid", "trafilatura", "markdown-it-py", "pypdf", "brotli", "charset-normalizer", "zstandard", "py7zr")
_MODELS = (*_ROWS, "torch", "tokenizers", "transformers")
_TRAINING = (*_MODELS, "lightning")
_SEARCH = (*_MODELS, "faiss-gpu", "faiss-cpu", "bm25s", "PyStemmer", "scikit-learn", "scipy")
#: Module of a stage -> the libraries that decide its result; a stage that is not here depends on all of them.
_LIBRARIES = {
    **dict.fromkeys(("build_pairs", "build_ccpairs", "ranked_data", "beir_data", "own_pairs"), _READERS),
    **dict.fromkeys(("draw_pairs", "signal_pairs"), _ROWS),
    **dict.fromkeys(("vocabulary", "consistency_filter"), _MODELS),
    **dict.fromkeys(("pretrain", "finetune", "teacher"), _TRAINING),
    "word_vectors": (*_ROWS, "torch"),
    "hard_negatives": _SEARCH,
}
_ALL = tuple(dict.fromkeys((*_READERS, *_TRAINING, *_SEARCH, "sentence-transformers", "mteb")))
#: Facts of a fingerprint that no configuration names, and that are asked about where they change.
FACTS = ("libraries", "version", "precision")


def result_version(number: int) -> Callable[[Function], Function]:
    """Mark a stage's function with the version of its method, to be raised by hand when its result changes; 1 without it."""

    def mark(function: Function) -> Function:
        function.result_version = number  # type: ignore[attr-defined]
        return function

    return mark


def stage_fingerprint(
    experiment: Node, name: str, node: Node, outputs: Mapping[str, Path], arguments: Mapping[str, Any] | None, digests: FileDigests
) -> Node:
    """Everything that decides a stage's result.

    Args:
        experiment: resolved. A ``seed`` of the stage's own stands for its seed, so that runs of other seeds can share it.
        name, node: of the stage.
        outputs: folders of the earlier stages.
        arguments: instantiated; None re-makes only those whose own fingerprint the stored manifest holds.
        digests: of files' contents.
    """
    if arguments is None:
        stored = stored_fingerprint(Path(experiment["runs_dir"]) / experiment["name"] / "stages" / name) or {}
        arguments = {k: instantiate(node[k], f"stages.{name}.{k}") for k in stored.get("sources") or {} if k in node}
    sources = {k: found for k, v in arguments.items() if (found := own_fingerprint(v)) is not None}
    inputs = {a: _reference_identity(r, outputs, digests) for a, r in (node.get("inputs") or {}).items()}
    places = {text: found for text in sorted(set(_places(node, sources))) if (found := _place_identity(text, digests)) is not None}
    seed = node.get("seed", experiment["seed"])
    kernels = {"deterministic": True} if experiment.get("deterministic") else {}
    decides = {"config": deciding(node), "seed": seed, "inputs": inputs, "sources": sources, "places": places, **facts_here(node), **kernels}
    return dict(redact(decides, within=experiment))


def facts_here(node: Node) -> Node:
    """The `FACTS` of a stage on this machine, as its code and its libraries are now."""
    target = node["_target_"]
    return {"libraries": _libraries(target), "version": declared_version(target), **_precision_here(node)}


def _precision_here(node: Node) -> dict[str, str]:
    """What ``precision: auto`` chose; ``bf16-gpu``, the default, is named only where it chose bfloat16, which no CPU does."""
    device = _device(node)
    if _has_precision(node, "auto"):
        return {"precision": "bf16" if native_bf16(device) else "fp32"}
    by_default = _has_precision(node, "bf16-gpu") or ("precision" not in node and takes_precision(node["_target_"]))
    return {"precision": "bf16"} if by_default and device == "cuda" and native_bf16(device) else {}


def deciding(node: Node) -> Node:
    """A stage's node without the arguments that change nothing in its result."""
    kept = {k: v if k == "inputs" else _without_free(v) for k, v in node.items() if k not in FREE_ARGUMENTS}
    return {k: v for k, v in kept.items() if k != "trainer" or v}


def _without_free(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_free(v) for k, v in value.items() if k not in FREE_ARGUMENTS}
    return [_without_free(item) for item in value] if isinstance(value, list) else value


def stored_fingerprint(out: Path) -> Node | None:
    """The fingerprint of the results in a stage's folder; None where it is not finished or its manifest is damaged."""
    try:
        return dict(read_manifest(out)["fingerprint"]) if (out / MANIFEST).is_file() else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def own_fingerprint(value: Any) -> Any:
    """What an argument says of itself that its YAML does not (such as its files' times); of a list or mapping, what its
    items say."""
    if isinstance(value, Mapping):
        by_name = {key: found for key, item in value.items() if (found := own_fingerprint(item)) is not None}
        return by_name or None
    if isinstance(value, list):
        found = [own_fingerprint(item) for item in value]
        return found if any(item is not None for item in found) else None
    return value.fingerprint() if callable(getattr(value, "fingerprint", None)) else None


def _reference_identity(reference: Any, outputs: Mapping[str, Path], digests: FileDigests) -> Any:
    if isinstance(reference, dict):
        return {k: _reference_identity(r, outputs, digests) for k, r in reference.items()}
    if (path := outside_path(reference)) is not None:
        return digests.of_place(path)
    return config_hash(read_manifest(outputs[reference.split("/")[0]])["files"])


def _places(node: Any, spoken: Any) -> Iterator[str]:
    """Texts of a stage's node that may name a file or folder, but for inputs and the arguments that speak for themselves.

    ``spoken``: what `own_fingerprint` found, of the same shape as the node.
    """
    if isinstance(node, Mapping):
        left_out = (*FREE_ARGUMENTS, "inputs", "_target_", *_LEADING.get(str(node.get("_target_")), ()))
        items: Iterable[tuple[Any, Any]] = ((spoken.get(k) if isinstance(spoken, Mapping) else None, v) for k, v in node.items() if k not in left_out)
    elif isinstance(node, list):
        items = zip(spoken if isinstance(spoken, list) else [None] * len(node), node, strict=True)
    else:
        if isinstance(node, str) and "\n" not in node and (outside_path(node) is not None or "/" in node or node.startswith("~")):
            yield node
        return
    for own, value in items:
        if own is None or not (isinstance(value, Mapping) and "_target_" in value):
            yield from _places(value, own)


def _place_identity(text: str, digests: FileDigests) -> str | None:
    """The digest of the file or folder that a text names, as stages read such texts; None where there is none."""
    name = text.partition("#sha256=")[0]
    try:
        return digests.of_place(outside_path(name) or Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):  # a text that is no path: too long, with a null byte, of an unknown user
        return None


def _libraries(target: str) -> dict[str, str]:
    """Library -> version, of those installed that decide the result of a stage's function. A build for other devices has
    the same version, as other devices ask for no new run."""
    module = target.split(".")[-2]
    names = _LIBRARIES.get(module, _ALL) if target.startswith("lightning_e5.") else _ALL
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in names:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def declared_version(target: str) -> int:
    """What `result_version` says of a stage's function, read from its source: importing it would import all libraries."""
    function = _function(target)
    marks = [d for d in function.decorator_list if isinstance(d, ast.Call) and isinstance(d.func, ast.Name)] if function else []
    return next((int(ast.literal_eval(d.args[0])) for d in marks if d.func.id == "result_version"), 1)  # type: ignore[attr-defined]


@functools.cache
def takes_precision(target: str) -> bool:
    """Whether a stage's function has an argument ``precision``, read from its source like `declared_version`."""
    function = _function(target)
    return function is not None and any(a.arg == "precision" for a in (*function.args.args, *function.args.kwonlyargs))


def _function(target: str) -> ast.FunctionDef | None:
    module, _, name = target.rpartition(".")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        return None
    found = (n for n in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return next(found, None)


def _has_precision(node: Any, value: str) -> bool:
    if isinstance(node, Mapping):
        return node.get("precision") == value or any(_has_precision(item, value) for item in node.values())
    return isinstance(node, list) and any(_has_precision(item, value) for item in node)


def _device(node: Node) -> str:
    """The kind of device that a stage runs on."""
    named = [(node.get("trainer") or {}).get("accelerator"), node.get("device")]
    return "cpu" if "cpu" in named or not has_cuda() else "cuda"
