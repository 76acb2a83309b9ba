"""A run's side of the shared stages: what it may take from other runs, and what it may leave to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_e5.config.experiment import Node
from lightning_e5.files.digests import FileDigests
from lightning_e5.pipeline.result_facts import result_facts, unchanged
from lightning_e5.pipeline.stage import PreparedStage
from lightning_e5.pipeline.stage_cache import StageCache


class SharedStages:
    """How a run shares stages with others; `cache` is None where it does not.

    What decides the results beside their fingerprints is looked at when the run begins: of code that is edited meanwhile
    nobody knows which state was loaded, so what is computed then is left to no other run.

    Args:
        experiment: resolved.
        directory: the run's.
        digests: of files' contents.
        fresh: take nothing, and replace what differs from what is computed here.
    """

    def __init__(self, experiment: Node, directory: Path, digests: FileDigests, fresh: bool) -> None:
        folder = experiment.get("stage_cache")
        self.cache = StageCache(Path(folder), print, digests) if folder else None
        self.run = self.cache.run_label(directory) if self.cache else directory.name
        self.digests, self.fresh = digests, fresh
        self._facts = {name: result_facts(node, digests) for name, node in experiment["stages"].items()} if self.cache else {}

    def key(self, prepared: PreparedStage, say: Callable[[str], None]) -> str | None:
        """The name of a stage's result among the shared ones; None where none are shared. ``say``: for what the cache has to say of it."""
        if self.cache is None:
            return None
        self.cache.say = say
        return self.cache.key(prepared.name, prepared.fingerprint, self._facts[prepared.name])

    def publish(self, prepared: PreparedStage) -> None:
        """Leave to other runs what was computed, where all of it was computed under the facts that its key stands for."""
        if self.cache is None:
            return
        before, after = self._facts[prepared.name], result_facts(prepared.node, self.digests)
        key = self.cache.key(prepared.name, prepared.fingerprint, before)
        if prepared.cache_key != key:  # a stage that was begun under others, and continued
            return
        if not unchanged(before, after):
            prepared.settle(None)
            return
        if before != after:  # a model was fetched
            key = self.cache.key(prepared.name, prepared.fingerprint, after)
            prepared.settle(key)
        if self.fresh:
            self.cache.replace(key, prepared.out)
        else:
            self.cache.publish(key, prepared.out)
