"""The API's pages, one a module, made from the docstrings: ``python docs/build.py [FOLDER]`` (default docs/api). A warning is an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> None:
    """Write the pages, and ``index.html``, into ``folder``."""
    sys.path.insert(0, str(ROOT))  # this clone's packages, installed or not
    link_public_names()
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's: what cannot be imported, an annotation that names nothing
        # The constructor that Python makes for a NamedTuple, or for a dataclass with fields of another module's, does not know where their
        # types come from, so pdoc shows its annotations as they stand.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .* for \S+\.__init__", UserWarning)
        pdoc.pdoc("lightning_e5", "data_modules", "!lightning_e5.__main__", output_directory=folder)
    print(f"{folder / 'index.html'}: {sum(1 for _ in folder.rglob('*.html'))} pages")


def link_public_names() -> None:
    """Let the package's page name what can be imported from it, each with a link to the page of its module."""
    import lightning_e5

    names = vars(lightning_e5).pop("__all__")  # pdoc would show these alone, and none of the modules
    links = ", ".join(f"`{getattr(lightning_e5, name).__module__}.{name}`" for name in names)
    introduction, include, rest = str(lightning_e5.__doc__).partition(".. include::")
    lightning_e5.__doc__ = f"{introduction}{links}\n\n{include}{rest}"


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "api")
