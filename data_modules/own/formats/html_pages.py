"""HTML pages to blocks: the main content, without navigation, scripts and forms."""

from __future__ import annotations

from typing import Any

from data_modules.own.formats.blocks import Block, Document, names, one_line

#: Elements that hold no content of the page.
_LEFT_OUT = (
    "//script|//style|//nav|//aside|//footer|//form|//noscript|//template|//svg|//button|//iframe|//object|//select|//dialog"
    "|//*[@role='navigation' or @role='search' or @role='banner' or @role='contentinfo' or @aria-hidden='true' or @hidden]"
    "|//a[contains(@class,'headerlink') or contains(@class,'anchor-link') or contains(@class,'reference internal viewcode')]"
    "|//header[not(.//h1)]"
    # Sphinx, MkDocs, Doxygen and javadoc
    "|//*[contains(concat(' ',@class,' '),' sphinxsidebar ') or contains(concat(' ',@class,' '),' related ') or contains(concat(' ',@class,' '),' toctree-wrapper ')"
    " or contains(concat(' ',@class,' '),' breadcrumbs ') or contains(concat(' ',@class,' '),' navigation ') or contains(concat(' ',@class,' '),' navbar ')"
    " or contains(concat(' ',@class,' '),' sidebar ') or contains(concat(' ',@class,' '),' toc ') or contains(concat(' ',@class,' '),' navheader ')"
    " or contains(concat(' ',@class,' '),' navfooter ') or contains(concat(' ',@class,' '),' header ') or contains(concat(' ',@class,' '),' footer ') or @id='toc']"
)
_MAIN = "//main|//*[@role='main']|//article"
_BLOCKS = names(
    "address article blockquote body center dd details div dl dt fieldset figcaption figure hr li main ol p section summary td th header ul caption"
)
_HEADINGS = {f"h{n}": n for n in range(1, 7)}


def read_html(page: str) -> Document:
    """The blocks of a page: those of its ``main`` or largest ``article`` where it has one."""
    root = _parsed(page)
    if root is None:
        return Document()
    title = one_line(" ".join(root.xpath("//head/title//text()")))
    _strip(root)
    candidates = root.xpath(_MAIN)
    main = max(candidates, key=lambda e: len(e.text_content()), default=root)
    # A page of many small articles is read as a whole.
    if main is not root and 2 * len(main.text_content()) < len(root.text_content()):
        main = root
    return Document(_Walk().of(main), title)


def html_blocks(fragment: str) -> list[Block]:
    """The blocks of a piece of HTML, as Markdown files hold them."""
    root = _parsed(fragment)
    if root is None:
        return []
    _strip(root)
    return _Walk().of(root)


def _parsed(page: str) -> Any:
    import lxml.html
    from lxml.etree import LxmlError

    if not page.strip():
        return None
    parser = lxml.html.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
    try:
        # What the page says of its encoding was true of its bytes.
        return lxml.html.document_fromstring(page.encode("utf-8", "replace"), parser=parser)
    except (LxmlError, ValueError, AssertionError):
        return None


def _strip(root: Any) -> None:
    for element in root.xpath(_LEFT_OUT):
        if element.getparent() is not None:
            element.drop_tree()


class _Walk:
    """Collects a page's blocks in document order."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.parts: list[str] = []
        self.linked = 0

    def of(self, root: Any) -> list[Block]:
        """The blocks below an element."""
        from lxml.etree import iterwalk

        links = 0
        walk = iterwalk(root, events=("start", "end"))
        for event, element in walk:
            tag = element.tag
            if tag in ("head", "title"):
                walk.skip_subtree() if event == "start" else None
                continue
            if event == "start":
                if tag in _HEADINGS or tag in ("pre", "table") or (tag == "dt" and "sig" in (element.get("class") or "").split()):
                    self._flush()
                    self._whole(element)
                    walk.skip_subtree()
                    continue
                if tag in _BLOCKS:
                    self._flush()
                links += tag == "a"
                self._add(element.text, links)
                if tag == "br":
                    self._add(" ", 0)
            else:
                links -= tag == "a"
                if tag in _BLOCKS:
                    self._flush()
                if element is not root:
                    self._add(element.tail, links)
        self._flush()
        return self.blocks

    def _whole(self, element: Any) -> None:
        """A heading, code or table as one block."""
        if element.tag == "pre":
            code = element.text_content().strip("\n")
            self.blocks += [Block("code", code)] if code.strip() else []
        elif element.tag == "table":
            rows = ["  ".join(cell for c in row.xpath("./td|./th") if (cell := one_line(c.text_content()))) for row in element.iter("tr")]
            text = "\n".join(row for row in rows if row)
            linked = sum(len(one_line(a.text_content())) for a in element.iter("a") if a.get("href"))
            self.blocks += [Block("table", text, linked=linked)] if text else []
        else:
            text = one_line(element.text_content()).removesuffix("¶").strip()
            # A signature stands below all headings.
            self.blocks += [Block("heading", text, _HEADINGS.get(element.tag, 7))] if text else []

    def _add(self, text: str | None, links: int) -> None:
        if text:
            self.parts.append(text)
            self.linked += len(one_line(text)) * (links > 0)

    def _flush(self) -> None:
        text = one_line("".join(self.parts))
        if text:
            self.blocks.append(Block("prose", text, linked=self.linked))
        self.parts, self.linked = [], 0
