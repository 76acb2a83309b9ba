"""What differs between runs is found, and nothing else: changed keys, versions, data and what trainings saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.results.run import RunData
from lightning_e5.results.what_differs import Differing, what_differs


def differing(*paths: Path) -> dict[str, tuple[Any, ...]]:
    found = what_differs({str(path): RunData(path) for path in paths})
    assert len({(one.what, one.key) for one in found}) == len(found)
    return {f"{one.what}: {one.key}": one.values for one in found}


def recorded(path: Path, stage: str, config: dict[str, Any], **facts: Any) -> None:
    """Record a stage as the pipeline does: in config.yaml with all keys, in its manifest with those that decide its result."""
    config = {"_target_": "x", **config}
    tree = yaml.safe_load((path / "config.yaml").read_text())
    tree["stages"][stage] = {**config, "description": f"of {path}", "cache_dir": str(path / "cache")}
    (path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    manifest = read_json(path / "stages" / stage / "manifest.json")
    fingerprint = {"config": config, "inputs": {}, "places": {}, "libraries": {"pyarrow": "26"}, "version": 1, **facts}
    write_json(path / "stages" / stage / "manifest.json", {**manifest, "fingerprint": fingerprint})


def test_runs_that_differ_in_nothing(make_run) -> None:  # type: ignore[no-untyped-def]
    runs = [make_run("a"), make_run("b", description="Another description.")]
    assert differing(*runs) == {} == differing(runs[0])
    for path in runs:  # another cache and description, too, and the same data at another place
        data = path.parent / f"data of {path.name}"
        recorded(path, "pairs", {"folder": f"/data/{path.name}"}, places={f"/data/{path.name}": "digest"})
        recorded(path, "noisy", {"inputs": {"pairs": f"path:{data}"}}, inputs={"pairs": "digest"})
    assert differing(*runs) == {}


def test_everything_that_differs_is_named(make_run) -> None:  # type: ignore[no-untyped-def]
    a, b = make_run("a"), make_run("b", pairs_seen=640)
    recorded(a, "tuned", {"module": {"temperature": 0.05, "rules": [{"n": 1}, {"n": 2}]}, "tags": ["x"]}, precision="fp32")
    recorded(b, "tuned", {"module": {"temperature": 0.02, "rules": [{"n": 1}, {"n": 3}], "scale": 2}, "tags": ["x"]}, precision="bf16", version=2)
    for path, digest in ((a, "one"), (b, "other")):
        recorded(path, "pairs", {"folder": "/the/same/path"}, places={"/the/same/path": digest})
        manifest = read_json(path / "stages/pairs/manifest.json")
        write_json(path / "stages/pairs/manifest.json", {**manifest, "files": {"pairs.parquet": digest, "metrics.json": "same"}})
    write_json(a / "stages/pairs/metrics.json", {"train_pairs": 800.0})
    write_json(b / "stages/pairs/metrics.json", {"train_pairs": 900.0})
    environment = read_json(b / "environment.json")
    write_json(b / "environment.json", {**environment, "commit": "def", "packages": {"torch": "3"}, "cpus": 8, "numerics": {"threads": 2}})
    tree = yaml.safe_load((b / "config.yaml").read_text())
    tree["stages"]["more"] = {"_target_": "x"}
    (b / "config.yaml").write_text(yaml.safe_dump({**tree, "seed": 2}, sort_keys=False))
    found = differing(a, b)
    data = {key: found.pop(key) for key in list(found) if key.startswith("data")}
    assert found == {
        "configuration: seed": (1, 2),
        "configuration: stages.more": (None, "a stage"),
        "configuration: stages.tuned.module.temperature": (0.05, 0.02),
        "configuration: stages.tuned.module.rules[1].n": (2, 3),
        "configuration: stages.tuned.module.scale": (None, 2),
        "versions: commit": ("abc with uncommitted changes", "def with uncommitted changes"),
        "versions: torch": ("2", "3"),
        "versions: stages.tuned: version of the method": (1, 2),
        "machine: cpus": (None, 8),
        "machine: numerics.threads": (None, 2),
        "machine: stages.tuned: precision": ("fp32", "bf16"),
        "training: tuned: pairs seen": (320, 640),
        "training: tuned: tokens seen": (3200, 6400),
    }
    assert set(data) == {"data: pairs", "data: stages.pairs.folder"}
    assert data["data: pairs"][0].startswith("800 train pairs, content ") and data["data: pairs"][1].startswith("900 train pairs, content ")
    (three,) = [one for one in what_differs({str(n): RunData(p) for n, p in enumerate((a, b, a))}) if one.key == "seed"]
    assert three == Differing("configuration", "seed", (1, 2, 1))


def test_a_damaged_manifest_is_named(make_run) -> None:  # type: ignore[no-untyped-def]
    a, b = make_run("a"), make_run("b")
    (b / "stages/pairs/manifest.json").write_text('{"files": 3}')
    with pytest.raises(UserError, match=r"b/stages/pairs/manifest\.json: files is 3"):
        differing(a, b)
