"""Weight initialisation for training from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from sc_blocks import _checks
from sc_blocks.dracb import DRACB
from sc_blocks.mreb import MREB
from sc_blocks.scacb import SCACB


def init_weights(module: nn.Module, *, branch_scale: float = 0.3) -> None:
    r"""Initialise the SCACBs, DRACBs and MREBs of a network for training from scratch.

    A convolution with torch's default initialisation scales the standard deviation of its input by about
    :math:`1/\sqrt{3}`, and GELU halves small values. After the layers of an SCACB, little of the variation between
    pixels is left, and training starts slowly. Here every convolution keeps the variance: its weights are normal, with
    a variance of

    .. math::
        \frac{2}{\mathrm{fan\_in}} \text{ before an activation}, \qquad \frac{1}{\mathrm{fan\_in}} \text{ elsewhere},

    and its biases are zero. The branches of SCACBs are then scaled down, so that several in sequence change their
    input little at first. Other modules, including WSILB, RBWA and learned communication channels, keep their weights.

    Call it before loading pretrained weights, never on a trained network. It suits activations such as ReLU, GELU and
    SiLU.

    Args:
        module: A network or a single block, initialised in place.
        branch_scale: Factor on the weights of the last convolution of every residual SCACB, at least 0; with 0, these
            SCACBs are the identity at first.

    Raises:
        ValueError: If ``branch_scale`` is negative, not finite or too large for the weights, or a convolution of a
            block is parametrized, pruned, compiled or replaced; the network is then unchanged.
        TypeError: If an argument has the wrong type.

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
    # Check all before changing any: an error leaves the network unchanged.
    convolutions = [
        (_convolution(block, name, path, gain), gain)
        for path, block in cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
        for name, gain in _gains(block, scale).items()
    ]
    for conv, gain in convolutions:
        nn.init.normal_(conv.weight, std=gain / math.sqrt(conv.weight[0].numel()))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def _gains(block: nn.Module, branch_scale: float) -> dict[str, float]:
    """Return the gain of each convolution in a block: its weights get a standard deviation of gain / sqrt(fan_in)."""
    if isinstance(block, SCACB):
        parts = {"spatial": block.spatial, "channel": block.channel}
        layers = [
            f"{name}.{layer}" for name, part in parts.items() if part is not None for layer in part if layer != "act"
        ]
        activated = dict.fromkeys(["compress", *layers], math.sqrt(2))
        return {**activated, "fuse": branch_scale if block.residual else 1}
    if isinstance(block, DRACB):
        return {"distill": 1}
    if isinstance(block, MREB):
        return {"fuse": 1}
    return {}


def _convolution(block: nn.Module, name: str, path: str, gain: float) -> nn.Conv2d:
    conv = block.get_submodule(name)
    # A weight computed from other tensors would be recomputed in the next call, and the initialisation lost.
    if not isinstance(conv, nn.Conv2d) or not isinstance(conv.weight, nn.Parameter):
        raise ValueError(
            f"init_weights: {f'{path}.{name}' if path else name} must be a convolution with a weight of its own, got "
            f"{type(conv).__name__}; call it before convolutions are parametrized, pruned, compiled or replaced."
        )
    if gain > torch.finfo(conv.weight.dtype).max:
        raise ValueError(f"init_weights: branch_scale must fit {conv.weight.dtype}, got {gain:g}; 0.3 is the default.")
    return conv
