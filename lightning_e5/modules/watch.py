"""What a long training says of itself when it goes wrong: one warning per kind of fault and 1,000 steps, with what to try."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from lightning_e5.distributed.collectives import gather, world_size
from lightning_e5.losses.distillation import COLLAPSED, score_spread
from lightning_e5.modules.bi_encoder import BiEncoderModule, passages_per_query
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.symmetric import SymmetricModule
from lightning_e5.progress import say
from lightning_e5.types import PairBatch

#: Steps between two warnings of one kind.
PAUSE = 1000
#: Steps whose mean decides on duplicates, a collapse and a teacher: one batch may be an accident, 20 of them are not.
STEPS = 20
#: `embedding_std` below this is a collapse: 0.1 = sqrt(1 - 0.99), so two texts have a cosine of 0.99 on average. In 36 trainings
#: on documentation it was never below 0.38; a small BERT with random weights begins at 0.15 to 0.3.
COLLAPSED_STD = 0.1
#: Share of a batch's rows that other rows repeat, or of its logits that are masked. A pool of documentation that is not cleaned has
#: about 0.1 of its rows at a batch of 32.
DUPLICATES = 0.2
#: A gradient norm above this many medians is a spike; in those 36 trainings, of up to 1,536 steps, the largest was 4.0.
SPIKE = 10.0
#: Earlier steps whose median it is compared with: at most, and at least.
NORMS, FEWEST_NORMS = 100, 20
#: Steps after the warm-up of a loss that does not fall; both halves of them must show it.
STUCK_STEPS = 100
#: A mean loss of at least this share of the loss of guessing, or of the steps before, is no better than those.
STUCK = 0.98


def repeated_share(query_text_Q: Tensor, positive_text_Q: Tensor) -> float:
    """Share of a batch's rows whose query or positive is that of another row too, by their text ids.

    These are the rows for which false-negative masking leaves out another row's positive.
    """
    repeated_Q = torch.zeros(len(query_text_Q), dtype=torch.bool, device=query_text_Q.device)
    for text_Q in (query_text_Q, positive_text_Q):
        _, place_Q, count_U = torch.unique(text_Q, return_inverse=True, return_counts=True)
        repeated_Q |= count_U[place_Q] > 1
    return float(repeated_Q.float().mean())


def is_low(values: Sequence[float], below: float) -> bool:
    """Whether `STEPS` values are known, and their mean is below a threshold."""
    return len(values) >= STEPS and fmean(values) < below


def spike(norm: float, earlier: Sequence[float]) -> float:
    """How many times the median of earlier gradient norms a norm is, where that is a spike; else 0."""
    if len(earlier) < FEWEST_NORMS or not (usual := median(earlier)) > 0:
        return 0.0
    return norm / usual if norm > SPIKE * usual else 0.0


def is_stuck(losses: Sequence[float], guesses: Sequence[float]) -> bool:
    """Whether the last losses are no lower than guessing, and do not fall.

    A training that begins above the loss of guessing, as at a low temperature, passes through it on its way down; so the mean of the
    second half is compared with that of the first, too.

    Args:
        losses: of consecutive steps.
        guesses: the loss of equal scores for all candidates, of the same steps; it grows while a queue fills.
    """
    if len(losses) < STUCK_STEPS:
        return False
    half = len(losses) // 2
    first, second = (slice(0, half), slice(half, None))
    guessed = all(fmean(losses[part]) >= STUCK * fmean(guesses[part]) for part in (first, second))
    return guessed and fmean(losses[second]) >= STUCK * fmean(losses[first])


class Guess(NamedTuple):
    """A step's loss as a choice among candidates, beside that of guessing: ``log(candidates)`` for equal scores of all."""

    loss: float
    guess: float
    candidates: int


def guess_of(module: L.LightningModule, batch: PairBatch, row: Mapping[str, float]) -> Guess | None:
    """What guessing costs in a step of one of the training schemes; None where the loss is no choice among several.

    Args:
        batch: of this rank.
        row: the step's metrics; ``queue`` counts the candidates of a queue, ``masked_fraction`` takes some away.
    """
    if isinstance(module, CrossEncoderModule):
        candidates, rows = float(passages_per_query(batch)), 0
    elif isinstance(module, BiEncoderModule):
        rows = len(batch.rows_B) * world_size()
        queue = row.get("queue", 0.0)
        # MoCo's queue holds the batch's passages already.
        candidates = queue if isinstance(module, MoCoModule) else len(batch.passage_text_P) * world_size() + queue
        if isinstance(module, SymmetricModule) and module.query_negatives:
            candidates += rows
        candidates *= 1.0 - row.get("masked_fraction", 0.0)
    else:
        return None
    if candidates < 2:
        return None
    loss, guess = row["loss"], math.log(candidates)
    if isinstance(module, BiEncoderModule) and module.dimensions is not None:
        loss = row[f"loss@{max(module.dimensions)}"]  # of the sum over dimensions
    if isinstance(module, DistilledModule):
        if not module.alpha:
            return None
        loss = row.get("contrastive", loss / module.alpha)  # where no row has a teacher, the loss is alpha times the contrastive one
    elif isinstance(module, SymmetricModule) and module.symmetric:
        guess = (guess + math.log(rows)) / 2
    return Guess(loss, guess, round(candidates))


class TrainingWatch(L.Callback):
    """Reads each step's metrics, and warns of duplicates, a collapse, spikes of the gradient norm, a flat teacher and a stuck loss.

    It only reads: the training's weights and random numbers are those without it. A warning names the step, the figure and what to try;
    of each kind there is at most one in `PAUSE` steps, also over a resume. It works in any ``lightning.Trainer`` with the modules of
    `lightning_e5.modules`; over several ranks it is a collective call and the first one speaks.

    Args:
        warn: called with each warning; by default it is printed on stderr.
    """

    def __init__(self, warn: Callable[[str], object] = say) -> None:
        self.warn = warn
        #: Kind -> the step of its last warning.
        self.told: dict[str, int] = {}
        self._seen: dict[str, deque[float]] = {}
        self._forget()

    def _forget(self) -> None:
        self.told.clear()
        lengths = {"repeated": STEPS, "masked": STEPS, "std_query": STEPS, "std_passage": STEPS, "teacher": STEPS}
        lengths |= {"norm": NORMS, "loss": STUCK_STEPS, "guess": STUCK_STEPS}
        self._seen = {name: deque(maxlen=length) for name, length in lengths.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:  # another training than the one before
            self._forget()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not getattr(pl_module, "reads_late", False):
            self.on_step_read(trainer, pl_module, trainer.global_step, getattr(pl_module, "last_metrics", {}), batch)

    def on_step_read(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int, row: Mapping[str, float], batch: Any) -> None:
        """Read the row of a step, which may be one before the last."""
        if not row or not isinstance(batch, PairBatch):
            return
        found = {"teacher": self._teacher(batch), "gradient norm": self._gradient_norm(row)}
        if isinstance(pl_module, BiEncoderModule):
            found["duplicates"] = self._duplicates(pl_module, batch, row)
        if step > getattr(getattr(pl_module, "adamw", None), "warmup_steps", 0):
            found |= {"collapse": self._collapse(batch, row), "stuck": self._stuck(pl_module, batch, row)}
        if found.get("collapse"):  # a loss of log(candidates) follows from it, and a median norm near 0
            found["stuck"] = found["gradient norm"] = ""
        for kind, message in found.items():
            if message:
                self._tell(trainer, step, kind, message)

    def _tell(self, trainer: L.Trainer, step: int, kind: str, message: str) -> None:
        if step - self.told.get(kind, -PAUSE) >= PAUSE:
            self.told[kind] = step
            if trainer.is_global_zero:
                self.warn(f"step {step:,}: {message}")

    def _duplicates(self, module: BiEncoderModule, batch: PairBatch, row: Mapping[str, float]) -> str:
        text_Q2 = torch.stack([batch.query_text_B, batch.passage_text_P[:: passages_per_query(batch)]], 1)
        text_Q2 = gather(text_Q2.to(module.device)) if world_size() > 1 else text_Q2
        repeated, masked = self._seen["repeated"], self._seen["masked"]
        repeated.append(repeated_share(*text_Q2.unbind(1)))
        masked.append(row.get("masked_fraction", 0.0))
        if len(repeated) < STEPS or max(fmean(repeated), fmean(masked)) <= DUPLICATES:
            return ""
        what = f"{fmean(masked):.2%} of the logits are masked" if module.mask_duplicates else "they count as negatives (mask_duplicates: false)"
        return (
            f"many duplicates: {fmean(repeated):.0%} of a batch's rows have a query or a positive that another row has, too (mean of {STEPS} steps); "
            f"{what}; try to build the pairs without duplicates (build_ccpairs drops equal and near ones), or a larger or more varied pool"
        )

    def _collapse(self, batch: PairBatch, row: Mapping[str, float]) -> str:
        for side, text_N in (("query", batch.query_text_B), ("passage", batch.passage_text_P)):
            seen = self._seen[f"std_{side}"]
            if f"std_{side}" in row and bool((text_N != text_N[0]).any()):  # equal texts have equal embeddings, which is no fault of the encoder
                seen.append(row[f"std_{side}"])
            if is_low(seen, COLLAPSED_STD):
                plural = "queries" if side == "query" else "passages"
                return (
                    f"the embeddings have collapsed: standard deviation of the {plural} {fmean(seen):.3f} (mean of {STEPS} steps; "
                    f"0: all alike, 1: uniform); try a lower learning_rate (now {row.get('learning_rate', 0.0):.1e}) or more warmup_steps, "
                    "from a checkpoint before it or from the start"
                )
        return ""

    def _gradient_norm(self, row: Mapping[str, float]) -> str:
        norm, seen = row.get("gradient_norm", 0.0), self._seen["norm"]
        times = spike(norm, seen)
        message = times and (
            f"the gradient norm {norm:.3g} is {times:.0f} times the median of the last {len(seen)} steps; where that is no single one, try a lower "
            f"learning_rate (now {row.get('learning_rate', 0.0):.1e}), more warmup_steps or a smaller max_grad_norm, and look at the step's rows"
        )
        seen.append(norm)
        return message or ""

    def _teacher(self, batch: PairBatch) -> str:
        seen = self._seen["teacher"]
        if batch.teacher_BG is not None and (spread := score_spread(batch.teacher_BG)) is not None:
            seen.append(spread)
        if not is_low(seen, COLLAPSED):
            return ""
        return (
            f"the teacher has collapsed: its scores differ by {fmean(seen):.1e} within a query's passages (mean of {STEPS} steps), so that "
            "distillation teaches that all are alike; try another teacher, or score the groups again"
        )

    def _stuck(self, module: L.LightningModule, batch: PairBatch, row: Mapping[str, float]) -> str:
        losses, guesses = self._seen["loss"], self._seen["guess"]
        now = guess_of(module, batch, row)
        if now is None:
            return ""
        losses.append(now.loss)
        guesses.append(now.guess)
        if not is_stuck([*losses], [*guesses]):
            return ""
        rate = f"learning_rate (now {row.get('learning_rate', 0.0):.1e})"
        figures = f"{fmean(losses):.3f} over the last {len(losses)} steps, {fmean(guesses):.3f} is that of guessing among {now.candidates:,} candidates"
        if isinstance(module, CrossEncoderModule):
            return f"the teacher learns nothing: mean loss {figures} (log G); try a lower {rate}, more warmup_steps or another start, and read some groups"
        return f"the loss does not fall: mean {figures}; try another {rate} or temperature, and read some pairs: do queries and passages belong together?"

    def state_dict(self) -> dict[str, Any]:
        return {"told": dict(self.told), "seen": {name: list(values) for name, values in self._seen.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        self.told.update(state_dict["told"])
        for name, values in self._seen.items():
            values.extend(state_dict["seen"].get(name, ()))
