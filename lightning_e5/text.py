"""What a text is to the model: prefixes, normalisation and text identity. The only place a prefix is written."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from lightning_e5.types import Kind

    IntArray = NDArray[np.integer[Any]]

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The strings put before a query and a passage, stored with every trained encoder.

    Source: paper section 3.2; the released models' cards.
    """

    query: str = "query: "
    passage: str = "passage: "

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
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()


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


class TextTokenizer:
    """A fast tokenizer with the prefixes and the length limit of one encoder.

    Args:
        backend: a ``tokenizers.Tokenizer`` whose post-processor adds the special tokens.
        prefixes: what is put before queries and passages.
        max_length: tokens per text, special tokens and prefix counted; longer texts are cut at the end.
    """

    def __init__(self, backend: Tokenizer, prefixes: Prefixes = E5_PREFIXES, max_length: int = 512) -> None:
        if max_length < 4:
            raise UserError(f"max_length: {max_length} leaves no room for a text; the rule is >= 4")
        self.prefixes, self.max_length = prefixes, max_length
        self.backend = type(backend).from_str(backend.to_str())  # our own copy: truncation is state of the backend
        self.backend.no_padding()
        self.backend.enable_truncation(max_length)

    @classmethod
    def from_file(cls, path: Path | str, prefixes: Prefixes = E5_PREFIXES, max_length: int = 512) -> TextTokenizer:
        """Read a ``tokenizer.json``; UserError names a file that is none."""
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path}: not a tokenizer.json ({error})") from None
        return cls(backend, prefixes, max_length)

    def cut_at(self, max_length: int | None) -> TextTokenizer:
        """The same tokenizer with another length limit; itself for None."""
        return self if max_length is None else TextTokenizer(self.backend, self.prefixes, max_length)

    def fingerprint(self) -> str:
        """Sha256 of everything that decides a text's tokens."""
        facts = [self.backend.to_str(), self.prefixes.query, self.prefixes.passage, str(self.max_length)]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def encode(self, texts: Sequence[str], kind: Kind) -> tuple[IntArray, IntArray]:
        """Tokens of ``texts`` with the prefix of ``kind``: (int32 ids ``[T]``, text after text; int64 lengths ``[N]``)."""
        prefix = self.prefixes.of(kind)
        return _concatenate(self.backend.encode_batch_fast([prefix + _encodable(t) for t in texts]))


def _concatenate(encodings: Sequence[Any]) -> tuple[IntArray, IntArray]:
    lists = [e.ids for e in encodings]
    lengths = np.fromiter((len(ids) for ids in lists), dtype=np.int64, count=len(lists))
    ids = np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int32, count=int(lengths.sum()))
    return ids, lengths


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text
