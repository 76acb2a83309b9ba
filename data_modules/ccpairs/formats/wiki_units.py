"""Wikipedia's ``convert`` template as the value that was given, with its unit; the converted one stands beside it and is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NUMBER = re.compile(r"[-−+]?\d[\d,. ]{0,20}(?:[eE][-+]?\d{1,3})?|[-−+]?(?:\d{1,6}[+⁄ ])?\d{1,6}(?:/{1,2}|⁄)\d{1,6}|[-−+]?\.\d{1,12}")
_BETWEEN = {
    "-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "and(-)": " and ", "&": " and ", "by": " by ", "x": " × ", "×": " × ", "*": " × ", "xx": " × ", "or": " or ",
    "+/-": " ± ", "±": " ± ", "+": " + ", "/": "/", ",": ", ", "and(to)": " and ", "to about": " to about ", "by(x)": " by ",
}  # fmt: skip
_SYMBOLS = {
    "km2": "km²", "m2": "m²", "cm2": "cm²", "mm2": "mm²", "km3": "km³", "m3": "m³", "cm3": "cm³", "sqmi": "sq mi", "sqft": "sq ft", "sqyd": "sq yd", "sqin": "sq in", "sqkm": "km²", "sqm": "m²",
    "cuft": "cu ft", "cuyd": "cu yd", "cuin": "cu in", "cumi": "cu mi", "C": "°C", "F": "°F", "C-change": "°C", "F-change": "°F", "kmh": "km/h", "kph": "km/h", "usgal": "US gal", "USgal": "US gal",
    "U.S.gal": "US gal", "impgal": "imp gal", "imp gal": "imp gal", "acre": "acres", "acres": "acres", "foot": "ft", "feet": "ft", "inch": "in", "inches": "in", "mile": "mi", "miles": "mi",
    "metre": "m", "meter": "m", "metres": "m", "meters": "m", "kilometre": "km", "kilometer": "km", "kilometres": "km", "kilometers": "km", "LT": "long tons", "ST": "short tons",
    "tonne": "t", "tonnes": "t", "MT": "t", "lbf-ft": "lb⋅ft", "lbft": "lb⋅ft", "lb.ft": "lb⋅ft", "lb-ft": "lb⋅ft", "ftlb": "ft⋅lb", "Nm": "N⋅m", "N.m": "N⋅m", "kn": "knots", "knot": "knots",
    "cuft/s": "cu ft/s", "cumec": "m³/s", "m3/s": "m³/s", "lb/sqin": "psi", "/sqmi": "per sq mi", "PD/sqmi": "inhabitants per sq mi", "PD/km2": "inhabitants per km²", "/km2": "per km²", "pound": "lb",
    "pounds": "lb", "yard": "yd", "yards": "yd", "hectare": "ha", "litre": "L", "liter": "L", "g/cm3": "g/cm³", "kg/m3": "kg/m³", "mpg-us": "mpg", "mpgus": "mpg", "mpgimp": "mpg", "oz": "oz",
}  # fmt: skip
_POWERS = {"e3": "thousand ", "e6": "million ", "e9": "billion ", "e12": "trillion "}
_BETWEEN_WORDS = frozenset(word.strip() for word in _BETWEEN.values())
#: What stands beside a unit in one measure.
_SMALLER = {"ft": ("in",), "mi": ("yd", "ft", "ch", "furlong"), "yd": ("ft", "in"), "st": ("lb",), "lb": ("oz",)}
_UNIT = re.compile(r"[A-Za-zµμ°Å%/][\w°²³µμ/.⋅·-]{0,14}")


def converted(positional: Sequence[str], named: Mapping[str, str]) -> str | None:
    """``93 m`` of ``93|m|ft``, ``5 ft 11 in`` of ``5|ft|11|in|m``, ``5–10 km`` of ``5|-|10|km|mi``; None where it is not known.

    Args:
        positional: the values, what stands between them, their units, and the units to convert to.
        named: the options; one that shows the converted value alone leaves nothing that is known.
    """
    if re.search(r"out|only|number|unit", named.get("disp", "")) or named.get("abbr") == "values":
        return None
    parts = [part for part in positional if part]
    found: list[str] = []
    at = 0
    unit: str | None = None
    while at < len(parts) and _NUMBER.fullmatch(parts[at]):
        if unit is not None and found[-1] not in _BETWEEN_WORDS and (at + 1 == len(parts) or parts[at + 1] not in _SMALLER.get(unit, ())):
            break  # how many digits the converted value has
        values, at = parts[at], at + 1
        while at + 1 < len(parts) and parts[at] in _BETWEEN and _NUMBER.fullmatch(parts[at + 1]):
            values += _BETWEEN[parts[at]] + parts[at + 1]
            at += 2
        if at == len(parts):
            return None
        unit = _unit(parts[at])
        if unit is None:
            return None
        at += 1
        values = re.sub(r"(\d)\+(\d+/)", r"\1 \2", values.replace("//", "/").replace("⁄", "/"))
        hyphen = named.get("adj") in ("on", "mid") and not unit.startswith("°")
        found.append(f"{values}{'-' if hyphen else ' '}{unit}")
        if at < len(parts) and parts[at] in _BETWEEN:  # 5 km by 3 mi
            found.append(_BETWEEN[parts[at]].strip())
            at += 1
    return " ".join(found) or None


def _unit(name: str) -> str | None:
    for prefix, word in _POWERS.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            inner = _unit(name[len(prefix) :])
            return None if inner is None else word + inner
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    return name if _UNIT.fullmatch(name) else None
