"""What notebooks show with: texts stay texts, long ones are cut, and a missing thing is a sentence."""

from __future__ import annotations

import json

import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lightning_e5.errors import UserError
from lightning_e5.files.storage import write_text
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.report.notebook import attempt, load_collection, load_encoder, show, table_html, texts_by_kind
from lightning_e5.report.tables.escaping import shortened
from lightning_e5.report.tables.table import Column, Table, text
from lightning_e5.results.run import RunData
from lightning_e5.results.spaces import encoder_folders


def test_cells_are_texts():
    html = table_html(Table([Column("a"), text("b")], [["<script>alert(1)</script>", "x" * 300]]))
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "x" * 219 + "…" in html and "x" * 220 not in html and "mathjax_ignore" in html


def test_a_text_is_cut_to_one_line():
    assert shortened("a\n b\tc", 220) == "a b c" and shortened("a" * 220, 220) == "a" * 220
    assert shortened("ab" * 200, 10) == "ababababa…"


def test_what_is_missing_is_a_sentence():
    def missing() -> int:
        raise UserError("runs/x: no such run directory")

    InteractiveShell.instance()
    try:
        with capture_output() as shown:
            assert attempt(missing) is None
            assert attempt(lambda: 3) == 3
            show(None, "Nothing was filtered.")
    finally:
        InteractiveShell.clear_instance()
    said = [output.data["text/markdown"] for output in shown.outputs]
    assert said == ["**Not shown:** runs/x: no such run directory", "Nothing was filtered."]
    with pytest.raises(ZeroDivisionError):  # a defect stays one
        attempt(lambda: 1 // 0)


def test_the_encoder_of_a_run_is_loaded_with_its_own_settings(make_run, small_bert, small_tokenizer):
    path = make_run()
    encoder = TextEncoder(small_bert, small_tokenizer).eval()
    encoder.save_pretrained(path / "stages" / "noisy" / "encoder")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["stages"]["evaluate"]["max_length"] = 24
    config["stages"]["evaluate"]["inputs"]["encoders"]["gone"] = "path:nowhere"
    write_text(path / "config.yaml", yaml.safe_dump(config))
    run = RunData(path)
    assert list(encoder_folders(run)) == ["first", "second"]
    loaded = load_encoder(run, "first")
    assert loaded.tokenizer.max_length == 24
    with pytest.raises(UserError, match=r"has no encoder 'gone' \(has: first, second\)"):
        load_encoder(run, "gone")


def test_what_is_mapped_holds_no_planted_mismatch(make_run):
    run = RunData(make_run())
    write_text(run.path / "stages" / "pairs" / "test" / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq0\td\t1\n")
    collections = {"docs": load_collection(run, "docs")}
    kinds = texts_by_kind(run, collections)
    assert sorted(kinds["pairs"]) == [f"plain {i}" for i in (0, 1, 5, 6, 7)]
    assert kinds["test: docs"] == ["T \u2028x"]
    assert json.dumps(kinds) == json.dumps(texts_by_kind(run, collections))
