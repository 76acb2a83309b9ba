"""Extraction from small source trees that the tests write, and from one real package."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from data_modules.ccpairs.formats.docstrings import Limits, docstring_pairs, split_sections
from data_modules.ccpairs.sources.python_docs import PythonDocs
from lightning_e5.errors import UserError
from lightning_e5.types import TextPair

LIMITS = Limits(10, 200, 30, 400)
NUMPYDOC = '''
def shortest_path(G, source):
    """Compute the shortest path between two nodes.

    The path is found by breadth first search; all edges count one.

    Parameters
    ----------
    G : Graph
        The graph that is searched for
        a path.
    source : node
        Where the path begins.

    Notes
    -----
    The running time is linear in the number of edges of the graph.

    Examples
    --------
    >>> shortest_path(G, 0)
    [0, 1]

    See Also
    --------
    all_shortest_paths
    """
'''


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def read(root: Path, **settings: object) -> tuple[list[TextPair], PythonDocs]:
    source = PythonDocs(roots={"Some_Pkg": root}, show_progress=False, **{"workers": 1, **settings})  # type: ignore[arg-type]
    return list(source), source


def extract(docstring: str) -> list[tuple[str, str]]:
    return list(docstring_pairs(docstring, "pkg thing", LIMITS, Counter()))


def test_numpydoc_gives_description_and_prose_section(tmp_path: Path) -> None:
    pairs, source = read(write(tmp_path, {"paths.py": NUMPYDOC}))
    assert [(p.query, p.source, p.passage_kind) for p in pairs] == [
        ("Compute the shortest path between two nodes.", "some-pkg", "passage"),
        ("some pkg shortest path notes", "some-pkg", "passage"),
    ]
    assert pairs[0].passage == (
        "The path is found by breadth first search; all edges count one.\n"
        "Parameters: G : Graph The graph that is searched for a path.\nsource : node Where the path begins."
    )
    assert pairs[1].passage == "The running time is linear in the number of edges of the graph."
    assert source.counts["files"] == 1 and source.counts["docstrings"] == 1 and source.counts["pairs"] == 2


@pytest.mark.parametrize(
    "docstring",
    [
        "Fit the whole model.\n\nArgs:\n    rows: the rows to fit the model to, all at once\n"
        "Returns:\n    the fitted model",
        "Fit the whole model.\n\n:param rows: the rows to fit the model to, all at once\n:type rows: list\n"
        ":return: the fitted model",
        "Fit the whole model.\n\nParameters\n----------\nrows: the rows to fit the model to, all at once\n\n"
        "Returns\n-------\nthe fitted model",
    ],
)
def test_three_styles_give_the_same_text(docstring: str) -> None:
    expected = "Parameters: rows: the rows to fit the model to, all at once\nReturns: the fitted model"
    assert extract(docstring) == [("Fit the whole model.", expected)]


@pytest.mark.parametrize(
    ("docstring", "passage"),
    [
        ("Read :class:`~a.b.Reader` things.\n\nUses ``fast`` and :func:`open <io.open>` [1]_ to read the whole file.",
         "Uses fast and open to read the whole file."),
        ("Read the reader things.\n\n.. versionadded:: 1.2\n\nThe whole file is read here into memory::\n\n    x = 1\n",
         "The whole file is read here into memory:"),
        ("Read the reader things.\n\n.. note:: The whole file is read here into memory.\n\n>>> f(1)\n2\n",
         "The whole file is read here into memory."),
    ],
)  # fmt: skip
def test_markup_and_code_are_left_out(docstring: str, passage: str) -> None:
    [(query, text)] = extract(docstring)
    assert text == passage
    assert "`" not in query


@pytest.mark.parametrize(
    ("docstring", "rule"),
    [
        ("Compute the sum of numbers.", "no passage"),
        ("Sum.\n\nThe numbers are added one after the other, in order.", "query too short"),
        ("For kernels of sorts like:\n\nThe numbers are added one after the other.", "query introduces an example"),
        ("Copyright 2020 the authors.\n\nThe numbers are added one after the other.", "boilerplate"),
        ("rows (list, optional): all rows to read.\n\nThe numbers are added one after the other.", "no description"),
        ("Return the given rows.\n\nArgs:\n    x: a table, or some rows, here\n", "bare list of parameters"),
    ],
)
def test_drops_are_counted_by_rule(docstring: str, rule: str) -> None:
    drops: Counter[str] = Counter()
    assert list(docstring_pairs(docstring, "pkg thing", LIMITS, drops)) == []
    assert drops == {rule: 1}


def test_long_first_paragraph_is_split_and_long_passage_cut_at_a_sentence() -> None:
    [(query, passage)] = extract("Compute the sum, e.g. of numbers. " + "It takes one more of them. " * 40)
    assert query == "Compute the sum, e.g. of numbers."
    assert len(passage) <= 400 and passage.endswith("one more of them.")


def test_split_sections_of_a_google_docstring() -> None:
    lead, sections = split_sections("Head.\n\nArgs:\n    a: one\n    b: two\nAfter the block.")
    assert lead == ["Head.", ""]
    assert sections == [("parameters", ["    a: one", "    b: two"]), ("notes", ["After the block."])]


def test_unusable_files_are_counted_and_skipped(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "good.py": NUMPYDOC,
            "syntax.py": "def (:\n",
            "null.py": b"x = 1\0",
            "latin.py": b'"""caf\xe9"""\n',
            "deep.py": "x = " + "-" * 200_000 + "1\n",
            "surrogate.py": '"""Text with a lone \\ud800 surrogate.\n\nAnd a body that is long enough to be kept."""',
            "tests/test_it.py": NUMPYDOC,
            "_vendor/copy.py": NUMPYDOC,
        },
    )
    os.symlink(root, root / "loop")
    os.symlink(root / "self.py", root / "self.py")
    pairs, source = read(root)
    assert len(pairs) == 2
    assert source.counts["files that do not parse"] == 4
    assert source.counts["files unreadable"] == 1
    assert source.counts["dropped: not UTF-8"] == 1
    assert source.counts["files"] == 7


def test_vague_queries_and_passages_are_left_out(tmp_path: Path) -> None:
    body = "Numbers of kind {0} are added one after the other, in the order that they were given."
    text = "\n".join(f'def f{i}():\n    """Return the whole thing.\n\n    {body.format(i)}\n    """' for i in "abcd")
    pairs, source = read(write(tmp_path, {"a.py": text}))
    assert pairs == []
    assert source.counts["dropped: text with many partners"] == 4


def test_docstrings_of_objects_written_in_c(tmp_path: Path) -> None:
    text = 'add_docstr(torch.abs, r"""\nabs(input) -> Tensor\n\nComputes the absolute value.\n\nEvery element of the '
    text += 'input is made positive, in a new tensor.\n{out}\n""".format(out=1))\n'
    pairs, _ = read(write(tmp_path, {"a.py": text}))
    assert [p.query for p in pairs] == ["Computes the absolute value."]


def test_order_does_not_depend_on_workers(tmp_path: Path) -> None:
    root = write(tmp_path, {f"m{i:03}.py": NUMPYDOC.replace("nodes", f"nodes of {i}") for i in range(120)})
    one, source_one = read(root, workers=1)
    two, source_two = read(root, workers=2)
    assert one == two and len(one) == 120  # the section, common to all 120 files, is left out
    assert source_one.counts == source_two.counts


def test_cache_is_used_only_while_whole_and_current(tmp_path: Path) -> None:
    root, cache = write(tmp_path / "src", {"a.py": NUMPYDOC}), tmp_path / "cache"
    first, source = read(root, cache_dir=str(cache))
    [entry] = cache.iterdir()
    stamp = (entry / "manifest.json").stat().st_mtime_ns
    again, cached = read(root, cache_dir=str(cache))
    assert again == first and cached.counts == source.counts
    assert (entry / "manifest.json").stat().st_mtime_ns == stamp
    (entry / "pairs.parquet").write_bytes(b"broken")
    assert read(root, cache_dir=str(cache))[0] == first
    write(root, {"a.py": NUMPYDOC.replace("two nodes", "all nodes")})
    assert read(root, cache_dir=str(cache))[0] != first
    assert len(list(cache.iterdir())) == 2


def test_missing_packages_and_bad_settings(tmp_path: Path) -> None:
    source = PythonDocs(["OmegaConf", "no-such-package"], workers=1, show_progress=False)
    assert source.missing == ["no-such-package"]
    assert set(source.fingerprint()["packages"]) == {"omegaconf"}
    pairs = list(source)
    assert len(pairs) > 20 and {p.source for p in pairs} == {"omegaconf"}
    with pytest.raises(UserError, match="no-such-package"):
        PythonDocs(["no-such-package"])
    with pytest.raises(UserError, match="min_query_chars=9"):
        PythonDocs(["omegaconf"], min_query_chars=9, max_query_chars=8)
    with pytest.raises(UserError, match="workers=0"):
        PythonDocs(["omegaconf"], workers=0)
    with pytest.raises(UserError, match="roots"):
        PythonDocs(roots={"x": tmp_path / "absent"})


def test_standard_library_leaves_out_tests_and_installed_packages() -> None:
    files = PythonDocs(["stdlib"]).files()
    names = {file.relative for file in files}
    assert "json/__init__.py" in names
    assert not any("site-packages" in name or name.startswith(("test/", "idlelib/")) for name in names)
    assert files == sorted(files)
