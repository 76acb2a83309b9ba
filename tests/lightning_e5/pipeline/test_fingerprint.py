"""A stage is done again where something that decides its result changed, and only there; what was asked is asked in words."""

from __future__ import annotations

import copy
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.config.experiment import config_hash
from lightning_e5.errors import UserError
from lightning_e5.files import digests as digests_module
from lightning_e5.files.digests import FileDigests
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.pipeline import claim
from lightning_e5.pipeline import fingerprint as module
from lightning_e5.pipeline.fingerprint import declared_version, stage_fingerprint
from lightning_e5.pipeline.runner import run_experiment

Node = dict[str, Any]


def run(experiment: Node, **settings: Any) -> list[str]:
    """The stages that were computed."""
    said: list[str] = []
    run_experiment(experiment, say=said.append, **settings)
    return [line.split("] ")[1].split(":")[0] for line in said if line.endswith((": starts", ": continues"))]


def fingerprint(node: Node, tmp_path: Path) -> str:
    experiment = {"name": "x", "runs_dir": str(tmp_path), "seed": 1, "stages": {"s": node}}
    return config_hash(stage_fingerprint(experiment, "s", node, {}, {}, FileDigests()))


PRETRAIN: Node = {
    "_target_": "lightning_e5.stages.pretrain.pretrain",
    "precision": "auto",
    "data": {"batch_size": 8, "num_workers": 0},
    "module": {"learning_rate": 0.1},
}


def test_who_computes_it_is_not_in_it(tmp_path: Path) -> None:
    before = fingerprint(PRETRAIN, tmp_path)
    free: Node = {
        **PRETRAIN, "engine": "ray", "gpus_per_task": 1, "description": "another", "data": {"batch_size": 8, "num_workers": 4, "prefetch": 0},
        "trainer": {
            "devices": 2, "accelerator": "cpu", "num_nodes": 2, "strategy": "fsdp", "backend": "gloo", "checkpoint_seconds": 5.0, "checkpoint_steps": 3,
            "background_checkpoints": True,
        },
    }  # fmt: skip
    assert fingerprint(free, tmp_path) == before
    for changed in ({"data": {"batch_size": 16, "num_workers": 0}}, {"module": {"learning_rate": 0.2}}, {"seed": 2}, {"trainer": {"unheard_of": 1}}):
        assert fingerprint({**PRETRAIN, **changed}, tmp_path) != before, changed


def test_the_precision_that_auto_chose_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for native in (False, True):
        monkeypatch.setattr(module, "native_bf16", lambda kind, native=native: native)
        found |= {fingerprint(PRETRAIN, tmp_path), fingerprint({**PRETRAIN, "precision": "fp32"}, tmp_path)}
    assert len(found) == 3


@pytest.mark.parametrize("given", [{}, {"precision": "bf16-gpu"}, {"model": {"precision": "bf16-gpu"}}])
def test_the_default_is_in_it_only_where_it_is_bfloat16(given: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a CPU's results are those that they were, and a GPU's are not taken for a CPU's."""
    node = {**{k: v for k, v in PRETRAIN.items() if k != "precision"}, **given}
    monkeypatch.setattr(module, "native_bf16", lambda kind: True)
    for cuda, expected in ((False, None), (True, "bf16")):
        monkeypatch.setattr(module, "has_cuda", lambda cuda=cuda: cuda)
        assert module.facts_here(node).get("precision") == expected
        assert "precision" not in module.facts_here({**node, "precision": "fp32", "model": {}})
        assert "precision" not in module.facts_here({"_target_": "lightning_e5.stages.word_vectors.word_vectors"})
    assert "precision" not in module.facts_here({**node, "trainer": {"accelerator": "cpu"}})
    monkeypatch.setattr(module, "native_bf16", lambda kind: False)
    assert "precision" not in module.facts_here(node), "V100: float32"


def test_the_contents_of_a_model_folder_are_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every way that a stage's arguments name one, links followed, whatever the files' times."""
    folder = tmp_path / "models" / "start"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(folder / "model.safetensors")
    package = tmp_path / "site" / "carries_a_model"
    shutil.copytree(folder, package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "lightning_e5.stages.vocabulary.vocabulary"}
    ways: list[Node] = [
        {**node, "encoder": {"pretrained": str(folder)}},
        {**node, "encoder": {"pretrained": f"path:{folder}#sha256=00"}},
        {**node, "encoder": {"pretrained": "models/start"}},
        {**node, "encoder": {"pretrained": str(tmp_path / "linked")}},
        {**node, "encoder": {"pretrained": "package:carries_a_model/model"}},
        {**node, "anything": [{"named": str(folder)}]},
        {**node, "inputs": {"encoder": f"path:{folder}"}},
        {**node, "inputs": {"encoders": {"a": f"path:{folder / 'model.safetensors'}"}}},
    ]
    before = [fingerprint(way, tmp_path) for way in ways]
    for path in (folder, package / "model"):
        os.utime(path / "model.safetensors")
    assert [fingerprint(way, tmp_path) for way in ways] == before, "times alone change nothing"
    for path in (folder, package / "model"):
        (path / "model.safetensors").write_text("weighty")
    assert not set(before) & {fingerprint(way, tmp_path) for way in ways}
    for text in ("no/such/folder", "a" * 5000 + "/b", "x\0/y", "~nobody/x", "intfloat/e5-small", "line\nof/text"):
        fingerprint({**node, "encoder": {"pretrained": text}}, tmp_path)


def test_versions_of_libraries_are_asked_about(small_experiment: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run(small_experiment)) == 4
    real = metadata.version
    others = {"tokenizers": "99.0", "torch": real("torch").partition("+")[0] + "+cu130"}
    monkeypatch.setattr(metadata, "version", lambda name: others.get(name) or real(name))
    with pytest.raises(UserError) as raised:
        run(small_experiment)
    assert f"stage 'vocabulary' was made with tokenizers {real('tokenizers')}, not 99.0; give another name" in str(raised.value)
    assert "torch" not in str(raised.value), "a build for other devices is the same version"
    assert run(small_experiment, update=True) == ["vocabulary"], "no other stage reads a tokenizer"
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"tokenizers 99\.0, not"):
        run(small_experiment)


def test_the_version_of_a_stage_is_asked_about(small_experiment: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(small_experiment)
    with monkeypatch.context() as patch:
        patch.setattr(module, "declared_version", lambda target: 2 if target.endswith("word_vectors") else 1)
        with pytest.raises(UserError, match=r"stage 'vectors' was made with version 1 of its method, not 2; .*--update"):
            run(small_experiment)
        assert run(small_experiment, update=True)[0] == "vectors"
    source = "from lightning_e5.pipeline.fingerprint import result_version\n\n\n@result_version(3)\ndef three():\n    pass\n\n\ndef one():\n    pass\n"
    (tmp_path / "declares_versions.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [declared_version(f"declares_versions.{name}") for name in ("three", "one", "absent")] == [3, 1, 1]
    assert declared_version("no_such_module.f") == 1


def test_the_precision_of_other_hardware_is_asked_about(small_experiment: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small_experiment)
    real = module.facts_here
    for place in (module, claim):
        monkeypatch.setattr(place, "facts_here", lambda node: real(node) | {"precision": "bf16"})
    with pytest.raises(UserError, match="precision of its own, not bf16"):
        run(small_experiment)


def test_a_run_of_an_earlier_version_is_not_overwritten_unasked(small_experiment: Node) -> None:
    run(small_experiment)
    for name in ("manifest.json", "started.json"):
        path = Path(small_experiment["runs_dir"]) / "small" / "stages" / "vectors" / name
        write_json(path, {key: value for key, value in read_json(path).items() if key != "checksum"})
    with pytest.raises(UserError, match=r"stage 'vectors' was made by an earlier version of lightning_e5; .*--update"):
        run(small_experiment)
    assert run(small_experiment, update=True)[0] == "vectors"


def test_a_start_over_finished_work_reads_no_file(small_experiment: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small_experiment)
    read: list[Path] = []
    real = digests_module.sha256_file
    monkeypatch.setattr(digests_module, "sha256_file", lambda path: read.append(Path(path)) or real(path))
    assert run_experiment(small_experiment)[1] is False
    (Path(small_experiment["runs_dir"]) / "small" / "metrics.json").unlink()
    assert run(small_experiment) == [] and read == []
    assert run_experiment(small_experiment, verify=True)[1] is False
    assert {"pairs.parquet", "model.safetensors"} <= {path.name for path in read}


def test_bit_rot_is_found_by_verify(small_experiment: Node) -> None:
    run(small_experiment)
    path = Path(small_experiment["runs_dir"]) / "small" / "stages" / "pairs" / "pairs.parquet"
    before, facts = path.read_bytes(), path.stat()
    with path.open("r+b") as handle:
        handle.seek(len(before) // 2)
        handle.write(bytes([before[len(before) // 2] ^ 1]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert run(small_experiment) == []
    assert run(small_experiment, verify=True) == ["pairs"] and path.read_bytes() == before
    os.utime(path)
    assert run(small_experiment) == []


def test_a_failed_stage_is_corrected_without_update(small_experiment: Node) -> None:
    wrong = copy.deepcopy(small_experiment)
    damaged = Path(small_experiment["runs_dir"]).with_name("damaged")
    damaged.mkdir()
    (damaged / "pairs.parquet").write_bytes(b"no Parquet")
    wrong["stages"]["vectors"]["inputs"] = {"pairs": f"path:{damaged}"}
    with pytest.raises(UserError, match="damaged"):
        run(wrong)
    wrong["variables"] = {"pairs": "pairs"}  # the correction may be made wherever the value comes from
    wrong["stages"]["vectors"]["inputs"] = {"pairs": "pairs"}
    wrong["stages"]["vocabulary"]["encoder"]["hidden_size"] = 32  # not begun yet
    other = copy.deepcopy(wrong)
    other["stages"]["pairs"]["held_out"] = ["one"]
    with pytest.raises(UserError, match=r"another configuration \(it differs in stages\.pairs\.held_out\)"):
        run(other)
    with pytest.raises(UserError, match="differs in seed"):
        run({**wrong, "seed": 2})
    assert run(wrong) == ["vectors", "vocabulary"]
    other = copy.deepcopy(wrong)
    other["stages"]["vectors"]["config"]["epochs"] = 2
    with pytest.raises(UserError, match=r"differs in stages\.vectors\.config\.epochs"):
        run(other)


def test_devices_and_workers_change_nothing(small_experiment: Node) -> None:
    small_experiment["variables"] = {"workers": 1, "note": "a"}
    run(small_experiment)
    small_experiment["stages"]["pairs"]["source"] |= {"workers": 2, "show_progress": True}
    small_experiment["variables"]["workers"] = 2
    assert run(small_experiment) == [] and run_experiment(small_experiment)[1] is False


def test_what_a_result_links_to_belongs_to_it(tmp_path: Path, collection: Path) -> None:
    data = tmp_path / "data" / "scifact"
    shutil.copytree(collection, data)
    experiment: Node = {
        "name": "linked", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "logger": {"mode": "disabled"}, "stage_cache": str(tmp_path / "cache"),
        "stages": {"beir": {"_target_": "lightning_e5.stages.beir_data.beir_data", "folder": str(data.parent), "sets": ["scifact"]}},
    }  # fmt: skip
    assert run(experiment) == ["beir"] and run(experiment) == []
    assert run({**experiment, "name": "second"}) == [], "a shared stage keeps its links"
    assert (tmp_path / "runs/second/stages/beir/scifact/corpus.jsonl").is_file()
    corpus = data / "corpus.jsonl"
    text = corpus.read_text()
    corpus.write_text(text.replace("a", "e", 1))
    assert len(corpus.read_text()) == len(text) and run(experiment) == ["beir"]
