"""What README tells a reader to type is there and runs."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from lightning_e5.__main__ import VERBS

ROOT = Path(__file__).resolve().parents[1]
#: What starts the command line, installed or not.
COMMAND = r"(?:python -m lightning_e5|lightning-e5)"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [p for p in sorted(ROOT.rglob("*.md")) if not {"runs", "venv", ".venv"} & set(p.relative_to(ROOT).parts)]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def arguments_of(command: str) -> list[str]:
    """The words after ``lightning-e5``, with the table's placeholders filled in."""
    words = shlex.split(command.replace("[", "").replace("]", "").replace(" ...", ""))
    return [re.sub(r"^key=value$", "seed=2", word) for word in words]


def commands() -> list[str]:
    inline = [c for block in fenced("bash") for c in re.findall(rf"{COMMAND} ([^&|\n]+)", block)]
    rows = re.findall(r"^\| `((?:" + "|".join(VERBS) + r") [^`]+)`", README, re.M)
    return inline + rows


def test_every_verb_is_told_and_exists() -> None:
    assert {c.split()[0] for c in commands()} == set(VERBS)
    assert {verb for verb in re.findall(rf"{COMMAND} (\w+)", README)} <= set(VERBS)


def test_every_room_stands_in_the_tree() -> None:
    (tree,) = fenced("text")
    rooms = {p.parent.name for p in (ROOT / "lightning_e5").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  (\w+)/ ", tree, re.M))
    assert {line.split("/")[0] for line in tree.splitlines() if line[0] != " "} <= {p.name for p in ROOT.iterdir()}


@pytest.mark.parametrize("command", commands())
def test_the_options_parse(command: str) -> None:
    verb, *arguments = arguments_of(command)
    parser = argparse.ArgumentParser(exit_on_error=False)
    VERBS[verb].add_arguments(parser)
    parsed = parser.parse_args(arguments)
    assert vars(parsed)
    for flag in re.findall(r"--[\w-]+", command):
        assert getattr(parsed, flag.removeprefix("--").replace("-", "_")) not in (None, False)


def test_an_option_that_is_not_there_is_noticed() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    VERBS["run"].add_arguments(parser)
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parser.parse_args(["a.yaml", "--upgrade"])


def test_the_files_it_names_exist() -> None:
    named = set(re.findall(r"[\w./-]+\.(?:yaml|txt|ipynb|md)\b", README)) - {"EXPERIMENT.yaml", "ABLATION.yaml"}
    assert "experiments/quickstart.yaml" in named
    assert [n for n in sorted(named) if not (ROOT / n).is_file()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_local_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_python_block_runs(smoke_run: Path) -> None:
    (block,) = fenced("python")
    assert '"runs/quickstart/encoder"' in block
    names: dict[str, object] = {}
    exec(block.replace("runs/quickstart/encoder", str(smoke_run / "encoder")), names)
    import torch

    embeddings = names["embeddings"]
    assert isinstance(embeddings, torch.Tensor) and embeddings.dtype == torch.float32
    assert embeddings.ndim == 2 and len(embeddings) == 1
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1))
