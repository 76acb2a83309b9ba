"""The package: its dependencies are said once and pinned once, its version is said once, its command is there."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_e5
from lightning_e5 import __main__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: File of pins -> the list of `pyproject.toml` that it pins.
PINNED = {"requirements.txt": PROJECT["dependencies"]} | {
    f"requirements-{extra}.txt": wanted for extra, wanted in PROJECT["optional-dependencies"].items()
}


def pins(file: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def disagreements(pinned: list[Requirement], wanted: list[str]) -> list[str]:
    """Dependencies without exactly one pin inside their range, and pins of what is no dependency."""
    ranges = {canonicalize_name(r.name): r.specifier for r in map(Requirement, wanted) if r.name != PROJECT["name"]}
    found = [f"{pin}: no dependency" for pin in pinned if canonicalize_name(pin.name) not in ranges]
    for name, allowed in ranges.items():
        versions = [s for pin in pinned if canonicalize_name(pin.name) == name for s in pin.specifier]
        if not (len(versions) == 1 and versions[0].operator == "==" and versions[0].version in allowed):
            found.append(f"{name}{allowed}: pinned as {[str(v) for v in versions]}")
    return found


def test_every_file_of_pins_is_looked_at() -> None:
    assert {p.name for p in ROOT.glob("requirements*.txt")} == set(PINNED)


@pytest.mark.parametrize("file", PINNED)
def test_each_dependency_has_one_pin_in_its_range(file: str) -> None:
    assert disagreements(pins(file), PINNED[file]) == []


@pytest.mark.parametrize(
    ("pin", "said"),
    [("a==1.0", "a>=2: pinned as ['==1.0']"), ("a>=3", "a>=2: pinned as ['>=3']"), ("b==1", "b==1: no dependency"), ("B==1", "a>=2: pinned as []")],
)
def test_a_disagreement_is_noticed(pin: str, said: str) -> None:
    assert said in disagreements([Requirement(pin)], ["a>=2"])


def test_faiss_is_installed_once() -> None:
    assert not [line for wanted in PINNED.values() for line in wanted if line.startswith("faiss-cpu")]


def test_the_command_is_the_table_of_verbs() -> None:
    assert PROJECT["scripts"] == {"lightning-e5": "lightning_e5.__main__:main"} and callable(__main__.main)


def test_the_version_is_said_once() -> None:
    """In the package, so that a clone that nobody installed knows it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "version" not in PROJECT and settings["dynamic"]["version"] == {"attr": "lightning_e5.__version__"}
    assert lightning_e5.__version__.count(".") == 2


def test_what_is_no_code_is_in_the_package() -> None:
    """Every file beside the code has a suffix that ``package-data`` names."""
    folder = Path(str(resources.files("lightning_e5")))
    others = {p.suffix for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts} - {".py"}
    assert others <= {".j2", ".yaml", ".pyi", ".typed"}
