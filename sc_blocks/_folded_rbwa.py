"""RBWA as :func:`sc_blocks.deploy.fold` rewrites it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sc_blocks._checks import check_feature_map
from sc_blocks._enlarge import FACTORS, enlarging_kernel, enlarging_line, spread_weight
from sc_blocks._folded import gates, in_place, on_pixels, padded, widened
from sc_blocks._merge import merge
from sc_blocks._statistics import RunningStatistics, contrast_and_peak, strip_height
from sc_blocks.rbwa import RBWA


class Enlarge(nn.Module):
    """Bilinear enlargement by a whole factor and the 3x3 convolution behind it, as in :mod:`sc_blocks._enlarge`.

    Here the outermost pixels are computed the plain way.
    """

    def __init__(self, conv: nn.Conv2d, factor: int) -> None:
        super().__init__()
        self.conv, self.factor = conv, factor
        self.weight = nn.Parameter(spread_weight(conv.weight), requires_grad=False)
        self.blur = nn.Parameter(enlarging_kernel(conv.weight.transpose(0, 1), factor), requires_grad=False)
        self.border = enlarging_line(factor)[1]  # what is left of the padding, the same on all sides

    def plain(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return self.conv(enlarged)

    def inner(self, x: Tensor, above: int = 1, below: int = 1) -> Tensor:
        """The result but for its frame; without ``above`` or ``below``, x begins or ends with a row too many."""
        around = F.pad(x, (1, 1, above, below), mode="replicate")
        spread = F.conv_transpose2d(around, self.weight, stride=self.factor, padding=self.border)
        return F.conv2d(spread, self.blur, self.conv.bias, groups=self.conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return framed(self.inner(x), [self.plain(band) for band in bands(x, 2)])


class PlainEnlarge(nn.Module):
    """Bilinear enlargement by any factor and the convolution behind it, one after the other."""

    def __init__(self, conv: nn.Conv2d, resize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.resize = conv, resize

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.resize(x))


class LastConv(nn.Module):
    """A 3x3 convolution that can be worked off in strips."""

    reach, tile = 1, (1, 1)

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.plain = conv

    def rows(self, x: Tensor) -> Tensor:
        """The result for all rows of x but ``reach`` at either end."""
        return F.conv2d(x, self.plain.weight, self.plain.bias, padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x)


class MergedConvs(nn.Module):
    """Two 3x3 convolutions in a row as one of 5x5, as in :mod:`sc_blocks._merge`.

    Here the outermost pixels are computed the plain way.
    """

    reach = 2

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, tile: tuple[int, int]) -> None:
        super().__init__()
        self.plain, self.tile = nn.Sequential(first, second), tile
        weight, bias = merge(first, second, tile, torch.float64)
        weight = weight.to(first.weight.dtype).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)

    def rows(self, x: Tensor, *, padding: int = 0) -> Tensor:
        """The result but for the frame, for all rows of x but ``reach`` at either end, or all with that ``padding``."""
        down, across = self.tile
        height, width = x.shape[2] + 2 * padding - 4, x.shape[3]
        if height % down or width % across:
            raise ValueError(
                f"RBWA: height and width of the result must be multiples of the tile {self.tile}, got {height} x "
                f"{width}."
            )
        tiles = F.conv2d(x, self.weight, self.bias, stride=self.tile, padding=(padding, 2))
        return rearrange(tiles, "n (out down across) h w -> n out (h down) (w across)", down=down, across=across)

    def forward(self, x: Tensor) -> Tensor:
        return framed(self.rows(x, padding=2), [self.plain(band) for band in bands(x, 3)])


def bands(x: Tensor, size: int) -> list[Tensor]:
    """The first and last rows of a map and its first and last columns: what its frame is computed from."""
    return [x[:, :, :size], x[:, :, -size:], x[..., :size], x[..., -size:]]


def framed(inner: Tensor, sides: list[Tensor]) -> Tensor:
    """A map with the frame that was computed from the :func:`bands`.

    Written to its place by number: inference engines do so in the map as it lies in memory, and would copy it once for
    each direction in which it was put together.
    """
    top, bottom, left, right = sides
    height, width = inner.shape[2:]
    row = torch.arange(width, device=inner.device)
    column = torch.arange(height, device=inner.device)[1:-1] * width
    place = torch.cat([row, (height - 1) * width + row, column, column + width - 1])
    values = [top[:, :, 0], bottom[:, :, -1], left[:, :, 1:-1, 0], right[:, :, 1:-1, -1]]
    frame = torch.cat(values, dim=2)
    return inner.flatten(2).scatter(2, place.expand_as(frame), frame).view_as(inner)


class FoldedRBWA(nn.Module):
    """RBWA, with the convolution that directly follows it if there is one."""

    def __init__(self, block: RBWA, tail: nn.Conv2d | None = None, tile: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.in_channels, self.size_multiple = block.in_channels, block.size_multiple
        width, factor = padded(block.out_channels), block.scale_factor
        conv = widened(block.expand, block.in_channels, width)
        self.expand = Enlarge(conv, int(factor)) if factor in FACTORS else PlainEnlarge(conv, block.resize)
        self.attention, self.act = block.attention, block.act
        project = widened(block.project, width, block.out_channels)
        self.last = LastConv(project) if tail is None else MergedConvs(project, tail, tile)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("RBWA", x, self.in_channels, size_multiple=self.size_multiple)
        if in_place(x):
            return self._project_strips(*self._expand_strips(x.contiguous(memory_format=torch.channels_last)))
        expanded = self.expand(x)
        statistics = contrast_and_peak(expanded, self.attention.local, self.attention.eps)
        return self.last(self.act(expanded * gates(self.attention, statistics, expanded.shape[1])))

    def _attended(self, expanded: Tensor, gate: Tensor) -> Tensor:
        return self.act(expanded * gate)

    def _expand_strips(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The expanded map and its gates."""
        expand, attention = self.expand, self.attention
        if isinstance(expand, PlainEnlarge):
            expanded = expand(x)
            statistics = contrast_and_peak(expanded, attention.local, attention.eps)
            return expanded, gates(attention, statistics, expanded.shape[1])
        (batch, _, height, width), factor = x.shape, expand.factor
        shape = (batch, expand.conv.out_channels, factor * height, factor * width)
        expanded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        running = RunningStatistics()
        sides = [expand.plain(band) for band in bands(x, 2)]
        step = max(1, strip_height(expanded) // factor)
        for first in range(0, height, step):
            stop = min(first + step, height)
            above, below = int(first == 0), int(stop == height)
            strip = slice(factor * first, factor * stop)
            expanded[:, :, strip] = expand.inner(x[:, :, first - 1 + above : stop + 1 - below], above, below)
            frame_strip(expanded, sides, strip)
            running.update(expanded[:, :, strip])
        if attention.local is None:
            statistics = running.contrast_and_peak(attention.eps)
        else:
            statistics = contrast_and_peak(expanded, attention.local, attention.eps)
        return expanded, gates(attention, statistics, expanded.shape[1])

    def _project_strips(self, expanded: Tensor, gate: Tensor) -> Tensor:
        last, height = self.last, expanded.shape[2]
        gate = gate.expand_as(expanded)
        down = last.tile[0]
        step = max(1, strip_height(expanded) // down) * down
        batch, _, _, width = expanded.shape
        result = expanded.new_empty(0)
        for first in range(0, height, step):
            stop = min(first + step, height)
            read = slice(max(0, first - last.reach), min(height, stop + last.reach))
            rows = on_pixels(self._attended, expanded[:, :, read], gate[:, :, read])
            beyond = (read.start - (first - last.reach), stop + last.reach - read.stop)
            if any(beyond):
                rows = F.pad(rows, (0, 0, *beyond))  # zeros, as the convolution would read there
            strip = last.rows(rows)
            if first == 0:
                shape = (batch, strip.shape[1], height, width)
                result = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=torch.channels_last)
            result[:, :, first:stop] = strip
        if isinstance(last, MergedConvs):
            sides = [last.plain(self._attended(x, g)) for x, g in zip(bands(expanded, 3), bands(gate, 3), strict=True)]
            frame_strip(result, sides, slice(0, height))
        return result


def frame_strip(strip_of: Tensor, sides: list[Tensor], strip: slice) -> None:
    """Write the frame that was computed from the :func:`bands` into a strip of rows of a map."""
    top, bottom, left, right = sides
    strip_of[:, :, strip, :1] = left[:, :, strip, :1]
    strip_of[:, :, strip, -1:] = right[:, :, strip, -1:]
    if strip.start == 0:
        strip_of[:, :, :1] = top[:, :, :1]
    if strip.stop == strip_of.shape[2]:
        strip_of[:, :, -1:] = bottom[:, :, -1:]
