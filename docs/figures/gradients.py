"""How strongly the centre of a result depends on each position of the input.

Distances are Chebyshev distances, max(|dx|, |dy|): the field of a convolution is a square. Energy is the sum of the
squared derivatives of all outputs at the centre with respect to all inputs at that distance, estimated without bias by
the gradient of a sum of the outputs with random signs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sc_blocks import WSILBV

SHARES = (0.5, 0.9, 0.99)


def energy(function: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> Tensor:
    """Squared derivatives of the centre of the result with respect to each position of ``x``, shape (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    x = x.detach().requires_grad_()
    out = function(x)
    scale = out.shape[2] // x.shape[2]
    top, left = (side // 2 * scale for side in x.shape[2:])
    centre = out[:, :, top : top + scale, left : left + scale]
    signs = torch.randint(0, 2, centre.shape, generator=generator) * 2.0 - 1
    (gradient,) = torch.autograd.grad((centre * signs.to(centre.dtype)).sum(), x)
    return gradient.double().square().sum((0, 1))


def rings(field: Tensor) -> Tensor:
    """Energy at each distance from the centre, from 0 on."""
    rows, columns = (torch.arange(side) - side // 2 for side in field.shape)
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    return torch.zeros(int(distance.max()) + 1, dtype=torch.float64).index_add_(0, distance.flatten(), field.flatten())


def radii(field: Tensor) -> list[int]:
    """The distances within which half, 90 % and 99 % of the energy lie."""
    inside = rings(field).cumsum(0) / field.sum()
    return [int((inside < share).sum()) for share in SHARES]


def hold_gates(net: nn.Module) -> nn.Module:
    """Block gradients through the statistics of a network, so that every gate becomes a constant."""
    for block in net.modules():
        if isinstance(block, WSILBV):
            block.shared.register_forward_pre_hook(lambda _, args: (args[0].detach(),))
    return net


def support(net: nn.Module, image: Tensor) -> int:
    """The largest distance from which the convolutions reach the centre."""
    return int(rings(energy(hold_gates(net), image, 0)).nonzero().max())
