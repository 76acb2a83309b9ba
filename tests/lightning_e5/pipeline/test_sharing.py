"""A stage is taken from another run exactly where all is equal that decides its result; what hinders that ends no run."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.files.digests import FileDigests
from lightning_e5.files.storage import MANIFEST, read_json, write_text
from lightning_e5.pipeline import stage_cache
from lightning_e5.pipeline.lock import locked
from lightning_e5.pipeline.result_facts import result_facts, unchanged
from lightning_e5.results.run import RunData
from tests.lightning_e5.pipeline.tiny_stages import CASE, Tiny

REUSED = re.compile(r"reused from first \(made \d{4}-\d\d-\d\d\)")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    made = Tiny(tmp_path, monkeypatch)
    assert made.run("first")[0] == "starts"
    return made


def is_reused(said: list[str]) -> bool:
    assert len(said) in (1, 2)
    assert (len(said) == 1 and REUSED.fullmatch(said[0])) or said[0] == "starts", said
    return len(said) == 1


def test_another_run_takes_the_same_bytes(tiny: Tiny) -> None:
    assert is_reused(tiny.run("second"))
    for name in ("result.txt", MANIFEST, "metrics.json"):
        assert (tiny.out("second") / name).samefile(tiny.out("first") / name)
    assert (tiny.out("second") / "result.txt").read_text() == "ABC"
    assert tiny.run("second") == [], "finished"


def test_what_decides_the_result_is_in_the_key(tiny: Tiny, tmp_path: Path) -> None:
    """Each control changes one thing; back as it was, the stage is taken again."""
    given = tmp_path / "given.txt"
    given.write_text("1")
    assert not is_reused(tiny.run("argument", text="abd"))
    assert not is_reused(tiny.run("threads", top={"threads": 2}))
    assert not is_reused(tiny.run("seed", top={"seed": 2}))
    assert not is_reused(tiny.run("input", file=str(given)))
    given.write_text("2")
    assert not is_reused(tiny.run("changed-input", file=str(given)))
    assert (tiny.out("changed-input") / "result.txt").read_text() == "ABC2"
    (tiny.helpers / "case.py").write_text(CASE.replace("upper()", "title()"))
    assert not is_reused(tiny.run("changed-code"))
    assert (tiny.out("changed-code") / "result.txt").read_text() == "Abc"
    (tiny.helpers / "case.py").write_text(CASE)
    assert is_reused(tiny.run("all-equal"))


def test_a_file_named_without_a_folder_is_an_input(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.txt").write_text("1")
    assert not is_reused(tiny.run("one", file="given.txt"))
    (tmp_path / "given.txt").write_text("2")
    assert not is_reused(tiny.run("two", file="given.txt"))
    assert (tiny.out("two") / "result.txt").read_text() == "ABC2"


def test_a_stage_that_was_finished_under_other_code_is_left_to_nobody(tiny: Tiny) -> None:
    """A run keeps what it has finished; under the key of today's code it must not lie."""
    (tiny.helpers / "case.py").write_text(CASE.replace("upper()", "title()"))
    (tiny.runs / "first" / "metrics.json").unlink()
    assert tiny.run("first") == ["finished before, skipped"]
    assert not is_reused(tiny.run("second"))
    assert (tiny.out("second") / "result.txt").read_text() == "Abc"


def test_code_that_is_edited_while_it_runs_shares_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny.entries()
    monkeypatch.setenv("TINY_EDIT", str(tiny.helpers / "case.py"))
    assert not is_reused(tiny.run("edited", text="x"))
    assert tiny.entries() == before
    (tiny.runs / "edited" / "metrics.json").unlink()
    assert tiny.run("edited", text="x") == ["finished before, skipped"] and tiny.entries() == before


def test_a_stage_that_was_begun_under_other_code_shares_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the earlier try left in its folder may be of the other code."""
    before = tiny.entries()
    (tiny.package / "make.py").write_text((tiny.package / "make.py").read_text().replace("if fail", "if True"))
    with pytest.raises(RuntimeError, match="told to"):
        tiny.run("half", text="x")
    (tiny.package / "make.py").write_text((tiny.package / "make.py").read_text().replace("if True", "if fail"))
    assert tiny.run("half", text="x")[0] == "continues" and tiny.entries() == before
    assert tiny.run("other", text="x")[0] == "starts", "nothing was left to take"


def test_fresh_computes_and_continues(tiny: Tiny) -> None:
    assert is_reused(tiny.run("second"))
    assert tiny.run("second", fresh=True)[0] == "starts", "what was taken is computed"
    assert not (tiny.out("second") / "result.txt").samefile(tiny.out("first") / "result.txt")
    assert tiny.run("second", fresh=True) == [], "what this run computed is kept"
    assert tiny.run("third", fresh=True)[0] == "starts"
    assert is_reused(tiny.run("fourth")), "the entry stays where it is equal"


def test_fresh_replaces_what_differs_and_says_so(tiny: Tiny) -> None:
    from lightning_e5.files.storage import write_manifest

    (entry,) = tiny.entries()
    fingerprint = read_json(entry / MANIFEST)["fingerprint"]
    write_text(entry / "result.txt", "wrong, and with a manifest that says it is right")
    write_manifest(entry, kind="x", files=["result.txt", "metrics.json"], fingerprint=fingerprint)
    said = tiny.run("second", fresh=True)
    assert re.search(r"not equal to what first \(made [\d-]+\) shared, which is replaced \(it differs in result.txt\)", "\n".join(said))
    assert "reused from second" in tiny.run("third")[0]
    assert (tiny.out("third") / "result.txt").read_text() == "ABC"


def test_reports_count_a_stage_once(tiny: Tiny) -> None:
    from lightning_e5.report.run_page import report_page
    from lightning_e5.report.tables.summary import summary_table

    tiny.run("second")
    first, second = RunData(tiny.runs / "first"), RunData(tiny.runs / "second")
    assert first.reused() == {} and first.seconds_spent() == first.times()["make"]["seconds"] > 0
    assert second.reused() == {"make": "first"} and second.seconds_spent() == 0
    assert "time: 0 s in all; reused from first: make" in summary_table(second.path, [])
    assert "reused from" not in summary_table(first.path, [])
    assert re.search(r"first, \d{4}-\d\d-\d\d \(in \d+\.\d s\), reused", report_page(second)) and "computed by" not in report_page(first)


@pytest.mark.parametrize("place", ["a file", "a folder that cannot be written to"])
def test_a_folder_that_cannot_be_used_costs_one_sentence(tiny: Tiny, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "elsewhere"
    if place == "a file":
        folder.write_text("")
    else:  # as on a read-only disk; the tests may run as root, whom modes do not stop

        def refused(*arguments: Any, **options: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))

        monkeypatch.setattr(stage_cache, "locked", refused)
    said = tiny.run("second", top={"stage_cache": str(folder)})
    assert said[1] == "starts" and len(said) == 3 and "no stages are shared with other runs there" in said[0], said
    assert (tiny.runs / "second" / "metrics.json").is_file()


def test_a_kill_while_an_entry_is_made_leaves_none(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process removes what was left, and the finished stage becomes an entry after all."""
    before = tiny.entries()

    def killed(*paths: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        patch.setattr(stage_cache.shutil, "rmtree", lambda *given, **options: None)  # a killed process cleans up nothing
        with pytest.raises(KeyboardInterrupt):
            tiny.run("killed", text="x")
    left = [p for p in tiny.entries() if p not in before]
    assert [p.name.endswith(".tmp") for p in left] == [True]
    assert tiny.run("killed", text="x") == ["finished before, skipped"]
    assert [p.name.startswith("make-") for p in tiny.entries() if p not in before] == [True]
    assert "reused from killed" in tiny.run("other", text="x")[0]


def test_much_is_not_copied_unasked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_links(*paths: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(stage_cache, "COPIED_BYTES", 10)
    before = tiny.entries()
    said = tiny.run("large", text="long" * 100)
    assert "makes no hard links" in said[-1] and "stage_cache=FOLDER" in said[-1] and tiny.entries() == before
    named = {"stage_cache": str(tmp_path / "named")}
    assert tiny.run("asked", text="long" * 100, top=named)[0] == "starts"
    assert tiny.run("copied", text="long" * 100, top=named)[0].startswith("reused from runs/asked")
    assert (tiny.out("copied") / "result.txt").read_text() == "LONG" * 100


def test_a_model_that_is_fetched_meanwhile_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    node = {"_target_": "lightning_e5.stages.draw_pairs.draw_pairs", "encoder": {"pretrained": "owner/model"}}
    absent = result_facts(node, FileDigests())
    write_text(tmp_path / "models--owner--model" / "refs" / "main", "revision1")
    fetched = result_facts(node, FileDigests())
    write_text(tmp_path / "models--owner--model" / "refs" / "main", "revision2")
    assert absent != fetched and unchanged(absent, fetched)
    assert not unchanged(fetched, result_facts(node, FileDigests()))


def test_a_lock_is_waited_for_only_by_its_stage(tiny: Tiny) -> None:
    (entry,) = tiny.entries()
    with locked(entry.with_name(f"{entry.name}.lock"), wait=False, held="the test"):
        assert tiny.run("other", text="x")[0] == "starts"
