"""NanoBEIR: small samples of 13 of BEIR's public sets, from the Parquet files of either public layout, in a folder or on the Hub.

The layouts: one data set of all sets (``sentence-transformers/NanoBEIR-en``: ``corpus/NanoNQ-00000-of-00001.parquet``, and
likewise in ``queries`` and ``qrels``), and one data set per set (``zeta-alpha-ai/NanoNQ``: ``corpus/train-00000-of-00001.parquet``).
Both have the columns ``_id`` and ``text``, and ``query-id`` and ``corpus-id`` of passages that are all relevant alike. A set has
but one split, which is called here as the split is that the full set is scored on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.config.experiment import outside_path
from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir.collection import Collection, Rules
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.beir.sets import BEIR_SETS, NANO_SETS
from lightning_e5.files.parquet import parquet_columns, read_parquet
from lightning_e5.files.storage import sha256_file, sha256_text
from lightning_e5.types import Qrels

#: Where all sets are read from unless another place is named.
NANO_HUB = "sentence-transformers/NanoBEIR-en"
#: What a hub name ends with that stands for one data set per set.
EACH = "Nano*"
_FOLDERS = ("corpus", "queries", "qrels")
_ALONE = "train"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBERS = re.compile(r"-(\d+)-of-(\d+)\.parquet$")


@dataclass(frozen=True, slots=True)
class NanoFiles:
    """The Parquet files of one set, ``name`` as in `NANO_SETS`."""

    name: str
    corpus: tuple[Path, ...]
    queries: tuple[Path, ...]
    qrels: tuple[Path, ...]

    def sha256(self) -> str:
        """The set's identity by content: of the digests of its files."""
        return sha256_text(" ".join(sha256_file(path) for path in (*self.corpus, *self.queries, *self.qrels)))


def load_nano_beir(place: Path | str = NANO_HUB, sets: Sequence[str] = ()) -> list[Collection]:
    """NanoBEIR's sets, each by the rules of the BEIR set that it is a sample of (see `load_nano_set`).

    Args:
        place: a folder that holds one of the two layouts (of the second one folder per set, ``NanoNQ`` ...); or a data set on the
            Hub, ``OWNER/NAME`` with all sets, ``OWNER/NanoNQ`` with one, or ``OWNER/Nano*`` for one data set per set.
        sets: names of `NANO_SETS`; all 13 by default, and one where ``place`` is named after it.

    Raises:
        UserError: no such folder, nothing that can be fetched, a set that is not there, or a file that is not as NanoBEIR's.

    Source: NanoBEIR (Zeta Alpha, 2024); its main figure is the mean of nDCG@10 over the 13 sets.
    """
    return [load_nano_set(files) for files in nano_files(place, sets)]


def nano_set_names(place: Path | str = NANO_HUB, sets: Sequence[str] = ()) -> list[str]:
    """The names of the sets that `load_nano_beir` reads, in its order; UserError for one that is none, or there twice."""
    for name in sets:
        if name not in NANO_SETS:
            raise UserError(f"{name!r} is not one of NanoBEIR's sets{suggestion(name, NANO_SETS)} (they are {', '.join(NANO_SETS)})")
        if list(sets).count(name) > 1:
            raise UserError(f"NanoBEIR's set {name!r} is named twice")
    return list(sets) or [name for name, file_name in NANO_SETS.items() if file_name == Path(place).name] or list(NANO_SETS)


def nano_files(place: Path | str = NANO_HUB, sets: Sequence[str] = ()) -> list[NanoFiles]:
    """The files of the sets, fetched (or found among what was fetched before) where the place is on the Hub; as `load_nano_beir`."""
    names = nano_set_names(place, sets)
    found = {name: files for name, root in _roots(str(place), names) if (files := _set_files(name, root, place)) is not None}
    if absent := [name for name in names if name not in found]:
        example = NANO_SETS[absent[0]]
        raise UserError(
            f"{place}: lacks {', '.join(absent)} (there is neither corpus/{example}-*.parquet nor {example}/corpus/{_ALONE}-*.parquet)"
            + (f"; of NanoBEIR it has {', '.join(found)}" if found else "")
        )
    return [found[name] for name in names]


def load_nano_set(files: NanoFiles, rules: Rules = None) -> Collection:
    """One set as a collection.

    Args:
        files: of the set.
        rules: other ones than those of the BEIR set that it is a sample of, by which it counts for no average. ``none`` is how
            sentence-transformers' evaluator does it: an argument of ArguAna may then find itself.

    Returns:
        The set without the documents whose text is empty, which that evaluator leaves out, too. Some of them are judged
        (in NanoSCIDOCS), which no model finds; they are counted.

    Raises:
        UserError: naming file and row, for an id there twice, a judged query without a text, a judged document that the corpus
            lacks, or judgements with grades, which NanoBEIR has none of; rules of forums; or as `read_parquet`.
    """
    sampled = BEIR_SETS[files.name.removeprefix("nano-")]
    if not (rules is None or isinstance(rules, str)) and rules.forums:
        raise UserError(f"{files.name}: the rules of {rules.name} are those of {len(rules.forums)} forums, which no set of NanoBEIR has")
    texts, queries = _texts(files.corpus), _texts(files.queries)
    judged, repeated = _judgements(files, texts, queries)
    corpus = {key: text.strip() for key, text in texts.items() if text}
    missing = sum(document not in corpus for documents in judged.values() for document in documents)
    left_out = Counter(documents_without_text=len(texts) - len(corpus), repeated_judgements=repeated)
    asked = {query: text.strip() for query, text in queries.items() if query in judged}
    data = RetrievalData(files.name, sampled.split, corpus, asked, judged, missing, left_out=dict(+left_out))
    own = sampled if rules is None else rules
    if isinstance(own, str):
        return Collection(data, {}, None, False, sha256=files.sha256())
    return Collection(data, {}, own, own.queries_are_documents or None, files.name if own is sampled else None, files.sha256())


def _roots(place: str, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(set, folder that may hold it)."""
    outside = outside_path(place)
    folder = outside if outside is not None else Path(place).expanduser()
    if folder.is_dir():
        yield from ((name, folder) for name in names)
        return
    if outside is not None or folder.is_absolute() or place.startswith((".", "~")) or place.count("/") != 1 or folder.exists():
        raise UserError(f"{place}: {'is a file, not a folder' if folder.exists() else 'no such folder'}")
    owner, _, data_set = place.partition("/")
    if data_set == EACH or data_set in NANO_SETS.values():
        yield from ((name, _fetched(f"{owner}/{NANO_SETS[name] if data_set == EACH else data_set}", [_ALONE])) for name in names)
    else:
        root = _fetched(place, [NANO_SETS[name] for name in names])
        yield from ((name, root) for name in names)


def _fetched(data_set: str, stems: Sequence[str]) -> Path:
    """The folder of a data set's files on the Hub that begin with one of ``stems``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    wanted = [f"{folder}/{stem}-*.parquet" for folder in _FOLDERS for stem in stems]
    try:
        return Path(snapshot_download(data_set, repo_type="dataset", allow_patterns=wanted))
    except Exception:  # the library passes on what its network library raises, which is another one from version to version
        raise UserError(
            f"{data_set}: no such folder, and it cannot be fetched (the Hub cannot be reached or has no such data set); "
            "give a folder that holds NanoBEIR's Parquet files"
        ) from None


def _set_files(name: str, root: Path, place: Path | str) -> NanoFiles | None:
    """The files of a set; None where its corpus is not there in either layout."""
    file_name = NANO_SETS[name]
    layouts = [(root, file_name), (root / file_name, _ALONE)] + ([(root, _ALONE)] if Path(place).name in (file_name, EACH) else [])
    for folder, stem in layouts:
        files = [_shards(folder / part, stem) for part in _FOLDERS]
        if not files[0]:
            continue
        if absent := [part for part, found in zip(_FOLDERS, files, strict=True) if not found]:
            raise UserError(f"{folder / absent[0]}: holds no file {stem}-*.parquet, though {files[0][0]} is there")
        return NanoFiles(name, *files)
    return None


def _shards(folder: Path, stem: str) -> tuple[Path, ...]:
    """The files ``<stem>-00000-of-00001.parquet`` of a folder; UserError where one of them is missing."""
    found = sorted(folder.glob(f"{stem}-*-of-*.parquet"))
    numbers = [tuple(map(int, match.groups())) for path in found if (match := _NUMBERS.search(path.name))]
    if found and numbers != [(number, len(found)) for number in range(len(found))]:
        raise UserError(f"{folder}: {', '.join(path.name for path in found)} are not all files of {stem}")
    return tuple(found)


def _texts(paths: Sequence[Path]) -> dict[str, str]:
    """Id -> text as it is stored."""
    texts: dict[str, str] = {}
    for path, row, key, text in _rows(paths, "_id", "text"):
        if not key.strip() or key in texts or _CONTROL.search(key):
            why = "was there before" if key in texts else "is empty or holds a control character"
            raise UserError(f"{path}: row {row}: the _id {key[:60]!r} {why}")
        texts[key] = text
    return texts


def _judgements(files: NanoFiles, corpus: Mapping[str, str], queries: Mapping[str, str]) -> tuple[Qrels, int]:
    """Query -> relevant documents, all of grade 1, and how many rows said again what a row before them said."""
    for path in files.qrels:
        if "score" in parquet_columns(path):
            raise UserError(f"{path}: has a column 'score', and NanoBEIR's judgements have no grades; give graded ones in BEIR's layout")
    qrels: Qrels = {}
    repeated = 0
    for path, row, query, document in _rows(files.qrels, "query-id", "corpus-id"):
        if not queries.get(query, "").strip():
            raise UserError(f"{path}: row {row}: the query {query[:60]!r} is judged, and {files.queries[0]} has no text of it")
        if document not in corpus:
            raise UserError(f"{path}: row {row}: the document {document[:60]!r} is judged, and {files.corpus[0]} lacks it")
        repeated += document in qrels.setdefault(query, {})
        qrels[query][document] = 1
    return qrels, repeated


def _rows(paths: Sequence[Path], first: str, second: str) -> Iterator[tuple[Path, int, str, str]]:
    """(file, row, values of the two columns) of all rows."""
    for path in paths:
        table = read_parquet(path, {first: "string", second: "string"})
        for row, (one, other) in enumerate(zip(table[first].to_pylist(), table[second].to_pylist(), strict=True)):
            yield path, row, one, other
