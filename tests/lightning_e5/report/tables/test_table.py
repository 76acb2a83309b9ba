"""One table in five forms: texts stay texts in each, values are whole in CSV, and an absent one is shown as such."""

from __future__ import annotations

from lightning_e5.report.html import Paragraph, fragment, page
from lightning_e5.report.tables.table import Column, Table, number, text

TABLE = Table([Column("a_b"), number("x", format=".2f"), text("c")], [["<i>|\n&", 1.23456, "long\x01"], ["", None, "–"]], title="A <title>")


def test_five_forms() -> None:
    assert Table(TABLE.columns, [["p", 1.0, "q"]]).lines() == ["a_b     x  c", "------------", "p    1.00  q"]
    assert TABLE.csv().splitlines()[0] == "a_b,x,c" and "1.23456" in TABLE.csv() and TABLE.csv().splitlines()[-1] == ",,–"
    head, rule, row, last = TABLE.markdown().splitlines()[2:]
    assert (head, rule) == (r"| a\_b | x | c |", "| --- | ---: | --- |") and row.startswith(r"| &lt;i&gt;\| &amp; | 1.23 |") and "| – |" in last
    assert r"a\_b & x & c \\" in TABLE.latex() and r"\textless{}i\textgreater{}| \& & 1.23" in TABLE.latex() and "{lrl}" in TABLE.latex()
    html = fragment([TABLE])
    assert "<p>A &lt;title&gt;</p>" in html and '<td class="number">1.23</td><td class="text">long\ufffd</td>' in html and "<i>" not in html


def test_records_become_rows_and_columns_may_be_left_out() -> None:
    table = Table.of([{"n": 1}, {}], [Column("name", lambda record: str(record)), None, number("n", "n", ",")])
    assert table.header == ["name", "n"] and table.cells == [["{'n': 1}", "1"], ["{}", "–"]]


def test_a_page_escapes_its_title_and_texts() -> None:
    whole = page("<b>", [Paragraph("<script>", "note")])
    assert "<h1>&lt;b&gt;</h1>" in whole and '<p class="note">&lt;script&gt;</p>' in whole and whole.endswith("</html>")
