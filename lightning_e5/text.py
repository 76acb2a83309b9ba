"""What a text is to the model: prefixes, normalisation and text identity. The only place a prefix is written."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.files.storage import reading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from lightning_e5.types import Kind

    IntArray = NDArray[np.integer[Any]]

_WORD = re.compile(r"\w+")


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The strings put before a query and a passage, stored with every trained encoder.

    Example:
        >>> Prefixes().of("query") + "sort a list"
        'query: sort a list'

    Source: paper section 3.2; the released models' cards.
    """

    query: str = "query: "
    passage: str = "passage: "

    def __post_init__(self) -> None:
        for prefix in (self.query, self.passage):
            if not isinstance(prefix, str) or encodable(prefix) != prefix:
                raise UserError(f"prefixes: {prefix!r} is not a text that UTF-8 can hold")

    def of(self, kind: Kind) -> str:
        """The prefix of ``kind``; ValueError for anything but ``query`` and ``passage``."""
        if kind == "query":
            return self.query
        if kind == "passage":
            return self.passage
        raise ValueError(f"kind must be 'query' or 'passage', not {kind!r}")


#: E5's own prefixes.
E5_PREFIXES = Prefixes()


def normalise_text(text: str) -> str:
    """Fold case, compatibility forms and white space, so that trivially different copies of a text are equal."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def words(text: str) -> list[str]:
    """The words of the normalised text (case folded); punctuation only parts them."""
    return _WORD.findall(normalise_text(text))


def text_id(text: str) -> int:
    """A 63-bit id of the normalised text: equal for trivially different copies, stable across processes."""
    digest = hashlib.blake2b(normalise_text(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TextsDigest:
    """Sha256 of a column of texts that comes in parts; equal for equal texts, however they are cut into parts."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, texts: Iterable[str]) -> None:
        """Add the texts that come next."""
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self._digest.update(len(data).to_bytes(8, "little") + data)

    def hexdigest(self) -> str:
        """Of all texts so far."""
        return self._digest.hexdigest()


def texts_digest(texts: Iterable[str]) -> str:
    """Sha256 of texts, by which a cache of other texts is told from one of these."""
    digest = TextsDigest()
    digest.update(texts)
    return digest.hexdigest()


class TokenizerSettings(NamedTuple):
    """What belongs to a tokenizer beside its ``tokenizer.json``, by the names of Hugging Face.

    ``special``: role (``cls_token``, ``pad_token`` ...) -> token; ``input_names``: what its model takes, None for what any takes.
    """

    special: Mapping[str, str]
    padding_side: str = "right"
    truncation_side: str = "right"
    input_names: tuple[str, ...] | None = None

    @classmethod
    def of_bert(cls, backend: Tokenizer) -> TokenizerSettings:
        """Those of a BERT, as far as the vocabulary has its special tokens."""
        return cls({role: token for role, token in _BERT.items() if backend.token_to_id(token) is not None})


class TextTokenizer:
    """A fast tokenizer with the prefixes and the length limit of one encoder.

    A special token's name inside a text (``[SEP]``, ``</s>``) is read as the letters that it is made of: special tokens come
    from the post-processor alone, so that no text can end itself or look like two. Transformers and sentence-transformers
    read such a name as the token itself; published scores were computed so, which matters for texts that hold one, and no
    test collection that we know has more than a handful of them.

    Args:
        backend: a ``tokenizers.Tokenizer`` whose post-processor adds the special tokens.
        prefixes: what is put before queries and passages.
        max_length: tokens per text, special tokens and prefix counted; longer texts are cut at the end.
        settings: see `TokenizerSettings`; a BERT's by default.
        lower_case: lower-case texts first (``do_lower_case`` of sentence-transformers), whatever the backend does itself.
    """

    def __init__(
        self,
        backend: Tokenizer,
        prefixes: Prefixes = E5_PREFIXES,
        max_length: int = 512,
        *,
        settings: TokenizerSettings | None = None,
        lower_case: bool = False,
    ) -> None:
        if max_length < 4:
            raise UserError(f"max_length: {max_length} leaves no room for a text; the rule is >= 4")
        self.prefixes, self.max_length, self.lower_case = prefixes, max_length, lower_case
        self.settings = settings or TokenizerSettings.of_bert(backend)
        self._special = {backend.token_to_id(token) for token in self.settings.special.values()}
        self._source = backend.to_str()
        self.backend = _reader(self._source, lower_case)  # our own copy: truncation is state of the backend
        self.backend.no_padding()
        self.backend.enable_truncation(max_length, direction=self.settings.truncation_side)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is made anew: that special tokens in texts are text is no part of a copied backend."""
        return _restored, (self._source, self.prefixes, self.max_length, self.settings, self.lower_case)

    @classmethod
    def from_file(cls, path: Path | str, prefixes: Prefixes = E5_PREFIXES, max_length: int = 512) -> TextTokenizer:
        """Read a ``tokenizer.json``; UserError names a file that is none."""
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
        with reading(path, "not a tokenizer.json"):
            backend = Tokenizer.from_file(str(path))
        return cls(backend, prefixes, max_length)

    def replaced(self, *, prefixes: Prefixes | None = None, max_length: int | None = None) -> TextTokenizer:
        """The same tokenizer with other prefixes or another length limit; None for its own; UserError as `check_room`."""
        made = _restored(self._source, prefixes or self.prefixes, max_length or self.max_length, self.settings, self.lower_case)
        made.check_room()
        return made

    def cut_at(self, max_length: int | None) -> TextTokenizer:
        """The same tokenizer with another length limit; itself for None."""
        return self if max_length is None else self.replaced(max_length=max_length)

    def stored_backend(self) -> Tokenizer:
        """The ``tokenizers.Tokenizer`` as a model folder holds it, without a length limit and without padding."""
        backend = type(self.backend).from_str(self._source)
        backend.no_padding()
        backend.no_truncation()
        return backend

    def fingerprint(self) -> str:
        """Sha256 of everything that decides a text's tokens."""
        facts = [self.backend.to_str(), self.prefixes.query, self.prefixes.passage, str(self.max_length), "special tokens in texts are text"]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def encode(self, texts: Sequence[str], kind: Kind) -> tuple[IntArray, IntArray]:
        """Tokens of ``texts`` with the prefix of ``kind``: (int32 ids ``[T]``, text after text; int64 lengths ``[N]``).

        Raises:
            UserError: ``texts`` is a single text, or one of them is none.
        """
        check_texts(texts)
        prefix = self.prefixes.of(kind)
        return _concatenate(self.backend.encode_batch_fast([prefix + encodable(t) for t in texts]))

    def check_room(self) -> None:
        """UserError for a prefix that fills the length limit, so that all texts would be the same tokens."""
        longest = max(self.prompt_length("query"), self.prompt_length("passage"))
        if longest + 1 >= self.max_length:
            raise UserError(f"max_length: {self.max_length} leaves no room behind a prefix of {longest} tokens")

    def prompt_length(self, kind: Kind) -> int:
        """Tokens of the prefix of ``kind`` with what stands before it, as sentence-transformers counts them; 0 without a prefix."""
        if not self.prefixes.of(kind):
            return 0
        ids, _ = self.encode([""], kind)
        return len(ids) - (int(ids[-1]) in self._special)


#: The special tokens of a BERT.
_BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
#: Behind a special token's name in the vocabulary of a model that would find the name in a text: a noncharacter of Unicode.
_HIDDEN = "\ufffe"


def check_texts(texts: Sequence[str]) -> None:
    """UserError for a single text where a list of texts belongs (its letters would be taken for texts), and for what is no text."""
    if isinstance(texts, str | bytes):
        raise UserError(f"texts: {texts[:40]!r} is one text, where a list of texts belongs; write [text]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts: number {number} is a {type(text).__name__}, not a text")


def literal_backend(backend: Tokenizer) -> Tokenizer:
    """A copy that reads a special token's name in a text as the letters that it is made of (see `TextTokenizer`)."""
    return _reader(backend.to_str(), False)


def _restored(source: str, prefixes: Prefixes, max_length: int, settings: TokenizerSettings, lower_case: bool) -> TextTokenizer:
    from tokenizers import Tokenizer

    return TextTokenizer(Tokenizer.from_str(source), prefixes, max_length, settings=settings, lower_case=lower_case)


def _reader(source: str, lower_case: bool) -> Tokenizer:
    """The backend that reads texts: special tokens' names in them are text, and where asked for they are lower-cased first."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(source)
    backend.encode_special_tokens = True  # those that are added to the vocabulary are not looked for in texts ...
    special = {number: token.content for number, token in backend.get_added_tokens_decoder().items() if token.special}
    found = [
        name for number, name in special.items()
        if any(number in backend.encode(text, add_special_tokens=False).ids for text in (name, f" {name}", f"a{name}"))
    ]  # fmt: skip
    if found:  # ... but a model that has them among its pieces (SentencePiece) finds them there
        backend = Tokenizer.from_str(_hide(source, found))
        backend.encode_special_tokens = True
    if lower_case:
        _lower_case(backend)
    return backend


def _hide(source: str, names: Sequence[str]) -> str:
    """``tokenizer.json`` in which no text holds these pieces; their ids stay, and so do those that the post-processor adds."""
    content = json.loads(source)
    model = content["model"]
    hidden = set(names) - {model.get("unk_token")}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece + _HIDDEN if piece in hidden else piece: number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[piece + _HIDDEN if piece in hidden else piece, score] for piece, score in model["vocab"]]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in hidden]
    return json.dumps(content)


def _lower_case(backend: Tokenizer) -> None:
    """As sentence-transformers does it for ``do_lower_case``."""
    from tokenizers import normalizers

    own: Any = backend.normalizer
    parts: list[Any] = list(iter(own)) if type(own) is normalizers.Sequence else [] if own is None else [own]
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def _concatenate(encodings: Sequence[Any]) -> tuple[IntArray, IntArray]:
    lists = [e.ids for e in encodings]
    lengths = np.fromiter((len(ids) for ids in lists), dtype=np.int64, count=len(lists))
    ids = np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int32, count=int(lengths.sum()))
    return ids, lengths
