"""Folding a network: which of its modules are rewritten, and the check that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from sc_blocks.deploy.form import why_not_called_in_order, why_not_conv3x3, why_not_rbwa, why_not_scacb, why_not_wsilbv
from sc_blocks.deploy.rbwa import FACTORS, FoldedRBWA, FoldedSequential, NarrowConv, why_not_merged
from sc_blocks.deploy.strips import StripSCACB, StripWSILBV
from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV


@dataclass(frozen=True)
class FoldReport:
    """What :func:`fold` does to a network; prints as a list.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import RBWA, SCACB
        >>> from sc_blocks.deploy import fold_report
        >>> print(fold_report(nn.Sequential(SCACB(24, act_layer=nn.PReLU), RBWA(24), nn.Conv2d(24, 3, 3, padding=1))))
        rewritten:
          1: convolves before it enlarges, and in strips
          1.attention: statistics in strips
          2: merged with the last convolution of 1
        left:
          0: act is PReLU, which is not known to treat every value alike
    """

    rewritten: dict[str, str]
    """How a module is rewritten, by its qualified name."""

    left: dict[str, str]
    """Why a module that might have been rewritten is left as it is, by its qualified name."""

    def __str__(self) -> str:
        lines: list[str] = []
        for title, entries in (("rewritten", self.rewritten), ("left", self.left)):
            lines += [f"{title}:"] * bool(entries)
            lines += [f"  {name or 'itself'}: {what}" for name, what in entries.items()]
        return "\n".join(lines) or "nothing to rewrite"


def fold(module: nn.Module, *, example: Tensor | Sequence[Any] | None = None, tolerance: float = 1e-4) -> nn.Module:
    r"""Copy a network for inference, with its blocks rewritten to compute the same function in less time and memory.

    Rewritten are :class:`~sc_blocks.RBWA`, :class:`~sc_blocks.SCACB` and :class:`~sc_blocks.WSILBV`, and nothing else;
    see :mod:`sc_blocks.deploy`. A block is left as it is unless it is proved to be what its class builds: of exactly
    that type, with 3x3 convolutions that pad with zeros, elementwise activations of torch, and no hooks,
    parametrizations, leftovers of pruning or methods of its own. :func:`fold_report` says which, and why.

    Args:
        module: A block, or any network with blocks in it. It is not changed, and stays trainable.
        example: An input, or a sequence of arguments, to check the copy with, before it is rewritten and after.
        tolerance: By how much the results may differ, as a share of the range of the first. Half precision needs more
            than the default.

    Returns:
        A copy in eval mode, without gradients for its parameters. Modules keep their places, names, attributes and
        entries in the state dict. It computes the same in every precision and memory format, on every device, compiled
        and exported. Strips are for large maps on a CPU, outside of compiled and exported graphs. Hooks that come later
        see the calls of each strip; modules whose arithmetic is merged are not called.

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
    changes, _ = _plan(folded)
    args = (example,) if isinstance(example, Tensor) else example
    if args is None:
        _apply(changes)
        return folded
    with torch.no_grad():
        expected = folded(*args)
        _apply(changes)
        rewritten = [part for part in changes if isinstance(part, (FoldedRBWA, StripSCACB, StripWSILBV))]
        for part in rewritten:  # as on a large map, however small the example is
            part.strip_values = part.least_values = 1
        _check_same(folded(*args), expected, tolerance)
    for part in rewritten:
        del part.strip_values, part.least_values
    return folded


def fold_report(module: nn.Module) -> FoldReport:
    """Tell what :func:`fold` rewrites in a network, what it leaves and why; the network is not changed.

    Args:
        module: As for :func:`fold`.

    Raises:
        TypeError: If ``module`` is not a module.

    Example:
        >>> from sc_blocks import MREB
        >>> from sc_blocks.deploy import fold_report
        >>> block = MREB(60, num_stages=2)
        >>> block.stages[1].channel.conv3.padding_mode = "reflect"
        >>> print(fold_report(block))
        rewritten:
          stages.0: in strips
          attention: statistics in strips
        left:
          stages.1: channel.conv3.padding_mode is 'reflect', not 'zeros'
    """
    _check_module("fold_report", module)
    return _plan(module)[1]


def _plan(network: nn.Module) -> tuple[dict[nn.Module, type[nn.Module]], FoldReport]:
    """The classes that modules shall have, and what to say about it."""
    changes: dict[nn.Module, type[nn.Module]] = {}
    report = FoldReport({}, {})
    names = {module: name for name, module in cast("Iterator[tuple[str, nn.Module]]", network.named_modules())}

    def consider(module: nn.Module, cls: type[nn.Module], what: str, why_not: str | None) -> None:
        if why_not is None:
            changes[module], report.rewritten[names[module]] = cls, what
        elif module not in changes:
            report.left[names[module]] = why_not

    for module in names:
        if isinstance(module, (FoldedRBWA, StripSCACB, StripWSILBV)):
            report.left[names[module]] = "is folded already"
        elif isinstance(module, SCACB):
            consider(module, StripSCACB, "in strips", why_not_scacb(module))
        elif isinstance(module, WSILBV):
            consider(module, StripWSILBV, "statistics in strips", why_not_wsilbv(module))
        elif isinstance(module, RBWA):
            first = "convolves before it enlarges, and " if module.scale_factor in FACTORS else ""
            consider(module, FoldedRBWA, f"{first}in strips", why_not_rbwa(module))
    for row in names:
        if not isinstance(row, nn.Sequential):
            continue
        for block, tail in pairwise(row):
            if isinstance(block, RBWA) and changes.get(block) is FoldedRBWA and isinstance(tail, nn.Conv2d):
                why_not = why_not_called_in_order(row) or why_not_conv3x3(tail) or why_not_merged(block, tail)
                consider(tail, NarrowConv, f"merged with the last convolution of {names[block]}", why_not)
                if why_not is None:
                    changes[row] = FoldedSequential
    return changes, report


def _apply(changes: dict[nn.Module, type[nn.Module]]) -> None:
    """Change the classes. All that a module holds stays: parameters, options, names, places."""
    for module, cls in changes.items():
        module.__class__ = cls


def _check_module(function: str, module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: module must be a torch.nn.Module, got {type(module).__name__}.")


def _check_same(actual: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected, Tensor):
        if not expected.numel():
            return
        reach = (expected.amax() - expected.amin()).item()
        difference = (actual - expected).abs().amax().item()
        if not difference <= tolerance * reach:  # not "greater": what is no number must not pass
            raise ValueError(
                f"fold: the folded network is {difference:.3g} away from the network for the example, whose results "
                f"have a range of {reach:.3g}; tolerance={tolerance:g} allows {tolerance * reach:.3g}. If that is "
                "rounding, in half precision for instance, pass a greater tolerance."
            )
    elif isinstance(expected, Mapping):
        results = cast("Mapping[Any, Any]", expected)
        for key in results:
            _check_same(actual[key], results[key], tolerance)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        for ours, theirs in zip(actual, cast("Sequence[Any]", expected), strict=True):
            _check_same(ours, theirs, tolerance)
