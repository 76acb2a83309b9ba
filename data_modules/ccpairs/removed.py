"""What sites put in the place of a text that is gone, and who writes in the place of people, told by its form."""

from __future__ import annotations

import re

_GONE = r"(?:removed|deleted|unavailable|redacted|withheld|overwritten|taken down)"
_WHO = r"(?:moderators?|mods?|reddit\w*|admins?|administrators?|automod\w*|anti-evil|(?:its |the |their |original )*(?:author|user|poster|owner)|person who)"
_WHAT = r"(?:comment|post|submission|thread|message|content|account|link|title|text)"
#: ``[removed]``, ``[ Removed by Reddit in response to a copyright notice. ]``, ``[deleted by user]``, ``[unavailable]``.
_MARK = re.compile(
    rf"\W*\[\s*(?:this\s+)?(?:{_WHAT}\s+)?(?:has been |have been |was |is |are )?{_GONE}"
    r"(?:\s*[.:,-].{0,300}|\s+(?:by|in response|on account|for|due|because|as|at|per|pursuant|following|under|via|with|too)\b.{0,300})?[\s\\]*\]\W*",
    re.I | re.S,
)
#: The same without brackets, and the letters that moderators send: they begin a text.
_NOTICE = re.compile(
    rf"\W*(?:sorry,? |unfortunately,? |(?:hi|hello)\W[\w /-]{{0,40}}\W{{1,8}})?(?:"
    rf"your {_WHAT}(?: in /?r/\w+| to /?r/\w+)? (?:has been|was|had been) (?:automatically )?{_GONE}\b"
    rf"|(?:this |the )?{_WHAT} (?:has been |was |is )?(?:automatically )?{_GONE} (?:by (?:the )?{_WHO}\b|for (?:violating|breaking)\b)"
    rf"|{_GONE} by (?:a |the )?(?:moderators?|reddit)\b\W*$)",
    re.I,
)
_BOT_SIGNATURE = re.compile(r"\b(?:I am a bot|I'm a bot|this (?:action|comment) was (?:performed|made|posted) (?:automatically|by a bot))\b", re.I)
_LINK = re.compile(r"\[([^\[\]]{0,200})\]\([^()\s]{0,300}\)")
_WORDS = ("remov", "delet", "unavailable", "redact", "withheld", "overwritten", "taken down")
#: A mark is short, and a letter says what it is at once.
_MARK_CHARS, _HEAD_CHARS = 400, 400
#: ``RemindMeBot``, ``gifv-bot``, ``haiku_bot2``; not ``talbot``.
_BOT_NAME = re.compile(r".*(?:[a-z0-9]Bot|BOT|[-_][Bb]ot|^[Bb]ot)[-_]?\d*_?")
_BOTS = frozenset(
    ("automoderator", "autotldr", "sneakpeekbot", "remindmebot", "totesmessenger", "imguralbumbot", "haikusbot", "savevideo", "vredditdownloader",
     "nice-scores", "profanitycounter", "stabbot", "agree-with-above", "auto-xkcd37", "yourtypicalrobot")
)  # fmt: skip


def is_mark(text: str) -> bool:
    """Whether a text, or a line, is nothing but a mark in brackets that another one is gone."""
    if len(text) > _MARK_CHARS or "[" not in text or not _tells(text):
        return False
    return _MARK.fullmatch(_LINK.sub(r"\1", text)) is not None


def is_removed(text: str) -> bool:
    """Whether a text is such a mark, or begins as a letter does that tells of a removal."""
    head = text[:_HEAD_CHARS]
    # Of most texts the first word says that they are no letter, in less time than it takes to look for all words.
    notice = _NOTICE.match(_LINK.sub(r"\1", head) if "[" in head else head)
    return (notice is not None or is_mark(text)) and _tells(head)


def is_by_bot(author: object, text: str) -> bool:
    """Whether a text is a program's: by its author's name, where it is known, or by what it says at its end."""
    if isinstance(author, str):
        name = author.lower()
        if name in _BOTS or ("bot" in name and _BOT_NAME.fullmatch(author)):
            return True
    tail = text[-_HEAD_CHARS:]
    lowered = tail.lower()
    # One of them is in every signature; neither has an i, k or s, for which `re.I` takes other letters than their two cases.
    return ("a bot" in lowered or "automat" in lowered) and _BOT_SIGNATURE.search(tail) is not None


def _tells(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _WORDS)
