"""Run a network once, uncompiled, without changing its state; used by the tools of this package."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from numbers import Integral
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from sc_blocks._checks import check_module

Placement = tuple[torch.device, torch.dtype]


def original_module(function: str, name: str, model: nn.Module) -> nn.Module:
    """Return the module inside a ``torch.compile`` wrapper, or the model itself. ``name`` is the argument's name."""
    check_module(function, name, model)
    refuse_script(function, name, model)
    # torch has no public accessor, but the name is stable: state dicts of compiled networks contain it.
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def refuse_script(function: str, name: str, module: nn.Module) -> None:
    """Raise if a module is TorchScript, which runs outside Python."""
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"{function}: {name} must consist of Python modules, got TorchScript; pass the network it was made from."
        )


def arguments(function: str, example: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the positional and keyword arguments in ``example``: a tensor, a sequence or a mapping."""
    if isinstance(example, Mapping):
        return (), cast(Mapping[str, Any], example)
    if not isinstance(example, (Tensor, list, tuple)):
        wanted = "a tensor, a list of arguments, or a mapping of keyword arguments"
        raise TypeError(f"{function}: example must be {wanted}, got {type(example).__name__}.")
    if isinstance(example, Tensor):
        return (example,), {}
    given = cast(Sequence[Any], example)
    if len(given) == 4 and all(isinstance(side, Integral) for side in given):
        got = f"the shape of one; pass torch.zeros{tuple(map(int, given))}"
        raise TypeError(f"{function}: example must be an input, got {got}.")
    return given, {}


def placement(module: nn.Module) -> Placement | None:
    """Return the device and floating-point dtype of most elements of a module, or ``None`` if it has none."""
    elements: Counter[Placement] = Counter()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and not is_lazy(tensor):
            elements[tensor.device, tensor.dtype] += tensor.numel()
    return elements.most_common(1)[0][0] if elements else None


class _Stance:
    """The compiler's stance, which all threads share, while contexts are open that may end in any order."""

    def __init__(self) -> None:
        self.lock, self.contexts, self.eager = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.contexts == 0:
                self.eager.enter_context(torch.compiler.set_stance("force_eager"))
            self.contexts += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.contexts -= 1
            if self.contexts == 0:
                self.eager.close()


_stance = _Stance()


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled code runs eagerly: compiled code ignores hooks that are added later."""
    # Compiling a network imports the compiler. If that has not happened, do not wait for the slow import.
    return _stance if "torch._dynamo" in sys.modules else nullcontext()


def dry_run(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a network once in eval mode without gradients, and restore its state, even after an error.

    Train/eval modes, buffers, random number generators and argument tensors do not change. The network's hooks run.
    """
    if isinstance(network, nn.DataParallel):  # functional_call refuses the wrapper
        network = cast(nn.Module, network.module)

    # Set directly: train() and eval() may be overridden, e.g. by layers that merge their weights for inference.
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers() if not is_lazy(buffer)}
    # Only the network's own: by default, fork_rng initialises every GPU of the machine.
    gpus = {tensor.device for tensor in (*network.parameters(), *buffers.values()) if tensor.is_cuda}
    try:
        for module in modes:
            module.training = False
        with uncompiled(), torch.random.fork_rng(gpus), torch.no_grad():
            return functional_call(network, buffers, tuple(map(_copied, args)), _copied(dict(kwargs)))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _copied(arg: Any) -> Any:
    """Copy the tensors in an argument, including those in lists, tuples and dictionaries."""
    if isinstance(arg, Tensor):
        return arg.detach().clone().requires_grad_(arg.requires_grad)
    if type(arg) in (list, tuple):
        return type(arg)(map(_copied, arg))
    if type(arg) is dict:
        return {name: _copied(value) for name, value in cast(dict[Any, Any], arg).items()}
    return arg


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results, in order, including those in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in cast(Any, value.values() if isinstance(value, Mapping) else value):
            yield from tensors_in(each)
