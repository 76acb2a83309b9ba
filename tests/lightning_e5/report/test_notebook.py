"""What notebooks show with: texts stay texts, long ones are cut, and a missing thing is a sentence."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lightning_e5.errors import UserError
from lightning_e5.report.notebook import attempt, shortened, show, table_html


def test_cells_are_texts():
    html = table_html(["a", "b"], [["<script>alert(1)</script>", "x" * 300]], texts=[1])
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "x" * 219 + "…" in html and "x" * 220 not in html and "mathjax_ignore" in html


def test_a_text_is_cut_to_one_line():
    assert shortened("a\n b\tc") == "a b c" and shortened("a" * 220) == "a" * 220
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
