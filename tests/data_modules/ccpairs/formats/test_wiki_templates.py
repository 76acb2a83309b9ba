"""Templates in sentences as their visible text; a sentence with one that is not known goes, and no other does."""

from __future__ import annotations

import random
import time

import pytest

from data_modules.ccpairs.formats.wiki_links import is_hidden
from data_modules.ccpairs.formats.wikitext import is_tangled, sections

TEXTS = {
    "is {{convert|93|m|ft|abbr=off}} long": "is 93 m long", "a {{convert|5|ft|11|in|m|0}} man": "a 5 ft 11 in man", "{{convert|5|-|10|km|mi}} away": "5–10 km away",
    "{{Convert|1,000|km2|sqmi|0}}": "1,000 km²", "{{cvt|20|x|30|m|ft}}": "20 × 30 m", "a {{convert|93|m|adj=on}} bridge": "a 93-m bridge", "{{convert|-40|C|F}}": "-40 °C",
    "{{convert|2|e6cuyd|m3}}": "2 million cu yd", "{{convert|5+1/2|in|mm}}": "5 1/2 in", "{{convert|5|km|1}}": "5 km", "{{convert|3|km|by|2|km|mi}}": "3 km by 2 km",
    "{{formatnum:12000}} people": "12000 people", "{{nowrap|5 km/h}}": "5 km/h", "{{nobr|[[Long Bridge|the bridge]]}}": "the bridge", "{{lang|fr|la traversée}}": "la traversée",
    "({{lang-fr|traversée}})": "(French: traversée)", "{{langx|de|Brücke}}": "German: Brücke", "{{transl|ru|most}}": "most", "{{transliteration|ru|ISO|most}}": "most",
    "{{start date|1931|5|4}}": "May 4, 1931", "{{Start date and age|1931|05|df=yes}}": "May 1931", "{{birth date|df=y|1931|5|4}}": "4 May 1931", "{{birth date and age|1931|5|4}}": "May 4, 1931",
    "{{As of|2010|5}}, it": "As of May 2010, it", "it was, {{as of|2010|lc=y}}, dry": "it was, as of 2010, dry", "{{circa|1900}}": "c. 1900", "{{c.|1900|1910}}": "c. 1900 – c. 1910",
    "{{val|5.1|0.2|u=km}}": "5.1±0.2 km", "{{frac|3|1|2}} and {{sfrac|1|4}}": "3 1/2 and 1/4", "{{abbr|approx.|approximately}} 5": "approx. 5", "{{USD|5 million}}": "US$5 million",
    "{{GBP|100}}": "£100", "1900{{ndash}}1910{{snd}}a time{{mdash}}long{{nbsp}}gone": "1900–1910 – a time—long gone", "{{small|(dry)}}": "(dry)",
    "{{ill|Anna Berg|de}}": "Anna Berg", "{{interlanguage link|Anna Berg|de|lt=Berg}}": "Berg", "{{age|1900|5|4|1950|5|3}} years": "49 years", "{{chem|H|2|O}}": "H2O",
    "the {{USS|Nimitz|CVN-68}} and the {{HMS|Hood|1918}}": "the USS Nimitz (CVN-68) and the HMS Hood", "{{nihongo|Tokyo|東京|Tōkyō}}": "Tokyo (東京, Tōkyō)", "{{abbr|1=a = b|2=x}}": "a = b",
    "{{small|{{nowrap|{{lang|la|pons}}}}}}": "pons", "{{Nowrap|\n5 km}}": "5 km", "{{subst:nowrap|x}}": "x", "{{hlist|one|two}}": "one, two", "{{flag|France}}": "France",
}  # fmt: skip
#: Notes and boxes, which leave no hole.
NONE = [
    "It is long{{citation needed|date=May 2010}}.", "It is long.{{sfn|Smith|1990|p=4}}", "It is long{{refn|group=n|A {{nowrap|note}}.}}.", "It is long.{{unknownnote|x}}",
    "{{Infobox bridge\n| length = {{convert|93|m}}\n}}\nIt is long.", "{{good article}}{{Use dmy dates|date=May 2010}} It is long.", "It is long.{{efn|See [[a|b]].}}{{r|x}}",
    "{{unknown box}}\nIt is long.", "{{coord|1|2|display=title}}It is long.", "It{{cn}} is long.", "{{unknown}} It is long.", "It ({{IPA|x}}) is long.", "It ({{unknown|x}}; {{other}}) is long.",
    "It is long. {{unknown|x}} people cross it.", "It is long. At {{convert|x|y|z}}, it begins. The age of {{age|1900|1|1}} is great.", "It is long. The sum is <math>x</math> here.",
    "{{reflist}}\nIt is long.", "It is long. Dr. Smith of {{unknown}} is dry.",
]  # fmt: skip


def text_of(wikitext: str) -> str:
    [(_, text)] = sections(wikitext)
    return text


@pytest.mark.parametrize("wikitext", TEXTS)
def test_templates_as_their_visible_text(wikitext: str) -> None:
    assert text_of(f"Here {wikitext} stands.") == f"Here {TEXTS[wikitext]} stands."


@pytest.mark.parametrize("wikitext", NONE)
def test_what_leaves_no_hole_costs_nothing_and_a_hole_its_sentence(wikitext: str) -> None:
    assert text_of(wikitext) == "It is long."


def test_brackets_keep_what_is_known_in_them() -> None:
    assert text_of("Ann ({{IPA|x}}; born {{birth date|1931|5|4}}) is here.") == "Ann (born May 4, 1931) is here."
    assert text_of("Ann (born 1931; {{unknown}}) is here.") == "Ann (born 1931) is here."


@pytest.mark.parametrize(
    ("link", "text"),
    [
        ("[[2001: A Space Odyssey]]", "2001: A Space Odyssey"), ("[[Star Trek: Picard|Picard]]", "Picard"), ("[[CSI: Miami]]", "CSI: Miami"), ("[[X2: Go]]", "X2: Go"),
        ("[[:Category:Bridges|bridges]]", "bridges"), ("[[:de:Brücke|Brücke]]", "Brücke"), ("[[wikt:bridge|bridge]]", "bridge"), ("[[NYC: A|b]]", "b"), ("[[Foo:bar]]", "Foo:bar"),
        ("[[File:a.jpg|thumb|A bridge]]", ""), ("[[Image:a.jpg]]", ""), ("[[Category:Bridges]]", ""), ("[[de:Brücke]]", ""), ("[[zh-min-nan:Kiô]]", ""), ("[[Datei:a.jpg|mini|B]]", ""),
        ("[[ category : Bridges ]]", ""),
    ],
)  # fmt: skip
def test_links_with_colons(link: str, text: str) -> None:
    assert text_of(f"Here {link} stands.") == " ".join(f"Here {text} stands.".split())
    assert is_hidden(link[2:-2]) == (not text)


def test_any_templates_give_text_in_time_that_grows_with_the_length() -> None:
    draw = random.Random(8)
    pieces = ["{{", "}}", "|", "=", "[[", "]]", "convert", "nowrap", "lang", "x", " ", "5", "\n", ". A", "(", ")", "as of", "frac", "age", "val", "}", "{", "start date", "99999999999"]
    began = time.perf_counter()
    for _ in range(400):
        text = "".join(draw.choice(pieces) for _ in range(60))
        if not is_tangled(text):
            assert "\ue0ff" not in "".join(map(str, sections(text)))
    for piece in ("{{a|" + "|" * 200_000 + "}}", "x (" + "{{unknown}} " * 20_000, "{{nowrap|[[" * 10 + "|" * 100_000 + "}}", "a {{unknown}}. " * 15_000, "{{" + "x-" * 100_000 + "}}"):
        list(sections(piece))
    assert time.perf_counter() - began < 20
