"""What README and the pages of ``docs/`` tell a reader to type is there and runs."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lightning_e5.__main__ import VERBS

ROOT = Path(__file__).resolve().parents[1]
#: What starts the command line, installed or not.
COMMAND = r"(?:python -m lightning_e5|lightning-e5)"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {p.stem: p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md"))}
GUIDE = "\n".join([README, *PAGES.values()])
#: What runs and commands of the pages make.
MADE = ("runs/", "qrels/", "onnx/")
DOCUMENTS = [p for p in sorted(ROOT.rglob("*.md")) if not {"runs", "venv", ".venv"} & set(p.relative_to(ROOT).parts)]


def fenced(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def arguments_of(command: str) -> list[str]:
    """The words after ``lightning-e5``, with the table's placeholders filled in."""
    words = shlex.split(command.replace("[", "").replace("]", "").replace(" ...", ""))
    return [re.sub(r"^key=value$", "seed=2", word) for word in words]


def commands() -> list[str]:
    inline = [c for block in fenced("bash") for c in re.findall(rf"{COMMAND} ([^&|\n]+)", block)]
    rows = re.findall(r"^\| `([a-z]+ [^`]+)`", PAGES["first_hour"].split("## The command line")[1], re.M)
    return list(dict.fromkeys(inline + rows))


def test_every_verb_is_told_and_exists() -> None:
    assert {c.split()[0] for c in commands()} == set(VERBS)
    assert {verb for verb in re.findall(rf"{COMMAND} (\w+)", GUIDE)} <= set(VERBS)


def test_the_first_screen_is_what_it_is_a_picture_of_a_run_and_two_commands() -> None:
    first, rest = README.split("## Your own texts")
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", first)
    assert picture.startswith("experiments/results/quickstart/")
    run, tests = fenced("bash", first)
    assert "lightning_e5 run experiments/quickstart.yaml" in run and "pytest" in tests
    assert first.index(picture) < first.index("```bash") and len(first.splitlines()) < 40
    assert ("## Ablations" in rest) and rest.index("## Ablations") < rest.index("## Paper scale")


def test_the_picture_is_of_the_figures_beside_it() -> None:
    results = ROOT / "experiments" / "results" / "quickstart" / "results.json"
    with Image.open(results.with_name("ndcg.png")) as picture:
        assert picture.text["Source"] == hashlib.sha256(results.read_bytes()).hexdigest(), "draw it again: python docs/pictures.py"  # type: ignore[attr-defined]


def test_every_page_and_notebook_is_reached_from_the_readme() -> None:
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        assert f"({path.relative_to(ROOT)})" in README
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(../notebooks/{path.name})" in GUIDE and f"`{path.name}`" in (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")


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
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        # Commands and names are of the clone's top, links of the page's own folder; links are looked at below.
        text = re.sub(r"\]\([^)]+\)", "]", path.read_text(encoding="utf-8"))
        named = set(re.findall(r"[\w./-]+\.(?:yaml|txt|ipynb|md)\b|[\w./-]+/[\w.-]+\.(?:json|py|png)\b", text))
        assert [n for n in sorted(named - {"EXPERIMENT.yaml", "ABLATION.yaml", "config.yaml"}) if not n.startswith(MADE) and not (ROOT / n).is_file()] == [], path.name
    assert "experiments/quickstart.yaml" in README


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_local_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    local = [link.partition("#") for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link, _, _ in local if not (path.parent / link).exists()] == []
    for link, _, heading in local:
        if heading:
            assert heading in headings(path.parent / link if link else path), f"{link} has no heading #{heading}"


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: small letters, hyphens for blanks, no punctuation."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}


def test_a_heading_that_is_not_there_is_noticed() -> None:
    assert "the-quickstarts-choices" in headings(ROOT / "experiments" / "README.md")
    assert "the-quickstart's-choices" not in headings(ROOT / "experiments" / "README.md")


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
