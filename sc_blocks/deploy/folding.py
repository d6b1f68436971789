"""Fold a network: choose the modules to rewrite, and check that the results stay the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from sc_blocks._checks import check_module, check_number
from sc_blocks._dry_run import arguments, dry_run, refuse_script, tensors_in
from sc_blocks.deploy.form import why_not, why_not_called_in_order
from sc_blocks.deploy.rbwa import FACTORS, FoldedRBWA, FoldedSequential, NarrowConv, why_not_merged
from sc_blocks.deploy.strips import MergedSCACB, StripSCACB, StripWSILBV
from sc_blocks.local import Network
from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV


@dataclass(frozen=True)
class FoldReport:
    """Changes that :func:`fold` makes to a network, as :func:`fold_report` returns them. Prints as a list."""

    rewritten: dict[str, str]
    """How each rewritten module changes, by its qualified name."""
    left: dict[str, str]
    """Why each other candidate is left unchanged, by its qualified name."""

    def __str__(self) -> str:
        lines: list[str] = []
        for title, entries in (("rewritten", self.rewritten), ("left", self.left)):
            lines += [f"{title}:"] * bool(entries)
            lines += [f"  {name or 'itself'}: {what}" for name, what in entries.items()]
        return "\n".join(lines) or "nothing to rewrite"


def fold(
    module: Network, *, example: Tensor | Sequence[Any] | Mapping[str, Any] | None = None, tolerance: float = 1e-4
) -> Network:
    r"""Copy a network for inference, with blocks rewritten to compute the same function in less time and memory.

    :mod:`sc_blocks.deploy` lists the rewrites. A block is rewritten only if it is exactly what its class builds: not a
    subclass, with zero-padded 3x3 convolutions and elementwise torch activations, and without hooks, parametrizations,
    pruning or overridden methods.

    Args:
        module: A block, or any network that contains blocks. It is not changed, and stays trainable.
        example: An input, a sequence of arguments or a mapping of keyword arguments, for which the copy's results
            before and after rewriting are compared, with the same random numbers.
        tolerance: Largest allowed difference, relative to the range of the original result, or to its magnitude if it
            is constant. Half precision needs more.

    Returns:
        A copy in eval mode whose parameters do not require gradients. Modules keep their places, names, attributes and
        state-dict entries, and other weights may be loaded. Fold last: hooks added later run for each strip but not for
        merged modules, and layers replaced later are not checked.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the results for the ``example`` differ by more than ``tolerance`` or are not finite, or
            ``tolerance`` is negative.

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
    check_module("fold", "module", module)
    refuse_script("fold", "module", module)
    tolerance = check_number("fold", "tolerance", tolerance, least=0, hint="1e-4 is usual")
    folded = _copied(module)
    folded.eval()  # not chained: an overridden train() may return None
    folded.requires_grad_(False)
    changes, _ = _plan(folded)
    given = None if example is None else arguments("fold", example)
    expected = None if given is None else dry_run(folded, *given)
    for part, cls in changes.items():  # only the class changes, no attributes
        part.__class__ = cls
    if given is not None:
        rewritten = [part for part in changes if isinstance(part, (FoldedRBWA, StripSCACB, StripWSILBV))]
        for part in rewritten:  # in strips even if the example is small
            part.strip_values = part.least_values = 1
        _check_same(dry_run(folded, *given), expected, tolerance)
        for part in rewritten:
            del part.strip_values, part.least_values
    return folded


def fold_report(module: nn.Module) -> FoldReport:
    """Report what :func:`fold` rewrites in a network, what it leaves, and why.

    Args:
        module: As in :func:`fold`.

    Raises:
        TypeError: If ``module`` is not a module.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import RBWA, SCACB
        >>> from sc_blocks.deploy import fold_report
        >>> conv = nn.Conv2d(24, 3, 3, padding=1)
        >>> net = nn.Sequential(SCACB(24, act_layer=nn.PReLU), RBWA(24), conv)
        >>> print(fold_report(net))
        rewritten:
          1: convolves before it enlarges, and in strips
          1.attention: statistics in strips
          2: merged with the last convolution of 1
        left:
          0: act is PReLU, which is not known to treat every value alike
    """
    check_module("fold_report", "module", module)
    return _plan(module)[1]


def _plan(network: nn.Module) -> tuple[dict[nn.Module, type[nn.Module]], FoldReport]:
    """Return the new class of each module to rewrite, and the report."""
    changes: dict[nn.Module, type[nn.Module]] = {}
    report = FoldReport({}, {})
    names = {module: name for name, module in cast("Iterator[tuple[str, nn.Module]]", network.named_modules())}

    def consider(module: nn.Module, cls: type[nn.Module], what: str, reason: str | None) -> None:
        if reason is None:
            changes[module], report.rewritten[names[module]] = cls, what
        elif module not in changes:
            report.left[names[module]] = reason

    for module in names:
        if isinstance(module, (FoldedRBWA, StripSCACB, StripWSILBV)):
            report.left[names[module]] = "is folded already"
        elif isinstance(module, SCACB):
            reason = why_not(module, SCACB)
            if reason is None and module.exchange == "outputs" and _same_activations(module):
                consider(module, MergedSCACB, "one weighing for both parts, and in strips", None)
            else:
                consider(module, StripSCACB, "in strips", reason)
        elif isinstance(module, WSILBV):
            consider(module, StripWSILBV, "statistics in strips", why_not(module, WSILBV))
        elif isinstance(module, RBWA):
            first = "convolves before it enlarges, and " if module.scale_factor in FACTORS else ""
            consider(module, FoldedRBWA, f"{first}in strips", why_not(module, RBWA))
    for container in names:
        if not isinstance(container, nn.Sequential):
            continue
        for block, tail in pairwise(container):
            if isinstance(block, RBWA) and changes.get(block) is FoldedRBWA and isinstance(tail, nn.Conv2d):
                reason = why_not_called_in_order(container) or why_not(tail, nn.Conv2d) or why_not_merged(block, tail)
                consider(tail, NarrowConv, f"merged with the last convolution of {names[block]}", reason)
                if reason is None:
                    changes[container] = FoldedSequential
    return changes, report


def _copied(module: Network) -> Network:
    # A weight computed by a hook, as in pruning, belongs to the last run's autograd graph and cannot be copied.
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    with torch.inference_mode(False):  # so that the copy can be trained or given other weights later
        return copy.deepcopy(module, cast("dict[int, Any]", memo))


def _same_activations(block: SCACB) -> bool:
    spatial, channel = block.spatial, block.channel
    return spatial is not None and channel is not None and repr(spatial["act"]) == repr(channel["act"])


def _check_same(actual: Any, expected: Any, tolerance: float) -> None:
    for ours, theirs in zip(tensors_in(actual), tensors_in(expected), strict=True):
        if not theirs.numel():
            continue
        if not theirs.isfinite().all():
            got = "infinities or NaN from the original network"
            raise ValueError(f"fold: results for the example must be finite, got {got}; pass another example.")
        if theirs.is_complex():
            ours, theirs = torch.view_as_real(ours), torch.view_as_real(theirs)
        ours, theirs = (each.to("cpu", torch.float64) for each in (ours, theirs))  # avoids overflow
        span = (theirs.amax() - theirs.amin()).item() or theirs.abs().amax().item()  # one value has no range
        difference = (ours - theirs).abs().amax().item()
        if not difference <= tolerance * span:  # not "greater": NaN must not pass
            allowed = f"tolerance={tolerance:g} allows {tolerance * span:.3g} in a range of {span:.3g}"
            hint = "if that is rounding, as in half precision, pass a larger tolerance"
            apart = f"differs from the original by {difference:.3g} on the example"
            raise ValueError(f"fold: the folded network {apart}; {allowed}; {hint}.")
