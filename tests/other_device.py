"""A device that no machine has: tensors that say they are there, hold their values on the CPU, and refuse to meet those of the CPU.

What runs on it gives the CPU's values, so a test sees both: what would end with an error on a GPU, and what would be computed wrongly.
Like CUDA it takes a number (a tensor without dimensions) of the CPU in arithmetic, and an index of the CPU for its own tensors; nothing
else. Factories are seen within `OtherDevice` only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")


class OnOther(torch.Tensor):
    """A tensor of `place`, with its values in ``held``."""

    place = torch.device("cuda", 0)
    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnOther:
        with torch.inference_mode(False):  # of a weight there may be views in inference
            made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, layout=held.layout, device=cls.place
            )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"on {self.place}: {self.held!r}"


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == OnOther.place.type


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation, where it belongs; RuntimeError for one between the two devices."""
    given, layout = tree_flatten((args, kwargs))
    ours = [x for x in given if isinstance(x, OnOther)]
    device = kwargs.get("device")
    if not ours and not _there(device):
        return func(*args, **kwargs)
    name = func._schema.name
    if name == "aten::_fused_sdp_choice":
        return 0  # the kernel that is written out
    if ours and name not in _COPIES:
        refuse(func, args, given)
    plain_args, plain_kwargs = tree_unflatten([x.held if isinstance(x, OnOther) else x for x in given], layout)
    if _there(device):
        plain_kwargs["device"] = torch.device("cpu")
    with torch.inference_mode(False):
        found = func(*plain_args, **plain_kwargs)
    if name in ("aten::_copy_from", "aten::_copy_from_and_resize"):
        args[1].held.copy_(plain_args[0])
        return args[1]
    if device is not None and not _there(device):
        return found  # on the CPU
    return _wrapped(func, args, kwargs, found)


def refuse(func: Any, args: Any, given: Any) -> None:
    """RuntimeError where a tensor of the CPU has dimensions and is no index."""
    allowed = {id(x) for x in args[1]} if func._schema.name in _INDEXED and isinstance(args[0], OnOther) else set()
    for x in given:
        if isinstance(x, Tensor) and not isinstance(x, OnOther) and x.dim() and id(x) not in allowed:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {OnOther.place} and {x.device} {list(x.shape)}")


def _wrapped(func: Any, args: Any, kwargs: Any, found: Any) -> Any:
    """The results: the arguments themselves where these were written to."""
    schema = func._schema
    by_name = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
    written = [next((by_name[a.name] for a in schema.arguments if a.alias_info is not None and r.alias_info is not None and r.alias_info.is_write
                     and a.alias_info.is_write and a.alias_info.before_set == r.alias_info.before_set), None) for r in schema.returns]  # fmt: skip
    results = found if isinstance(found, tuple) and len(schema.returns) > 1 else (found,)
    made = tuple(tree_map(lambda x: OnOther(x) if isinstance(x, Tensor) and not isinstance(x, OnOther) else x, r) if w is None else w for r, w in zip(results, written or [None] * len(results), strict=False))
    for w in made:
        if isinstance(w, OnOther) and w.shape != w.held.shape:
            raise NotImplementedError(f"{func}: changes a tensor's shape in place")
    if not schema.returns:
        return None
    return made if len(schema.returns) > 1 else made[0]


class OtherDevice(TorchDispatchMode):
    """Inside, factories make tensors on the other device where it is named."""

    def __enter__(self) -> Any:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes its values on the CPU and moves them, which is then seen here
        return super().__enter__()

    def __exit__(self, *given: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class CudaDevice(OtherDevice):
    """The other device is CUDA, in a build of torch without it; without gradients only.

    As one of torch's own modes for such tensors it starts no CUDA; the functions that ask for the device itself are answered in Python.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self._calls = _CudaCalls()

    def __enter__(self) -> Any:
        self._overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a moved parameter is a plain tensor again
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self._calls.__exit__(*given)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrite)


def _held(value: Any) -> Any:
    return tree_map(lambda x: x.held if isinstance(x, OnOther) else x, value)


def _get(x: Tensor, index: Any) -> Any:
    _refuse_indices(x, index)
    return OnOther(_held(x)[_held(index)])


def _set(x: Tensor, index: Any, value: Any) -> None:
    _refuse_indices(x, index)
    by_tensor = any(isinstance(i, Tensor) for i in tree_flatten(index)[0])
    if by_tensor and isinstance(value, Tensor) and value.dim() and isinstance(value, OnOther) != isinstance(x, OnOther):  # else it is a copy
        raise RuntimeError(f"index_put_: expected all tensors to be on the same device, found {x.device} and {value.device}")
    _held(x)[_held(index)] = _held(value)


def _refuse_indices(x: Tensor, index: Any) -> None:
    if not isinstance(x, OnOther) and any(isinstance(i, OnOther) for i in tree_flatten(index)[0]):
        raise RuntimeError(f"index: expected all tensors to be on the same device, found {x.device} and an index of {OnOther.place}")


def _to(x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    there = isinstance(x, OnOther)
    goes = there if device is None else _there(device)
    value = _held(x) if dtype is None else _held(x).to(dtype)
    if goes == there:
        value = value.clone() if copy and value is _held(x) else value
        return x if value is _held(x) else OnOther(value) if there else value
    return OnOther(value.detach().clone()) if goes else value.clone()


_ANSWERED: dict[Any, Any] = {
    Tensor.__getitem__: _get, Tensor.__setitem__: _set, Tensor.to: _to, Tensor.cpu: lambda x: _to(x, "cpu"),
    Tensor.new_tensor: lambda x, *args, **kwargs: OnOther(_held(x).new_tensor(*args, **kwargs)),
    **{f: lambda x, f=f: f(_held(x)) for f in (Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.tolist)},
}  # fmt: skip


#: Methods that ask for the device, and whose answer is that of the values.
_PLAIN = {
    Tensor.contiguous, Tensor.nonzero, Tensor.float, Tensor.double, Tensor.long, Tensor.int, Tensor.bool, Tensor.half, Tensor.bfloat16, Tensor.type,
    Tensor.__invert__,
}  # fmt: skip


class _CudaCalls(TorchFunctionMode):
    """Answers what would ask a device that is not there: indexing, moving, and reading a value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        ours = isinstance(args[0], OnOther) if args else False
        if func in _PLAIN and ours:
            found = func(args[0].held, *args[1:], **kwargs)
            return args[0] if found is args[0].held else tree_map(OnOther, found)
        if func is Tensor.copy_ and (ours or isinstance(args[1], OnOther)):
            _held(args[0]).copy_(_held(args[1]))
            return args[0]
        if func is Tensor.to and any(isinstance(x, str | torch.device) and _there(x) for x in given):
            return _to(*args, **kwargs)
        if func in _ANSWERED and any(isinstance(x, OnOther) for x in tree_flatten(given)[0]):
            return _ANSWERED[func](*args, **kwargs)
        return func(*args, **kwargs)
