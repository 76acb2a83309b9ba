"""A damaged model folder ends in one sentence with the file's name, by the loader and on the command line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.models.cross_encoder import HEAD, CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.pair_scorer import load_pair_scorer
from lightning_e5.models.training_record import RECORD, read_record
from tests.lightning_e5.models.folders import write_folder
from tests.lightning_e5.models.test_sequence_classifier import save_classifier

WEIGHTS, CONFIG, USE, LENGTH = "model.safetensors", "config.json", "config_sentence_transformers.json", "sentence_bert_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    return write_folder(folder, modules=["Pooling", "Dense", "Normalize"], use={"prompts": {"query": "query: "}})


def changed(name: str, **keys: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **keys}))

    return damage


def holds(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str, keep: float) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int(keep * (folder / name).stat().st_size)]) and None


def gone(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None  # type: ignore[func-returns-value]


class Attack:
    """Creates a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-unpickled"),)


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))


def other_shape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["embeddings.LayerNorm.weight"] = torch.ones(3)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def fewer_embeddings(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:20].clone()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    changed(CONFIG, vocab_size=20)(folder)


def module(kind: str, **more: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[2] = {**modules[2], "type": kind, **more}
        (folder / "modules.json").write_text(json.dumps(modules))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "header": (holds(WEIGHTS, b"\xff" * 64), r"model\.safetensors: damaged weights"),
    "truncated": (cut(WEIGHTS, 0.5), r"model\.safetensors: damaged weights"),
    "empty": (holds(WEIGHTS, b""), r"model\.safetensors: damaged weights"),
    "shape": (other_shape, r"embeddings\.LayerNorm\.weight|model\.safetensors"),
    "no weights": (gone(WEIGHTS), "has no weights"),
    "pickle": (as_pickle, r"pytorch_model\.bin: the weights cannot be loaded"),
    "adapter": (holds("adapter_config.json", b"{}"), "holds an adapter"),
    "config is a list": (holds(CONFIG, b"[1]"), r"/config\.json: (holds a list|not a model's)"),
    "config is text": (holds(CONFIG, b"bert"), r"/config\.json: not a JSON file"),
    "config types": (changed(CONFIG, hidden_size="many"), r"/config\.json: not a model's configuration|config\.json"),
    "config kind": (changed(CONFIG, model_type="no-such-kind"), r"/config\.json: not a model's configuration"),
    "config code": (changed(CONFIG, model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}), r"/config\.json: not a model's"),
    "encoder-decoder": (changed(CONFIG, model_type="bart"), "bart is an encoder with a decoder"),
    "no config": (gone(CONFIG), r"has no config\.json"),
    "no tokenizer": (gone("tokenizer.json"), "has no tokenizer"),
    "empty tokenizer": (holds("tokenizer.json", b""), r"tokenizer\.json: the tokenizer cannot be read"),
    "tokenizer of nothing": (holds("tokenizer.json", b"{}"), r"tokenizer\.json: the tokenizer cannot be read"),
    "tokenizer config": (holds("tokenizer_config.json", b"[]"), r"tokenizer\.json: the tokenizer cannot be read"),
    "ids above the vocabulary": (fewer_embeddings, r"the tokenizer gives tokens up to \d+, and the model has 20 embeddings"),
    "use is a list": (holds(USE, b"[]"), f"{USE}: holds a list, not an object"),
    "prompts are no texts": (changed(USE, prompts={"query": 3}), f"{USE}: prompts: query: 3 is not a text"),
    "prompts are a list": (changed(USE, prompts=["query: "]), f"{USE}: prompts: .* is not a dict"),
    "default prompt": (changed(USE, default_prompt_name="sts"), f"{USE}: default_prompt_name: 'sts' is none of the prompts"),
    "similarity": (changed(USE, similarity_fn_name="euclidean"), f"{USE}: similarity_fn_name: 'euclidean' is not supported"),
    "cut embeddings": (changed(USE, truncate_dim=8), r"truncate_dim: 8 of the 6 values of an embedding; the rule is from 1 to 6"),
    "no embeddings": (changed(USE, truncate_dim=0), f"{USE}: truncate_dim: 0 is no number of values of an embedding; the rule is >= 1"),
    "another kind of model": (changed(USE, model_type="SparseEncoder"), f"{USE}: model_type: 'SparseEncoder' is not supported"),
    "length is text": (changed(LENGTH, max_seq_length="512"), f"{LENGTH}: max_seq_length: '512' is not a whole number"),
    "length below 4": (changed(LENGTH, max_seq_length=-1), f"{LENGTH}: max_seq_length: -1 is not a number of tokens"),
    "length above the positions": (changed(LENGTH, max_seq_length=41), f"{LENGTH}: max_seq_length: 41 is above the 40 positions"),
    "lower case": (changed(LENGTH, do_lower_case="yes"), f"{LENGTH}: do_lower_case: 'yes' is not a bool"),
    "modules": (holds("modules.json", b"{}"), r"modules\.json: not a list of modules"),
    "a module": (holds("modules.json", b'["Pooling"]'), r"modules\.json: module 0 is no object"),
    "words": (module("sentence_transformers.models.WordEmbeddings"), r"modules\.json: module 2 \(sentence_transformers\.models\.WordEmbeddings\) is not supported"),
    "router": (module("sentence_transformers.models.Router"), r"\(sentence_transformers\.models\.Router\) is not supported"),
    "own code": (module("mine.Dense"), r"module 2 \(mine\.Dense\) is not supported"),
    "a path out": (module("sentence_transformers.models.Dense", path="../other"), r"module 2: the path '\.\./other' leads out of the folder"),
    "pooling": (changed("1_Pooling/config.json", pooling_mode="attention"), r"1_Pooling/config\.json: pooling_mode: 'attention' is not supported"),
    "no pooling": (gone("1_Pooling/config.json"), r"1_Pooling/config\.json: no such file"),
    "dense width": (changed("2_Dense/config.json", in_features=9), r"2_Dense/config\.json: in_features: 9"),
    "dense weights": (holds("2_Dense/model.safetensors", b"x"), r"2_Dense/model\.safetensors: cannot be read"),
    "activation": (changed("2_Dense/config.json", activation_function="os.system"), r"activation_function: 'os\.system' is not supported"),
    "activation with weights": (changed("2_Dense/config.json", activation_function="torch.nn.Linear"), r"activation_function: 'Linear' is no activation"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_ends_in_one_sentence(damage: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    act, message = DAMAGES[damage]
    act(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        TextEncoder.from_pretrained(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not (tmp_path / "was-unpickled").exists()


def test_the_whole_folder_loads_and_a_length_can_be_given_instead(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    assert TextEncoder.from_pretrained(folder).width == 6
    changed(LENGTH, max_seq_length=512)(folder)
    assert TextEncoder.from_pretrained(folder, max_length=30).tokenizer.max_length == 30
    with pytest.raises(UserError, match="model: max_length: 41 is above the 40 positions"):
        TextEncoder.from_pretrained(folder, max_length=41)
    roberta = write_folder(tmp_path / "roberta", "roberta", length=40)  # the size of its table, of which tokens have 38
    assert TextEncoder.from_pretrained(roberta).tokenizer.max_length == 38


@pytest.mark.parametrize("damage", ["truncated", "prompts are no texts", "tokenizer of nothing"])
def test_the_command_line_says_it(damage: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    DAMAGES[damage][0](folder)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "corpus.jsonl").write_text('{"_id": "1", "text": "the sea"}\n')
    (corpus / "queries.jsonl").write_text('{"_id": "q", "text": "a song"}\n')
    for arguments in (["search", str(folder), "sea", "--corpus", str(corpus)], ["export", str(folder), str(tmp_path / "out"), "--no-card"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and "\n" not in said and str(folder) in said


def test_damaged_neighbours_end_in_one_sentence(whole: Path, tmp_path: Path, small_tokenizer: Any) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    for content in ("[]", '{"stages": [3], "known_start": true}', '{"stages": 3}', "null", "{"):
        (folder / RECORD).write_text(content)
        with pytest.raises(UserError, match=RECORD):
            read_record(folder)
    teacher = tmp_path / "teacher"
    CrossEncoder.from_encoder(TextEncoder.from_pretrained(write_folder(tmp_path / "plain", length=16))).save_pretrained(teacher)
    (teacher / HEAD).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match=rf"{HEAD}: cannot be read"):
        load_pair_scorer(teacher)
    released = save_classifier(tmp_path / "released", small_tokenizer)
    weights = load_file(released / WEIGHTS)
    save_file({key: value for key, value in weights.items() if not key.startswith("classifier")}, released / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"released: lacks the weights classifier\.bias, classifier\.weight, which would be random"):
        load_pair_scorer(released)
    (released / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=r"released/model\.safetensors: damaged weights"):
        load_pair_scorer(released)


def test_weights_that_the_model_does_not_have_are_counted(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "lora.a": torch.ones(2), "cls.bias": torch.ones(2)}, folder / WEIGHTS, metadata={"format": "pt"})
    TextEncoder.from_pretrained(folder)
    assert f"{folder}: 1 weights are not part of this model and are not used (lora.a)" in capfd.readouterr().err
