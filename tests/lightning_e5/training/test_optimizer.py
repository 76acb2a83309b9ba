"""AdamW's schedule against its definition, and its parameter groups."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.training.optimizer import AdamWConfig


@pytest.mark.parametrize("warmup", [0, 1, 4, 10])
def test_warm_up_and_decay(warmup: int) -> None:
    steps = 10
    rest = [(steps - step) / max(1, steps - warmup) for step in range(warmup, steps)]
    rising = [(step + 1) / (warmup + 1) for step in range(warmup)]
    falling = {"linear": rest, "constant": [1.0] * len(rest), "cosine": [0.5 * (1 + math.cos(math.pi * (1 - r))) for r in rest]}
    for schedule, decay in falling.items():
        optimizer = AdamWConfig(learning_rate=1e-3, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
        assert [optimizer.schedule_factor(step, steps) for step in range(steps)] == pytest.approx([*rising, *decay])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_past_its_end_the_schedule_holds_the_last_steps_value(schedule: str) -> None:
    for warmup in (0, 4, 10):
        optimizer = AdamWConfig(learning_rate=1e-3, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
        last = optimizer.schedule_factor(9, 10)
        assert last > 0 and [optimizer.schedule_factor(step, 10) for step in (10, 11, 1000)] == [last] * 3


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup_steps: 11 is not in 0 \.\. max_steps = 10"):
        AdamWConfig(learning_rate=1e-3, warmup_steps=11).schedule_factor(0, 10)


def test_parameter_groups() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    module[1].weight.requires_grad_(False)
    groups = AdamWConfig(learning_rate=0.5, weight_decay=0.1, learning_rate_factors={"0.": 3.0}).parameter_groups(module)
    found = {(g["lr"], g["weight_decay"]): [tuple(p.shape) for p in g["params"]] for g in groups}
    assert found == {(1.5, 0.1): [(5, 4)], (0.5, 0.0): [(3,), (3,), (3,)]}
    with pytest.raises(UserError, match="learning_rate_factors: no parameter's name holds 'word'"):
        AdamWConfig(learning_rate=0.5, learning_rate_factors={"word": 2.0}).parameter_groups(module)


def trained(config: AdamWConfig, steps: int, state: dict[str, object] | None = None) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(40, 7))
    optimizer = config.build([{"params": [weight], "lr": 0.01, "weight_decay": 0.1}])
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))  # or they would share its tensors
    for step in range(steps):
        weight.grad = torch.randn(40, 7, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return weight.detach(), optimizer


def test_fused_is_for_a_gpu_and_moves_weights_alike() -> None:
    """On a CPU it is not the default: it is within float32's rounding of the other kernel, not its bits."""
    plain, fused = (AdamWConfig(learning_rate=0.01, fused=kernel) for kernel in (None, True))
    assert [trained(config, 0)[1].param_groups[0]["fused"] for config in (plain, fused)] == [None, True]
    expected, found = trained(plain, 20)[0], trained(fused, 20)[0]
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    assert (trained(fused, 19)[0] - expected).abs().max() > 1e-3


def test_an_optimizer_keeps_its_kernel_with_the_state_of_another() -> None:
    """As where a training goes on from a GPU's checkpoint on a CPU, or the other way round."""
    plain, fused = (AdamWConfig(learning_rate=0.01, fused=kernel) for kernel in (None, True))
    for first, then, own in ((plain, fused, True), (fused, plain, None)):
        state = trained(first, 3)[1].state_dict()
        weight, optimizer = trained(then, 2, state)
        assert optimizer.param_groups[0]["fused"] is own and float(optimizer.state_dict()["state"][0]["step"]) == 5
        assert (weight - trained(first, 2, state)[0]).abs().max() < 1e-6
        assert state["param_groups"][0]["fused"] is not own, "the state that was given stays as it is"
