"""1x1 convolutions on a CPU: a product of two matrices for each sample.

The library to which torch hands the convolutions of batches there, and with several threads those of single maps,
reorders every map before and after, and that takes longer than the product itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sc_blocks._eager import eager_in_full


def mix_channels(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``, its 1x1 convolution as a product where that is faster.

    The module is called as always: hooks run, and whatever somebody put in its place does what it does.
    """
    if not _pays(x):
        return conv(x)
    with _Products():
        return conv(x)


def _pays(x: Tensor) -> bool:
    """On one thread in training only: without gradients a single map is multiplied as fast the usual way."""
    # In this order: while a graph is recorded, nobody may ask for the number of threads.
    if not eager_in_full(x) or not x.is_contiguous():
        return False
    return torch.is_grad_enabled() or torch.get_num_threads() > 1


class _Products(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and _is_product(*args):
            return _product(*args[:3])
        return func(*args, **(kwargs or {}))


def _is_product(x: Tensor, weight: Tensor, *others: Any) -> bool:
    """Whether the arguments of ``torch.conv2d`` are those that ``nn.Conv2d`` gives for a plain 1x1 convolution."""
    plain = others[1:] == ((1, 1), (0, 0), (1, 1), 1)
    return plain and weight.shape[2:] == (1, 1) and x.ndim == 4 and x.is_contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    pixels, matrices = x.flatten(2), weight.flatten(1).expand(x.shape[0], -1, -1)
    product = torch.bmm(matrices, pixels) if bias is None else torch.baddbmm(bias[:, None], matrices, pixels)
    return product.view(x.shape[0], weight.shape[0], *x.shape[2:])
