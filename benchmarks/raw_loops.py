"""The peers of the readers of raw dumps: the plain loops that one writes first, with everything in memory."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Pairs = Iterator[tuple[str, str]]
_WORDS = 200


def _rows(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)


def _line(text: str) -> str:
    return " ".join(text.split())


def _first_passage(text: str) -> str:
    """Whole lines of at most 200 words together, white space folded."""
    held: list[str] = []
    used = 0
    for line in text.split("\n"):
        words = line.split()
        if not words:
            continue
        if used and used + len(words) > _WORDS:
            break
        if len(words) > _WORDS:
            return " ".join(words[:_WORDS])
        held.append(" ".join(words))
        used += len(words)
    return "\n".join(held)


def s2orc(path: Path) -> Pairs:
    """(title, abstract)."""
    for row in _rows(path):
        if row["title"] and row["abstract"]:
            yield _line(row["title"]), _line(row["abstract"])


def s2ag(papers: Path, abstracts: Path, citations: Path) -> Pairs:
    """All three kinds, joined in dictionaries."""
    titles = {row["corpusid"]: _line(row["title"]) for row in _rows(papers)}
    texts = {row["corpusid"]: _line(row["abstract"]) for row in _rows(abstracts)}
    for key, abstract in texts.items():
        yield titles[key], abstract
    for row in _rows(citations):
        citing, cited = row["citingcorpusid"], row["citedcorpusid"]
        if citing != cited:
            yield titles[citing], titles[cited]
            yield texts[citing], texts[cited]


def acl(path: Path) -> Pairs:
    """(title, abstract), over the whole tree."""
    from lxml import etree

    for paper in etree.parse(str(path)).getroot().iter("paper"):
        title, abstract = paper.find("title"), paper.find("abstract")
        if title is not None and abstract is not None:
            yield _line("".join(title.itertext())), _line("".join(abstract.itertext()))


def warc(path: Path) -> Pairs:
    """(title, first passage) with warcio, trafilatura and py3langid."""
    from py3langid import classify
    from trafilatura import bare_extraction
    from warcio.archiveiterator import ArchiveIterator

    dates: dict[str, Any] = {"extensive_search": False, "original_date": False, "max_date": "2000-01-01"}
    with path.open("rb") as handle:
        for record in ArchiveIterator(handle):
            if record.rec_type == "response":
                url = record.rec_headers.get_header("WARC-Target-URI")
                document: Any = bare_extraction(
                    record.content_stream().read(), url=url, fast=True, with_metadata=True, include_comments=False,
                    include_tables=False, date_extraction_params=dates,
                )  # fmt: skip
                if document and document.title and document.text:
                    first, _, rest = document.text.partition("\n")
                    body = rest if first == document.title else document.text
                    classify(document.text[:2000])
                    yield document.title, _first_passage(body)


def wet(path: Path) -> Pairs:
    """(first line, first passage)."""
    from py3langid import classify
    from warcio.archiveiterator import ArchiveIterator

    with path.open("rb") as handle:
        for record in ArchiveIterator(handle):
            if record.rec_type == "conversion":
                title, _, text = record.content_stream().read().decode("utf-8").partition("\n")
                classify(text[:2000])
                yield _line(title), _first_passage(text)


def cc_net(path: Path) -> Pairs:
    """(title, first passage)."""
    for row in _rows(path):
        if row["title"]:
            yield _line(row["title"]), _first_passage(row["raw_content"])


def news(path: Path) -> Pairs:
    """(title, first passage) and (highlight, first passage)."""
    for row in _rows(path):
        passage = _first_passage(row["maintext"])
        yield _line(row["title"]), passage
        if row["description"]:
            yield _line(row["description"]), passage


def parquet(path: Path) -> Pairs:
    """Two columns, with two others read and kept beside them."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(1024, columns=["query", "passage", "source", "id"]):
        for row in batch.to_pylist():
            if row["query"] and row["passage"]:
                yield row["query"], row["passage"]


def arrays(path: Path) -> Pairs:
    """Rows that are arrays."""
    for query, passage in _rows(path):
        if query and passage:
            yield query, passage


def saved_dataset(path: Path, folder: Path) -> Path:
    """The pairs of a Parquet file as a folder of ``save_to_disk``."""
    import datasets
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    datasets.Dataset(pq.read_table(path)).save_to_disk(str(folder))
    return folder


def dataset(folder: Path) -> Pairs:
    """Rows of a data set."""
    import datasets

    for row in datasets.load_from_disk(str(folder)):
        if row["query"] and row["passage"]:
            yield row["query"], row["passage"]


def reddit(submissions: Path, comments: Path) -> Pairs:
    """(title and text, comment) of comments on the post itself, joined in a dictionary."""
    from data_modules.ccpairs.formats.markup import reddit_text

    posts = {row["id"]: (row["title"], row["selftext"]) for row in _rows(submissions)}
    queries: dict[str, str] = {}
    for row in _rows(comments):
        key = row["link_id"][3:]
        if row["parent_id"] == row["link_id"] and key in posts:
            if key not in queries:
                title, body = posts[key]
                queries[key] = _line(reddit_text(title)) + "\n" + reddit_text(body)
            yield queries[key], reddit_text(row["body"])


def stackexchange(path: Path) -> Pairs:
    """(title, answer) and (title and body, answer), joined in a dictionary."""
    from lxml import etree

    from data_modules.ccpairs.formats.markup import html_text

    questions: dict[str, tuple[str, str]] = {}
    answers: list[tuple[str, str]] = []
    for _, row in etree.iterparse(str(path), tag="row"):
        if row.get("PostTypeId") == "1":
            questions[row.get("Id")] = (_line(row.get("Title")), html_text(row.get("Body")))
        elif row.get("PostTypeId") == "2" and int(row.get("Score")) >= 1:
            answers.append((row.get("ParentId"), html_text(row.get("Body"))))
        row.clear()
    for parent, answer in answers:
        if parent in questions:
            title, body = questions[parent]
            yield title, answer
            yield f"{title}\n{body}", answer


def wikipedia(path: Path) -> Pairs:
    """(page and section title, section), with the same parser of wikitext."""
    from lxml import etree

    from data_modules.ccpairs.formats.wikitext import sections

    space = "{http://www.mediawiki.org/xml/export-0.11/}"
    with bz2.open(path) as handle:
        for _, page in etree.iterparse(handle, tag=f"{space}page"):
            title = page.findtext(f"{space}title")
            for section, passage in sections(page.findtext(f"{space}revision/{space}text")):
                if len(passage) >= 100:
                    yield f"{title} {section}".strip(), passage
            page.clear()
