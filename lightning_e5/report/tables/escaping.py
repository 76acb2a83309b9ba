"""Text that stays text in HTML, Markdown and LaTeX, and text on one line."""

from __future__ import annotations

import html
import re

#: What HTML forbids.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
#: What would end a line of Markdown or is no character of it, and what marks something up in it.
_BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "−": "$-$",
    "±": r"$\pm$", "∗": "$^{*}$", "†": r"$^\dagger$",
}  # fmt: skip


def printable(value: object) -> str:
    """Text without the control characters that HTML forbids (they become U+FFFD); it is not escaped yet."""
    return _CONTROL.sub("\ufffd", str(value))


def markdown(text: object) -> str:
    """A text on one line that Markdown, and the HTML in it, show as it is."""
    return _MARKUP.sub(r"\\\1", html.escape(_BREAKING.sub(" ", str(text)), quote=False))


def latex(text: object) -> str:
    """A text on one line with LaTeX's special characters escaped; ``∗`` (U+2217) and ``†`` become superscripts."""
    return "".join(_LATEX.get(character, character) for character in latex_comment(text))


def latex_comment(text: object) -> str:
    """A text on one line, for a comment of LaTeX."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", str(text))


def shortened(text: str, letters: int) -> str:
    """The text on one line, cut after so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= letters else f"{line[: letters - 1]}…"
