"""Self-contained HTML pages: escaping (of Markdown, too), tables, and the one style sheet of the report and of ``compare``."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

#: No script, no font, no image from elsewhere: a browser refuses them even if an escape were forgotten.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
#: What would end a line of Markdown or is no character of it, and what marks something up in it.
_BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; color: #1b1f24;
       max-width: 1180px; margin: 32px auto 64px; padding: 0 24px; background: #fff; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid #d8dee4; }
p { margin: 8px 0; max-width: 880px; }
.lead { font-size: 16px; color: #4a535d; }
.note { color: #59636e; font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 12px 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top; white-space: nowrap;
         border-bottom: 1px solid #e4e8ec; }
th { font-weight: 600; color: #4a535d; border-bottom: 1.5px solid #8c959f;
     vertical-align: bottom; white-space: normal; }
.number { text-align: right; }
td.text { max-width: 460px; white-space: normal; overflow-wrap: anywhere; font-size: 13px; }
img { display: block; max-width: 100%; height: auto; margin: 16px 0; }
details { margin: 12px 0; }
summary { cursor: pointer; }
pre { background: #f6f8fa; padding: 14px; overflow-x: auto; font-size: 12.5px; line-height: 1.4; }
"""


def escape(value: object) -> str:
    """Text for HTML content or a quoted attribute; control characters, which HTML forbids, become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)))


def escaped(text: object) -> str:
    """A text on one line that Markdown, and the HTML in it, show as it is."""
    return _MARKUP.sub(r"\\\1", html.escape(_BREAKING.sub(" ", str(text)), quote=False))


def page(title: str, body: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML fragments, made with the functions of this module.
    """
    head = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style></head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
    ]
    return "\n".join([*head, *body, "</body></html>", ""])


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is ``""``, ``"lead"`` or ``"note"``."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), texts: Sequence[int] = ()
) -> str:
    """A table of plain-text cells.

    Args:
        header: column titles.
        rows: cells.
        numbers: columns aligned right, on one line.
        texts: columns of long text, which wraps.
    """
    kinds = ["number" if c in numbers else "text" if c in texts else "" for c in range(len(header))]
    lines = [_row(header, kinds, "th"), *(_row(row, kinds, "td") for row in rows)]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def picture(svg: str, description: str) -> str:
    """An SVG as an image in the page: its ids cannot clash with another picture's, nor can it run anything."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">'


def details(summary: str, text: str) -> str:
    """Plain text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _row(cells: Sequence[str], kinds: Sequence[str], tag: str) -> str:
    shown = [
        f'<{tag} class="{kind}">{escape(cell)}</{tag}>' if kind else f"<{tag}>{escape(cell)}</{tag}>"
        for cell, kind in zip(cells, kinds, strict=True)
    ]
    return f"<tr>{''.join(shown)}</tr>"
