"""A page's text by its mark, its header, its meta tag or its bytes, in that order; nothing that a page says crashes."""

from __future__ import annotations

import random
import time

import pytest

from lightning_e5.files.charset import decode_page

TEXT = "Schloß Ärger, naïve café; the town lies at the river and has a mill. " * 4
RUSSIAN = "Река начинается в холмах над городом и медленно течёт к морю. " * 10


def page(text: str, meta: str = "") -> str:
    return f"<html><head>{meta}<title>t</title></head><body>{text}</body></html>"


@pytest.mark.parametrize(
    ("text", "encoding", "header", "meta"),
    [
        (TEXT, "utf-8", None, ""),
        (TEXT, "latin-1", "text/html; charset=ISO-8859-1", ""),
        (TEXT, "latin-1", "text/html", "<meta charset=latin1>"),
        (TEXT, "latin-1", None, '<META HTTP-EQUIV="Content-Type" CONTENT="text/html; CHARSET=iso-8859-15">'),
        ("\u201cquoted\u201d € 5", "cp1252", "text/html; charset=iso-8859-1", ""),  # what browsers read by that name
        (RUSSIAN, "cp1251", "text/html; charset='windows-1251'", "<meta charset=utf-8>"),  # the header counts
        (RUSSIAN, "koi8-r", 'text/html;charset="no-such-thing"', "<meta charset=koi8-r>"),
        (RUSSIAN, "cp1251", None, ""),  # by the bytes
        (RUSSIAN, "cp1251", None, "<!-- <meta charset=latin1> --><meta charset=cp1251>"),
        (RUSSIAN, "utf-16", "text/html; charset=utf-8", ""),  # its mark counts first
        (RUSSIAN, "utf-8-sig", "text/html; charset=latin-1", ""),
        (RUSSIAN, "utf-8", "text/html; charset=utf-16", ""),  # what can be read as ASCII is no UTF-16
        (RUSSIAN, "utf-8", "text/html; charset=cp1252", ""),  # not even close: cp1252 has no 0x90
        ("川は丘から海へ流れる。" * 20, "cp932", "text/html; charset=x-sjis", ""),
        ("川は丘から海へ流れる。" * 20, "euc_jp", None, "<meta charset=EUC-JP>"),
    ],
)  # fmt: skip
def test_the_encoding_of_a_page(text: str, encoding: str, header: str | None, meta: str) -> None:
    assert decode_page(page(text, meta).encode(encoding), header) == page(text, meta)


def test_the_header_decides_where_both_fit() -> None:
    content = page("café Ä", "<meta charset=utf-8>").encode()
    assert "cafÃ©" in decode_page(content, "text/html; charset=windows-1250") or "cafĂ©" in decode_page(content, "text/html; charset=windows-1250")
    assert "café Ä" in decode_page(content, "text/html")


def test_a_wrong_byte_or_a_cut_character_costs_no_more() -> None:
    content = page(RUSSIAN, "<meta charset=utf-8>").encode()
    assert decode_page(content.replace("море".encode()[:-1], b"\xff", 1), None).count("\ufffd") <= 2
    assert decode_page(RUSSIAN.rstrip(" .").encode()[:-1], "text/html; charset=utf-8") == RUSSIAN.rstrip(" .")[:-1]


@pytest.mark.parametrize("name", ["hex", "zip", "rot13", "base64", "idna", "punycode", "unicode_escape", "undefined", "a" * 500, "../../etc", "\u0130", "cp0"])
def test_what_is_no_encoding_of_texts_is_passed_over(name: str) -> None:
    began = time.perf_counter()
    assert decode_page(page(TEXT * 300).encode(), f"text/html; charset={name}") == page(TEXT * 300)
    assert time.perf_counter() - began < 20


def test_any_bytes_give_text() -> None:
    draw = random.Random(1)
    names = ["utf-8", "utf-16", "gb2312", "iso-2022-jp", "big5", "hz", "utf-7", "shift_jis", "koi8-u", "x"]
    for _ in range(60):
        content = draw.randbytes(draw.randrange(80))
        if draw.random() < 0.5:
            content = f"<meta charset={draw.choice(names)}>".encode() + content
        decode_page(content, f"text/html; charset={draw.choice(names)}").encode("utf-8", "surrogatepass")
