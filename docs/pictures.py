"""The README's picture, drawn from the kept figures of the quickstart's runs: ``python docs/pictures.py``.

An ablation's pictures are drawn by ``lightning-e5 compare ABLATION --export DIR``.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "quickstart" / "results.json"
PICTURE = RESULTS.with_name("ndcg.png")
#: Models of the quickstart, as the README calls them.
NAMES = {"bm25": "BM25", "start": "start:\nall-MiniLM-L6-v2", "e5-noisy": "unfiltered pairs", "e5-pt": "E5, pre-trained", "e5": "E5, distilled"}


def draw(results: Path, picture: Path) -> None:
    """Draw nDCG@10 of every model and seed; the picture says, in its field ``Source``, which file it shows, by sha256."""
    from matplotlib import rc_context

    from lightning_e5.files.storage import atomic_path
    from lightning_e5.report.figures.drawing import STYLE
    from lightning_e5.report.figures.seeds import seeds_figure

    content = results.read_bytes()
    rows = {seed: found["rows"] for seed, found in json.loads(content)["seeds"].items()}
    drawn = io.BytesIO()
    with rc_context(STYLE):
        seeds_figure(rows, NAMES, "bm25").savefig(drawn, format="png", dpi=160, metadata={"Software": None, "Source": hashlib.sha256(content).hexdigest()})
    with atomic_path(picture) as temporary:
        temporary.write_bytes(drawn.getvalue())
    print(picture)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # this clone's packages, installed or not
    draw(RESULTS, PICTURE)
