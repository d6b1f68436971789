"""How the tools of this package run a network that is not theirs: once, uncompiled, and without a trace."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy


def original_module(function: str, model: Any) -> nn.Module:
    """Return the network that ``torch.compile`` was given, or the model itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}.")
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def uncompiled() -> AbstractContextManager[object]:
    """Run compiled code as it was written: the compiled form ignores hooks that are added later."""
    # Whoever compiled something has imported the compiler. Nobody else should wait for that import.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def dry_run(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a network once in eval mode, without gradients, and leave it as it was.

    Modes, buffers such as the running statistics of a batch normalisation, and the states of the random number
    generators are those from before, also after an error. Hooks of the network run.
    """
    # Set directly: train() and eval() may be overridden, such as by layers that merge their weights for inference.
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers() if not is_lazy(buffer)}
    devices = {tensor.device for tensor in (*network.parameters(), *buffers.values()) if tensor.device.type == "cuda"}
    try:
        for module in modes:
            module.training = False
        with uncompiled(), torch.random.fork_rng(devices), torch.no_grad():
            return functional_call(network, buffers, tuple(args), dict(kwargs))
    finally:
        for module, mode in modes.items():
            module.training = mode
