"""Secrets in configurations: found once, by their key and by their form, and hidden in everything that is written.

Each becomes ``<redacted 1a2b3c>``, with some digits of its sha256, so that two configurations that differ in one still
differ. A secret is hidden wherever it occurs, also where ``${...}`` brought it, but for words that a file may well hold
for another reason (less than 8 characters, one plain word, a name in the configuration): those only in their own place.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

Replace = Callable[[str], str]

_REDACTED = re.compile(r"<redacted [0-9a-f]{6}>")
_INTERPOLATION = re.compile(r"\$\{[^}]*\}")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
#: Words of a key, without a plural's s, that name a secret wherever they stand in it; then also a number is one.
_PASSWORDS = {"password", "passwd", "pwd", "passphrase", "passcode", "secret", "credential"}
#: Last words of a key that do.
_LAST = {"token", "apikey", "authtoken", "accesstoken", "auth", "authorization", "bearer", "cookie"}
#: What stands before ``token`` in keys that name no secret, and before ``key`` likewise.
_TEXT_TOKENS = set(["pad", "mask", "cls", "sep", "unk", "bos", "eos", "eot", "special", "start", "end", "stop", "image", "per", "first", "last", "next", "query", "passage", "separator", "prefix", "suffix"])
_DATA_KEYS = set(
    ["text", "sort", "id", "label", "query", "passage", "group", "primary", "foreign", "join", "cache", "index", "dict", "json", "row", "column", "field", "name", "title", "document", "doc", "lookup", "partition", "config", "metric", "split", "sample", "score", "answer", "question", "positive", "negative", "context", "body", "image", "input", "output", "target", "source", "data", "item", "order", "hash", "public", "language", "task", "model", "corpus", "sentence", "pair", "date", "time"]
)
#: What stands before ``tokens`` and ``keys`` where these are secrets; elsewhere they are if they look random.
_STRONG = set(
    ["api", "access", "secret", "private", "auth", "hub", "hf", "huggingface", "github", "gitlab", "wandb", "openai", "aws", "azure", "gcp", "google", "service", "deploy", "session", "refresh", "personal", "user", "bearer", "ssh", "signing", "encryption", "license", "account", "admin", "master"]
)
_ANYWHERE = re.compile(r"(api|access|secret|private|auth)[_-]?(key|token)", re.I)
#: Last words of keys that name no secret but where one lies or how long it is, and of those whose 40 digits are a commit.
_ABOUT = set(["file", "path", "folder", "dir", "directory", "env", "variable", "length", "count", "type", "format", "name"])
_DIGESTS = {"revision", "commit", "sha", "sha1", "hash", "digest", "checksum", "ref"}

#: A value that no name of a thing looks like: 12 or more letters and digits, mixed.
_RANDOM = re.compile(r"(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{12,}|(?=[A-Z]*[a-z])[A-Za-z]{24,}")
_LONGEST = 4096
_VALUE = r"[^\s&;,<>\"'#\\]"
#: Forms of secrets; the last group of each is the secret.
_FORMS = [
    re.compile(r"\b((?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|pk-|rk_live_|sk_live_|xox[abprs]-|npm_|pypi-|wandb_v\d_)[A-Za-z0-9_-]{20,})"),
    re.compile(r"\b((?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,})\b"),
    re.compile(r"\b(eyJ[A-Za-z0-9_-]{6,4096}\.[A-Za-z0-9_-]{6,4096}(?:\.[A-Za-z0-9_-]*)?)"),
    re.compile(r"\b(?:Bearer|Basic|Token)\s+((?=\S*\d|\S{20})[A-Za-z0-9._~+/=-]{8,})"),
    re.compile(r"://[^\s/?#:@\"'<>]*:([^\s/?#\"'<>]+)@"),
    re.compile(r"://([^\s/?#:@\"'<>]{16,})@"),
    re.compile(
        r"[?&;#](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|GoogleAccessId|Key-Pair-Id|Policy|Signature|sig|"
        rf"[\w-]*(?:token|password|passwd|secret|api_?key|auth))=({_VALUE}{{6,}})",
        re.I,
    ),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*([A-Za-z0-9+/=\s]+)"),
]
_FORTY = re.compile(r"\b([0-9a-f]{40})\b")  # a W&B key, or a commit
_ASSIGNED = re.compile(rf"(?<![\w.-])([\w.-]+)=({_VALUE}{{6,}})")

_remembered: set[str] = set()


def redact(value: Any, key: str = "", within: Any = None) -> Any:
    """The value without secrets.

    Args:
        value: a configuration or a part of one; numbers and flags stay as they are.
        key: that the value stands under.
        within: the whole configuration, whose secrets are hidden in the part too.
    """
    return replace_secrets(value, _marker, key=key, within=within)


def redact_all(value: Any) -> Any:
    """`redact`, with the secrets of all configurations that this process has read: of what leaves it."""
    return _replaced(value, "", "", _marker, _pattern(frozenset(_remembered) | _everywhere(value, "")))


def replace_secrets(value: Any, replace: Replace, *, key: str = "", within: Any = None) -> Any:
    """The value with ``replace(secret)`` in place of every secret; arguments as `redact`."""
    return _replaced(value, key, "", replace, _pattern(_everywhere(value if within is None else within, key if within is None else "")))


def secrets_of(value: Any) -> set[str]:
    """The secrets of a configuration."""
    return {secret for secret, _ in _found(value, "", "")}


def remember(configuration: Any) -> None:
    """From now on `hidden` hides the secrets of this configuration."""
    _remembered.update(_everywhere(configuration, ""))


def remembered() -> list[str]:
    """What `remember` has kept, for a process that this one starts (see `remember_these`)."""
    return sorted(_remembered)


def remember_these(secrets: Iterable[str]) -> None:
    """Add to what `hidden` hides."""
    _remembered.update(secrets)


def hidden(text: str) -> str:
    """A text that is about to be written, without the secrets of the configurations that this process has read."""
    return _pattern(frozenset(_remembered)).sub(lambda match: _marker(match.group()), text) if _remembered else text


def hidden_message(text: str) -> str:
    """`hidden`, and without what looks like a secret: of messages, which may quote an address or an argument."""
    return _without(text, "digest", _marker, _pattern(frozenset(_remembered)))  # 40 digits are a document there, or a commit


def _marker(secret: str) -> str:
    return f"<redacted {digits(secret)}>"


def digits(secret: str) -> str:
    """Six digits that stand for a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()[:6]


def _words(key: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(key)]


@functools.lru_cache(maxsize=4096)
def _strength(key: str) -> str:
    """``sure``: strings below the key are secrets; ``random``: those that look random are; empty: none is by its key."""
    words = _words(key)
    if not words or words[-1] in _ABOUT:
        return ""
    singular = [word.removesuffix("s") if word not in ("pass", "cls", "bos", "eos") else word for word in words]
    if _PASSWORDS & set(singular) or singular[-1] in _LAST - {"token"} or _ANYWHERE.search(key):
        return "sure"
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return "" if before in _TEXT_TOKENS else "sure"
    if words[-1] == "key" and before:
        return "random" if before in _DATA_KEYS else "sure"
    if singular[-1] in ("token", "key"):
        return "sure" if before in _STRONG else "random"
    return ""


def _is_secret(text: str, strength: str) -> bool:
    """Whether a whole string is one."""
    if not text.strip() or _REDACTED.fullmatch(text) or _INTERPOLATION.fullmatch(text):
        return False
    return strength == "sure" or (strength == "random" and len(text) <= _LONGEST and not re.search(r"\s", text) and _RANDOM.search(text) is not None)


def _below(key: str, strength: str, node: Any) -> str:
    """The strength below a key; inputs are references (``never``), and a node with a ``_target_`` is no secret, whatever it is called."""
    if key == "inputs" or strength == "never":
        return "never"
    if isinstance(node, Mapping) and "_target_" in node:
        return ""
    return "sure" if strength == "sure" else _strength(key) or strength


def _found(value: Any, key: str, strength: str) -> Iterator[tuple[str, bool]]:
    """(secret, whether it is one by its form), leaf by leaf."""
    strength = _below(key, strength, value)
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name != "_target_":
                yield from _found(item, str(name), strength)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _found(item, key, strength)
    elif isinstance(value, str):
        if _is_secret(value, strength):
            yield value, False
        for start, stop in _spans(value, key):  # also in a string that is one as a whole: "Bearer ..."
            if not _REDACTED.search(value, start, stop) and not _INTERPOLATION.search(value, start, stop):
                yield value[start:stop], True
    elif _is_secret_number(value, key):
        yield str(value), True


def _is_secret_number(value: Any, key: str) -> bool:
    words = {word.removesuffix("s") for word in _words(key)}
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**5 and _strength(key) == "sure" and bool(_PASSWORDS & words)


def _everywhere(value: Any, key: str) -> frozenset[str]:
    """The secrets of a configuration that are hidden wherever they occur."""
    found = set(_found(value, key, ""))
    if not found:
        return frozenset()
    names = set(_names(value))
    return frozenset(s for s, by_form in found if len(s) >= 8 and s not in names and (by_form or len(s) >= 16 or re.search(r"[^a-z]", s)))


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            if name in ("inputs", "name") and isinstance(item, str | Mapping):
                yield from (part for text in _texts(item) for part in (text, *text.split("/")))
            yield from _names(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


@functools.lru_cache(maxsize=64)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str]:
    """Finds the secrets, the longest first, also as they are written in an address, in JSON and in HTML."""
    forms: set[str] = set()
    for secret in secrets:
        forms |= {secret, quote(secret, safe=""), quote_plus(secret), html.escape(secret), json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form))) or r"(?!)")


def _replaced(value: Any, key: str, strength: str, replace: Replace, everywhere: re.Pattern[str]) -> Any:
    strength = _below(key, strength, value)
    if isinstance(value, Mapping):
        return {k: v if k == "_target_" else _replaced(v, str(k), strength, replace, everywhere) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, key, strength, replace, everywhere) for item in value]
    if _is_secret_number(value, key):
        found = replace(str(value))
        return found.replace("${oc.env:", "${oc.env.number:") if _INTERPOLATION.fullmatch(found) else found  # a number again, where it is read
    if not isinstance(value, str):
        return value
    if _is_secret(value, strength):
        return replace(value)
    return _without(value, key, replace, everywhere)


def _spans(text: str, key: str) -> Iterator[tuple[int, int]]:
    """Where the text has something of a secret's form."""
    forms = _FORMS if (_words(key) or [""])[-1] in _DIGESTS else [*_FORMS, _FORTY]
    for match in (match for form in forms for match in form.finditer(text)):
        yield match.span(match.lastindex or 0)
    for match in _ASSIGNED.finditer(text):
        if _is_secret(match[2], _strength(match[1].rpartition(".")[2])):
            yield match.span(2)


def _without(text: str, key: str, replace: Replace, everywhere: re.Pattern[str]) -> str:
    """The text with ``replace(secret)`` for what has a secret's form and what the pattern finds; of two that overlap, for both in one."""
    spans = [match.span() for match in everywhere.finditer(text)] + list(_spans(text, key))
    pieces, at = [], 0
    for start, stop in _joined(spans):
        kept = _REDACTED.search(text, start, stop) or _INTERPOLATION.search(text, start, stop)
        pieces += [text[at:start], text[start:stop] if kept else replace(text[start:stop])]
        at = stop
    return "".join([*pieces, text[at:]])


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
