"""Marks and letters of removal in all their forms; what people write about removals stays."""

from __future__ import annotations

import random
import time

import pytest

from data_modules.ccpairs import removed
from data_modules.ccpairs.heuristics import NotDeleted
from data_modules.ccpairs.removed import is_by_bot, is_mark, is_removed
from lightning_e5.types import PairCandidate

MARKS = [
    "[deleted]", "[removed]", " [Removed]\n", "*[deleted]*", "[deleted by user]", "[removed by moderator]", "[ Removed by moderator ]",
    "[ Removed by Reddit ]", "[removed by reddit]", "[unavailable]", "[Content removed by Reddit]", "[This comment has been removed]",
    "[ Removed by reddit in response to a copyright notice. ]", "[ Removed by Reddit in response to a legal request. ]",
    "[ Removed by Reddit on account of violating the [content policy](/help/contentpolicy). ]",
    "\\[removed\\]", "[removed: legal]", "[removed too soon]", "[This post was deleted by the person who originally posted it]",
]  # fmt: skip
LETTERS = [
    "Your submission has been automatically removed because your account is too new.",
    "Hi u/someone,\n\nYour post has been removed for violating rule 3.",
    "Sorry, this post has been removed by the moderators of r/books.",
    "Sorry, this post was deleted by the person who originally posted it.",
    "Unfortunately, your comment was removed for the following reason(s):\n* No low effort",
    "Comment removed by moderator", "Removed by Reddit.", "This comment has been overwritten by its author",
    "**Your post to r/books has been removed**",
]  # fmt: skip
ORDINARY = [
    "I removed the lid and it worked.", "[deleted scene] is the best part of it", "They removed it. [source](http://x/removed)",
    "Why was this deleted?", "Your post made my day.", "[removed] the comment above said that bridges are dry", "The deleted files can be found again.",
    "[Unavailable Light is the band's second record, and the best one that they made]", "This post was removed from the front wall of the bridge in 1931.",
    "[Removed from my library yesterday]", "Comment deleted files as such in the log.", "[1] Deleted scenes", "[x] remove the old paint first", "", "[]",
    "My comment was removed by the mods, but here it is again: paint the bridge.", "Moderators removed the post because it was a joke.",
]  # fmt: skip


@pytest.mark.parametrize("text", [*MARKS, *LETTERS])
def test_what_tells_of_a_removal_is_none_of_the_text(text: str) -> None:
    assert is_removed(text)
    assert not NotDeleted()(PairCandidate("a title", text, "reddit"))


@pytest.mark.parametrize("text", MARKS)
def test_a_mark_is_known_as_a_last_line(text: str) -> None:
    assert is_mark(text) and not NotDeleted()(PairCandidate(f"a title\n{text.strip()}", "a passage", "reddit"))


@pytest.mark.parametrize("text", ORDINARY)
def test_what_people_write_stays(text: str) -> None:
    assert not is_removed(text) and not is_mark(text)
    if text:
        assert NotDeleted()(PairCandidate("a title", text, "reddit"))


def test_programs_by_name_and_by_what_they_say() -> None:
    for author in ("AutoModerator", "autotldr", "RemindMeBot", "gifv-bot", "haiku_bot2", "WikiTextBot", "sneakpeekbot"):
        assert is_by_bot(author, "Text."), author
    for author in (None, 7, "talbot", "robotics_fan", "Turbot", "mrs_abbot", "bottle", "[deleted]"):
        assert not is_by_bot(author, "Text."), author
    assert is_by_bot(None, "Paint it.\n\n*I am a bot, and this action was performed automatically.*")
    assert not is_by_bot("someone", "The robot said: paint it.")


def _removed_by_all_rules(text: str) -> bool:
    head = text[: removed._HEAD_CHARS]
    return removed._tells(head) and (is_mark(text) or removed._NOTICE.match(removed._LINK.sub(r"\1", head)) is not None)


def _bot_by_all_rules(author: str, text: str) -> bool:
    by_name = author.lower() in removed._BOTS or removed._BOT_NAME.fullmatch(author) is not None
    return by_name or removed._BOT_SIGNATURE.search(text[-removed._HEAD_CHARS :]) is not None


def _awkward() -> list[tuple[str, str]]:
    """(author, text): letters, marks and signatures, put together, cut, in other cases, behind and before anything."""
    draw = random.Random(5)
    signatures = ["I am a bot", "I'M A BOT", "\u0131 am a bot", "th\u0130\u017f action was performed automat\u0131cally", "this comment was made by a bot", "a bot", "automat"]
    names = ["", "Bot", "xBot", "a-bot7", "robot", "talbot", "WikiTextBot", "BOTx", "\u0130Bot", "x\nBot", "AutoModerator", "STABBOT"]
    pieces = [*MARKS, *LETTERS, *ORDINARY, *signatures, "x" * 390, "\u0130" * 200, "[a](/removed)", "[your comment](/b) was removed", "\n", "[", "!"]
    made = []
    for _ in range(4000):
        text = draw.choice(["", " ", "\n", "x"]).join(draw.choice(pieces) for _ in range(draw.randint(0, 4)))
        text = draw.choice([str, str.upper, str.lower, str.swapcase])(text)[draw.randint(0, 3) :]
        made.append((draw.choice(names), text))
    return made


def test_no_rule_is_left_out_where_a_quicker_one_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _awkward()
    gone, bots = [_removed_by_all_rules(text) for _, text in given], [_bot_by_all_rules(*pair) for pair in given]
    assert [is_removed(text) for _, text in given] == gone and 200 < sum(gone) < 3800
    assert [is_by_bot(*pair) for pair in given] == bots and 200 < sum(bots) < 3800
    # The texts are such that a rule which is too quick is found.
    signed = [text.lower() for _, text in given if removed._BOT_SIGNATURE.search(text[-removed._HEAD_CHARS :])]
    assert any("automatic" not in text and "a bot" not in text for text in signed)
    monkeypatch.setattr(removed, "_tells", lambda text: "removed" in text)
    assert [is_removed(text) for _, text in given] != gone


def test_time_grows_with_the_length_alone() -> None:
    draw = random.Random(2)
    hostile = ["[" * 100_000, "[removed " * 50_000, "your post " * 50_000, "[removed by " + "x" * 1_000_000 + "]", "\n" * 1_000_000 + "removed", "hi " * 200 + "removed"]
    hostile += ["".join(draw.choice("[]() *removed by hi,.") for _ in range(400)) + "removed" for _ in range(200)]
    began = time.perf_counter()
    for text in hostile:
        is_removed(text), is_mark(text), is_by_bot("a" * 5000, text)
    assert time.perf_counter() - began < 20
