"""Folding a network: which of its modules are rewritten, and the check that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from sc_blocks.deploy.form import patched_method, why_not_conv3x3, why_not_rbwa, why_not_scacb
from sc_blocks.deploy.rbwa import FACTORS, FoldedRBWA, FoldedSequential, NarrowConv, why_not_merged
from sc_blocks.deploy.strips import StripSCACB
from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB


@dataclass(frozen=True)
class FoldReport:
    """What :func:`fold` does to a network; prints as a list.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import RBWA, SCACB
        >>> from sc_blocks.deploy import fold_report
        >>> print(fold_report(nn.Sequential(SCACB(24, act_layer=nn.PReLU), RBWA(24), nn.Conv2d(24, 3, 3, padding=1))))
        rewritten
          1: convolves before it enlarges, and in strips
          2: merged with the last convolution of 1
        left
          0: spatial.act is PReLU, which is not known to treat every value alike
    """

    rewritten: dict[str, str] = field(default_factory=dict[str, str])
    """How a module is rewritten, by its qualified name."""

    left: dict[str, str] = field(default_factory=dict[str, str])
    """Why a module that might have been rewritten is left as it is, by its qualified name."""

    def __str__(self) -> str:
        parts = {"rewritten": self.rewritten, "left": self.left}
        lines = [[title, *(f"  {name or '(itself)'}: {what}" for name, what in part.items())] for title, part in parts.items() if part]
        return "\n".join(line for part in lines for line in part) or "nothing that could be rewritten"


def fold(module: nn.Module, *, example: Tensor | Sequence[Any] | None = None, tolerance: float = 1e-4) -> nn.Module:
    r"""Copy a network for inference, with its blocks rewritten to compute the same function in less time and memory.

    Rewritten are :class:`~sc_blocks.RBWA` and :class:`~sc_blocks.SCACB`, and nothing else; see
    :mod:`sc_blocks.deploy`. A block is left as it is unless it is proved to be what its class builds: of exactly that
    type, with 3x3 convolutions that pad with zeros, elementwise activations of torch, and no hooks, parametrizations,
    leftovers of pruning or methods of its own. :func:`fold_report` says which, and why.

    Args:
        module: A block, or any network with blocks in it. It is not changed, and stays trainable.
        example: An input, or a sequence of arguments, to check the copy with, before it is rewritten and after.
        tolerance: By how much the results may differ, as a share of the range of the first. Half precision needs more
            than the default.

    Returns:
        A copy in eval mode, without gradients for its parameters. Modules keep their places, names, attributes and
        entries in the state dict. It computes the same in every precision and memory format, on every device, compiled
        and exported; strips and the rest of what is only for large maps on a CPU take effect there alone.

    Raises:
        TypeError: If ``module`` is not a module.
        ValueError: If the results for the ``example`` differ by more than the tolerance.

    Example:
        >>> import torch
        >>> from sc_blocks import RBWA
        >>> from sc_blocks.deploy import fold
        >>> block, x = RBWA(60, 30), torch.rand(1, 60, 64, 48)
        >>> folded = fold(block, example=x)
        >>> with torch.no_grad():
        ...     torch.allclose(folded(x), block(x), atol=1e-5)
        True
    """
    _check_module("fold", module)
    folded = copy.deepcopy(module).eval().requires_grad_(False)
    args = (example,) if isinstance(example, Tensor) else example
    with torch.no_grad():
        expected = None if args is None else folded(*args)
        rewritten = _rewrite(folded)
        if args is not None:
            _check_same(_forced(folded, rewritten, args), expected, tolerance)
    return folded
