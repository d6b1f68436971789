"""Large maps on a CPU, a few rows at a time: what is made of a strip stays in the processor's caches.

A block that looks no further than ``halo`` rows is given a strip with that many rows more on either side. Inside the map
its convolutions read zeros beyond these rows, which spoils the outermost of them; they are cut off again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sc_blocks.scacb import SCACB

# Values in a strip for each thread: 4 MB in float32. In smaller ones the halos cost more than the caches save.
VALUES = 1 << 20


def runs_on_cpu(x: Tensor) -> bool:
    """Whether a map is computed with at once, on a CPU and without gradients; then its size may be asked for.

    While a graph is recorded, a size is no plain integer.
    """
    if torch.compiler.is_compiling() or not isinstance(x.shape[2], int):
        return False
    return x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad)


def strip_height(x: Tensor, values: int) -> int:
    """Rows of a map that hold about so many values for each thread."""
    return max(1, values * torch.get_num_threads() // max(1, x.shape[0] * x.shape[1] * x.shape[3]))


def in_strips(
    function: Callable[[Tensor], Tensor], x: Tensor, *, halo: int, scale: int = 1, values: int = VALUES
) -> Tensor:
    """Compute ``function(x)`` in strips of rows.

    Args:
        function: From maps to maps ``scale`` times as high and wide, with zeros beyond the border. A row of the result
            depends on the ``halo`` rows around its own at most.
        x: Shape (N, C, H, W).
        halo: Also what the first row of each strip is a multiple of.
        scale: A whole number.
        values: About how many of the result a strip holds for each thread.

    Returns:
        The result. In strips it lies in memory as ``x`` does.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sc_blocks.deploy.strips import in_strips
        >>> conv, x = nn.Conv2d(3, 8, 5, padding=2), torch.rand(2, 3, 60, 40)
        >>> with torch.no_grad():
        ...     torch.allclose(in_strips(conv, x, halo=2, values=1), conv(x), atol=1e-6)
        True
    """
    if not runs_on_cpu(x) or x.shape[0] == 0:
        return function(x)
    batch, _, height, width = x.shape
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    step = max(8, strip_height(x, values // scale**2) // halo) * halo
    if step >= height:
        return function(x).contiguous(memory_format=layout)
    result = x
    for first in range(0, height, step):
        last = min(height, first + step)
        above, below = max(0, first - halo), min(height, last + halo)
        strip = function(x[:, :, above:below])
        if first == 0:
            shape = (batch, strip.shape[1], scale * height, scale * width)
            result = torch.empty(shape, dtype=strip.dtype, memory_format=layout)
        result[:, :, scale * first : scale * last] = strip[:, :, scale * (first - above) : scale * (last - above)]
    return result


def is_channels_last(x: Tensor) -> bool:
    """Whether a map lies in memory as NHWC, and not as NCHW, too."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class StripSCACB(SCACB):
    """An SCACB that works in strips where the map is large; it looks two rows far."""

    values, least_pixels = VALUES, 0

    def forward(self, x: Tensor) -> Tensor:
        return in_strips(super().forward, x, halo=2, values=self.values)
