"""No file that the packages read can run code: by the source itself, and by bombs in the place of what a run reads."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_e5.curation.cleaning.decontaminate import Contamination
from lightning_e5.curation.cleaning.overlap import EvaluationNgrams
from lightning_e5.curation.engines.run_parts import parts_of, read_array, run_parts
from lightning_e5.errors import UserError
from lightning_e5.retrieval.stored_embeddings import StoredEmbeddings

ROOT = Path(__file__).resolve().parents[1]
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
#: Names that are called or read nowhere, whatever they are an attribute of.
NEVER = {
    "extractall", "unpack_archive", "mktemp", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader", "CLoader", "read_pickle", "getoutput",
    "getstatusoutput", "system", "popen",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
#: Keywords -> the only value that they may have.
ONLY = {"allow_pickle": False, "shell": False, "trust_remote_code": False}
#: The places where it is right, and why.
KNOWN = {
    ("lightning_e5/config/annotations.py", "eval"): "annotations of our own source",
    ("lightning_e5/results/recorded_config.py", "yaml.load"): "its loader is a SafeLoader",
}


def faults(path: str, text: str) -> list[str]:
    """What in a file could run code that another file holds."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES - {"pickle"}]
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PICKLES:
            found.append(str(node.module))
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "pickle" and node.attr != "UnpicklingError":
                found.append(f"pickle.{node.attr}")
            if node.attr in NEVER:
                found.append(node.attr)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: k.value for k in node.keywords}
            if (isinstance(node.func, ast.Name) and name in BUILTINS) or name == "yaml.load":
                found.append(name)
            if name == "torch.load" and ast.unparse(given.get("weights_only", ast.Constant(None))) != "True":
                found.append("torch.load without weights_only=True")
            if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
                found.append("np.load without allow_pickle=False")
            found += [f"{key}={ast.unparse(given[key])}" for key, only in ONLY.items() if key in given and ast.unparse(given[key]) != str(only)]
    return [one for one in found if (path, one) not in KNOWN]


@pytest.mark.parametrize("package", ["lightning_e5", "data_modules"])
def test_no_source_can_run_what_a_file_holds(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 20
    assert [(p, f) for p in paths for f in faults(p.relative_to(ROOT).as_posix(), p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "import dill", "from pickle import loads", "import pickle\npickle.loads(b'')", "from joblib import load", "import shelve", "import marshal",
        "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "np.load(p, allow_pickle=True)", "np.load(p, allow_pickle=flag)",
        "yaml.load(t, Loader=x)", "yaml.unsafe_load(t)", "yaml.FullLoader", "eval(t)", "exec(t)", "subprocess.run(c, shell=True)", "os.system(c)",
        "tempfile.mktemp()", "archive.extractall(p)", "shutil.unpack_archive(p)", "AutoModel.from_pretrained(p, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_rule_notices(text: str) -> None:
    assert faults("lightning_e5/some.py", text)


def test_the_rule_lets_safe_code_pass() -> None:
    assert not faults("lightning_e5/some.py", "import pickle\ntry:\n    torch.load(p, weights_only=True)\nexcept pickle.UnpicklingError:\n    model.eval()")


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


READERS: dict[str, Callable[[Path], object]] = {
    "ngrams.npz": EvaluationNgrams.load,
    "texts.npy": Contamination.load,
    "part-0000000000.npy": lambda path: read_array(path, "r"),
    "scores-00000.npz": lambda path: list(run_parts(lambda rows, bar: {}, parts_of(path.parent / "scores", 1, 1), title="scores")),
    "manifest.json": lambda path: StoredEmbeddings(path.parent),
}


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
@pytest.mark.parametrize("name", READERS)
def test_a_bomb_in_the_place_of_an_array_does_nothing(tmp_path: Path, name: str, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "run" / name
    path.parent.mkdir()
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        with path.open("wb") as handle:
            objects = np.array([Bomb(marker)], dtype=object)
            np.save(handle, objects) if kind == "npy" else np.savez(handle, scores=objects, hashes=objects, owners=objects, facts=objects)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=name):
        READERS[name](path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the control: the bomb works"
