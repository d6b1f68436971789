"""Fresh weights for networks that are trained from scratch."""

from __future__ import annotations

import torch
from torch import nn

from sc_blocks import _checks
from sc_blocks.dracb import DRACB
from sc_blocks.mreb import MREB
from sc_blocks.scacb import SCACB


def init_weights(module: nn.Module, *, branch_scale: float = 0.3) -> None:
    r"""Draw fresh weights for the SCACBs, DRACBs and MREBs of a network that is trained from scratch.

    A fresh convolution of torch scales the standard deviation of its input by about :math:`1/\sqrt{3}`, and GELU halves
    small values. After the layers of an SCACB, little is left of what differs from pixel to pixel, and training starts
    slowly. Here every convolution keeps the variance: its weights are normal, with a variance of

    .. math::
        \frac{2}{\mathrm{fan\_in}} \text{ before an activation}, \qquad \frac{1}{\mathrm{fan\_in}} \text{ elsewhere},

    and its biases are zero. The branches of SCACBs are then scaled down, so that a row of them changes its input little
    at first. Other modules keep their weights, those of WSILB, RBWA and learned channels among them.

    Call it before pretrained weights are loaded, and not on a network that has been trained. It suits activations like
    ReLU, GELU and SiLU.

    Args:
        module: The network, or a block alone; its weights are changed in place.
        branch_scale: Factor of the last convolution of every SCACB with a shortcut, at least 0; with 0, an SCACB
            returns its input at first.

    Raises:
        ValueError: If ``branch_scale`` is negative or not finite.
        TypeError: If an argument is of another type.

    Source:
        Ours; He et al., *Delving Deep into Rectifiers* (2015), for the variance.

    Example:
        >>> import torch
        >>> from sc_blocks import SCACB
        >>> from sc_blocks.init import init_weights
        >>> block = SCACB(60)
        >>> init_weights(block, branch_scale=0)
        >>> x = torch.rand(1, 60, 24, 17)
        >>> torch.equal(block(x), x)
        True
    """
    _checks.check_module("init_weights", "module", module)
    scale = _checks.check_number("init_weights", "branch_scale", branch_scale, least=0, hint="0.3 is the default")
    for block in module.modules():
        if isinstance(block, SCACB):
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d):
                    _draw(layer, activated=layer is not block.fuse)
            if block.residual:
                with torch.no_grad():
                    block.fuse.weight.mul_(scale)
        elif isinstance(block, DRACB):
            _draw(block.distill)
        elif isinstance(block, MREB):
            _draw(block.fuse)


def _draw(conv: nn.Conv2d, *, activated: bool = False) -> None:
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu" if activated else "linear")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
