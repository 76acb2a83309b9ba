"""The JSON files of runs and ablations, read with what must be in them: a damaged one is named, with the place in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files import run_layout as layout
from lightning_e5.files.storage import read_json, read_log
from lightning_e5.result_row import MAIN_METRIC, ResultRow

#: A shape is one of these words; a list of one shape; a mapping of keys to shapes, where ``key?`` may be absent or null and
#: ``*`` stands for every key; or a tuple of shapes, any of which will do. Keys that are not named may hold anything.
NUMBER, COUNT, TEXT, FLAG, ANYTHING = "a number", "a whole number", "a text", "true or false", "anything"
Shape = Any

METRICS: Shape = {"*": NUMBER}
TIMING: Shape = {"seconds": NUMBER, "peak_memory_gb": NUMBER, "computed_by?": TEXT, "computed_at?": TEXT, "reused_from?": TEXT}
ENVIRONMENT: Shape = {"packages?": {"*": ANYTHING}}
MANIFEST: Shape = {"files": {"*": TEXT}}
#: A comparison of two models.
DIFFERENCE: Shape = {"difference": NUMBER, "difference_low": NUMBER, "difference_high": NUMBER, "verdict": TEXT}
COMPARED: Shape = {"model": TEXT, **DIFFERENCE}
_COUNTS = ("queries", "documents", "missing", "dangling", "pairs_seen", "tokens_seen", "max_length", "clean_items", "dimensions")
#: What rows of retrieval's and of the tasks' table have in common.
_ROW: Shape = {
    "model": TEXT, **{f"{key}?": COUNT for key in _COUNTS}, **{f"{key}?": NUMBER for key in ("low", "high", "truncated", "tied")},
    "split?": TEXT, "precision?": TEXT, "contamination?": TEXT, "contaminated?": {"count": COUNT, "share": NUMBER}, "prefix?": {"*": TEXT}, "prefix_ablation?": FLAG, "selected_on_this?": FLAG,
}  # fmt: skip
TABLE: Shape = [
    {**_ROW, "collection": TEXT, "metric?": TEXT, "value?": NUMBER, "others?": {"*": NUMBER}, "published?": {"*": NUMBER}, "previous?": [COMPARED], "rules?": {"beir": TEXT}, "difference?": NUMBER,
     "difference_low?": NUMBER, "difference_high?": NUMBER, "verdict?": TEXT}
]  # fmt: skip
TASKS: Shape = [
    {**_ROW, "set": TEXT, "task": TEXT, "metric": TEXT, "value": NUMBER, "items": COUNT, "others?": {"*": NUMBER}, "published?": NUMBER,
     "previous?": [COMPARED], "sets?": {"*": NUMBER}}
]  # fmt: skip
_COUNTED: Shape = {"*": COUNT}
SHARDS: Shape = {
    "sources": [{"name": TEXT, "pairs": COUNT, "candidates": COUNT, "dropped": _COUNTED, "planted": COUNT, "shards?": [{"file": TEXT, "rows": COUNT}]}],
    "read": [{"name": TEXT, "parts": COUNT, "counts": _COUNTED, "bad": [[TEXT]]}],
}  # fmt: skip
OVERLAP: Shape = {"collections": {"*": {"texts": COUNT, "pairs": COUNT, "share?": NUMBER, "sources": {"*": {"pairs": COUNT, "share": NUMBER}}}}}
FILTER: Shape = {
    "k?": COUNT, "pool?": TEXT, "exact_up_to?": COUNT, "filtered_before?": TEXT,
    "sources?": [{"source": TEXT, "pairs": COUNT, "kept_share": NUMBER, "planted?": COUNT, "removed_mismatches?": NUMBER, "kept_pairs?": NUMBER, "precision?": NUMBER}],
}  # fmt: skip
PACKAGES: Shape = {"packages": {"*": {"pairs": COUNT, "held_out": FLAG, "version?": TEXT}}, "source?": TEXT, "test?": TEXT}
OWN_TEXTS: Shape = {"lines": [TEXT]}
DROPPED: Shape = {"*": {"count": COUNT, "first": TEXT}}
EXAMPLES: Shape = [{"id": TEXT, "source": TEXT, "query": TEXT, "passage": TEXT}]
STATUS: Shape = {"*": {"state": TEXT, "exit_code?": COUNT, "message?": TEXT, "seconds?": NUMBER}}
ABLATION: Shape = {
    "ablation": TEXT, "scale": TEXT, "file?": TEXT, "question": TEXT, "held_constant": ([TEXT], None), "baseline": TEXT, "report": [TEXT], "seeds": [COUNT],
    "variants": {"*": {"description?": TEXT, "runs": {"*": TEXT}}}, "order?": [TEXT], "paper_order?": [TEXT], "skipped?": {"*": TEXT},
    "also_compare?": [[TEXT]],
    "paper?": {"source?": TEXT, "note?": TEXT, "figures?": {"*": {"*": (NUMBER, None)}}, "beside?": {"*": TEXT}},
}  # fmt: skip
#: Of a run's recorded configuration, what its readers follow.
CONFIG: Shape = {
    "name": TEXT, "seed": COUNT, "runs_dir": TEXT, "description?": TEXT, "headline?": [TEXT], "final_encoder?": TEXT, "logger?": {"*": ANYTHING},
    "encoder?": {"*": ANYTHING}, "stages": {
        "*": {"_target_?": TEXT, "inputs?": {"encoders?": {"*": (TEXT, None)}, "collections?": {"*": (TEXT, None)}, "*": (TEXT, {"*": ANYTHING}, None)}, "k?": COUNT}
    },
}  # fmt: skip


def read_result(path: Path, shape: Shape) -> Any:
    """A JSON file with what must be in it; UserError names the file and the first place that is not so."""
    return check_shape(read_json(path), shape, path)


def read_rows(stage: Path) -> list[ResultRow]:
    """The rows that an evaluation left in its folder: of ``table.json``, then of ``tasks.json``.

    Rows of retrieval that were written before they held their own figures take them from the names of the stage's
    ``metrics.json``, ``<model>/<collection>/<metric>``; this is the one place where such names are taken apart.
    """
    rows = []
    if (table := stage / layout.TABLE).is_file():
        metrics = read_metrics(stage)
        for number, node in enumerate(read_result(table, TABLE)):
            check_shape(node, DIFFERENCE if "difference" in node else {}, table, f"[{number}]")
            if "value" not in node:
                prefix = f"{node['model']}/{node['collection']}/"
                own = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
                if MAIN_METRIC not in own:
                    raise UserError(f"{stage / layout.METRICS}: lacks the key {prefix + MAIN_METRIC!r} of a row of {layout.TABLE}; one of them is damaged")
                node = {**node, "metric": MAIN_METRIC, "value": own.pop(MAIN_METRIC), "others": own}
            rows.append(ResultRow.of_json(node))
    if (tasks := stage / layout.TASKS).is_file():
        for number, node in enumerate(read_result(tasks, TASKS)):
            rows.append(ResultRow.of_json(check_shape(node, DIFFERENCE if "difference" in node else {}, tasks, f"[{number}]")))
    return rows


def read_metrics(stage: Path) -> dict[str, float]:
    """A stage's flat metrics; empty where it left none."""
    return dict(read_result(stage / layout.METRICS, METRICS)) if (stage / layout.METRICS).is_file() else {}


def read_steps(path: Path) -> list[dict[str, float]]:
    """The rows of a training's log, each with numbers alone and its ``step``."""
    return list(check_shape(read_log(path), [{"step": COUNT, "*": NUMBER}], path))


def check_shape(value: Any, shape: Shape, path: Path, place: str = "") -> Any:
    """``value``; UserError, naming ``path`` and the place, where it has not the shape."""
    if isinstance(shape, tuple):
        if any(one is None and value is None for one in shape):
            return value
        shape = next((one for one in shape if one is not None and _kind(value) == _kind_of(one)), shape[0])
    if _kind_of(shape) not in (_kind(value), ANYTHING) and not (shape == NUMBER and _kind(value) == COUNT):
        raise UserError(f"{path}: {place.lstrip('.') or 'the whole'} is {_shown(value)}, not {_kind_of(shape)}; the file is damaged, or of another version")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            check_shape(item, shape[0], path, f"{place}[{number}]")
    elif isinstance(shape, Mapping):
        _check_keys(value, shape, path, place)
    return value


def _check_keys(value: Mapping[str, Any], shape: Mapping[str, Shape], path: Path, place: str) -> None:
    named = {key.removesuffix("?") for key in shape} - {"*"}
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if key == "*":
            for other in (other for other in value if other not in named):
                check_shape(value[other], inner, path, f"{place}.{other}")
        elif name not in value and name == key:
            raise UserError(f"{path}: {f'{place} '.lstrip('. ')}lacks the key {name!r}; the file is damaged, or of another version")
        elif name in value and not (value[name] is None and name != key):
            check_shape(value[name], inner, path, f"{place}.{name}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return FLAG
    if isinstance(value, int | float):
        if abs(value) > sys.float_info.max or not math.isfinite(value):
            return "a number that is not finite"
        return COUNT if float(value).is_integer() else NUMBER
    return next((word for kind, word in ((str, TEXT), (list, "a list"), (dict, "an object")) if isinstance(value, kind)), "null")


def _kind_of(shape: Shape) -> str:
    return shape if isinstance(shape, str) else "a list" if isinstance(shape, list) else "an object"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
