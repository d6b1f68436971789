r"""Weight-sharing information-lossless attention, and the pooled statistics that drive it.

Source: WSILB comes from Cai, Gao, Jia et al., *Image Reconstruction Based on Progressive Multistage Distillation
Convolution Neural Network* (2022), reference 26 of the MREN paper; WSILB-V, section 3.4 of the MREN paper, squeezes the
shared layer. Both read two statistics of each channel: the contrast, which is the mean plus the standard deviation, and
the maximum.

The statistics are computed in float32 or float64, because sums over large maps overflow in half precision. The standard
deviation has an epsilon under its root; without it the gradient of a flat channel is NaN.

Windowed statistics follow Chu et al., *Improving Image Restoration by Revisiting Global Information Aggregation*
(2022): a network trained on patches has seen statistics of patch-sized areas only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks import _checks

Window = tuple[int, int]


class _WeightSharing(nn.Module):
    """Channel attention from two statistics of each channel, which pass through one shared layer."""

    def __init__(
        self,
        channels: int,
        shared: nn.Module,
        *,
        local: Window | None,
        eps: float,
        gate_layer: Callable[[], nn.Module],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _checks.check_finite_number(name, "eps", eps, hint="the default is 1e-6")
        if eps < 0:
            raise ValueError(f"{name}: eps must be 0 or more, got {eps}; the default is 1e-6.")
        self.channels = channels
        self.local = local
        self.eps = eps
        self.shared = shared
        self.gate = _checks.build_layer(name, "gate_layer", gate_layer, device=device, dtype=dtype)

    @property
    def local(self) -> Window | None:
        """Window of the statistics, or ``None`` for the whole map. It may be set at any time."""
        return self._local

    @local.setter
    def local(self, window: Window | None) -> None:
        self._local = None if window is None else _check_window(type(self).__name__, window)

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_feature_map(type(self).__name__, x, self.channels)
        if self.local is None:
            contrast, peak = map_statistics(x, self.eps)
        else:
            contrast, peak = window_statistics(x, self.local, self.eps)
        return x * self.gate(self.shared(contrast) + self.shared(peak))


class WSILB(_WeightSharing):
    r"""Weight-sharing information-lossless attention block: channel attention from contrast and peak.

    Both statistics of a channel pass through the *same* 1x1 convolution :math:`f`:

    .. math::
        y = x \odot \sigma\bigl( f(\mathrm{mean}(x) + \mathrm{std}(x)) + f(\max(x)) \bigr)

    Args:
        channels: Width of the input and of the output.
        local: Height and width, in pixels of the map, of a window around each position, over which the statistics are
            computed; ``None`` for the whole map. A window as large as the map gives exactly the whole-map result.
        eps: Added to the variance under the root. 0 reproduces networks without an epsilon; their gradient on flat
            channels is NaN.
        gate_layer: Called without arguments to build :math:`\sigma`.
        bias: Whether the convolution has a bias.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`.

    Any value range. With the sigmoid each channel is scaled by a number between 0 and 1.

    Raises:
        ValueError: If an argument or the shape of an input is out of range.
        TypeError: If an argument is of another type or an input is not floating-point.

    Number of parameters:
        ``channels * (channels + 1)``; 3,660 at 60 channels.

    Source:
        PMDN, reference 26 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import WSILB
        >>> block = WSILB(60)
        >>> block(torch.rand(2, 60, 24, 17)).shape
        torch.Size([2, 60, 24, 17])
        >>> sum(p.numel() for p in block.parameters())
        3660
    """

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
        _checks.check_positive_int("WSILB", "channels", channels)
        shared = nn.Conv2d(channels, channels, 1, bias=bias, device=device, dtype=dtype)
        super().__init__(channels, shared, local=local, eps=eps, gate_layer=gate_layer, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, local={self.local}, eps={self.eps}"


class WSILBV(_WeightSharing):
    r"""WSILB-V: :class:`WSILB` with a squeezed shared layer, :math:`f = W_2\, \phi(W_1\, \cdot)`.

    .. math::
        y = x \odot \sigma\bigl( f(\mathrm{mean}(x) + \mathrm{std}(x)) + f(\max(x)) \bigr)

    Args:
        channels: Width of the input and of the output, at least ``reduction``.
        reduction: Divisor of the width between the two shared convolutions.
        local: As in :class:`WSILB`.
        eps: As in :class:`WSILB`.
        act_layer: Called without arguments to build :math:`\phi`.
        gate_layer: As in :class:`WSILB`.
        bias: Whether the convolutions have biases.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`.

    Any value range. With the sigmoid each channel is scaled by a number between 0 and 1.

    Raises:
        ValueError: If an argument or the shape of an input is out of range.
        TypeError: If an argument is of another type or an input is not floating-point.

    Number of parameters:
        With ``width = channels // reduction``: ``channels + width * (2 * channels + 1)``; 1,875 at 60 channels.

    Source:
        Section 3.4 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import WSILBV
        >>> WSILBV(60)(torch.rand(2, 60, 24, 17)).shape
        torch.Size([2, 60, 24, 17])
        >>> sum(p.numel() for p in WSILBV(60).parameters())
        1875
    """

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
        _checks.check_positive_int("WSILBV", "channels", channels)
        _checks.check_positive_int("WSILBV", "reduction", reduction)
        width = _checks.check_width(
            "WSILBV", channels // reduction, channels=channels, reduction=reduction, at_least=reduction
        )
        shared = nn.Sequential(
            OrderedDict(
                squeeze=nn.Conv2d(channels, width, 1, bias=bias, device=device, dtype=dtype),
                act=_checks.build_layer("WSILBV", "act_layer", act_layer, device=device, dtype=dtype),
                expand=nn.Conv2d(width, channels, 1, bias=bias, device=device, dtype=dtype),
            )
        )
        super().__init__(channels, shared, local=local, eps=eps, gate_layer=gate_layer, device=device, dtype=dtype)
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"{self.channels}, reduction={self.reduction}, local={self.local}, eps={self.eps}"


def to_local(module: nn.Module, example: Tensor, *, factor: float = 1.5) -> nn.Module:
    """Switch every :class:`WSILB` and :class:`WSILBV` in a network to windowed statistics.

    The network runs once on ``example``, an input as large as the patches that it was trained on. Each block then gets
    a window of the size of the map that it saw, times ``factor``.

    Args:
        module: The network, changed in place.
        example: An input of the training size, such as ``torch.zeros(1, 3, 48, 48)``; only its shape matters.
        factor: Size of the window divided by the size of the map; Chu et al. use 1.5.

    Returns:
        ``module``.

    Raises:
        ValueError: If ``factor`` is not positive, or the run of ``example`` reached no such block.

    Example:
        >>> import torch
        >>> from sc_blocks import WSILBV, to_global, to_local
        >>> block = to_local(WSILBV(60), torch.zeros(1, 60, 48, 48))
        >>> block.local
        (72, 72)
        >>> to_global(block).local is None
        True
    """
    if not factor > 0:
        raise ValueError(f"to_local: factor must be positive, got {factor}; the usual is 1.5.")
    sizes: dict[_WeightSharing, Window] = {}

    def record(block: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(block, _WeightSharing):
            height, width = args[0].shape[2:]
            sizes[block] = (max(1, round(height * factor)), max(1, round(width * factor)))

    hooks = [block.register_forward_pre_hook(record) for block in module.modules() if isinstance(block, _WeightSharing)]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not sizes:
        raise ValueError(f"to_local: {type(module).__name__} ran no WSILB or WSILBV on the example; nothing to switch.")
    for block, window in sizes.items():
        block.local = window
    return module


def to_global(module: nn.Module) -> nn.Module:
    """Switch every :class:`WSILB` and :class:`WSILBV` in a network back to whole-map statistics, in place.

    Args:
        module: The network.

    Returns:
        ``module``.

    Example:
        >>> from sc_blocks import WSILBV, to_global
        >>> to_global(WSILBV(60, local=(8, 8)))
        WSILBV(
          60, reduction=4, local=None, eps=1e-06
          (shared): Sequential(
            (squeeze): Conv2d(60, 15, kernel_size=(1, 1), stride=(1, 1))
            (act): GELU(approximate='none')
            (expand): Conv2d(15, 60, kernel_size=(1, 1), stride=(1, 1))
          )
          (gate): Sigmoid()
        )
    """
    for block in module.modules():
        if isinstance(block, _WeightSharing):
            block.local = None
    return module


def _check_window(block: str, window: Sequence[int]) -> Window:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"{block}: local must be (height, width) or None, got {window!r}; for example local=(72, 72).")
    height, width = window
    return (
        _checks.check_positive_int(block, "local height", height),
        _checks.check_positive_int(block, "local width", width),
    )


def map_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Contrast (mean plus standard deviation) and peak of each channel of a map.

    Args:
        x: The map, :math:`(N, C, H, W)`.
        eps: Added to the variance under the root.

    Returns:
        Both statistics, each :math:`(N, C, 1, 1)`.

    Example:
        >>> import torch
        >>> from sc_blocks.wsilb import map_statistics
        >>> contrast, peak = map_statistics(torch.tensor([[[[0.0, 2.0, 4.0, 6.0]]]]), 0.0)
        >>> contrast.item(), peak.item()
        (5.2360..., 6.0)
    """
    # Mean of squared deviations, not torch.std: it exports to plain reductions at any input size.
    exact = _at_least_float32(x)
    mean = exact.mean((2, 3), keepdim=True)
    deviation = exact - mean
    variance = (deviation * deviation).mean((2, 3), keepdim=True)
    return (mean + torch.sqrt(variance + eps)).to(x.dtype), x.amax((2, 3), keepdim=True)


def window_statistics(x: Tensor, window: Window, eps: float) -> tuple[Tensor, Tensor]:
    """The statistics of :func:`map_statistics` of a window around each position.

    Near a border the window is the nearest one that lies inside the map.

    Args:
        x: The map, :math:`(N, C, H, W)`.
        window: Height and width of the window.
        eps: Added to the variance under the root.

    Returns:
        Both statistics, each :math:`(N, C, H, W)`; :math:`(N, C, 1, 1)` if the window is as large as the map.

    Example:
        >>> import torch
        >>> from sc_blocks.wsilb import window_statistics
        >>> contrast, peak = window_statistics(torch.tensor([[[[0.0, 2.0, 4.0, 6.0]]]]), (1, 3), 0.0)
        >>> peak
        tensor([[[[4., 4., 6., 6.]]]])
    """
    if window[0] >= x.shape[2] and window[1] >= x.shape[3]:
        return map_statistics(x, eps)
    exact = _at_least_float32(x)
    # E[x^2] - E[x]^2 of values shifted towards zero, which takes most of the cancellation out of the difference. The
    # result does not depend on the shift, and so neither does the gradient.
    shift = exact.detach().mean((2, 3), keepdim=True)
    centred = exact - shift
    mean = _pool(F.avg_pool2d, centred, window)
    variance = (_pool(F.avg_pool2d, centred.square(), window) - mean.square()).clamp_min(0)
    return (mean + shift + torch.sqrt(variance + eps)).to(x.dtype), _pool(F.max_pool2d, x, window)


def _pool(pool: Callable[..., Tensor], x: Tensor, window: Window) -> Tensor:
    height, width = min(window[0], x.shape[2]), min(window[1], x.shape[3])
    pooled = pool(pool(x, (height, 1), stride=1), (1, width), stride=1)  # separable: height + width steps a position
    top, left = (height - 1) // 2, (width - 1) // 2
    return F.pad(pooled, (left, width - 1 - left, top, height - 1 - top), mode="replicate")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Leaves for torch.fx, because what they do depends on the size and the type of the map.
torch.fx.wrap("window_statistics")
torch.fx.wrap("_at_least_float32")
