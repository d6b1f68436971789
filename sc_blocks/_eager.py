"""When to compute in the order that suits a processor, and not as the formula is written."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook  # pyright: ignore[reportPrivateUsage]


def eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether all are on a CPU, and computed with at once.

    While a graph is recorded for another engine it stays as the formula is written; so it does for derivatives in
    forward mode.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not recorded and all(
        tensor.device.type == "cpu" and forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors
    )


def eager_in_full(*tensors: Tensor) -> bool:
    """The same for single and double precision only: in half, another order would round differently."""
    full = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    return full and not torch.is_autocast_enabled("cpu") and eager_on_cpu(*tensors)


def unheard(module: nn.Module) -> bool:
    """Whether nobody would notice that a module is not called: no hooks on it or on all, no forward of its own."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in names) or "forward" in vars(module):
        return False
    return not _has_any_global_hook()


def plain_3x3(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a 3x3 convolution with a padding of 1 that need not be called."""
    if type(conv) is not nn.Conv2d:
        return False
    form = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups, conv.padding_mode)
    return form == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and unheard(conv)
