"""Training pairs that hold an evaluation text are found, by exact match of the normalised text; the build drops or counts them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path
from lightning_e5.text import text_id

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Contamination:
    """The evaluation texts as a sorted array of their ids, 8 bytes per text; `of` makes one, workers `load` it.

    Args:
        ids: int64, sorted, each once.

    Source: paper appendix A ("we remove text pairs that occur in the evaluation datasets based on exact string
    match"); here the match is made after `normalise_text`, so that case and white space do not hide a copy. A text
    that is no evaluation text is taken for one with a chance of len(ids) / 2**63.
    """

    ids: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Contamination:
        """The set of ``texts``: queries and passages of every evaluation set."""
        return cls(np.unique(np.frombuffer(array("q", map(text_id, texts)), dtype=np.int64)))

    @classmethod
    def load(cls, path: Path) -> Contamination:
        """What `save` wrote, as a memory map that all processes share; UserError for another file."""
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (ValueError, EOFError) as error:
            raise UserError(f"{path}: not a file of evaluation text ids ({error})") from None
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
            raise UserError(f"{path}: not a file of evaluation text ids (needs int64 [N])")
        return cls(ids)

    def without(self, other: Contamination) -> Contamination:
        """The texts that are not among the other's."""
        return Contamination(np.setdiff1d(self.ids, other.ids, assume_unique=True))

    def save(self, path: Path) -> None:
        """Write the ids as a ``.npy`` file, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, self.ids, allow_pickle=False)

    def fingerprint(self) -> str:
        """Sha256 of the ids."""
        return hashlib.sha256(np.ascontiguousarray(self.ids).data).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, text: str) -> bool:
        """Whether the text is an evaluation text."""
        wanted = text_id(text)
        place = int(np.searchsorted(self.ids, wanted))
        return place < len(self.ids) and int(self.ids[place]) == wanted

    def drops(self, query: str, passage: str) -> Literal["query", "passage"] | None:
        """Which text of a pair is an evaluation text, whichever side it has there (both: ``query``); None for neither."""
        if query in self:
            return "query"
        return "passage" if passage in self else None
