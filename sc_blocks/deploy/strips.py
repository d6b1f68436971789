"""Process large maps on a CPU in strips of rows, so that intermediate results stay in the caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.fx
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import forward_ad

from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV

MapFunction = Callable[[Tensor], Tensor]

# Values per strip and thread: 2.5 MB in float32. Larger strips exceed the caches, smaller ones spend more on halos.
STRIP_VALUES = 5 << 17


def is_on_cpu(x: Tensor) -> bool:
    """Whether a map is on a CPU; false while torch.fx traces, which does not know."""
    return not isinstance(x, torch.fx.Proxy) and x.device.type == "cpu"


def runs_on_cpu(x: Tensor) -> bool:
    """Whether operations on a map run now, on a CPU, and are neither traced nor differentiated."""
    if not is_on_cpu(x) or torch.compiler.is_compiling() or not isinstance(x.shape[2], int):
        return False
    return not (torch.is_grad_enabled() and x.requires_grad) and not has_tangent(x)


def has_tangent(x: Tensor) -> bool:
    """Whether a map may carry a tangent of forward-mode differentiation."""
    try:
        return forward_ad.unpack_dual(x).tangent is not None
    except RuntimeError:  # under vmap, torch cannot tell
        return True


def any_offloaded(*layers: nn.Module | None) -> bool:
    """Whether the weights of any layer are offloaded, so that only a hook on its call loads them."""
    return any(layer is not None and cast(Tensor, layer.weight).is_meta for layer in layers)


def memory_format(x: Tensor) -> torch.memory_format:
    """Memory format of a map: NHWC or NCHW; NCHW if both coincide."""
    return torch.channels_last if x.stride(1) == 1 and not x.is_contiguous() else torch.contiguous_format


def to_layout(x: Tensor, layout: torch.memory_format | None) -> Tensor:
    """Convert a map to a memory format; ``None`` leaves it unchanged."""
    if layout == torch.channels_last:
        return x.movedim(1, 3).contiguous().movedim(3, 1)  # vmap has no contiguous(memory_format=...)
    return x if layout is None else x.contiguous()


def strip_height(x: Tensor, values: int) -> int:
    """Number of rows of a map that hold about ``values`` values for each thread."""
    return max(1, values * torch.get_num_threads() // max(1, x.shape[0] * x.shape[1] * x.shape[3]))


def in_strips(
    function: MapFunction, x: Tensor, layout: torch.memory_format, *, halo: int, scale: int = 1, values: int
) -> Tensor:
    """Compute ``function(x)`` in strips of rows that hold about ``values`` values of the result for each thread.

    ``function`` enlarges maps by ``scale``, and a row of its result depends on at most ``halo`` rows on either side.
    Each strip is extended by ``halo`` rows on either side, whose results are cut off, because the function reads zeros
    beyond them. The first row of each strip is a multiple of ``halo``.
    """
    if not runs_on_cpu(x):
        return function(x)
    batch, _, height, width = x.shape
    strips = -(-height // max(8 * halo, strip_height(x, values // scale**2)))
    if strips == 1 or batch == 0:
        return function(x)
    step = -(-height // (strips * halo)) * halo  # strips of about equal height
    result = x
    for first in range(0, height, step):
        last = min(height, first + step)
        above, below = max(0, first - halo), min(height, last + halo)
        strip = function(x[:, :, above:below])
        if first == 0:
            # Allocated like the strip, which may be batched by vmap, a tensor subclass, or not on the default device.
            channels, size = strip.shape[1], (scale * height, scale * width)
            if layout == torch.channels_last:
                result = strip.new_empty(batch, *size, channels).movedim(3, 1)
            else:
                result = strip.new_empty(batch, channels, *size)
        result[:, :, scale * first : scale * last] = strip[:, :, scale * (first - above) : scale * (last - above)]
    return result


class StripSCACB(SCACB):
    """An SCACB that processes large maps in strips. Its two consecutive 3x3 convolutions need a halo of two rows."""

    strip_values = STRIP_VALUES
    # 32 MiB in float32. The memory of larger maps returns to the system after each use, and zeroing new pages takes
    # longer than the arithmetic. The memory of smaller maps is reused, and strips would only add their halos.
    least_values = 8 << 20

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if not runs_on_cpu(x) or x.numel() < self.least_values:
            return self.whole(x)
        return in_strips(self.whole, x, memory_format(x), halo=2, values=self.strip_values)

    def whole(self, x: Tensor) -> Tensor:
        """Compute the result for a whole map, or for one strip."""
        return super().forward(x)


class MergedSCACB(StripSCACB):
    """A StripSCACB with its two weighing convolutions merged: both read the same map, the sum of the levels."""

    def whole(self, x: Tensor) -> Tensor:
        spatial, channel = self.spatial, self.channel
        if spatial is None or channel is None or not is_on_cpu(x):
            return super().whole(x)
        if any_offloaded(spatial["weighing"], channel["weighing"]):
            return super().whole(x)
        act = spatial["act"]
        compressed = self.act(self.compress(x))
        level1 = act(spatial["conv1"](compressed)) + act(channel["conv1"](compressed))
        spatial3, channel3 = act(spatial["conv3"](compressed)), act(channel["conv3"](compressed))
        level5 = act(spatial["conv5"](spatial3)) + act(channel["conv5"](channel3))
        levels = torch.cat([level1, spatial3 + channel3, level5], dim=1)
        first, second = cast(nn.Conv2d, spatial["weighing"]), cast(nn.Conv2d, channel["weighing"])
        bias = None if first.bias is None or second.bias is None else torch.cat([first.bias, second.bias])
        weighed = act(F.conv2d(levels, torch.cat([first.weight, second.weight]), bias))
        fused = self.fuse(weighed)
        return x + fused if self.residual else fused


class StripWSILBV(WSILBV):
    """A WSILBV that computes the statistics of large maps in strips, without intermediate maps."""

    strip_values, least_values = STRIP_VALUES, 0

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if not runs_on_cpu(x) or self.local is not None or x.shape[2] <= strip_height(x, self.strip_values):
            return super().forward(x)
        return x * gate_in_strips(self, x, self.strip_values)


def gate_in_strips(attention: WSILBV, x: Tensor, values: int) -> Tensor:
    """Compute the gate of a WSILBV without windows.

    Means and variances of strips are combined as in Chan, Golub and LeVeque (1979), which avoids cancellation.
    """
    strips: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    nhwc = memory_format(x) == torch.channels_last
    for rows in torch.split(x, strip_height(x, values), dim=2):
        exact = rows.to(torch.promote_types(x.dtype, torch.float32))
        mean = _over_pixels(torch.mean, exact, nhwc)
        deviation = exact - mean
        # Not in place: torch's forward-mode AD would be wrong.
        variance = _over_pixels(torch.mean, deviation * deviation, nhwc)
        fraction = torch.full_like(mean, rows.shape[2] / x.shape[2])
        strips.append((fraction, mean, variance, _over_pixels(torch.amax, rows, nhwc)))
    fraction, each, variances, peaks = map(torch.stack, zip(*strips, strict=True))
    mean = (fraction * each).sum(0)
    variance = (fraction * (variances + (each - mean).square())).sum(0)
    contrast, peak = (mean + torch.sqrt(variance + attention.eps)).to(x.dtype), peaks.amax(0)
    return attention.gate(attention.shared(contrast) + attention.shared(peak))


def _over_pixels(reduce: Callable[..., Tensor], rows: Tensor, nhwc: bool) -> Tensor:
    if not nhwc:
        return reduce(rows, (2, 3), keepdim=True)
    # Rows first: a row of many pixels fills the vector unit, the channels of one pixel do not.
    lines = reduce(rearrange(rows, "n c h w -> n h (w c)"), 1)
    return rearrange(reduce(rearrange(lines, "n (w c) -> n w c", c=rows.shape[1]), 1), "n c -> n c 1 1")
