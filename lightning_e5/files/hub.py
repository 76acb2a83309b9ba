"""Files of a public data set, in a folder that was downloaded or on the Hugging Face Hub: listed, fetched, or streamed.

A file on the Hub is named as the Hub's own tools name it, ``hf://datasets/OWNER/NAME@COMMIT/PATH``. Parquet is streamed, without a
copy on the disk; anything else is fetched into the Hub's cache (``HF_HOME``), where a fetch that broke off goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.parquet import batches_of

#: What every name of a file on the Hub begins with.
SCHEME = "hf://datasets/"
# A `pathlib.Path` of such a name has but one slash behind the colon.
_ON_HUB = re.compile(r"hf:/{1,2}datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")
_DATA_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def data_set_files(place: str | Path, revision: str | None = None) -> dict[str, str]:
    """The files of a data set: their names in it -> the names under which they are read, sorted.

    Args:
        place: a folder, or ``OWNER/NAME`` on the Hub.
        revision: commit, tag or branch on the Hub, by default the newest; of a folder it says nothing.

    Raises:
        UserError: no such folder, or a data set that the Hub does not have or that cannot be reached.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        inside = sorted(p for p in folder.rglob("*") if p.is_file())
        names = {p.relative_to(folder).as_posix(): str(p) for p in inside}
        return {name: path for name, path in names.items() if not any(part.startswith(".") for part in name.split("/"))}
    if folder.exists() or not _DATA_SET.fullmatch(str(place)):
        raise UserError(f"{place}: {'is a file, not a folder' if folder.exists() else 'no such folder (a data set on the Hub is named OWNER/NAME)'}")
    from huggingface_hub import HfApi

    found = _asked(str(place), lambda: HfApi().dataset_info(str(place), revision=revision))
    root = f"{SCHEME}{place}@{found.sha}/"
    return {file.rfilename: root + file.rfilename for file in sorted(found.siblings or [], key=lambda file: file.rfilename)}


def is_on_hub(file: str | Path) -> bool:
    """Whether a file's name is one on the Hub."""
    return _ON_HUB.fullmatch(str(file)) is not None


def local_file(file: str | Path) -> Path:
    """The path of a file; one on the Hub is fetched, or found among what was fetched before.

    Raises:
        UserError: it is not on the Hub, or the Hub cannot be reached.
    """
    match = _ON_HUB.fullmatch(str(file))
    if match is None:
        return Path(file)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    name, revision, inside = match["name"], match["revision"], match["file"]
    return Path(_asked(str(file), lambda: hf_hub_download(name, inside, repo_type="dataset", revision=revision)))


def parquet_tables(file: str, rows: int) -> Iterator[Any]:
    """The rows of a Parquet file as ``pyarrow.Table`` of at most ``rows`` rows, in order; a file on the Hub is streamed.

    Args:
        file: a path, or a name on the Hub.
        rows: of a table; the memory is theirs and a page's of each column, on the Hub a row group's.

    Raises:
        UserError: the file is none of Parquet, is damaged, or cannot be read to its end.
    """
    done = 0
    tables = _streamed(file, rows) if is_on_hub(file) else _read(file, rows)
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # of pyarrow, of the Hub's client, and of what that reads with
            what = f"cannot be read behind row {done - 1}" if done else "cannot be streamed" if is_on_hub(file) else "is no readable Parquet file"
            raise UserError(f"{file}: {what} ({_in_short(error)})") from None
        if table is None:
            return
        yield table
        done += table.num_rows


def _read(path: str, rows: int) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without pre-buffering a row group is read page by page, not as a whole.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as parquet:
        if not parquet.metadata.num_rows:
            yield parquet.schema_arrow.empty_table()
        for batch in batches_of(parquet, rows):
            yield pa.Table.from_batches([batch])


def _streamed(file: str, rows: int) -> Iterator[Any]:
    """By `datasets`, which tries again where a connection breaks off."""
    import datasets

    stream = datasets.load_dataset("parquet", data_files=[file], split="train", streaming=True, batch_size=rows)
    yield from stream.with_format("arrow").iter(batch_size=rows)


def _asked(what: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # the library passes on what its network library raises, which is another one from version to version
        raise UserError(
            f"{what}: no such folder, and it cannot be had from the Hub, which cannot be reached or does not have it ({_in_short(error)}); "
            "a folder of the downloaded files will do"
        ) from None


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
