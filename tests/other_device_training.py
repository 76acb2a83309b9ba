"""Trains the schemes, with their gradients and AdamW's steps, on a second device that autograd knows; not a test by itself.

Run as ``python -m tests.other_device_training [all]``: a backend is registered for a process's whole life, so it has one of its own. ``all``
trains every scheme and runs the cases there, too. It prints JSON: name -> what differs from the CPU; and what was said of a planted fault.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from lightning_e5.training.grad_cache import GradCache
from tests.lightning_e5.models.packed.small_models import modules_with_dropout
from tests.other_device import OnOther, OtherDevice, run
from tests.other_device_cases import CASES, cross_encoder, differences, made_scheme, on, scheme_run

SCHEMES = ("in_batch-1", "moco-1", "distilled-3")


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def register() -> Any:
    """Register the device ``other``; what is returned must be kept."""
    _setup_privateuseone_for_python_backend("other", backend_module=_Backend())
    OnOther.place = torch.device("other", 0)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), "PrivateUse1")
    return library


class _NoTrainer:
    """What a module asks of its Trainer in a step."""

    datamodule, global_step, global_rank, world_size = None, 0, 0, 1


_NO_TRAINER = _NoTrainer()


def trained(module: Any, batch: Any, steps: int = 2) -> tuple[Any, Any, Any]:
    """Whole optimizer steps without a Trainer: the first gradients, the parameters and buffers after it, the last row."""
    module.trainer = _NO_TRAINER
    optimizer = module.configure_optimizers()
    rows: list[dict[str, Any]] = []
    gradients: dict[str, Any] = {}

    def first_gradients(*_: Any) -> None:
        gradients.update({} if gradients else {n: p.grad.detach().clone() for n, p in module.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(first_gradients)
    module.optimizers = lambda: optimizer
    module._log_step = lambda row, pairs, tokens: rows.append({k: float(v) for k, v in row.items() if k not in ("seconds", "mfu", "memory_gb")})
    module._peak = lambda: 1.0
    module.grad_cache = GradCache(chunk_tokens=64, graph_tokens=200)
    module.train()
    for _ in range(steps):
        module.training_step(batch, 0)
    return gradients, module.state_dict(), rows


def both(make: Any) -> list[str]:
    """What differs between the CPU's training and the other device's."""
    expected = trained(*make(torch.device("cpu")))
    with OtherDevice():
        found = trained(*make(OnOther.place))
    assert all(g.device == OnOther.place for g in found[0].values()) and found[0]
    return differences(found, expected, 1e-10)


def a_teacher(device: torch.device) -> tuple[Any, Any]:
    from lightning_e5.modules.cross_encoder import CrossEncoderModule
    from lightning_e5.training.optimizer import AdamWConfig

    module = CrossEncoderModule(cross_encoder("bert", torch.device("cpu")), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=4)
    return module.double().to(device), on(device, scheme_run.RandomPairs(3).batch(0, 0, 1))


def planted() -> str:
    """What is said where a step's loss meets a tensor of the CPU in its backward pass alone."""

    class Meets(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] * torch.ones(gradients[0].shape, device="cpu")

    with OtherDevice():
        module, batch = made_scheme("in_batch-1", OnOther.place)
        embed = module.embed_chunk
        module.embed_chunk = lambda ids, lengths: Meets.apply(embed(ids, lengths))
        try:
            trained(module, batch)
        except RuntimeError as error:
            return str(error)
    return "nothing"


def main(whole: bool) -> None:
    kept = register()
    torch.set_num_threads(1)
    # The second device computes by torch's fallback on the CPU, so it draws what torch's dropout draws there.
    for module in modules_with_dropout():
        module.dropped = lambda values, rate: torch.nn.functional.dropout(values, rate, training=rate != 0)
    said: dict[str, Any] = {"planted": planted()}
    for name in scheme_run.CASES if whole else SCHEMES:
        said[f"training {name}"] = both(lambda device, name=name: made_scheme(name, device))
    said["training teacher"] = both(a_teacher)
    for name, case in CASES.items() if whole else ():
        with torch.no_grad():
            expected = case(torch.device("cpu"))
            with OtherDevice():
                said[name] = differences(case(OnOther.place), expected, 1e-6)
    print(json.dumps(said))
    del kept


if __name__ == "__main__":
    main("all" in sys.argv[1:])
