"""The cost of a network, and the width at which it matches the cost of another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import nn

from sc_blocks.introspect import Complexity, complexity

WIDEST = 1024


def cost_of(make: Callable[[], nn.Module], scale: int) -> Complexity:
    """Parameters of a network and its MACs for an output of 1280 x 720, counted on the meta device."""
    with torch.device("meta"):
        net = make()
    return complexity(net, (1, 3, 720 // scale, 1280 // scale))


def count_parameters(make: Callable[[], nn.Module]) -> int:
    """Parameters of a network; faster than :func:`cost_of`."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def nearest_width(cost: Callable[[int], int], target: int, *, lowest: int) -> int:
    """The width whose cost is closest to a target; in a tie, the narrower one.

    Args:
        cost: The cost of a width; must increase with it.
        target: The cost to match.
        lowest: Narrowest width to try.

    Example:
        >>> nearest_width(lambda width: width**2, 150, lowest=6)
        12
    """
    above = lowest + bisect_left(range(lowest, WIDEST), target, key=cost)
    return min((max(lowest, above - 1), above), key=lambda width: (abs(cost(width) - target), width))
