"""The visible text of the templates that stand in sentences: numbers with units, dates, names, dashes.

A template that is none of a sentence (a reference, a box, a note to editors) has no text. Of one that is not known the text
is not known either: `HOLE` stands for it, and the sentence around it is of no use (see `filled`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from data_modules.ccpairs.formats.wiki_units import converted

#: A character that no text has (private use), for what is not known.
HOLE = "\ue0ff"
#: A template without templates in it; one in three brackets is a template's parameter.
_INNERMOST = re.compile(r"(?<!\{)\{\{([^{}]*)\}\}(?!\}(?!\}))")
_LEVELS = 8
_NAMED = re.compile(r"\s*([\w -]{1,40}?)\s*=(.*)", re.S)
_MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]

#: Templates that are no part of a sentence, by their names' beginnings.
_NONE = re.compile(
    r"(?:infobox|taxobox|speciesbox|automatic taxobox|navbox|sidebar|succession|s-|start box|end box|use |short desc|good article|featured|pp-|pp$|protected"
    r"|about|main|see |see$|further|hatnote|distinguish|for$|for2|other|redirect|not to be confused|selfref|portal|subject bar|commons|wikt(?!-lang)|wiki|sister"
    r"|cite|citation|cn$|fact$|refn|ref(?:list|begin|end| |$)|sfn|efn|r$|rp$|notelist|note|harv|isbn|issn|oclc|doi|unreferenced|refimprove|more |expand|cleanup|copy ?edit"
    r"|multiple issues|orphan|stub|[\w -]+-stub|clarif|dubious|verif|vague|when$|who$|which$|whom|by whom|according to|better source|failed|page needed|pn$|year needed"
    r"|specify|citation|dead link|webarchive|update|needs|original research|or$|pov|tone|weasel|peacock|disputed|contradict|incomplete|importance|primary source"
    r"|unbalanced|unreliable|how$|why$|where$|inline|original|synthesis|undue|explain|discuss|examples|globali[sz]e|advert|in use|under construction|dmca|coi"
    r"|flagicon|flagdeco|flag icon|noflag|anchor|clear|-$|clr$|toc|default|displaytitle|italic title|italictitle|lowercase|engvar|audio|listen|image|gallery"
    r"|multiple image|css image|wide image|external media|location map|maplink|attached kml|authority|coord missing|featured|dynamic list|incomplete list|div col"
    r"|col-|col |end$|start$|begin|nowrap begin|nowrap end|nobold|increase|decrease|steady|profit|loss|gain|void|null|zwj|zwnj|zwsp|wbr|shy|#tag|defaultsort|displaytitle"
    r"|family name|given name|chinese name|spanish name|nbsp begin|pgcomment|please|missing|self-|template|tl|cbignore|dn$|disambiguation needed|reflist|sic$)",
    re.I,
)
_SYMBOLS = {
    "nbsp": " ", "space": " ", "spaces": " ", "thinsp": " ", "thin space": " ", "hair space": " ", "hsp": " ", "sp": " ", "in5": " ", "nnbsp": " ", "!": "|", "=": "=",
    "ndash": "–", "endash": "–", "en dash": "–", "ndsh": "–", "mdash": "—", "em dash": "—", "emdash": "—", "long dash": "—", "spaced ndash": " – ", "spaced en dash": " – ",
    "snd": " – ", "spnd": " – ", "sndash": " – ", "spndash": " – ", "spaced mdash": " — ", "smd": " — ", "'": "'", "'s": "'s", "\"": "\"", "colon": ":", "pipe": "|",
    "bull": " • ", "bullet": " • ", "•": " • ", "·": " · ", "middot": " · ", "dot": " · ", "dagger": "†", "double dagger": "‡", "okina": "ʻ", "hamza": "ʼ", "ayin": "ʽ",
    "pi": "π", "tm": "™", "reg": "®", "ellipsis": "...", "...": "...", "'-": "'", "-'": "'", "degree": "°", "deg": "°", "times": "×", "minus": "−", "pm": "±", "euro": "€", "pound": "£",
}  # fmt: skip
#: name -> which positional argument is the text, from the first (0) or the last (-1).
_TEXT_AT: dict[str, int] = {
    **dict.fromkeys(
        re.split(
            r",\s*",
            "nowrap, nobr, nobreak, nwr, nowr, no wrap, small, smaller, big, larger, em, strong, bold, italic, italics, i, b, noitalic, noitalics, normal, sic, abbr, abbrlink, "
            "tooltip, hover, sup, sub, overline, underline, u, strikethrough, smallcaps, sc, smallcaps2, sc2, allcaps, caps, ill, interlanguage link, link-interwiki, illm, "
            "chem2, math, mvar, var, tmath, code, codett, kbd, samp, tt, mono, key press, key, visible anchor, vanchor, unicode, script, music, flag, flagcountry, flagu, flaglist, "
            "flag+link, quote, blockquote, cquote, quotation, quote box, center, as written, not a typo, typo, proper name, lcfirst, ucfirst, nihongo2, keypress, keyboard, "
            "fb, cr, linktext, notatypo, text, plain text, poem quote, bquote, nastaliq, hebrew, polytonic, native phrase, plainlink, large, huge",
        ),
        0,
    ),
    **dict.fromkeys(
        ("lang", "wikt-lang", "wt-lang", "color", "colour", "font color", "colored text", "resize", "sort", "rtl-lang", "background color", "align"), 1
    ),
    **dict.fromkeys(("transl", "transliteration", "translit", "tlit", "font", "script/hebrew", "script/arabic"), -1),
}  # fmt: skip
_MONEY = {
    "usd": "US$", "us$": "US$", "$": "$", "gbp": "£", "£": "£", "pound sterling": "£", "eur": "€", "€": "€", "euro": "€", "inr": "₹", "₹": "₹", "indian rupee": "₹", "jpy": "¥", "¥": "¥",
    "aud": "A$", "a$": "A$", "au$": "A$", "cad": "C$", "can$": "C$", "c$": "C$", "nzd": "NZ$", "nz$": "NZ$", "cny": "CN¥", "krw": "₩", "rub": "₽", "chf": "CHF ", "sek": "SEK ", "nok": "NOK ",
}  # fmt: skip
_SHIPS = ("uss", "hms", "ss", "mv", "hmas", "hmcs", "hmnzs", "rms", "sms", "ins", "jds", "usns", "uscgc", "mt", "ms", "usat", "hmhs", "rv")
_LANGUAGES = {
    "fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "la": "Latin", "ru": "Russian", "el": "Greek", "grc": "Ancient Greek", "ja": "Japanese", "zh": "Chinese", "ar": "Arabic",
    "he": "Hebrew", "pt": "Portuguese", "nl": "Dutch", "pl": "Polish", "sv": "Swedish", "da": "Danish", "no": "Norwegian", "fi": "Finnish", "hu": "Hungarian", "cs": "Czech", "tr": "Turkish",
    "ko": "Korean", "fa": "Persian", "hi": "Hindi", "sa": "Sanskrit", "ga": "Irish", "cy": "Welsh", "gd": "Scottish Gaelic", "uk": "Ukrainian", "ro": "Romanian", "ang": "Old English",
}  # fmt: skip

Arguments = Sequence[str]
Named = Mapping[str, str]


def expanded(wikitext: str) -> str:
    """The wikitext with every template as its visible text, as nothing, or as `HOLE`.

    Each pattern ends at the next mark of its kind, so that the time is in proportion to the length.
    """
    for _ in range(_LEVELS):
        wikitext, found = _INNERMOST.subn(lambda match: template_text(match[1]), wikitext)
        if not found:
            break
    return wikitext


def one_text(template: str) -> str:
    """The visible text of a template with its brackets, which may hold others; parameters of templates are in none of them."""
    text = expanded(template)
    if "{{" not in text:
        return text
    name = re.split(r"[|}]", template[2:], maxsplit=1)[0]
    return "" if _NONE.match(name.strip().replace("_", " ")) else HOLE


def template_text(content: str) -> str:
    """The visible text of one template, of which ``content`` stands between its brackets and holds no other template."""
    first, *rest = _arguments(content)
    name = " ".join(first.replace("_", " ").split()).lower()
    name = re.sub(r"^(?:template:|subst:|safesubst:)\s*", "", name)
    function, colon, _ = name.partition(":")
    if colon and function in _FUNCTIONS:
        return _FUNCTIONS[function](first.partition(":")[2].strip())
    if colon and function == "formatnum":
        return first.partition(":")[2].strip()
    positional: list[str] = []
    named: dict[str, str] = {}
    for part in rest:
        if match := _NAMED.fullmatch(part):
            key = match[1].lower()
            if key.isdecimal() and len(key) < 3:  # 1=text is the first one, which may then hold the sign
                positional.extend([""] * (int(key) - len(positional)))
                positional[int(key) - 1 : int(key)] = [match[2].strip()]
            else:
                named[key] = match[2].strip()
        else:
            positional.append(part.strip())
    if name in _SYMBOLS and not any(positional):
        return _SYMBOLS[name]
    if name in _TEXT_AT:
        return _at(name, positional, named)
    if name in _OTHERS:
        return _OTHERS[name](positional, named)
    if name.startswith(("lang-", "langx")):
        return _language(name, positional)
    if name in _MONEY:
        return _MONEY[name] + positional[0] if positional and positional[0] else HOLE
    if name in _SHIPS and positional:
        number = positional[1] if len(positional) > 1 and not positional[1].isdecimal() else ""
        return f"{name.upper()} {positional[0]}" + (f" ({number})" if number else "")
    if name == "coord" and "title" in named.get("display", "") and "inline" not in named["display"]:
        return ""
    if _NONE.match(name) or "\n" in content:  # what takes lines of its own is a box
        return ""
    return HOLE


def _arguments(content: str) -> list[str]:
    """What stands between the bars; those within a link are the link's."""
    found: list[list[str]] = []
    inside = 0
    for piece in content.split("|"):
        if inside > 0:
            found[-1].append(piece)
        else:
            found.append([piece])
        inside = max(0, inside + piece.count("[[") - piece.count("]]"))
    return ["|".join(pieces) for pieces in found]


def filled(line: str) -> str:
    """A line without what holes make useless: brackets with one, and sentences with one; notes after a word leave none."""
    if HOLE not in line:
        return line
    line = _IN_BRACKETS.sub("", _LAST_IN_BRACKETS.sub("", _FIRST_IN_BRACKETS.sub("", line)))
    line = _NOTE.sub("", line)
    line = _BEFORE_BEGINNING.sub("", line)
    if HOLE not in line:
        return line
    return " ".join(sentence for sentence in _SENTENCES.split(line) if HOLE not in sentence)


_FIRST_IN_BRACKETS = re.compile(rf"(?<=\(){HOLE}[\s{HOLE}]*[;,]\s*")
_LAST_IN_BRACKETS = re.compile(rf"[;,]\s?{HOLE}+(?=\))")
_IN_BRACKETS = re.compile(rf" ?\([^(){HOLE}]*{HOLE}[^()]*\)")
#: After a word or stop without a space, and nothing but white space or a stop after it.
_NOTE = re.compile(rf"(?<=[\w.,;:!?)\]\"'”’»]){HOLE}+(?=[\s.,;:!?)]|$)")
#: At a line's beginning, and a sentence begins after it.
_BEFORE_BEGINNING = re.compile(rf"^[\s{HOLE}]+(?=[\"'“«(]?[^\W\d_a-zß-öø-ÿ]|$)")
_ABBREVIATIONS = "".join(rf"(?<!\b{a}\.)" for a in ("Dr", "Mr", "Mrs", "Ms", "St", "Mt", "Jr", "Sr", "vs", "no", "No", "c", "ca", "cf", "Gen", "Col", "Lt", "Rev", "Prof", "approx"))
_SENTENCES = re.compile(rf"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]])){_ABBREVIATIONS}(?<!\b[A-Z]\.)\s+(?=[\"'“(\[]*[^\W_a-zß-öø-ÿ]|{HOLE})")


def _at(name: str, positional: Arguments, named: Named) -> str:
    text = named.get("lt") or named.get("text") or named.get("quote") or named.get("content") or ""
    at = _TEXT_AT[name]
    if not text and positional:
        text = positional[at] if at < len(positional) else positional[-1]
    if name in ("quote", "blockquote", "cquote", "quotation", "quote box", "bquote", "poem quote"):
        return f"\n{text}\n"
    return text


def _language(name: str, positional: Arguments) -> str:
    code = name.removeprefix("lang-") if name.startswith("lang-") else (positional[0] if positional else "")
    texts = positional if name.startswith("lang-") else positional[1:]
    if not texts or not texts[0]:
        return HOLE
    return f"{_LANGUAGES[code]}: {texts[0]}" if code in _LANGUAGES else texts[0]


def _date(positional: Arguments, named: Named) -> str:
    """``year|month|day``, or one text."""
    numbers = [part for part in positional if part]
    if not numbers or not all(part.isdecimal() for part in numbers[:3]):
        return numbers[0] if numbers else HOLE
    year, month, day = [*numbers[:3], "", ""][:3]
    if not month:
        return year
    if not 1 <= int(month[:4]) <= 12:
        return HOLE
    word = _MONTHS[int(month) - 1]
    if not day:
        return f"{word} {year}"
    return f"{int(day[:4])} {word} {year}" if named.get("df", "").lower() in ("y", "yes", "1", "true") else f"{word} {int(day[:4])}, {year}"


def _as_of(positional: Arguments, named: Named) -> str:
    if named.get("alt"):
        return named["alt"]
    date = _date(positional, {"df": "y"} | dict(named))
    if HOLE in date:
        return HOLE
    since = bool(named.get("since"))
    lower = named.get("lc", "").lower() in ("y", "yes", "1", "on", "true")
    return ("since " if since else "as of ") + date if lower else ("Since " if since else "As of ") + date


def _years(positional: Arguments, named: Named) -> str:
    """Between two dates; up to today is another one every day."""
    if len(positional) < 6 or not all(part.isdecimal() and len(part) < 5 for part in positional[:6]):
        return HOLE
    then, now = (tuple(map(int, positional[at : at + 3])) for at in (0, 3))
    return str(now[0] - then[0] - (now[1:] < then[1:]))


def _circa(positional: Arguments, named: Named) -> str:
    return " – ".join(f"c. {part}" for part in positional if part) or "c."


def _value(positional: Arguments, named: Named) -> str:
    if not positional or not positional[0]:
        return HOLE
    text = positional[0] + (f"±{positional[1]}" if len(positional) > 1 and positional[1] else "")
    text += f" × 10^{named['e']}" if named.get("e") else ""
    unit = named.get("u") or named.get("ul") or named.get("up") or ""
    return named.get("p", "") + text + (f" {unit}" if unit else "") + named.get("s", "")


def _fraction(positional: Arguments, named: Named) -> str:
    parts = [part for part in positional if part]
    if len(parts) == 3:
        return f"{parts[0]} {parts[1]}/{parts[2]}"
    return f"{parts[0]}/{parts[1]}" if len(parts) == 2 else f"1/{parts[0]}" if parts else "/"


def _nihongo(positional: Arguments, named: Named) -> str:
    more = ", ".join(part for part in positional[1:3] if part)
    first = positional[0] if positional else ""
    return f"{first} ({more})" if first and more else first or more or HOLE


def _converted(positional: Arguments, named: Named) -> str:
    return converted(positional, named) or HOLE


def _joined(separator: str, before: str = "", after: str = "") -> Callable[[Arguments, Named], str]:
    def text(positional: Arguments, named: Named) -> str:
        joined = separator.join(part for part in positional if part)
        return f"{before}{joined}{after}" if joined else HOLE

    return text


_OTHERS: dict[str, Callable[[Arguments, Named], str]] = {
    **dict.fromkeys(("convert", "cvt", "conv", "convinfobox"), _converted),
    **dict.fromkeys(
        ("start date", "end date", "start date and age", "birth date", "birth date and age", "bda", "death date", "death date and age", "dda", "birth-date", "death-date",
         "birth year and age", "dts", "film date", "date", "start and end dates", "release date", "d-da", "b-da", "birth-date and age", "launch date", "opdate"), _date
    ),
    **dict.fromkeys(("as of", "asof"), _as_of),
    **dict.fromkeys(("age", "age in years", "years ago"), _years),
    **dict.fromkeys(("circa", "c.", "ca.", "ca", "c"), _circa),
    **dict.fromkeys(("val", "value"), _value),
    **dict.fromkeys(("frac", "fraction", "sfrac", "fract", "frac2"), _fraction),
    **dict.fromkeys(("nihongo", "nihongo3", "korean"), _nihongo),
    **dict.fromkeys(("hlist", "flatlist", "ubl", "unbulleted list", "plainlist", "ublist"), _joined(", ")),
    **dict.fromkeys(("chem", "gaps"), _joined("")),
    **dict.fromkeys(("sortname", "sort name", "bibleverse", "bibleref", "formatnum"), _joined(" ")),
    **dict.fromkeys(("num", "nts", "number", "ntsh", "percentage1"), _joined("")),
    **dict.fromkeys(("floruit", "fl.", "fl"), _joined("–", "fl. ")),
    **dict.fromkeys(("reign", "r."), _joined("–", "r. ")),
    "sqrt": _joined("", "√"), "±": _joined("", "±"), "~": _joined("", "~"), "approx": _joined("", "approx. "), "section link": _joined(" § "), "slink": _joined(" § "),
    "mya": _joined("–", "", " million years ago"), "ma": _joined("–", "", " Ma"), "angbr": _joined("", "⟨", "⟩"), "10^": _joined("", "10^"), "e": _joined("", " × 10^"),
    "bce": _joined("", "", " BCE"), "bc": _joined("", "", " BC"), "ce": _joined("", "", " CE"), "ad": _joined("", "AD "),
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[[str], str]] = {"lc": str.lower, "uc": str.upper, "ucfirst": lambda t: t[:1].upper() + t[1:], "lcfirst": lambda t: t[:1].lower() + t[1:]}
