"""Where a model is: a folder, a folder that an installed package carries, or a name on the model hub; and which weights it must hold.

A hub name is fetched as a folder, so that what the folder says of its use is read wherever the model comes from.
"""

from __future__ import annotations

from pathlib import Path

from lightning_e5.config.experiment import outside_path
from lightning_e5.errors import UserError
from lightning_e5.files.storage import sha256_file

WEIGHTS = "model.safetensors"
_PIN = "#sha256="
#: What is fetched of a hub repository: settings, tokenizer, weights and the folders of sentence-transformers' modules ...
_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors", "[0-9]_*/*")
#: ... and where it has no safetensors, the weights in torch's older format.
_OLDER = ("*.json", "*.txt", "*.model", "pytorch_model*.bin", "[0-9]_*/*")


def model_folder(reference: Path | str) -> Path:
    """The local folder of a model.

    Args:
        reference: a folder, ``path:FOLDER``, ``package:NAME/FOLDER`` of an installed package, or a hub name ``OWNER/NAME``,
            which is fetched (or found among what was fetched before). Behind it may stand ``#sha256=HEX``: of
            ``model.safetensors``, checked here.

    Raises:
        UserError: nothing there, nothing that can be fetched, or other weights than the sha256 says.
    """
    name, pinned, digest = str(reference).partition(_PIN)
    outside = outside_path(name)
    folder = outside if outside is not None else Path(name)
    if not folder.is_dir():
        if outside is not None:
            package = name.removeprefix("package:").partition("/")[0]
            hint = f" (pip install {package.replace('_', '-')})" if name.startswith("package:") else ""
            raise UserError(f"{name}: no such model folder{hint}")
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
            raise UserError(f"{name}: no such model folder")
        folder = _fetched(name)
    if pinned:
        check_weights(folder, digest)
    return folder


def check_weights(folder: Path, digest: str) -> None:
    """UserError where ``model.safetensors`` of a folder has another sha256 than ``digest``."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: has no {WEIGHTS}, whose sha256 was to be {digest}")
    found = sha256_file(path)
    if found != digest.lower():
        raise UserError(f"{path}: has the sha256 {found}, not {digest}: these are other weights; name them without {_PIN}... to use them")


def _fetched(name: str) -> Path:
    """The folder of a hub repository's files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=list(_OLDER)))
    except Exception:  # the library passes on what its network library raises, which is another one from version to version
        raise UserError(
            f"{name}: cannot be loaded (the model hub cannot be reached or has no such model); give the folder of a model that is here"
        ) from None
    return folder
