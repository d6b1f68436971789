"""Weight-sharing information-lossless attention from channel statistics over the whole map or over windows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks import _checks

Window = tuple[int, int]


class _ChannelAttention(nn.Module):
    """Channel attention from two statistics of each channel, passed through one shared layer."""

    _block: str  # in error messages, also those of a folded block

    def __init__(self, channels: int, shared: nn.Module, gate: nn.Module, local: Window | None, eps: float) -> None:
        super().__init__()
        self.channels = channels
        self.local = local
        self.eps = _checks.check_number(self._block, "eps", eps, least=0, hint="the default is 1e-6")
        self.shared = shared
        self.gate = gate

    @property
    def local(self) -> Window | None:
        """Window of the statistics, or ``None`` for the whole map; it may be set at any time."""
        return self._local

    @local.setter
    def local(self, window: Window | None) -> None:
        name = self._block
        if window is not None and (not isinstance(window, (tuple, list)) or len(window) != 2):
            got = f"{_checks.shown(window)}; for example (72, 72)"
            raise TypeError(f"{name}: local must be (height, width) or None, got {got}.")
        sides = zip(("height", "width"), window or (), strict=False)
        checked = [_checks.check_int(name, f"local {axis}", side) for axis, side in sides]
        self._local = (checked[0], checked[1]) if checked else None

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self.local is None:
            contrast, peak = map_statistics(x, self.eps)
        else:
            contrast, peak = _window_statistics(x, self.local, self.eps)
        return x * self.gate(self.shared(contrast) + self.shared(peak))

    def _check_input(self, x: Tensor) -> None:
        first = self.shared[0] if isinstance(self.shared, nn.Sequential) else self.shared
        _checks.check_feature_map(self._block, x, _checks.width_of(first, "in_channels", self.channels))


class WSILB(_ChannelAttention):
    r"""Weight-sharing information-lossless attention block: channel attention from contrast and maximum.

    The contrast of a channel, its mean plus its standard deviation, and its maximum pass through the *same* 1x1
    convolution :math:`f`:

    .. math::
        y = x \odot \sigma\bigl( f(\mathrm{mean}(x) + \mathrm{std}(x)) + f(\max(x)) \bigr)

    Args:
        channels: Width of the input and of the output.
        local: Height and width, in pixels, of a window around each position over which the statistics are computed;
            ``None`` for the whole map. A window as large as the map gives exactly the whole-map result. For a network
            that was trained on patches, :func:`~sc_blocks.to_local` sets it.
        eps: Added to the variance under the square root. With 0, the gradient of a constant channel is NaN.
        gate_layer: Called without arguments to build :math:`\sigma`.
        bias: Whether the convolution has a bias.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`.

        Any value range; the sigmoid scales each channel by a number between 0 and 1.

    Raises:
        ValueError: If an argument or the shape of an input is out of range.
        TypeError: If an argument has the wrong type or an input is not floating-point.

    Number of parameters:
        ``channels * (channels + 1)``; 3,660 at 60 channels.

    Source:
        PMDN, reference 26 of the MREN paper: Cai, Gao, Jia et al., *Image Reconstruction Based on Progressive
        Multistage Distillation Convolution Neural Network* (2022).

    Example:
        >>> import torch
        >>> from sc_blocks import WSILB
        >>> WSILB(60)(torch.rand(2, 60, 24, 17)).shape
        torch.Size([2, 60, 24, 17])
    """

    _block = "WSILB"

    def __init__(
        self,
        channels: int,
        *,
        local: Window | None = None,
        eps: float = 1e-6,
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = _checks.check_int("WSILB", "channels", channels)
        bias = _checks.check_flag("WSILB", "bias", bias)
        shared = nn.Conv2d(channels, channels, 1, bias=bias, device=device, dtype=dtype)
        gate = _checks.build_layer("WSILB", "gate_layer", gate_layer, device=device, dtype=dtype)
        super().__init__(channels, shared, gate, local, eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, local={self.local}, eps={self.eps}"


class WSILBV(_ChannelAttention):
    r"""WSILB-V: :class:`WSILB` whose shared layer is a bottleneck, :math:`f = W_2\, \phi(W_1\, \cdot)`.

    .. math::
        y = x \odot \sigma\bigl( f(\mathrm{mean}(x) + \mathrm{std}(x)) + f(\max(x)) \bigr)

    Args:
        channels: Width of the input and of the output, at least ``reduction``.
        reduction: Divisor of the width between the two shared convolutions.
        local, eps, gate_layer: As in :class:`WSILB`.
        act_layer: Called without arguments to build :math:`\phi`.
        bias: Whether the convolutions have biases.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`.

        Any value range; the sigmoid scales each channel by a number between 0 and 1.

    Raises:
        ValueError: If an argument or the shape of an input is out of range.
        TypeError: If an argument has the wrong type or an input is not floating-point.

    Number of parameters:
        With ``width = channels // reduction``: ``channels + width * (2 * channels + 1)``; 1,875 at 60 channels.

    Source:
        Section 3.4 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import WSILBV
        >>> WSILBV(60)(torch.rand(2, 60, 24, 17)).shape
        torch.Size([2, 60, 24, 17])
    """

    _block = "WSILBV"

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        local: Window | None = None,
        eps: float = 1e-6,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = _checks.check_int("WSILBV", "channels", channels)
        reduction = _checks.check_int("WSILBV", "reduction", reduction)
        width = _checks.reduced_width("WSILBV", channels, reduction)
        bias = _checks.check_flag("WSILBV", "bias", bias)
        squeeze = nn.Conv2d(channels, width, 1, bias=bias, device=device, dtype=dtype)
        act = _checks.build_layer("WSILBV", "act_layer", act_layer, device=device, dtype=dtype)
        expand = nn.Conv2d(width, channels, 1, bias=bias, device=device, dtype=dtype)
        shared = nn.Sequential(OrderedDict(squeeze=squeeze, act=act, expand=expand))
        gate = _checks.build_layer("WSILBV", "gate_layer", gate_layer, device=device, dtype=dtype)
        super().__init__(channels, shared, gate, local, eps)
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"{self.channels}, reduction={self.reduction}, local={self.local}, eps={self.eps}"


def map_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Contrast and peak of each channel of a map, each of shape (N, C, 1, 1).

    Example:
        >>> import torch
        >>> from sc_blocks.wsilb import map_statistics
        >>> contrast, peak = map_statistics(torch.tensor([[[[0.0, 2.0, 4.0, 6.0]]]]), eps=0.0)
        >>> contrast.item(), peak.item()
        (5.2360..., 6.0)
    """
    # Mean of squared deviations, not torch.std: it exports to plain reductions at any input size.
    exact = _at_least_float32(x)
    mean = exact.mean((2, 3), keepdim=True)
    deviation = exact - mean
    variance = (deviation * deviation).mean((2, 3), keepdim=True)
    return (mean + torch.sqrt(variance + eps)).to(x.dtype), x.amax((2, 3), keepdim=True)


def _window_statistics(x: Tensor, window: Window, eps: float) -> tuple[Tensor, Tensor]:
    """Contrast and peak of the window around each position; near a border, of the closest window inside the map."""
    if window[0] >= x.shape[2] and window[1] >= x.shape[3]:
        return map_statistics(x, eps)
    exact = _at_least_float32(x)
    # E[x^2] - E[x]^2 of values shifted to zero mean, which avoids most of the cancellation. The result does not depend
    # on the shift, so no gradient needs to flow through it.
    shift = exact.detach().mean((2, 3), keepdim=True)
    centred = exact - shift
    count = min(window[0], x.shape[2]) * min(window[1], x.shape[3])
    mean = _over_windows(torch.add, torch.sum, centred, window) / count
    variance = (_over_windows(torch.add, torch.sum, centred.square(), window) / count - mean.square()).clamp_min(0)
    peak = _over_windows(torch.maximum, torch.amax, x, window)
    return (mean + shift + torch.sqrt(variance + eps)).to(x.dtype), peak


def _over_windows(combine: Callable[..., Tensor], whole: Callable[..., Tensor], x: Tensor, window: Window) -> Tensor:
    """Sums or maxima over windows: ``combine`` takes two tensors, ``whole`` reduces an entire dimension."""
    margins: list[int] = []  # in the order of F.pad: last dimension first
    for dim, side in ((2, window[0]), (3, window[1])):
        if side >= x.shape[dim]:
            side = x.shape[dim]
            x = whole(x, dim, keepdim=True)
        else:
            x = _along(combine, x, side, dim)
        margins = [(side - 1) // 2, side - 1 - (side - 1) // 2, *margins]
    return F.pad(x, margins, mode="replicate")


def _along(combine: Callable[..., Tensor], x: Tensor, side: int, dim: int) -> Tensor:
    """Reduce windows of ``side`` values along a dimension by combining windows of 1, 2, 4, ... values."""
    count = x.shape[dim] - side + 1
    result, start, width = None, 0, 1
    while start < side:
        if side & width:
            part = x.narrow(dim, start, count)
            result = part if result is None else combine(result, part)
            start += width
        if start < side:
            x = combine(x.narrow(dim, 0, x.shape[dim] - width), x.narrow(dim, width, x.shape[dim] - width))
            width *= 2
    return cast(Tensor, result)


def _at_least_float32(x: Tensor) -> Tensor:
    # Sums over large maps overflow in half precision.
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Leaves for torch.fx, because they branch on the size and dtype of the map.
torch.fx.wrap("_window_statistics")
torch.fx.wrap("_at_least_float32")
