"""Every document format is read to headings, prose, code and tables, without its marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_modules.own.formats.blocks import Block, Document
from data_modules.own.formats.html_pages import read_html
from data_modules.own.formats.markdown import read_markdown
from data_modules.own.formats.notebooks import read_notebook
from data_modules.own.formats.pdf import read_pdf
from data_modules.own.formats.plain_text import read_plain
from data_modules.own.formats.rest import has_headings, read_rest
from data_modules.own.formats.rest_inline import plain


def seen(document: Document) -> list[tuple[str, str]]:
    return [(block.kind + (str(block.level) if block.level else ""), block.text) for block in document.blocks]


def test_markdown() -> None:
    found = read_markdown(
        '---\ntitle: "Set up"\nms.date: 1\n---\n# `vector` class {#top}\n\nA **bold** [link](x.md) and `code`\nover two lines.\n\n> [!NOTE]\n> Mind the gap.\n\n'
        "::: moniker range\n[!INCLUDE [a](b.md)]\n\n```py\nx = 1\n```\n\n```{note}\n:class: x\nA hint.\n```\n\n|a|b|\n|-|-|\n|1|[2](c)|\n\n- one\n- two\n\n"
        '<p align="center"><img src="x.png" alt="no"></p>\n\n<!-- nothing -->\nSetext\n------\n![alt](p.png)\n'
    )
    assert found.title == "Set up"
    assert seen(found) == [
        ("heading1", "vector class"), ("prose", "A bold link and code over two lines."), ("prose", "Mind the gap."), ("code", "x = 1"), ("prose", "A hint."),
        ("table", "a  b\n1  2"), ("prose", "one"), ("prose", "two"), ("heading2", "Setext"),
    ]  # fmt: skip
    assert [block.linked for block in found.blocks if block.linked] == [4, 1]


def test_rest_of_sphinx() -> None:
    found = read_rest(
        ":orphan:\n\n.. _target:\n\n=======\n Title\n=======\n\n.. module:: x\n   :synopsis: y\n\nSome *text* with :func:`~a.b.c` [1]_ and `a link <http://x>`_::\n\n   code here\n\n"
        "Part\n----\n\n* item one\n  goes on\n* item two\n\n.. note:: Mind this.\n\n   And this.\n\n.. code-block:: python\n   :linenos:\n\n   x = 1\n\n"
        ".. function:: dump(obj, fp)\n              dump2()\n\n   Writes it.\n\n   :param obj: the thing\n   :rtype: None\n\nterm\n   what it means\n\n"
        "=====  =====\nA      B\n=====  =====\n1      2\n=====  =====\n\n>>> 1 + 1\n2\n\n.. a comment\n   of two lines\n\n.. toctree::\n\n   other\n\n.. [1] A footnote.\n"
    )
    assert seen(found) == [
        ("heading1", "Title"), ("prose", "Some text with c and a link:"), ("code", "code here"), ("heading2", "Part"), ("prose", "item one goes on"), ("prose", "item two"),
        ("prose", "Mind this."), ("prose", "And this."), ("code", "x = 1"), ("heading7", "dump(obj, fp)"), ("prose", "Writes it."), ("prose", "obj: the thing"),
        ("prose", "term: what it means"), ("table", "A B\n1 2"), ("code", ">>> 1 + 1\n2"),
    ]  # fmt: skip


def test_a_pep_has_its_title_in_its_header() -> None:
    found = read_rest("PEP: 8\nTitle: Style Guide\nAuthor: G,\n  B\n\nIntroduction\n============\n\nText.\n")
    assert found.title == "Style Guide" and seen(found) == [("heading1", "Introduction"), ("prose", "Text.")]


@pytest.mark.parametrize(
    ("marked", "text", "linked"),
    [
        ("``a * b`` and **c**", "a * b and c", 0), (":pep:`20` says", "PEP 20 says", 6), (":meth:`.x`, :ref:`Title <t>`", ".x, Title", 5), ("Python_ and do_it_", "Python and do_it_", 0),
        ("|version| a\\ b \\*c", "version ab *c", 0), ("see [#f]_ there", "see there", 0), ("2 * 3 * 4", "2 * 3 * 4", 0),
    ],
)  # fmt: skip
def test_inline_marks_of_rest(marked: str, text: str, linked: int) -> None:
    assert plain(marked) == (text, linked)


def test_html_is_its_main_content() -> None:
    found = read_html(
        "<html><head><title>T - Site</title><script>x</script></head><body><nav><a href=a>Home</a></nav><main><h1>Title<a class=headerlink href=#x>¶</a></h1>"
        "<p>One <b>bold</b> <a href=b>link</a>.</p><pre>a\n  b</pre><ul><li>item</li></ul><table><tr><th>k</th><td>v</td></tr></table><dl><dt class='sig sig-object'>f(x)</dt>"
        "<dd><p>Does it.</p></dd></dl></main><footer>Copyright</footer></body></html>"
    )
    assert found.title == "T - Site"
    assert seen(found) == [
        ("heading1", "Title"), ("prose", "One bold link."), ("code", "a\n  b"), ("prose", "item"), ("table", "k  v"), ("heading7", "f(x)"), ("prose", "Does it."),
    ]  # fmt: skip
    assert found.blocks[1].linked == 4
    assert read_html("").blocks == []


def test_a_notebook_is_its_markdown_and_its_code() -> None:
    cells = [{"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]}, {"cell_type": "code", "source": "x = 1"}, {"cell_type": "raw", "source": "r"}]
    assert seen(read_notebook(json.dumps({"cells": cells}))) == [("heading1", "Title"), ("prose", "Text."), ("code", "x = 1")]
    for broken, said in (("{", "Expecting"), ("[]", "no notebook"), ('{"cells": 1}', "no notebook")):
        with pytest.raises(ValueError, match=said):
            read_notebook(broken)


def test_plain_text() -> None:
    assert seen(read_plain("A title\n\nFirst part\nof text.\n\n* a point\n\n1 2 3 4 5 = 6\n")) == [
        ("heading1", "A title"), ("prose", "First part of text."), ("prose", "a point"), ("code", "1 2 3 4 5 = 6"),
    ]  # fmt: skip
    assert seen(read_plain("Head\n====\n\nText.")) == [("heading1", "Head"), ("prose", "Text.")]
    assert not has_headings("a line\n\n-----\n\nb") and seen(read_plain("A sentence first.\n\nMore.")) == [("prose", "A sentence first."), ("prose", "More.")]


def test_a_pdf_is_its_paragraphs(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    stream = b"BT /F1 12 Tf 72 720 Td (Encoders map) Tj 0 -14 Td (texts to vectors.) Tj 0 -14 Td (Search is near them.) Tj ET"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream), b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]  # fmt: skip
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    content += b"xref\n0 6\n0000000000 65535 f \n" + table + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(content)
    (tmp_path / "a.pdf").write_bytes(content)
    assert read_pdf(tmp_path / "a.pdf").blocks == [Block("prose", "Encoders map texts to vectors."), Block("prose", "Search is near them.")]
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(ValueError, match="not a readable PDF"):
        read_pdf(tmp_path / "b.pdf")
