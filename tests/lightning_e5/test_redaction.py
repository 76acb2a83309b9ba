"""Secrets are found by key and by form, hidden wherever they occur, and nothing else is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.files.storage import read_json
from lightning_e5.redaction import hidden, hidden_message, redact, remember, secrets_of

ROOT = Path(__file__).resolve().parents[2]
#: Made up here; put together so that no scanner of the source takes them for real ones.
SECRETS = {
    "hub": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "wandb": "0123456789abcdef" * 2 + "deadbeef",
    "git": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "openai": "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0",
    "aws": "AKIA" + "Z7QWERTYUIOP4321",
    "jwt": "eyJhbGciOiJI" + ".eyJzdWIiOiIx" + ".c2lnbmF0dXJl-x_Y",
    "password": "correct-horse-battery",
    "plain key": "opensesame-4711",
    "token": "planted/token+with=signs&more",
    "plural": "first-of-Several-1",
    "nested": "below-credentials-9",
    "named key": "voyage key of words",
    "in an address": "pass-in-url-77",
    "user": "tokenasuser0123456789",
    "signature": "5f2d9aSIGNATURE00b1",
    "sas": "sv0sig%2Bvalue%3D",
    "bearer": "bearervalue0123456789",
    "assigned": "dsn-password-5",
}  # fmt: skip
#: As strings of a configuration, where no key tells.
FORMS = {
    "hub": "use {} here", "wandb": "{}", "git": "clone https://x:{}@host/r.git", "openai": "{}", "aws": "id {}", "jwt": "cookie: {}",
    "in an address": "postgres://reader:{}@db.example/pairs", "user": "https://{}@host/x",
    "signature": "https://b.s3.amazonaws.com/o?X-Amz-Expires=60&X-Amz-Signature={}", "sas": "https://a.blob.core.windows.net/c?sv=2024&sig={}",
    "bearer": "Authorization: Bearer {}", "assigned": "host=db user=me password={} port=5",
}  # fmt: skip
#: Under keys that tell.
KEYED: dict[str, Any] = {
    "api_key": SECRETS["plain key"], "db": {"password": SECRETS["password"]}, "hub_token": SECRETS["token"], "passwords": ["short", SECRETS["plural"]],
    "credentials": {"anything": {"value": SECRETS["nested"]}}, "voyage_key": SECRETS["named key"],
}  # fmt: skip


def planted() -> dict[str, Any]:
    return {**KEYED, **{f"text {name}": form.format(SECRETS[name]) for name, form in FORMS.items()}}


def leaks(content: str | bytes) -> list[str]:
    data = content.encode() if isinstance(content, str) else content
    return [name for name, secret in SECRETS.items() if secret.encode() in data]


def test_every_kind_is_found_and_hidden_wherever_it_is() -> None:
    assert set(FORMS) | {"plain key", "password", "token", "plural", "nested", "named key"} == set(SECRETS)
    brought = {f"note {number}": f"about {secret}, twice {secret}" for number, secret in enumerate(SECRETS.values())}
    config = {"variables": planted(), "stages": {"one": {"_target_": "a.b", "address": brought}}}
    assert set(leaks(json.dumps(config))) == set(SECRETS)
    found = redact(config)
    assert leaks(json.dumps(found)) == [] and leaks(json.dumps(redact(brought, within=config))) == []
    assert redact(found) == found, "what is hidden stays as it is"
    assert secrets_of(config) >= set(SECRETS.values())
    assert found["stages"]["one"]["address"]["note 0"].startswith("about <redacted ")
    remember(config)
    text = json.dumps(brought) + " ".join(brought.values()) + yaml.safe_dump(brought, width=10**6)
    assert leaks(hidden(text)) == []
    assert leaks(hidden_message("; ".join(planted()[f"text {name}"] for name in FORMS if name != "wandb"))) == []
    assert "variables.hub_token=<redacted" in hidden_message("override 'variables.hub_token=abcdef9': is wrong")


#: None of it is a secret.
INNOCENT = {
    "max_tokens": 512, "tokens": "vocabulary/tokens", "chunk_tokens": [128, 256], "key": "value", "keys": None, "monkey": "see monkey do", "flag": True,
    "token_dropout": 0.2, "temperature": 0.05, "seed": 20221207, "pad_token": "[PAD]", "mask_token": "<mask>", "sort_key": "publication_date",
    "text_key": "passage_text", "tokens_file": "runs/tokens-2024/manifest.json", "password_file": "/run/secrets/hub", "write_tokens": {"_target_": "a.b", "key": "id"},
    "inputs": {"token": "vocabulary/tokens", "secret": "stage/test"}, "revision": "a" * 40, "description": "Basic retrieval; Bearer of news; a token per word",
    "address": "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/scifact.zip?download=1&version=2", "scp": "git@github.com:a/b.git",
    "model": "sentence-transformers/all-MiniLM-L6-v2", "encoder": "multilingual-e5-large-instruct", "equation": "key=value, alpha=0.1", "mail": "a@b.example",
}  # fmt: skip


def test_nothing_else_is_hidden() -> None:
    assert redact(INNOCENT) == INNOCENT
    assert redact({"token": "validation", "split": "validation"})["split"] == "validation", "a plain word is hidden in its own place alone"
    assert redact({"token": "python-docs", "inputs": {"collections": "python-docs"}})["inputs"] == {"collections": "python-docs"}
    experiments = sorted((ROOT / "experiments").rglob("*.yaml"))
    assert len(experiments) > 20
    for path in experiments:
        tree = yaml.load(path.read_text(), yaml.CSafeLoader)
        assert redact(tree) == tree, path


def test_a_number_is_a_secret_only_where_the_key_says_password() -> None:
    assert redact({"password": 12345678, "pages": 12345678, "password_length": 12345678}) == {**redact({"password": 12345678}), "pages": 12345678, "password_length": 12345678}
    assert "12345678" not in str(redact({"password": 12345678}))


def test_values_that_differ_still_differ() -> None:
    """Two keys: a run of one must not pass for a run of the other."""
    assert redact({"api_key": "a" * 40}) != redact({"api_key": "b" * 40})


BASE = """
name: small
seed: 1
threads: 1
description: a run whose variables hold {hub}
variables: {variables}
data_dir: {folder}
final_encoder: pretrain
encoder: &encoder {{_target_: lightning_e5.models.factory.EncoderSpec, vocab_size: 300, layers: 1, hidden_size: 16, heads: 2, intermediate_size: 16}}
stages:
  pairs:
    _target_: lightning_e5.stages.build_pairs.build_pairs
    description: pairs of ${{variables.hub_token}}
    source:
      _target_: data_modules.ccpairs.sources.python_docs.PythonDocs
      workers: 1
      cache_dir: "${{data_dir}}/cache-${{variables.api_key}}"
      roots: {{one: {root}/lightning_e5, held: {root}/data_modules}}
    held_out: [held]
  vocabulary:
    _target_: lightning_e5.stages.vocabulary.vocabulary
    inputs: {{pairs: pairs}}
    encoder: *encoder
  pretrain:
    _target_: lightning_e5.stages.pretrain.pretrain
    inputs: {{encoder: vocabulary/encoder, tokens: vocabulary/tokens}}
    data: {{_target_: data_modules.ccpairs.datamodule.CCPairsDataModule, _partial_: true, batch_size: 8, max_steps: 3}}
    optimizer: {{_target_: lightning_e5.training.optimizer.AdamWConfig, learning_rate: 1.0e-3}}
    module:
      _target_: lightning_e5.modules.in_batch.InBatchModule
      _partial_: true
"""


def write_ablation(folder: Path) -> Path:
    """An ablation of one run whose YAML, as a user may write it, holds a secret of every kind."""
    base = folder / "yamls" / "small.yaml"
    base.parent.mkdir()
    base.write_text(BASE.format(hub=SECRETS["hub"], variables=json.dumps(planted()), folder=folder, root=ROOT))
    logger = {"mode": "offline", "project": SECRETS["plain key"], "entity": SECRETS["git"], "tags": [SECRETS["openai"]]}
    tree = {
        "ablation": "kept", "question": f"Does {SECRETS['password']} stay?", "seeds": [1], "baseline": "only", "scale": "one", "report": ["pretrain/final_loss"],
        "variants": {"only": {"description": f"with {SECRETS['token']}", "over": {"logger": logger}}},
        "scales": {"one": {"base": "small.yaml"}},
    }  # fmt: skip
    path = base.with_name("kept.yaml")
    path.write_text(yaml.safe_dump(tree))
    return path


def test_no_secret_reaches_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = write_ablation(tmp_path)
    import torch  # noqa: F401  (the stages are then checked in this process, which is faster)

    variables = {"WANDB_API_KEY": SECRETS["wandb"], "HF_TOKEN": SECRETS["hub"], "OPENAI_API_KEY": SECRETS["openai"], "GITHUB_TOKEN": SECRETS["git"]}
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", os.environ | {**variables, "OMP_NUM_THREADS": "1"})
        patch.chdir(ROOT)
        assert main(["ablate", str(ablation), f"runs_dir={tmp_path / 'runs'}", f"variables.hub_token={SECRETS['wandb']}"]) == 0
    directory = tmp_path / "runs/ablations/kept-one"
    run, written = directory / "only-seed1", directory / "only-seed1.yaml"
    assert read_json(directory / "status.json")["only-seed1"]["state"] == "finished"
    for arguments in (
        ["export", str(run), str(tmp_path / "runs/exported"), "--license", "mit"], ["compare", str(directory), "--html", str(tmp_path / "runs/c.html")],
        ["compare", str(run), "--metric", "final_loss", "--html", str(tmp_path / "runs/r.html"), "--csv", str(tmp_path / "runs/r.csv")],
        ["dashboard", str(directory)], ["check", str(ablation)], ["ablate", str(ablation), "--dry-run"],
    ):  # fmt: skip
        main(arguments)
    files = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert len([p for p in files if p.suffix == ".wandb"]) == 2, "the training's and the results'"
    assert {p.name for p in files} >= {"metrics.jsonl", "config.yaml", "README.md", "dashboard.json", "debug.log", "c.html", "r.html", "environment.json"}
    assert [(name, str(p)) for p in files for name in leaks(p.read_bytes()) or leaks(str(p.relative_to(tmp_path)))] == []
    told = capsys.readouterr()
    assert leaks(told.out + told.err) == []
    assert "<redacted" in (tmp_path / "runs/exported/README.md").read_text()

    text = written.read_text()  # it runs on, by hand, where the secrets are in the environment, and says what is missing where not
    assert "${oc.env:HF_TOKEN}" in text, "the user's own variable"
    assert main(["run", str(written)]) == 2
    assert "Environment variable 'HF_TOKEN' not found" in capsys.readouterr().err
    from lightning_e5.ablation.runner import _in_environment

    for secret in secrets_of(yaml.safe_load((tmp_path / "yamls/small.yaml").read_text())) | {SECRETS["wandb"], *SECRETS.values()}:
        name = _in_environment(secret).removeprefix("${oc.env:").removesuffix("}")
        monkeypatch.setenv(name, secret)
    for name, secret in variables.items():
        monkeypatch.setenv(name, secret)
    assert main(["run", str(written)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["run", str(written), f"variables.hub_token={SECRETS['wandb'][::-1]}"]) == 2
    told = capsys.readouterr()
    assert "variables.hub_token" in told.err and SECRETS["wandb"][::-1] not in told.err, "another key is another configuration"
