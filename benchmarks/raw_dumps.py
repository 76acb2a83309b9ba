"""Synthetic dumps of a given size, in the exact formats of the real ones, of random words."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

_LETTERS = "eeeetttaaaooiinnsshhrrddlucmfwygpbvk"
Rows = Iterable[str | bytes]


@cache
def _paragraphs() -> list[str]:
    """2,000 paragraphs of 20 to 90 words, always the same."""
    generator = random.Random(0)
    words = ["".join(generator.choices(_LETTERS, k=generator.randint(2, 10))) for _ in range(5000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]

    def sentence() -> str:
        return " ".join(generator.choices(words, weights, k=generator.randint(6, 18))).capitalize() + "."

    return [" ".join(sentence() for _ in range(generator.randint(3, 5))) for _ in range(2000)]


def text(row: int, paragraphs: int = 3) -> str:
    """Paragraphs of a row, as lines."""
    return "\n".join(_paragraphs()[(row * 7 + n * 13) % 2000] for n in range(paragraphs))


def title(row: int) -> str:
    """A title of about eight words."""
    return " ".join(_paragraphs()[row % 2000].split()[:8]) + f" {row}"


def _write(path: Path, size: int, row: Callable[[int], str], head: str = "", tail: str = "") -> Path:
    """Rows until ``size`` bytes of plain text are written, compressed as the suffix says."""
    opened: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opened(path, "wb", **({"compresslevel": 1} if path.suffix in (".gz", ".bz2") else {})) as handle:
        handle.write(head.encode())
        written, number = 0, 0
        while written < size:
            data = row(number).encode()
            handle.write(data)
            written, number = written + len(data), number + 1
        handle.write(tail.encode())
    return path


def jsonl(path: Path, size: int, row: Callable[[int], Any]) -> Path:
    """JSON lines."""
    return _write(path, size, lambda n: json.dumps(row(n)) + "\n")


def s2orc(path: Path, size: int) -> Path:
    """S2ORC's older layout."""
    return jsonl(path, size, lambda n: {
        "paper_id": str(n), "title": title(n), "abstract": text(n), "authors": [{"first": "A", "last": "B"}], "year": 2019,
        "outbound_citations": [str(n * 31 % (n + 1))], "has_outbound_citations": True, "doi": None,
        "bib_entries": {"BIBREF0": {"title": title(n + 5), "link": None}},
    })  # fmt: skip


def s2ag(folder: Path, size: int) -> dict[str, Path]:
    """Papers, abstracts and citations of the Semantic Scholar Academic Graph."""
    count = max(10, size // 1400)
    rows: dict[str, Callable[[int], Any]] = {
        "papers": lambda n: {
            "corpusid": n,
            "title": title(n),
            "externalids": {"DOI": None},
            "authors": [],
            "year": 2019,
        },
        "abstracts": lambda n: {"corpusid": n, "openaccessinfo": {"status": None}, "abstract": text(n)},
        "citations": lambda n: {"citationid": n, "citingcorpusid": n, "citedcorpusid": (n * 31 + 1) % count},
    }
    for name, row in rows.items():
        with gzip.open(folder / f"{name}.gz", "wt", compresslevel=1) as handle:
            for n in range(count):
                handle.write(json.dumps(row(n)) + "\n")
    return {name: folder / f"{name}.gz" for name in rows}


def acl(path: Path, size: int) -> Path:
    """A volume of the ACL Anthology."""
    return _write(
        path, size,
        lambda n: f'<paper id="{n}"><title>{title(n)} <fixed-case>X</fixed-case>y</title><author><first>A</first></author>'
        f"<abstract>{text(n)}</abstract><pages>1–2</pages></paper>\n",
        "<?xml version='1.0' encoding='UTF-8'?>\n<volume id=\"Q18\">\n", "</volume>\n",
    )  # fmt: skip


def _archive(path: Path, size: int, record: Callable[[Any, int], Any], content: Callable[[int], bytes]) -> Path:
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as handle:
        writer = WARCWriter(handle, gzip=True)
        written, number = 0, 0
        while written < size:
            data = content(number)
            writer.write_record(record(writer, number)(payload=io.BytesIO(data)))
            written, number = written + len(data), number + 1
    return path


def warc(path: Path, size: int) -> Path:
    """A WARC file of HTML pages of about 20 kB."""
    from warcio.statusandheaders import StatusAndHeaders

    def record(writer: Any, n: int) -> Any:
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
        return lambda payload: writer.create_warc_record(
            f"https://a.example/{n}", "response", payload=payload, http_headers=headers
        )

    def page(n: int) -> bytes:
        links = "".join(f"<li><a href='/{i}'>{title(i)}</a></li>" for i in range(60))
        body = "".join(f"<p>{line}</p>" for line in text(n, 12).split("\n"))
        return (
            f"<!DOCTYPE html><html lang='en'><head><title>{title(n)}</title><meta charset='utf-8'></head><body><nav><ul>"
            f"{links}</ul></nav><article><h1>{title(n)}</h1>{body}</article><footer>{links}</footer></body></html>"
        ).encode()

    return _archive(path, size, record, page)


def wet(path: Path, size: int) -> Path:
    """A WET file."""

    def record(writer: Any, n: int) -> Any:
        return lambda payload: writer.create_warc_record(
            f"https://a.example/{n}", "conversion", payload=payload, warc_content_type="text/plain"
        )

    return _archive(path, size, record, lambda n: f"{title(n)}\n{text(n, 12)}\n".encode())


def cc_net(path: Path, size: int) -> Path:
    """A file of cc_net."""
    return jsonl(path, size, lambda n: {
        "url": f"https://a.example/{n}", "digest": "sha1:X", "title": title(n), "raw_content": text(n, 12), "language": "en",
        "language_score": 0.98, "perplexity": 200.0 + n % 100, "bucket": "head", "source_domain": "a.example",
    })  # fmt: skip


def news(path: Path, size: int) -> Path:
    """CC-News of news-please."""
    return jsonl(path, size, lambda n: {
        "title": title(n), "maintext": text(n, 8), "description": title(n + 3), "language": "en", "authors": [],
        "url": f"https://n.example/{n}", "date_publish": "2020-01-01 00:00:00", "image_url": None,
    })  # fmt: skip


def pairs_parquet(path: Path, size: int) -> Path:
    """A Parquet file of pairs with sources and ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = max(10, size // 1300)
    columns = {
        "query": [title(n) for n in range(count)], "passage": [text(n) for n in range(count)],
        "source": ["made"] * count, "id": [str(n) for n in range(count)],
    }  # fmt: skip
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=10_000)
    return path


def pair_rows(path: Path, size: int) -> Path:
    """Rows ``["query", "passage"]``."""
    return jsonl(path, size, lambda n: [title(n), text(n)])


def reddit(folder: Path, size: int, suffix: str = ".gz") -> tuple[Path, Path]:
    """A tenth posts and the rest comments on them, in Pushshift's fields."""
    posts = max(10, size // 10 // 700)
    submissions = jsonl(folder / f"RS_2020-01{suffix}", size // 10, lambda n: {
        "id": f"p{n}", "title": title(n), "selftext": text(n, 1), "score": n % 50, "over_18": False, "subreddit": "asks",
        "author": "a", "created_utc": 1577836800, "num_comments": 10, "permalink": f"/r/asks/comments/p{n}/x/", "domain": "self.asks",
    })  # fmt: skip
    comments = jsonl(folder / f"RC_2020-01{suffix}", size - size // 10, lambda n: {
        "id": f"c{n}", "link_id": f"t3_p{n * 7919 % posts}", "parent_id": f"t3_p{n * 7919 % posts}", "body": text(n, 1),
        "score": n % 30, "author": "b", "created_utc": 1577836800, "subreddit": "asks", "gilded": 0, "stickied": False,
    })  # fmt: skip
    return submissions, comments


def stackexchange(path: Path, size: int) -> Path:
    """A Posts.xml: each question is followed by two answers."""

    def row(n: int) -> str:
        body = quoteattr("".join(f"<p>{line} <code>x &lt; 1</code></p>\n" for line in text(n, 2).split("\n")))
        if n % 3 == 0:
            kind = f'PostTypeId="1" AcceptedAnswerId="{n + 2}" AnswerCount="2" Title={quoteattr(title(n))}'
        else:
            kind = f'PostTypeId="2" ParentId="{n - n % 3 + 1}"'
        return f'  <row Id="{n + 1}" {kind} CreationDate="2020-01-01T00:00:00.000" Score="{n % 9 + 1}" Body={body} />\n'

    return _write(path, size, row, '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n', "</posts>\n")


def wikipedia(path: Path, size: int) -> Path:
    """A pages-articles dump with sections, links and templates."""

    def row(n: int) -> str:
        lead = f"{{{{Infobox thing|name={title(n)}|size=3}}}}\n'''{title(n)}''' is a [[thing|kind of thing]].<ref>x</ref> {text(n, 1)}"
        sections = "".join(f"\n\n== Part {k} ==\n{text(n + k, 2)} See [[{title(k)}]]." for k in range(3))
        wikitext = escape(lead + sections)
        return (
            f"  <page>\n    <title>{title(n)}</title>\n    <ns>0</ns>\n    <id>{n + 1}</id>\n    <revision>\n      <id>1</id>\n"
            f'      <model>wikitext</model>\n      <text bytes="1" xml:space="preserve">{wikitext}</text>\n    </revision>\n  </page>\n'
        )

    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n'
    return _write(path, size, row, head, "</mediawiki>\n")
