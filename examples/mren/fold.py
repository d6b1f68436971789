"""MREN rewritten for faster inference of the same function.

In addition to folding the blocks with :func:`sc_blocks.deploy.fold`, the convolution of the tail is merged with the
last one of the reconstruction, and the bicubic upsampling becomes a convolution at low resolution.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.mren.model import MREN, ChainedMREBs
from examples.mren.widths import maps_side_by_side, widened
from sc_blocks import (
    MREB,
    WSILBV,
    FixedCommunication,
    LearnableCommunication,
    NoCommunication,
    _checks,
)
from sc_blocks.deploy import fold


class BicubicConv(nn.Module):
    """Bicubic upsampling by a whole factor as a 5x5 convolution followed by a pixel shuffle.

    Exact everywhere, as bicubic upsampling repeats the outermost pixels beyond the border.
    """

    def __init__(
        self, factor: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.factor = factor
        # Weights of 5 pixels in each of the `factor` pixels that the middle one becomes.
        pixels = torch.eye(5, dtype=torch.float64)[None, :, None]
        weights = F.interpolate(pixels, scale_factor=(1, factor), mode="bicubic", align_corners=False)
        kernel_1d = weights[0, :, 0, 2 * factor : 3 * factor]
        kernel = torch.einsum("yp,xq->pqyx", kernel_1d, kernel_1d).reshape(factor * factor, 1, 5, 5)
        weight = torch.zeros(3 * factor * factor, 3, 5, 5, dtype=torch.float64)
        for colour in range(3):
            weight[colour * factor**2 : (colour + 1) * factor**2, colour] = kernel[:, 0]
        self.weight = nn.Parameter(
            weight.to(device=device, dtype=dtype or torch.get_default_dtype()), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), self.weight), self.factor)


class FoldedMREN(nn.Module):
    """The network that :func:`fold_mren` returns."""

    def __init__(self, net: MREN) -> None:
        super().__init__()
        self.scale = net.scale
        self.head, self.body, self.reduce = fold(net.head), fold(net.body), fold(net.reduce)
        *stages, last = net.reconstruct
        # Called one by one, so that each map is freed as soon as the next one exists.
        self.reconstruct = nn.ModuleList([*map(fold, stages), fold(nn.Sequential(last, net.tail))])
        weight = net.head.weight
        self.enlarge = BicubicConv(net.scale, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        # The folded reconstruction works in channels_last from stage to stage. Features in another memory format are
        # not bound to a name here, so that they are freed before the large maps are allocated.
        features = self._features(x).contiguous(memory_format=torch.channels_last)
        for stage in self.reconstruct:
            features = stage(features)
        return features + self.enlarge(x)

    def _features(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        return self.reduce(self.body(shallow) + shallow)


def fold_mren(net: MREN) -> FoldedMREN:
    """Copy a trained MREN into a form that computes the same function faster; see :mod:`sc_blocks.deploy`.

    Args:
        net: The network; it is not changed.

    Returns:
        The copy, in eval mode and without gradients. Hooks on the network itself are not copied.

    Raises:
        TypeError: If ``net`` is not an :class:`~examples.mren.model.MREN`, or is of a subclass, which may compute
            something else.

    Example:
        >>> net = MREN(4).eval()
        >>> x = torch.rand(1, 3, 12, 17)
        >>> torch.allclose(fold_mren(net)(x), net(x), atol=1e-5)
        True
    """
    if type(net) is not MREN:
        hint = "sc_blocks.deploy.fold takes any network"
        raise TypeError(f"fold_mren: net must be an MREN, and of no subclass, got {type(net).__name__}; {hint}.")
    return FoldedMREN(net).eval().requires_grad_(False)


def pad_widths(net: MREN, multiple: int = 16) -> MREN:
    """Copy a network and pad its widths with zero weights to a multiple, without changing what it computes.

    Vector units process 16 float32 values at once, and engines have fast paths for whole vectors: 64 channels often
    take less time than 60.

    Args:
        net: An unmodified network; it is not changed.
        multiple: The widths between blocks become multiples of it.

    Raises:
        ValueError: If modules of the network were replaced, or ``multiple`` is below 1.
        TypeError: If ``net`` is not an :class:`~examples.mren.model.MREN`, such as one that was folded before, or
            ``multiple`` is not an integer.

    Example:
        >>> net = MREN(4).eval()
        >>> x = torch.rand(1, 3, 12, 17)
        >>> padded = pad_widths(net)
        >>> padded.head.weight.shape, torch.allclose(padded(x), net(x), atol=1e-5)
        (torch.Size([64, 3, 3, 3]), True)
    """
    if not isinstance(net, MREN):
        raise TypeError(f"pad_widths: net must be an MREN, got {type(net).__name__}; pad first, then fold.")
    multiple = _checks.check_int("pad_widths", "multiple", multiple)

    def up(width: int) -> int:
        return -(-width // multiple) * multiple

    replaced = "pad_widths: net must be built of MREN's own modules; some were replaced."
    if {type(block) for block in net.body} != {MREB}:
        raise ValueError(replaced)
    first, last = net.body[0], net.reconstruct[-1]
    stage, link = first.stages[0], first.refine.links[-1]
    communication: Any = type(link.communication)
    if isinstance(link.communication, NoCommunication):
        communication = None
    elif isinstance(link.communication, FixedCommunication):
        communication = link.communication.weight
    elif isinstance(link.communication, LearnableCommunication):
        communication = partial(communication, per_channel=link.communication.per_channel)
    padded = MREN(
        net.scale,
        channels=up(first.channels),
        num_blocks=len(net.body),
        reconstruct_channels=(up(net.reconstruct[0].in_channels), up(last.out_channels)),
        parts=stage.parts,
        exchange=stage.exchange,
        residual=stage.residual,
        communication=communication,
        chain="network" if isinstance(net.body, ChainedMREBs) else "block",
        gate=link.gate is not None,
        relay=link.relay,
        device=net.head.weight.device,
        dtype=net.head.weight.dtype,
    )
    if isinstance(net.reduce, nn.Identity):
        padded.reduce = nn.Identity()
    if [type(module) for module in net.modules()] != [type(module) for module in padded.modules()]:
        raise ValueError(replaced)
    for ours, theirs in zip(net.modules(), padded.modules(), strict=True):
        if isinstance(ours, WSILBV):
            theirs.local, theirs.eps = ours.local, ours.eps
    maps, weights = maps_side_by_side(net), dict(net.named_parameters())
    with torch.no_grad():
        for name, parameter in padded.named_parameters():
            parameter.copy_(widened(weights[name], parameter.zero_(), *maps.get(name, ())))
    return padded.train(net.training)
