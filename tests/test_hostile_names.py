"""Names and paths of any kind: one sentence, or a file of a safe name; never a way out of a folder, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.pair_store import shard_name
from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.files.storage import check_component, safe_component
from lightning_e5.progress import printable

HOSTILE = {"nul": "a\0b", "long": "x" * 5000, "long part": "y" * 300, "half a character": "a\ud800b", "undecoded": "a\udcffb", "newline": "a\nb", "escape": "a\x1b[2Jb"}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "arguments",
    [
        ["run"], ["check"], ["ablate"], ["compare"], ["dashboard"], ["search", "--corpus", ".", "NAME", "text"], ["search", ".", "text", "--corpus"],
        ["export", "NAME", "out"], ["evaluate", "--sts", "x.tsv", "--model"], ["evaluate", "--model", "bm25", "--beir"], ["run", "smoke.yaml", "name=NAME"],
    ],
)  # fmt: skip
def test_a_path_that_is_none_ends_in_one_sentence(arguments: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.yaml").write_text("name: x\nstages: {one: {_target_: lightning_e5.stages.vocabulary.tokens}}\n")
    given = [a.replace("NAME", HOSTILE[name]) for a in arguments]
    assert main(given if "NAME" in "".join(arguments) else [*given, HOSTILE[name]]) == 2
    told = capsys.readouterr().err
    assert "error: " in told and len(told) < 12_000 and "Traceback" not in told
    assert "\x1b" not in told and "\0" not in told
    assert [p.name for p in tmp_path.iterdir()] == ["smoke.yaml"]


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=8, unique=True))
def test_a_name_from_data_becomes_one_file_of_its_own(names: list[str]) -> None:
    names = [*names, "..", ".", "", "a/b", "a%2fb", "../../x", "\0", "\ud800", "x" * 300, "x" * 301, "CON\\nul"]
    safe = [safe_component(name) for name in dict.fromkeys(names)]
    assert len(set(safe)) == len(safe)
    for component in safe:
        assert component == os.path.basename(component) and component not in ("", ".", "..") and len(component.encode()) <= 200
        assert not component.startswith(".") and component.isascii() and component.isprintable()
    assert shard_name("docs", 3) == "shards/docs/part-00003.parquet"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a\\b", "/abs", "a\0b", "a\nb", "a\x85b", "\ud800", "x" * 201, "ü" * 101, 3, None])
def test_a_name_that_is_no_component_is_refused(name: object) -> None:
    with pytest.raises(UserError, match=r"^evaluate: a model: .* cannot be a name of results") as refused:
        check_component(name, "evaluate: a model")
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("name", ["e5", "E5 base (tuned)", "modèle", "数据", "a.b-c_d", "x" * 200])
def test_a_name_that_is_one_passes(name: str) -> None:
    assert check_component(name, "a model") == name


def test_nothing_moves_the_cursor() -> None:
    assert printable("a\x1b[31mred\x07\x9bK\u202e\ud800\r\n\ttext é 数") == "a\\x1b[31mred\\x07\\x9bK\\u202e\\ud800\\r\n\ttext é 数"
    printable("\ud800").encode()
