r"""Spatial-channel adaptive coordination.

Source: Cai, Lai and Jia, *Lightweight Spatial-Channel Adaptive Coordination of Multilevel Refinement Enhancement
Network for Image Reconstruction*, section 3.2 and figure 2; the variants are those of table 3. The layers are pinned
down by the parameter counts that the paper prints. Where the lines of the exchange begin and end, where the
activations stand and whether there is a shortcut around the block is not in its text: those are options here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from sc_blocks._checks import build_layer, check_choice, check_feature_map, check_positive_int, check_width
from sc_blocks._pointwise import mix_channels

Parts = Literal["both", "spatial", "channel"]
Exchange = Literal["outputs", "inputs"]


class ChannelAffine(nn.Conv2d):
    """A depthwise 1x1 convolution, computed as the scale and shift per channel that it is.

    It is an ``nn.Conv2d`` in everything but the arithmetic: grouped 1x1 convolutions leave the fast path of most
    convolution libraries.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sc_blocks.scacb import ChannelAffine
        >>> affine, x = ChannelAffine(10, 10, 1, groups=10), torch.rand(1, 10, 24, 17)
        >>> torch.allclose(affine(x), nn.Conv2d.forward(affine, x), atol=1e-6)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        # .to(): a convolution under autocast returns the lower precision, and so must its stand-in.
        scale = rearrange(self.weight.to(input.dtype), "channels 1 1 1 -> channels 1 1")
        if self.bias is None:
            return input * scale
        return input * scale + rearrange(self.bias.to(input.dtype), "channels -> channels 1 1")


class Part(nn.Module):
    """One half of the block: three levels, named by their field of view in pixels, and the layer that weighs them.

    Example:
        >>> import torch
        >>> from sc_blocks import SCACB
        >>> part = SCACB(60).spatial
        >>> [tuple(level.shape) for level in part(torch.rand(1, 10, 24, 17))]
        [(1, 10, 24, 17), (1, 10, 24, 17), (1, 10, 24, 17)]
    """

    def __init__(
        self,
        width: int,
        *,
        depthwise: bool,
        weighs: bool,
        act_layer: Callable[[], nn.Module],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, bias=bias, device=device, dtype=dtype)
        point = partial(ChannelAffine, bias=bias, device=device, dtype=dtype) if depthwise else conv
        groups = width if depthwise else 1
        self.conv1 = point(width, width, 1, groups=groups)
        self.conv3 = conv(width, width, 3, padding=1, groups=groups)
        self.conv5 = conv(width, width, 3, padding=1, groups=groups)  # 3x3 on top of conv3: a field of 5
        self.weighing = conv(3 * width, 3 * width, 1) if weighs else None
        self.act = build_layer("SCACB", "act_layer", act_layer, device=device, dtype=dtype)

    def level1(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x))

    def level3(self, x: Tensor) -> Tensor:
        return self.act(self.conv3(x))

    def level5(self, x: Tensor) -> Tensor:
        return self.act(self.conv5(x))

    def forward(self, compressed: Tensor) -> list[Tensor]:
        level3 = self.level3(compressed)
        return [self.level1(compressed), level3, self.level5(level3)]

    def weigh(self, joined: Tensor) -> Tensor:
        return joined if self.weighing is None else self.act(mix_channels(self.weighing, joined))


class SCACB(nn.Module):
    r"""Spatial-channel adaptive coordination block: the same features seen by region and by channel at three scales.

    One 1x1 convolution compresses the features, :math:`z = \phi(W_z x)`. A *channel part* of ordinary convolutions and
    a *spatial part* of depthwise ones then each look at :math:`z` with fields of view of 1, 3 and 5 pixels,

    .. math::
        p_1 = \phi(\mathrm{conv}_{1}^{p} z), \quad
        p_3 = \phi(\mathrm{conv}_{3}^{p} z), \quad
        p_5 = \phi(\mathrm{conv}_{3'}^{p} p_3), \qquad p \in \{s, c\},

    exchange their levels, weigh them, and are fused into a correction of the input:

    .. math::
        y = x + W \, [\, \phi(W_s [s_1 + c_1, s_3 + c_3, s_5 + c_5]),\; \phi(W_c [s_1 + c_1, s_3 + c_3, s_5 + c_5]) \,].

    Shown is the default ``exchange="outputs"``; with ``None`` each part weighs its own levels only.

    Args:
        channels: Width of the input and of the output, at least ``reduction``.
        reduction: Divisor of the width inside the block: each part works on ``channels // reduction`` channels, a
            single part alone on ``2 * channels // reduction``.
        parts: Which halves of the block exist.

            - ``"both"``: the block as published;
            - ``"spatial"``: depthwise convolutions only (OSA in table 3);
            - ``"channel"``: ordinary convolutions only (OCA in table 3).

            A single part has nothing to exchange with and no layer of its own to weigh its levels.
        exchange: Where the corresponding levels of the two parts meet. It costs no parameters.

            - ``"outputs"``: the levels run undisturbed and each part weighs the sums of its own and the other's;
            - ``"inputs"``: each 3x3 convolution reads what it would have read plus the other part's preceding level:
              :math:`z + c_1` and :math:`s_3 + c_3` in the spatial part, :math:`z + s_1` and :math:`c_3 + s_3` in the
              channel part;
            - ``None``: nothing is exchanged (SCNC in table 3).
        residual: Whether the block adds its result to its input.
        act_layer: Called without arguments to build each :math:`\phi`.
        bias: Whether the convolutions have biases.
        device: Where the parameters are created.
        dtype: Type of the parameters.

    Shape:
        - input: :math:`(N, C, H, W)` with :math:`C` = ``channels`` and any :math:`N`, :math:`H, W \ge 1`;
        - output: :math:`(N, C, H, W)`.

    Any value range; the output is not bounded.

    Raises:
        ValueError: If ``reduction`` leaves no channel, an option is unknown, or an input has the wrong shape.
        TypeError: If a size is not an integer or an input is not floating-point.

    Number of parameters:
        With ``width = channels // reduction``:
        ``channels + width * (7 * channels + 32) + 37 * width**2``; 8,280 at 60 channels.

        A single part, with ``width = 2 * channels // reduction``: ``channels + width * (4 * channels + 23)`` if it is
        the spatial one, 5,320 at 60 channels, and ``channels + width * (4 * channels + 4) + 19 * width**2`` if it is
        the channel one, 12,540 (table 3).

    Source:
        Section 3.2 and figure 2 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import SCACB
        >>> block = SCACB(60)
        >>> block(torch.rand(2, 60, 24, 17)).shape
        torch.Size([2, 60, 24, 17])
        >>> sum(p.numel() for p in block.parameters())
        8280
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
        check_positive_int("SCACB", "channels", channels)
        check_positive_int("SCACB", "reduction", reduction)
        check_choice("SCACB", "parts", parts, get_args(Parts))
        check_choice("SCACB", "exchange", exchange, (*get_args(Exchange), None))
        both = parts == "both"
        width = check_width(
            "SCACB",
            channels // reduction if both else 2 * channels // reduction,
            channels=channels,
            reduction=reduction,
            at_least=reduction if both else -(-reduction // 2),
        )
        conv = partial(nn.Conv2d, bias=bias, device=device, dtype=dtype)
        part = partial(Part, width, weighs=both, act_layer=act_layer, bias=bias, device=device, dtype=dtype)

        self.channels = channels
        self.reduction = reduction
        self.parts: Parts = parts
        self.exchange: Exchange | None = exchange if both else None
        self.residual = residual

        self.compress = conv(channels, width, 1)
        self.act = build_layer("SCACB", "act_layer", act_layer, device=device, dtype=dtype)
        self.spatial = part(depthwise=True) if parts != "channel" else None
        self.channel = part(depthwise=False) if parts != "spatial" else None
        self.fuse = conv((6 if both else 3) * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("SCACB", x, self.channels)
        compressed = self.act(mix_channels(self.compress, x))
        parts = [part for part in (self.spatial, self.channel) if part is not None]
        levels: list[list[Tensor]]
        if self.exchange == "inputs":
            levels = _levels_from_exchanged_inputs(*parts, compressed=compressed)
        else:
            levels = [part(compressed) for part in parts]
        if self.exchange == "outputs":  # both parts read the same sums
            joined = [torch.cat([s + c for s, c in zip(*levels, strict=True)], dim=1)] * 2
        else:
            joined = [torch.cat(own, dim=1) for own in levels]
        weighed = [part.weigh(own) for part, own in zip(parts, joined, strict=True)]
        fused = mix_channels(self.fuse, torch.cat(weighed, dim=1))
        return x + fused if self.residual else fused

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, reduction={self.reduction}, parts={self.parts!r}, exchange={self.exchange!r}, "
            f"residual={self.residual}"
        )


def _levels_from_exchanged_inputs(spatial: Part, channel: Part, *, compressed: Tensor) -> list[list[Tensor]]:
    s1, c1 = spatial.level1(compressed), channel.level1(compressed)
    s3, c3 = spatial.level3(compressed + c1), channel.level3(compressed + s1)
    s5, c5 = spatial.level5(s3 + c3), channel.level5(c3 + s3)
    return [[s1, s3, s5], [c1, c3, c5]]
