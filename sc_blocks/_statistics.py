"""The statistics that drive WSILB and WSILBV: contrast and peak of each channel, over the map or in windows.

On a CPU they are taken in strips of rows, and so are their gradients; see :mod:`sc_blocks.wsilb` for what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sc_blocks._eager import eager_on_cpu


def contrast_and_peak(x: Tensor, window: tuple[int, int] | None, eps: float) -> tuple[Tensor, Tensor]:
    """Contrast (mean plus standard deviation) and peak of each channel, over the map or a window at each position.

    Example:
        >>> import torch
        >>> from sc_blocks._statistics import contrast_and_peak
        >>> contrast, peak = contrast_and_peak(torch.tensor([[[[0.0, 2.0, 4.0, 6.0]]]]), None, 0.0)
        >>> contrast.item(), peak.item()
        (5.2360..., 6.0)
    """
    if window is not None and (window[0] < x.shape[2] or window[1] < x.shape[3]):
        return _windowed(x, window, eps)
    if eager_on_cpu(x):
        contrast, peak, _, _ = cast("tuple[Tensor, Tensor, Tensor, Tensor]", _Statistics.apply(x, eps))
        return contrast, peak
    return _contrast_and_peak(x, eps)


def _contrast_and_peak(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    # Mean of squared deviations, not torch.std: it exports to plain reductions at any input size.
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = exact.mean((2, 3), keepdim=True)
    deviation = exact - mean
    variance = (deviation * deviation).mean((2, 3), keepdim=True)
    return (mean + torch.sqrt(variance + eps)).to(x.dtype), x.amax((2, 3), keepdim=True)


class _Statistics(torch.autograd.Function):
    """Both statistics in strips, which stay in the cache between the passes over them, and without maps in between.

    Mean and standard deviation are returned too, for the way back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        statistics = RunningStatistics()
        for rows in torch.split(x, strip_height(x), dim=2):
            statistics.update(rows)
        mean, deviation, peak = statistics.moments(eps)
        return (mean + deviation).to(x.dtype), peak, mean, deviation

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, ...]) -> None:
        x, ctx.eps = inputs
        _, peak, mean, deviation = output
        ctx.mark_non_differentiable(mean, deviation)
        ctx.save_for_backward(x, peak, mean, deviation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, peak, mean, deviation = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        contrast_grad, peak_grad = grads[:2]
        if torch.is_grad_enabled():  # for a second derivative
            (exact,) = torch.autograd.grad(_contrast_and_peak(x, ctx.eps), (x,), grads[:2], create_graph=True)
            return exact, None
        slope = contrast_grad / (x.shape[2] * x.shape[3] * deviation)
        start = slope * (deviation - mean)
        result = torch.empty_like(x)
        for rows, target in zip(*(torch.split(map_, strip_height(x), dim=2) for map_ in (x, result)), strict=True):
            target.copy_(torch.addcmul(start, rows.to(slope.dtype), slope))
        # The peak's share goes to few pixels, as a rule one; where there are more, to all alike, as torch.amax has it.
        sample, channel, row, column = torch.nonzero(x == peak, as_tuple=True)
        map_number = sample * x.shape[1] + channel
        equals = torch.bincount(map_number, minlength=peak.numel())
        share = (peak_grad.flatten() / equals)[map_number].to(x.dtype)
        result.index_put_((sample, channel, row, column), share, accumulate=True)
        return result, None


# Values in a strip of rows: 2 MB in float32, which a processor's cache holds beside what is made of it.
STRIP = 1 << 19


def strip_height(x: Tensor) -> int:
    """Rows of a map that make a strip.

    Example:
        >>> import torch
        >>> from sc_blocks._statistics import strip_height
        >>> strip_height(torch.empty(1, 64, 2048, 2048)) == 4 * torch.get_num_threads()
        True
    """
    return max(1, STRIP * torch.get_num_threads() // max(1, x.shape[0] * x.shape[1] * x.shape[3]))


class RunningStatistics:
    """Contrast and peak of a map that comes in strips of rows, each read once from memory.

    The means and squared deviations of the strips are joined as Chan, Golub and LeVeque do (1979), so that nothing is
    lost to cancellation.

    Example:
        >>> import torch
        >>> from sc_blocks._statistics import RunningStatistics, contrast_and_peak
        >>> x, statistics = torch.rand(1, 60, 24, 17), RunningStatistics()
        >>> for rows in x.split(5, dim=2):
        ...     statistics.update(rows)
        >>> for ours, whole in zip(statistics.contrast_and_peak(1e-6), contrast_and_peak(x, None, 1e-6)):
        ...     print(torch.allclose(ours, whole, atol=1e-6))
        True
        True
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[Tensor] = []
        self._deviations: list[Tensor] = []
        self._peaks: list[Tensor] = []
        self._dtype = torch.float32

    def update(self, rows: Tensor) -> None:
        """Take in a strip, shape (N, C, rows, W)."""
        self._dtype = rows.dtype
        exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
        mean = exact.mean((2, 3), keepdim=True)
        self._counts.append(rows.shape[2] * rows.shape[3])
        self._means.append(mean)
        self._deviations.append((exact - mean).square_().sum((2, 3), keepdim=True))
        self._peaks.append(rows.amax((2, 3), keepdim=True))

    def contrast_and_peak(self, eps: float) -> tuple[Tensor, Tensor]:
        """The statistics of all strips, both of shape (N, C, 1, 1)."""
        mean, deviation, peak = self.moments(eps)
        return (mean + deviation).to(self._dtype), peak

    def moments(self, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation, in float32 at least, and peak of all strips."""
        means = torch.stack(self._means)
        counts = means.new_tensor(self._counts).reshape(-1, 1, 1, 1, 1)
        mean = (counts * means).sum(0) / counts.sum()
        deviation = torch.stack(self._deviations).sum(0) + (counts * (means - mean).square()).sum(0)
        return mean, torch.sqrt(deviation / counts.sum() + eps), torch.stack(self._peaks).amax(0)


def _windowed(x: Tensor, window: tuple[int, int], eps: float) -> tuple[Tensor, Tensor]:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    # E[x^2] - E[x]^2 of values shifted towards zero, which takes most of the cancellation out of the difference.
    # It cancels out, and so would its gradient, but for rounding.
    shift = exact.detach().mean((2, 3), keepdim=True)
    centred = exact - shift
    mean = _sliding(F.avg_pool2d, centred, window)
    variance = (_sliding(F.avg_pool2d, centred.square(), window) - mean.square()).clamp_min(0)
    return (mean + shift + torch.sqrt(variance + eps)).to(x.dtype), _sliding(F.max_pool2d, x, window)


def _sliding(pool: Callable[..., Tensor], x: Tensor, window: tuple[int, int]) -> Tensor:
    """Pool over a window around each position; near a border, over the nearest window that lies inside the map."""
    height, width = min(window[0], x.shape[2]), min(window[1], x.shape[3])
    pooled = pool(pool(x, (height, 1), stride=1), (1, width), stride=1)  # separable: height + width steps a position
    top, left = (height - 1) // 2, (width - 1) // 2
    return F.pad(pooled, (left, width - 1 - left, top, height - 1 - top), mode="replicate")
