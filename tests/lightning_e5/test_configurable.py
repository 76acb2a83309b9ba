"""What a YAML may name: the whole list, and attacks, of which none runs or writes anything."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import data_modules
import lightning_e5
from lightning_e5 import configurable as registry
from lightning_e5.__main__ import main
from lightning_e5.config.annotations import arguments_of
from lightning_e5.configurable import MOVED, allow_packages, configurable, declared, offered, resolve_target
from lightning_e5.errors import UserError

#: kind -> everything of that kind that a YAML may name.
NAMED = {
    "stage": """lightning_e5.stages: beir_data.beir_data build_ccpairs.build_ccpairs build_pairs.build_pairs
        consistency_filter.consistency_filter draw_pairs.draw_collection draw_pairs.draw_pairs evaluate.evaluate finetune.finetune
        hard_negatives.hard_negatives mteb.mteb own_pairs.own_pairs pretrain.pretrain ranked_data.ranked_data signal_pairs.signal_pairs
        teacher.teacher teacher.teacher_scores vocabulary.tokens vocabulary.vocabulary word_vectors.word_vectors""",
    "encoder": "lightning_e5.models: factory.EncoderSpec",
    "training scheme": """lightning_e5.modules: cross_encoder.CrossEncoderModule distilled.DistilledModule in_batch.InBatchModule
        moco.MoCoModule pre_batch.PreBatchModule symmetric.SymmetricModule""",
    "optimizer": "lightning_e5.training: optimizer.AdamWConfig",
    "data module": "data_modules: ccpairs.datamodule.CCPairsDataModule finetune.datamodule.RankedDataModule",
    "validation": "lightning_e5.modules: validation.Validation",
    "validation task": "lightning_e5.evaluation: validation_tasks.EvaluateOn validation_tasks.NanoBEIR",
    "engine": "lightning_e5.curation.engines: engine.LocalEngine engine.RayEngine",
    "index": "lightning_e5.retrieval: exact.ExactIndex faiss_index.FaissIndex",
    "settings": """lightning_e5: curation.cleaning.duplicates.NearDuplicates curation.cleaning.evaluation_files.EvaluationFiles
        curation.mining.hard_negatives.NegativeRules evaluation.baselines.word_vectors.WordVectorsConfig evaluation.tasks.zero_shot.ZeroShotPrompts""",
    "baseline": """lightning_e5: retrieval.bm25.BM25 evaluation.baselines.fusion.ReciprocalRankFusion evaluation.baselines.fusion.StoredEncoder evaluation.baselines.lda.Lda evaluation.baselines.lsa.Lsa
        evaluation.baselines.sentence_transformer.SentenceTransformerModel evaluation.baselines.tfidf.TfIdf evaluation.baselines.vectors_file.VectorsFile""",
    "heuristic": """data_modules.ccpairs: heuristics.AdultContent heuristics.Length heuristics.MaxPassageChars heuristics.MinScore
        heuristics.NotDeleted text_heuristics.Boilerplate text_heuristics.CharacterShares text_heuristics.Language
        text_heuristics.MaxPerplexity text_heuristics.QueryIsPassage""",
    "pair source": """data_modules: ccpairs.sources.acl_anthology.AclAnthology ccpairs.sources.common_crawl.CcNetPages
        ccpairs.sources.common_crawl.WarcPages ccpairs.sources.common_crawl.WetPages ccpairs.sources.news.CcNews ccpairs.sources.papers.S2ag
        ccpairs.sources.papers.S2orc ccpairs.sources.python_docs.PythonDocs ccpairs.sources.reddit.RedditComments
        ccpairs.sources.reddit.RedditSelfTexts ccpairs.sources.reddit_csv.RedditCsv ccpairs.sources.signals.bm25_taught.Bm25Taught
        ccpairs.sources.signals.crops.RandomCrops ccpairs.sources.signals.within_text.InverseCloze
        ccpairs.sources.signals.within_text.NeighbouringSpans ccpairs.sources.signals.within_text.SimCse
        ccpairs.sources.stackexchange.StackExchangePosts ccpairs.sources.tables.HfDatasetPairs ccpairs.sources.tables.JsonlPairs
        ccpairs.sources.tables.ParquetPairs ccpairs.sources.wikipedia.WikipediaSections public.pairs.NomicPairs
        public.pairs.SentenceTransformersPairs public.pairs.TrainingListPairs""",
    "text source": """data_modules.ccpairs.sources.signals.texts: BeirTexts JsonlTexts ParquetTexts PassagesOf StoredPassages""",
    "ranked source": """data_modules: finetune.beir.BeirRanked finetune.msmarco.SimLMRanked finetune.msmarco.TevatronRanked finetune.nli.Nli
        finetune.nq.DprRanked public.ranked.NomicTriples public.ranked.SentenceTransformersTriplets public.ranked.TrainingListGroups""",
}


def modules() -> Iterator[Any]:
    for package in (lightning_e5, data_modules):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def listed() -> dict[str, str]:
    return {f"{base}.{name}": kind for kind, text in NAMED.items() for base, names in [text.split(": ")] for name in names.split()}


def test_the_whole_list_of_what_a_yaml_may_name() -> None:
    """Every object of every module is tried by its dotted name, the public and the others."""
    allowed: dict[str, str] = {}
    refused = 0
    for module in modules():
        for name, thing in vars(module).items():
            try:
                found = resolve_target(f"{module.__name__}.{name}", "key")
            except UserError:
                refused += 1
            else:
                assert found is thing
                allowed[f"{module.__name__}.{name}"] = declared(found).kind  # type: ignore[union-attr]
            if inspect.isclass(thing):
                for attribute in vars(thing):
                    with pytest.raises(UserError):
                        resolve_target(f"{module.__name__}.{name}.{attribute}", "key")
    print(f"{len(allowed)} names of {len(allowed) + refused} may stand in a YAML")
    assert allowed == listed()


def test_every_argument_that_a_yaml_may_set_has_an_annotation_that_is_read() -> None:
    """An annotation that cannot be resolved would check nothing, and a bare number has no range."""
    for target in listed():
        function = resolve_target(target, "key")
        for name, p in arguments_of(function)[0].items():
            assert p.annotation is not Any, f"{target}: {name}"
            bare = [t for t in flat(p.annotation) if t in (int, float)]
            assert not bare or name in GIVEN_TO, f"{target}: {name} has no range"


#: Arguments that stages give, never a YAML, and columns given by position.
GIVEN_TO = ("seed", "query", "passage", "source_column", "id_column", "facts", "sources")


def flat(hint: Any) -> list[Any]:
    """The types in an annotation, those with a range left out."""
    if hasattr(hint, "__metadata__"):
        return [t for t in flat(hint.__origin__) if t not in (int, float)]
    return [t for inner in get_args(hint) for t in flat(inner)] if get_args(hint) else [hint]


def experiment(tmp_path: Path, stages: str) -> str:
    path = tmp_path / "attack.yaml"
    path.write_text(f"name: attack\nruns_dir: {tmp_path}/runs\nlogger: {{mode: disabled}}\nstages:\n{stages}", encoding="utf-8")
    return str(path)


STAGE = "lightning_e5.stages.build_pairs.build_pairs"
LAUNCHERS = "lightning_e5.ablation.launchers"
ATTACKS = [
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: {LAUNCHERS}.LocalLauncher.start, self: {{_target_: {LAUNCHERS}.LocalLauncher, jobs: 1, gpus: [], gpus_per_job: 0, keep_open: 0}}, command: [touch, MARK], log: {{_target_: pathlib.Path, path: MARK}}}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: {LAUNCHERS}.LocalLauncher, jobs: 1, gpus: [], gpus_per_job: 0, keep_open: 0}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: lightning_e5.files.storage.empty_directory, directory: DIR}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: lightning_e5.files.storage.write_text, path: MARK, text: x}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: lightning_e5.ablation.cluster_job.ClusterJob, command: [touch, MARK], log: MARK, directory: DIR}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: data_modules.token_cache.write_token_cache, directory: MARK, columns: {{}}, tokenizer: x}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: lightning_e5.curation.engines.engine.LocalEngine}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: {STAGE}, out: MARK}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: MARK}}}}",
    f"  one: {{_target_: {STAGE}, held_out: [a], source: {{_target_: torch.optim.AdamW.load_state_dict}}}}",
    f"  one: {{_target_: {STAGE}, held_out: {{_target_: lightning_e5.files.storage.write_text, path: MARK, text: x}}, source: null}}",
    f"  one: {{_target_: {STAGE}, test_name: {{_target_: lightning_e5.files.storage.write_text, path: MARK, text: x}}, source: null}}",
    "  one: {_target_: lightning_e5.__main__.main, argv: [run, MARK]}",
    "  one: {_target_: data_modules.ccpairs.sources.python_docs.PythonDocs}",
    "  one: {_target_: lightning_e5.files.storage.empty_directory, directory: DIR}",
    "  one: {_target_: lightning_e5.pipeline.stage.PreparedStage.call}",
    "  one: {_target_: lightning_e5.pipeline.runner.build_pairs}",
    "  one: {_target_: lightning_e5.cli.evaluate_inputs.evaluate_given}",
    "  one: {_target_: os.system, command: touch MARK}",
    "  one: {_target_: subprocess.run, args: [touch, MARK], _partial_: true}",
    "  one: {_target_: lightning_e5.files.storage.os.system, command: touch MARK}",
    "  one: {_target_: torch.optim.adamw.torch.load, f: MARK}",
    "  one: {_target_: torch.optim.AdamW.__init__.__globals__}",
    "  one: {_target_: torch.hub.load}",
    "  one: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: MARK}",
    "  one: {_target_: lightning_e5.configurable.resolve_target, target: os.system, key: x}",
    "  one: {_target_: lightning_e5.configurable.allow_packages, names: [evil]}",
    "  one: {_target_: lightning_e5.config.instantiate.instantiate, node: {_target_: os.system}}",
    f"  one: {{_target_: {STAGE}.__class__, held_out: [a]}}",
    "  one: {_target_: evil.run}",
    "  one: !!python/object/apply:os.system [touch MARK]",
    "  one: {_target_: !!python/name:os.system }",
]


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize("number", range(len(ATTACKS)))
def test_an_attack_runs_and_writes_nothing(
    verb: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("text")
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).write_text('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    attack = experiment(tmp_path, ATTACKS[number].replace("MARK", str(tmp_path / "mark")).replace("DIR", str(kept)) + "\n")
    assert main([verb, attack]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attack.yaml", "evil.py", "kept"]
    assert (kept / "file").read_text() == "text" and "evil" not in sys.modules


def test_a_package_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What derives from a public protocol or declares itself may be named once the package is allowed, nothing else of it."""
    (tmp_path / "own_package_a.py").write_text(
        "import os\nfrom os import system\nfrom lightning_e5.configurable import configurable\n"
        "from lightning_e5.types import PairFiles, PairSource\nfrom data_modules.ccpairs.sources.tables import ParquetPairs\n"
        "class Files(PairFiles):\n    name = 'own'\n    def parts(self): return []\n    def read(self, part, report): return iter(())\n"
        "    def fingerprint(self): return {}\n"
        "class Undeclared:\n    pass\n"
        "def function(out): return {}\n"
        "@configurable('stage')\ndef stage(out): return {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_allowed", [])
    with pytest.raises(UserError, match=r"not in an allowed package.*--allow-package"):
        resolve_target("own_package_a.Files", "key")
    assert "own_package_a" not in sys.modules
    allow_packages(["own_package_a"])
    assert resolve_target("own_package_a.Files", "key", "pair source").__name__ == "Files"
    assert resolve_target("own_package_a.stage", "key", "stage").__name__ == "stage"
    assert offered(sys.modules["own_package_a"]) == ["Files", "stage"]
    for name in ("Undeclared", "function", "system", "os.system", "ParquetPairs", "PairFiles", "Files.parts", "stage.__call__"):
        with pytest.raises(UserError, match="is not configurable"):
            resolve_target(f"own_package_a.{name}", "key")
    with pytest.raises(UserError, match=r"'own_package_a\.Files' is no stage but of the kind 'pair source'"):
        resolve_target("own_package_a.Files", "key", "stage")


@pytest.mark.parametrize("name", ["no_such_package_here", "a b", "", "os;system", "..", "own-package"])
def test_a_package_that_cannot_be_allowed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "experiments/smoke.yaml", "--allow-package", name]) == 2
    assert capsys.readouterr().err.startswith("error: --allow-package: ")


def test_the_declaration_is_light() -> None:
    code = "import sys, lightning_e5.configurable, lightning_e5.ranges; print([n for n in ('torch', 'numpy', 'lightning', 'omegaconf') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_declaration_changes_nothing() -> None:
    def function() -> None: ...

    assert configurable("stage")(function) is function and declared(function).kind == "stage"  # type: ignore[union-attr]


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_name_that_moved_is_refused_with_the_new_one(old: str, new: str) -> None:
    assert new in listed()
    with pytest.raises(UserError, match=rf"engine\._target_: '{old}' has moved; name '{new}'"):
        resolve_target(old, "engine")
