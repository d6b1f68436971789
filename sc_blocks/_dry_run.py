"""How the tools of this package run a network that is not theirs: once, uncompiled, and without a trace."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from sc_blocks._checks import check_module

Placement = tuple[torch.device, torch.dtype]


def original_module(function: str, name: str, model: nn.Module) -> nn.Module:
    """Return the network that ``torch.compile`` was given, or the model itself, for the argument of this name."""
    check_module(function, name, model)
    refuse_script(function, name, model)
    # The name stands in the keys of every state dict of a compiled network; torch has no other way to ask for it.
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def refuse_script(function: str, name: str, module: nn.Module) -> None:
    """Raise if a module is TorchScript, which runs outside Python."""
    if isinstance(module, torch.jit.ScriptModule):
        wanted = "made of modules of Python, got TorchScript; pass the network that it was made from"
        raise TypeError(f"{function}: {name} must be {wanted}.")


def arguments(function: str, example: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments that an ``example`` stands for, and those by keyword: one tensor, a sequence or a mapping."""
    if isinstance(example, Mapping):
        return (), cast(Mapping[str, Any], example)
    if not isinstance(example, (Tensor, list, tuple)):
        wanted = "a tensor, a list of arguments, or a mapping of them by keyword"
        raise TypeError(f"{function}: example must be {wanted}, got {type(example).__name__}.")
    if isinstance(example, Tensor):
        return (example,), {}
    given = cast(Sequence[Any], example)
    if len(given) == 4 and all(isinstance(side, Integral) for side in given):
        came = f"the shape of one; pass torch.zeros{tuple(map(int, given))}"
        raise TypeError(f"{function}: example must be an input, got {came}.")
    return given, {}


def placement(module: nn.Module) -> Placement | None:
    """Device and floating-point type of most elements of a module, or ``None`` if it has none."""
    elements: Counter[Placement] = Counter()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and not is_lazy(tensor):
            elements[tensor.device, tensor.dtype] += tensor.numel()
    return elements.most_common(1)[0][0] if elements else None


def uncompiled() -> AbstractContextManager[object]:
    """Run compiled code as it was written: the compiled form ignores hooks that are added later."""
    # A network that was compiled has imported the compiler; no other should wait for that import.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def dry_run(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a network once in eval mode, without gradients, and leave it as it was, also after an error.

    That is its modes, its buffers and the states of the random number generators. Tensors among the arguments do not
    change either. Hooks of the network run.
    """
    if isinstance(network, nn.DataParallel):  # functional_call refuses the wrapper
        network = cast(nn.Module, network.module)

    # Set directly: train() and eval() may be overridden, such as by layers that merge their weights for inference.
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers() if not is_lazy(buffer)}
    # The network's own only: left to itself, fork_rng starts every GPU of the machine.
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
    """An argument whose tensors, also those in lists, tuples and dictionaries, are copies."""
    if isinstance(arg, Tensor):
        return arg.detach().clone().requires_grad_(arg.requires_grad)
    if type(arg) in (list, tuple):
        return type(arg)(map(_copied, arg))
    if type(arg) is dict:
        return {name: _copied(value) for name, value in cast(dict[Any, Any], arg).items()}
    return arg


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of a network, in order, out of lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in cast(Any, value.values() if isinstance(value, Mapping) else value):
            yield from tensors_in(each)
