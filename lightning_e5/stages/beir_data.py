"""Stage: BEIR's public sets by name, from a folder that holds them, downloaded to it where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.download import download_beir
from lightning_e5.evaluation.beir.sets import BEIR_SETS, BeirSet, beir_set
from lightning_e5.files.storage import MANIFEST, read_manifest, sha256_file, write_json

#: What the sets are, in the stage's folder: archive digests, or sizes and digests of what was put there by hand.
SETS = "sets.json"


@configurable("stage")
def beir_data(out: Path, *, folder: str, sets: Sequence[str] = (), download: bool = False) -> dict[str, float]:
    """Make ``<stage>/<set>`` lead to each set's folder, and write ``sets.json``.

    Args:
        out: the stage's folder.
        folder: where the sets lie, ``<folder>/<set>`` in BEIR's layout, and where downloads go.
        sets: names of public sets; all 15 by default.
        download: fetch those that are not there from BEIR's authors (checksums compared, archives unpacked safely).

    Returns:
        How many sets there are, and how many of them were downloaded.

    Raises:
        UserError: an unknown set, one that is not there, or a download that fails.
    """
    root = Path(folder)
    chosen = [beir_set(name) for name in sets or BEIR_SETS]
    absent = [facts.name for facts in chosen if not (root / facts.name).is_dir()]
    if absent and not download:
        raise UserError(
            f"{root}: the sets {', '.join(absent)} are not there; put each there in BEIR's layout, or set download=true for this "
            "stage on a machine with a network"
        )
    record: dict[str, Any] = {}
    for facts in chosen:
        if facts.name in absent:
            _fetched(root, facts.name)
        record[facts.name] = _identity(root / facts.name, facts)
        link = out / facts.name
        link.unlink(missing_ok=True)
        link.symlink_to((root / facts.name).resolve(), target_is_directory=True)
    write_json(out / SETS, record)
    return {"sets": float(len(chosen)), "downloaded": float(len(absent))}


def _fetched(root: Path, name: str) -> None:
    try:
        download_beir(root, name)
    except UserError as error:
        raise UserError(f"{root / name}: is not there and was not fetched: {error}") from None


def _identity(folder: Path, facts: BeirSet) -> Any:
    """What the set is: the digests of its archive, or of the files that were put there by hand (of the corpus its size)."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)["archive"]
    record = {}
    for part in [folder / forum for forum in facts.forums] or [folder]:
        needed = part / "qrels" / f"{facts.split}.tsv"
        if not needed.is_file():
            raise UserError(f"{needed}: no such file, so {folder} is not {facts.name} in BEIR's layout")
        for path in sorted(p for p in part.rglob("*") if p.is_file()):
            size = path.stat().st_size
            record[path.relative_to(folder).as_posix()] = size if path.name.startswith("corpus.") else [size, sha256_file(path)]
    return record
