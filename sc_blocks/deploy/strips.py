"""Large maps on a CPU, a few rows at a time: what is computed of a strip stays in the processor's caches."""

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

# Values in a strip for each thread: 2.5 MB in float32. More leave the caches, and of fewer too many belong to halos.
STRIP_VALUES = 5 << 17


def is_on_cpu(x: Tensor) -> bool:
    """Whether a map lies on a CPU, which is not known while torch.fx traces."""
    return not isinstance(x, torch.fx.Proxy) and x.device.type == "cpu"


def runs_on_cpu(x: Tensor) -> bool:
    """Whether the arithmetic on a map runs now, on a CPU, rather than being recorded for a graph or differentiated."""
    if not is_on_cpu(x) or torch.compiler.is_compiling() or not isinstance(x.shape[2], int):
        return False
    return not (torch.is_grad_enabled() and x.requires_grad) and not has_tangent(x)


def has_tangent(x: Tensor) -> bool:
    """Whether a map may carry a tangent, the derivative of forward-mode differentiation."""
    try:
        return forward_ad.unpack_dual(x).tangent is not None
    except RuntimeError:  # under vmap, torch does not tell
        return True


def any_offloaded(*layers: nn.Module | None) -> bool:
    """Whether the weights of a layer are offloaded: only a hook on its call puts them in place."""
    return any(layer is not None and cast(Tensor, layer.weight).is_meta for layer in layers)


def memory_format(x: Tensor) -> torch.memory_format:
    """How a map lies in memory, as NHWC or as NCHW; NCHW if both are the same."""
    return torch.channels_last if x.stride(1) == 1 and not x.is_contiguous() else torch.contiguous_format


def to_layout(x: Tensor, layout: torch.memory_format | None) -> Tensor:
    """A map in a memory format; ``None`` leaves it as it is."""
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

    ``function`` makes maps ``scale`` times as high and wide; a row of its result depends on the ``halo`` rows around
    its own at most. Each strip comes with ``halo`` more rows on either side. Their results are cut off, because the
    function reads zeros beyond them. The first row of each strip is a multiple of ``halo``.
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
            # By the strip: it may be batched by vmap, of a subclass, or on another device than the default one.
            channels, size = strip.shape[1], (scale * height, scale * width)
            if layout == torch.channels_last:
                result = strip.new_empty(batch, *size, channels).movedim(3, 1)
            else:
                result = strip.new_empty(batch, channels, *size)
        result[:, :, scale * first : scale * last] = strip[:, :, scale * (first - above) : scale * (last - above)]
    return result


class StripSCACB(SCACB):
    """An SCACB that works in strips where the map is large. Its two 3x3 convolutions in a row reach two rows far."""

    strip_values = STRIP_VALUES
    # 32 MiB in float32. The memory of larger maps goes back to the system after each use, and clearing it anew takes
    # longer than the arithmetic. The memory of smaller maps is reused, and strips would only add their halos.
    least_values = 8 << 20

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if not runs_on_cpu(x) or x.numel() < self.least_values:
            return self.whole(x)
        return in_strips(self.whole, x, memory_format(x), halo=2, values=self.strip_values)

    def whole(self, x: Tensor) -> Tensor:
        """The result for a map, or for a strip of one, in one go."""
        return super().forward(x)


class MergedSCACB(StripSCACB):
    """A StripSCACB whose parts weigh the same map, the sum of their levels: the two convolutions that do it are one."""

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
    """A WSILBV that takes the statistics of a large map in strips, without maps in between."""

    strip_values, least_values = STRIP_VALUES, 0

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if not runs_on_cpu(x) or self.local is not None or x.shape[2] <= strip_height(x, self.strip_values):
            return super().forward(x)
        return x * gate_in_strips(self, x, self.strip_values)


def gate_in_strips(attention: WSILBV, x: Tensor, values: int) -> Tensor:
    """The gate of a WSILBV without windows.

    Means and variances of strips are joined as in Chan, Golub and LeVeque (1979), without loss by cancellation.
    """
    strips: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    nhwc = memory_format(x) == torch.channels_last
    for rows in torch.split(x, strip_height(x, values), dim=2):
        exact = rows.to(torch.promote_types(x.dtype, torch.float32))
        mean = _over_pixels(torch.mean, exact, nhwc)
        deviation = exact - mean
        variance = _over_pixels(torch.mean, deviation * deviation, nhwc)  # in place, torch's forward-mode AD is wrong
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
    # Rows first: a line of many pixels fills the vector unit, the channels of one pixel do not.
    lines = reduce(rearrange(rows, "n c h w -> n h (w c)"), 1)
    return rearrange(reduce(rearrange(lines, "n (w c) -> n w c", c=rows.shape[1]), 1), "n c -> n c 1 1")
