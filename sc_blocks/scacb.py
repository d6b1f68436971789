"""Spatial-channel adaptive coordination."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sc_blocks import _checks

Parts = Literal["both", "spatial", "channel"]
Exchange = Literal["outputs", "inputs"]


class SCACB(nn.Module):
    r"""Spatial-channel adaptive coordination block: a residual block with a spatial and a channel part.

    One 1x1 convolution compresses the features, :math:`z = \phi(W_z x)`. A *channel part* of ordinary convolutions and
    a *spatial part* of depthwise ones each compute three levels of :math:`z`, with receptive fields of 1, 3 and 5
    pixels,

    .. math::
        p_1 = \phi(\mathrm{conv}_{1}^{p} z), \quad
        p_3 = \phi(\mathrm{conv}_{3}^{p} z), \quad
        p_5 = \phi(\mathrm{conv}_{3'}^{p} p_3), \qquad p \in \{s, c\},

    exchange them and weight them. A final 1x1 convolution fuses both parts into a residual:

    .. math::
        y = x + W \, [\, \phi(W_s [s_1 + c_1, s_3 + c_3, s_5 + c_5]),\; \phi(W_c [s_1 + c_1, s_3 + c_3, s_5 + c_5]) \,].

    Args:
        channels: Width of the input and of the output, at least ``reduction``, or half of it with a single part.
        reduction: Divisor of the width inside the block: each part works on ``channels // reduction`` channels, a
            single part on ``2 * channels // reduction``.
        parts: Which parts the block has.

            - ``"both"``: the block as published;
            - ``"spatial"``: depthwise convolutions only (OSA in table 3), whose levels the last convolution weights;
            - ``"channel"``: ordinary convolutions only (OCA in table 3), likewise.
        exchange: How the two parts exchange levels; ignored if there is only one.

            - ``"outputs"``: each part weights the sums of its own levels and the other's;
            - ``"inputs"``: each 3x3 convolution also reads the other part's preceding level: :math:`z + c_1` and
              :math:`s_3 + c_3` in the spatial part, :math:`z + s_1` and :math:`c_3 + s_3` in the channel part;
            - ``None``: each part weights its own levels only (SCNC in table 3).
        residual: Whether the block adds its input to its result.
        act_layer: Called without arguments to build each :math:`\phi`.
        bias: Whether the convolutions have biases.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`.

        Any value range; the output is unbounded.

    Raises:
        ValueError: If ``reduction`` leaves no channel, an option is unknown, or an input has the wrong shape.
        TypeError: If a size is not an integer or an input is not floating-point.

    Number of parameters:
        With ``width = channels // reduction``: ``channels + width * (7 * channels + 32) + 37 * width**2``; 8,280 at 60
        channels. With ``width = 2 * channels // reduction``: ``channels + width * (4 * channels + 23)`` for the spatial
        part alone, ``channels + width * (4 * channels + 4) + 19 * width**2`` for the channel part; 5,320 and 12,540.

    Source:
        Cai, Lai and Jia, *Lightweight Spatial-Channel Adaptive Coordination of Multilevel Refinement Enhancement
        Network for Image Reconstruction* (the MREN paper), section 3.2 and figure 2.

    Example:
        >>> import torch
        >>> from sc_blocks import SCACB
        >>> SCACB(60)(torch.rand(2, 60, 24, 17)).shape
        torch.Size([2, 60, 24, 17])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 6,
        parts: Parts = "both",
        exchange: Exchange | None = "outputs",
        residual: bool = True,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_choice("SCACB", "parts", parts, get_args(Parts))
        _checks.check_choice("SCACB", "exchange", exchange, (*get_args(Exchange), None))
        both = parts == "both"
        self.channels = _checks.check_int("SCACB", "channels", channels)
        self.reduction = _checks.check_int("SCACB", "reduction", reduction)
        self.parts: Parts = parts
        self.exchange: Exchange | None = exchange if both else None
        self.residual = _checks.check_flag("SCACB", "residual", residual)

        width = _checks.reduced_width("SCACB", self.channels, self.reduction, factor=1 if both else 2)
        bias = _checks.check_flag("SCACB", "bias", bias)
        conv = partial(nn.Conv2d, bias=bias, device=device, dtype=dtype)
        act = partial(_checks.build_layer, "SCACB", "act_layer", act_layer, device=device, dtype=dtype)

        def part(groups: int) -> nn.ModuleDict:
            # A container without a forward: the two parts run side by side, level by level.
            layers = {
                "conv1": conv(width, width, 1, groups=groups),
                "conv3": conv(width, width, 3, padding=1, groups=groups),
                "conv5": conv(width, width, 3, padding=1, groups=groups),  # on top of conv3: a receptive field of 5
            }
            if both:
                layers["weighing"] = conv(3 * width, 3 * width, 1)
            return nn.ModuleDict({**layers, "act": act()})

        self.compress = conv(self.channels, width, 1)
        self.act = act()
        self.spatial = part(groups=width) if parts != "channel" else None
        self.channel = part(groups=1) if parts != "spatial" else None
        self.fuse = conv((6 if both else 3) * width, self.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        compressed = self.act(self.compress(x))
        # From here on, each list holds one map per part, the spatial part's first.
        parts = [part for part in (self.spatial, self.channel) if part is not None]
        read = [compressed] * len(parts)
        level1 = _each("conv1", parts, read)
        if self.exchange == "inputs":
            read = [compressed + other for other in reversed(level1)]
        level3 = _each("conv3", parts, read)
        read = [level3[0] + level3[1]] * 2 if self.exchange == "inputs" else level3
        level5 = _each("conv5", parts, read)

        levels = [torch.cat(own, dim=1) for own in zip(level1, level3, level5, strict=True)]
        if self.exchange == "outputs":
            levels = [levels[0] + levels[1]] * 2
        if self.parts == "both":
            levels = _each("weighing", parts, levels)
        fused = self.fuse(torch.cat(levels, dim=1))
        return x + fused if self.residual else fused

    def _check_input(self, x: Tensor) -> None:
        _checks.check_feature_map("SCACB", x, _checks.width_of(self.compress, "in_channels", self.channels))

    def extra_repr(self) -> str:
        options = f"parts={self.parts!r}, exchange={self.exchange!r}, residual={self.residual}"
        return f"{self.channels}, reduction={self.reduction}, {options}"


def _each(layer: str, parts: list[nn.ModuleDict], maps: list[Tensor]) -> list[Tensor]:
    """Apply one layer of each part, and its activation, to that part's map."""
    return [part["act"](part[layer](map_)) for part, map_ in zip(parts, maps, strict=True)]
