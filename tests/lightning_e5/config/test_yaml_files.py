"""YAML files of every wrong kind: each ends in one sentence, in bounded time and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_e5.__main__ import main
from lightning_e5.config.experiment import load_experiment
from lightning_e5.config.yaml_files import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml, resolve_references
from lightning_e5.errors import UserError

REST = "stages: {one: {_target_: a.b}}\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
DOUBLING = "name: x\n" + REST + "variables:\n  v0: " + "x" * 1000 + "\n" + "".join(f"  v{n}: ${{variables.v{n - 1}}}${{variables.v{n - 1}}}\n" for n in range(1, 25))
NODES = "name: x\n" + REST + "variables:\n  v0: {a: 1, b: 2}\n" + "".join(f"  v{n}: {{a: '${{variables.v{n - 1}}}', b: '${{variables.v{n - 1}}}'}}\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an experiment"), (b"\n\n# a comment\n", "not an experiment"), (b"---\n---\n", "document|not an experiment"),
        (b"- a\n- b\n", "not an experiment"), (b"name\n", "not an experiment"), (b"{}\n", "not an experiment"), (b"null\n", "not an experiment"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8"), (b"name: \xff", "not UTF-8"), ("name: x\n".encode("utf-16"), "not UTF-8"),
        (b"PK\x03\x04\x00\x00", "special characters|unacceptable|control"), (b"name: a\x00b\n", "special characters|unacceptable|control"),
        (b"name: x\n\tseed: 1\n", "line 2"), (b"name: x\nname: y\n", "duplicate"), (b"name: [x\n", "line"), (b"a: &a [*a]\n", "nodes with its aliases"),
        (b"name: *nothing\n", "undefined alias|alias"), (BOMB.encode(), "nodes with its aliases written out"),
        (b"a: " + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested more than"), (b"a: " + b"{a: " * 5000 + b"}" * 5000, "nested more than"),
        (b"#" * (MAX_BYTES + 1), "the most for a YAML"), (b"seed: !!int abc\n", "cannot be read"), (b"a: !!python/object/apply:os.system [ls]\n", "tag|constructor"),
        (b"a: " + b"9" * 5000, "cannot be read|digits"), (b"? {a: 1}\n: 2\n", "."), (b"null: 1\nname: x\n", "."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_experiment(content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    for verb in ("check", "run", "ablate"):
        assert main([verb, str(path)]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"error: {path}:") and "\n" not in said and len(said) < 600, said
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe nobody writes to is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "pipe": "is no regular file", ".": "a directory", "absent.yaml": "no such file", "x" * 300: "no such file|name too long", "a\0b": "NUL"
    }.items():  # fmt: skip
        with pytest.raises((UserError, OSError), match=message):
            read_yaml(tmp_path / name)
    with pytest.raises(UserError, match="is no regular file"):
        read_yaml(Path("/dev/zero"))
    (tmp_path / "over.yaml").write_text("extends: pipe\nname: x\n")
    with pytest.raises(UserError, match="pipe: is no regular file"):
        load_experiment(tmp_path / "over.yaml")


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfname: x\n" + REST.encode())
    assert load_experiment(tmp_path / "a.yaml")["name"] == "x"


@pytest.mark.parametrize("text", [DOUBLING, NODES])
def test_references_that_multiply(text: str, tmp_path: Path) -> None:
    """Ten gigabytes of text, and a thousand million nodes, out of a file of 2 kB."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="too large with its references written out"):
        load_experiment(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${a}", "refers to itself"), ("x ${a} y", "refers to itself"), ("${oc.env:NOT_THERE}", "Environment variable 'NOT_THERE' not found"), ("${oc.decode:a}", "is no reference"), ("${oc.env:A,b}", "is no reference"), ("${c}", "no key 'c' in the experiment"),
        ("${b.x}", "no key 'x' in b; did you mean 'xx'"), ("text ${b}", "names a node, which has no place within a text"), ("${b.${d}}", "."),
        ("${b", "without its end"), ("${}", "is no reference"), ("${b.}", "is no reference"), ("${b.yy.7}", "no key '7'"),
    ],
)  # fmt: skip
def test_wrong_references(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        resolve_references({"a": value, "b": {"xx": 1, "yy": [1]}, "d": "xx"}, "file.yaml")
    assert str(raised.value).startswith("file.yaml: a: ") and "\n" not in str(raised.value)


def test_right_references() -> None:
    tree = {"a": 3, "b": {"c": [1, {"d": None}], "e": "${a}"}, "f": "${b}", "g": "x${a}-${b.c.0}${b.c[1].d}", "h": "\\${a}", "i": "{passage} $5"}
    found = resolve_references(tree, "file.yaml")
    assert found["f"] == {"c": [1, {"d": None}], "e": 3} and found["g"] == "x3-1None" and found["h"] == "${a}" and found["i"] == tree["i"]
    assert found["f"] is not found["b"] and tree["f"] == "${b}"


def test_values_keep_their_types() -> None:
    text = "{a: 1, b: 1.0, c: '1', d: true, e: null, f: 1e-3, g: [x], h: 2001-01-01, i: yes, j: 0x10}"
    assert parse_yaml(text, "x") == {"a": 1, "b": 1.0, "c": "1", "d": True, "e": None, "f": 0.001, "g": ["x"], "h": "2001-01-01", "i": True, "j": 16}


def test_each_verb_says_which_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    one, several = folder / "one.yaml", folder / "several.yaml"
    one.write_text("name: one\n" + REST)
    several.write_text("ablation: several\nvariants: {}\n")
    assert main(["ablate", str(one)]) == 2 and main(["run", str(several)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(f"is one experiment's YAML and not an ablation's; use: python -m lightning_e5 run '{one}'")
    assert said[1].endswith(f"is an ablation's YAML and not one experiment's; use: python -m lightning_e5 ablate '{several}'")
