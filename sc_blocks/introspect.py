"""What a network is made of and what it costs: parameters and multiply-accumulates, named apart from FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sc_blocks.scacb import ChannelAffine


@dataclass(frozen=True)
class Complexity:
    """Cost of a network for one input size."""

    parameters: int
    """Trainable and fixed, a shared one counted once."""

    macs: int
    """Multiply-accumulates of the convolutions and matrix products; activations, sums and resizing are not counted."""

    input_size: tuple[int, ...]
    """The input that ``macs`` were counted for; ``parameters`` do not depend on it."""

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs


def complexity(model: nn.Module, input_size: Sequence[int]) -> Complexity:
    """Count parameters and multiply-accumulates.

    Papers often print multiply-accumulates under the name FLOPs, for a 1280 x 720 *output*: a network that enlarges by
    4 is then counted with ``input_size=(1, 3, 180, 320)``.

    Args:
        model: The network; it is run once, without gradients, where its parameters are. On the ``meta`` device that
            costs neither time nor memory.
        input_size: Shape of its input, such as ``(1, 60, 180, 320)``.

    Returns:
        The counts.

    Example:
        >>> from torch import nn
        >>> from sc_blocks.introspect import complexity
        >>> cost = complexity(nn.Conv2d(60, 60, 3, padding=1), (1, 60, 180, 320))
        >>> cost.parameters, cost.macs, cost.flops
        (32460, 1866240000, 3732480000)
    """
    parameter = next(model.parameters(), torch.empty(0))
    example = torch.zeros(tuple(input_size), device=parameter.device, dtype=parameter.dtype)
    affine_macs = 0

    def count_affine(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # A depthwise 1x1 convolution that is computed as a scale and shift: the counter sees convolutions only.
        nonlocal affine_macs
        affine_macs += output.numel()

    hooks = [
        module.register_forward_hook(count_affine) for module in model.modules() if isinstance(module, ChannelAffine)
    ]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2 + affine_macs,
        input_size=tuple(input_size),
    )
