"""What a card of the H100's class should reach, and whether it did."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.size import PAPER_BATCH


def aims(parts: dict[str, Any]) -> dict[str, str]:
    """Aim -> the figure seen, and whether it is met; nothing of what was not measured."""
    rows = {name: part["rows"] for name, part in parts.items()}
    steps = [row for row in rows.get("train_step", []) if row.get("batch") == PAPER_BATCH]
    said = {}
    for row in steps:
        if row["model"] == "E5-base" and row.get("mfu") is not None:
            said["MFU of E5-base >= 0.40"] = _said(row["mfu"], row["mfu"] >= 0.40)
        if row.get("ratio") is not None:
            said[f"step of {row['model']} >= 2x sentence-transformers' cached loss"] = _said(row["ratio"], row["ratio"] >= 2)
        if row["model"] == "E5-small":
            said["20,000 steps of E5-small in under 24 hours"] = _said(row["hours_of_20000_steps"], row["hours_of_20000_steps"] < 24, "h")
    for row in rows.get("encode", []):
        if row.get("ratio") is not None:
            said[f"encode with {row['model']} >= 1.5x sentence-transformers"] = _said(row["ratio"], row["ratio"] >= 1.5)
    for row in rows.get("checkpoint", []):
        if row.get("background_ms") is not None:
            said["a step waits under 100 ms for a checkpoint of E5-base"] = _said(row["background_ms"], row["background_ms"] < 100, "ms")
    for name in ("correctness", "resume", "stages"):
        for row in rows.get(name, []):
            said[f"{name}: {row['name']}"] = "met" if row["equal"] else f"MISSED ({row})"
    return said


def _said(value: float, met: bool, unit: str = "") -> str:
    return f"{value:.3g}{' ' + unit if unit else ''}, {'met' if met else 'MISSED'}"
