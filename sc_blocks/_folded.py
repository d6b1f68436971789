"""The rewritten blocks that :func:`sc_blocks.deploy.fold` puts in place of the trained ones.

Feature maps are NCHW to the outside and lie in memory as NHWC inside: a 1x1 convolution is then a product of two
matrices, which is fast where the widths are multiples of 16. Padded channels hold zeros or are multiplied by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks._checks import check_feature_map
from sc_blocks._eager import eager_on_cpu
from sc_blocks._merge import bias_of
from sc_blocks._statistics import RunningStatistics, contrast_and_peak
from sc_blocks.communication import LearnableCommunication, LinearCommunication
from sc_blocks.dracb import DRACB
from sc_blocks.mreb import MREB
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV

# Widths that the matrix products of processors like; also whole blocks of inference engines.
LANES = 16
# Pixels whose wide features are worked on at once, and of whose narrow ones: 0.5 and 1 MB, for a processor's caches.
# Fewer would be lost on what each call of an operator costs.
PIECE, STRIP = 2048, 16384


def in_place(x: Tensor) -> bool:
    """Whether to work in strips and matrix products: on a CPU, unless there is a graph of any kind."""
    return eager_on_cpu(x) and not (x.requires_grad and torch.is_grad_enabled())


def padded(width: int) -> int:
    return -(-width // LANES) * LANES


def pad_to(tensor: Tensor, *shape: int) -> Tensor:
    """Zeros behind the values of the first dimensions, up to ``shape``."""
    missing = [wanted - have for have, wanted in zip(tensor.shape, shape, strict=False)]
    missing += [0] * (tensor.ndim - len(missing))
    return F.pad(tensor, [side for after in reversed(missing) for side in (0, after)])


def widened(conv: nn.Conv2d, in_width: int, out_width: int) -> nn.Conv2d:
    """The same convolution with channels of zeros behind its own, of the input and of the output."""
    depthwise = conv.groups > 1
    if conv.kernel_size == (1, 1):
        # A scale for each channel as a diagonal matrix: a product of so few channels costs no more than a pass over
        # them, and inference engines keep their own order of memory for it.
        weight = torch.diag(conv.weight.flatten())[:, :, None, None] if depthwise else conv.weight
        return Pointwise(pad_to(weight, out_width, in_width), pad_to(bias_of(conv), out_width))
    wide = type(conv)(
        in_width,
        out_width,
        kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
        padding=(conv.kernel_size[0] // 2, conv.kernel_size[1] // 2),
        groups=in_width if depthwise else 1,
        device="meta",
    )
    wide.weight = nn.Parameter(pad_to(conv.weight, out_width, 1 if depthwise else in_width), requires_grad=False)
    wide.bias = nn.Parameter(pad_to(bias_of(conv), out_width), requires_grad=False)
    return wide


def on_pixels(function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """An elementwise function of maps in NHWC order.

    Given as such, and not as NCHW with the strides of NHWC, they take it half as long.
    """
    if not in_place(maps[0]):
        return function(*maps)
    return function(*(map_.permute(0, 2, 3, 1) for map_ in maps)).permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a product of matrices, where that is the faster way."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], 1, device="meta")
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        if in_place(input):
            return self.product(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(input)

    def product(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """For pixels whose channels are the last dimension; ``out``, of two dimensions, is written to."""
        if out is None:
            return F.linear(pixels, self.weight.flatten(1), self.bias)
        return torch.addmm(bias_of(self), pixels, self.weight.flatten(1).t(), out=out)


def pointwise(conv: nn.Conv2d, in_width: int, out_width: int) -> Pointwise:
    return Pointwise(pad_to(conv.weight, out_width, in_width), pad_to(bias_of(conv), out_width))


class FoldedPart(nn.Module):
    """The three levels of a part of SCACB at a padded width."""

    def __init__(self, part: nn.Module, width: int) -> None:
        super().__init__()
        self.conv1, self.conv3, self.conv5 = (
            widened(conv, width, width) for conv in (part.conv1, part.conv3, part.conv5)
        )
        self.act = part.act

    def forward(self, compressed: Tensor) -> list[Tensor]:
        level3 = self.act(self.conv3(compressed))
        return [self.act(self.conv1(compressed)), level3, self.act(self.conv5(level3))]

    def strip(self, compressed: Tensor, own: slice) -> list[Tensor]:
        """The same for the ``own`` rows of a map in NHWC that has up to two more on either side.

        The convolutions read zeros beyond these rows. Where the map goes on, that spoils a row each time, and all that
        are spoilt lie outside of ``own``.
        """
        near = slice(max(0, own.start - 1), own.stop + 1)
        level3 = self.act(in_nhwc(self.conv3, compressed)[:, near])
        level5 = self.act(in_nhwc(self.conv5, level3)[:, own.start - near.start : own.stop - near.start])
        return [
            self.act(in_nhwc(self.conv1, compressed[:, own])),
            level3[:, own.start - near.start : own.stop - near.start],
            level5,
        ]


def in_nhwc(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FoldedSCACB(nn.Module):
    """SCACB between maps of padded width; both parts are weighed by one product."""

    def __init__(self, block: SCACB) -> None:
        super().__init__()
        spatial, channel = block.spatial, block.channel
        if spatial is None or channel is None or spatial.weighing is None or channel.weighing is None:
            raise ValueError("FoldedSCACB: needs a block with both parts.")
        outer, own = padded(block.channels), block.compress.out_channels
        inner = padded(own)
        self.residual, self.exchange, self.act = block.residual, block.exchange == "outputs", block.act
        self.compress = pointwise(block.compress, outer, inner)
        self.spatial, self.channel = FoldedPart(spatial, inner), FoldedPart(channel, inner)
        weights = [spread(weighing.weight, own, inner) for weighing in (spatial.weighing, channel.weighing)]
        if not self.exchange:  # each part reads the levels of its own only
            weights = [F.pad(weights[0], (0, 0, 0, 0, 0, 3 * inner)), F.pad(weights[1], (0, 0, 0, 0, 3 * inner, 0))]
        joined = padded(6 * own)
        bias = torch.cat([bias_of(spatial.weighing), bias_of(channel.weighing)])
        self.weigh = Pointwise(pad_to(torch.cat(weights), joined), pad_to(bias, joined))
        self.fuse = pointwise(block.fuse, joined, outer)

    def forward(self, x: Tensor) -> Tensor:
        compressed = self.act(self.compress(x))
        levels = self._exchanged(self.spatial(compressed), self.channel(compressed))
        fused = self.fuse(self.act(self.weigh(torch.cat(levels, dim=1))))
        return x + fused if self.residual else fused

    def pieces(self, x: Tensor, result: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The same for one map in NHWC, written to another a few pixels at a time: where they are, and their result.

        What is made of them on the way is small enough for the nearest caches.
        """
        _, height, width, channels = x.shape
        pixels, target = x.view(-1, channels), result.view(-1, channels)
        for rows in strips(height, width, STRIP):
            levels = [level.reshape(-1, level.shape[-1]) for level in self._levels(x, rows)]
            for piece in strips(width * (rows.stop - rows.start), 1, PIECE):
                place = slice(width * rows.start + piece.start, width * rows.start + piece.stop)
                joined = torch.cat([level[piece] for level in levels], dim=1)
                fused = self.fuse.product(self.act(self.weigh.product(joined)), out=target[place])
                yield place, fused.add_(pixels[place]) if self.residual else fused

    def _levels(self, x: Tensor, rows: slice) -> list[Tensor]:
        above, below = max(0, rows.start - 2), min(x.shape[1], rows.stop + 2)  # the levels see two rows further
        own = slice(rows.start - above, rows.stop - above)
        compressed = self.act(self.compress.product(x[:, above:below]))
        return self._exchanged(*(part.strip(compressed, own) for part in (self.spatial, self.channel)))

    def _exchanged(self, spatial: list[Tensor], channel: list[Tensor]) -> list[Tensor]:
        return [s + c for s, c in zip(spatial, channel, strict=True)] if self.exchange else [*spatial, *channel]


def spread(weight: Tensor, own: int, inner: int) -> Tensor:
    """Weights for maps of ``own`` channels side by side, moved to where they are at a width of ``inner``."""
    return torch.cat([F.pad(part, (0, 0, 0, 0, 0, inner - own)) for part in torch.split(weight, own, dim=1)], dim=1)


class FoldedMREB(nn.Module):
    """MREB; the maps between its SCACBs and DRACBs have padded widths."""

    def __init__(self, block: MREB) -> None:
        super().__init__()
        outer, own = padded(block.channels), block.distilled_channels
        self.inner = padded(own)
        self.channels = block.channels
        stages, links = cast("list[SCACB]", list(block.stages)), cast("list[DRACB]", list(block.refine.links))
        self.stages = nn.ModuleList(FoldedSCACB(stage) for stage in stages)
        self.distill = nn.ModuleList(pointwise(link.distill, outer, self.inner) for link in links)
        # Of all links but the first, one number for each channel.
        shares = [share_of(link, self.inner) for link in links[1:]]
        self.shares = nn.Parameter(torch.cat(shares)[:, None, None], requires_grad=False)
        # As a plain number where it is one: inference engines have no need to change their order of memory then.
        self.numbers = [share[0].item() if bool((share == share[0]).all()) else None for share in shares]
        self.gate = links[0].gate
        fuse = spread(block.fuse.weight, own, self.inner)
        self.fuse = Pointwise(pad_to(fuse, outer), pad_to(bias_of(block.fuse), outer))
        self.attention = block.attention
        # Inference engines keep an order of memory of their own from one convolution to the next, and in it let one add
        # to a map that is there. A map that was scaled comes in the plain order; times one, it is in theirs.
        self.ones = nn.Parameter(fuse.new_ones(outer, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("MREB", x, self.channels)
        return self.between_wide(widen(x))[:, : self.channels]

    def between_wide(self, x: Tensor) -> Tensor:
        """The block between maps of padded width."""
        if in_place(x):
            results = [self._pieces(sample) for sample in torch.split(x.permute(0, 2, 3, 1), 1)]
            return (results[0] if len(results) == 1 else torch.cat(results)).permute(0, 3, 1, 2)
        if torch.compiler.is_exporting():
            x = F.conv2d(x, self.ones, groups=x.shape[1])
        features, maps = x, [self.distill[0](x)]
        for stage, distill in zip(self.stages, self.distill[1:], strict=True):
            features = stage(features)
            maps.append(distill(features))
        mixed = [maps[0]]
        for previous, own, number, share in zip(
            maps, maps[1:], self.numbers, torch.split(self.shares, self.inner), strict=False
        ):
            mixed.append(own + (previous * share if number is None else number * previous))
        fused = self.fuse(torch.cat([self._gated(map_) for map_ in mixed], dim=1))
        statistics = contrast_and_peak(fused, self.attention.local, self.attention.eps)
        return x + fused * gates(self.attention, statistics, fused.shape[1])

    def _pieces(self, x: Tensor) -> Tensor:
        """The same for one map in NHWC, a few pixels at a time."""
        _, height, width, outer = x.shape
        attention, inner = self.attention, self.inner
        stages, distill = cast("list[FoldedSCACB]", list(self.stages)), cast("list[Pointwise]", list(self.distill))
        maps = x.new_empty(height * width, inner * len(distill))
        own = torch.split(maps, inner, dim=1)
        pieces = strips(height * width, 1, PIECE)
        for piece in pieces:
            distill[0].product(x.view(-1, outer)[piece], out=own[0][piece])
        source, target, spare = x, torch.empty_like(x), torch.empty_like(x)
        for stage, link, map_ in zip(stages, distill[1:], own[1:], strict=True):
            for piece, features in stage.pieces(source, target):
                link.product(features, out=map_[piece])
            source, target, spare = target, (spare if source is x else source), spare
        running, result = RunningStatistics(), target.view(-1, outer)
        for piece in pieces:
            fused = maps[piece].clone()
            fused[:, inner:].addcmul_(self.shares[:, 0, 0], maps[piece, :-inner])
            self.fuse.product(self._gated(fused), out=result[piece])
            running.update(result[piece].t()[None, :, None])
        if attention.local is None:
            statistics = running.contrast_and_peak(attention.eps)
        else:
            statistics = contrast_and_peak(target.permute(0, 3, 1, 2), attention.local, attention.eps)
        gate = gates(attention, statistics, outer).permute(0, 2, 3, 1).expand_as(x)
        for rows in strips(height, width, STRIP):
            torch.addcmul(x[:, rows], target[:, rows], gate[:, rows], out=target[:, rows])
        return target

    def _gated(self, fused: Tensor) -> Tensor:
        if type(self.gate) is nn.Sigmoid:
            return F.silu(fused)
        return fused if self.gate is None else fused * self.gate(fused)


def share_of(link: DRACB, width: int) -> Tensor:
    """What a linear channel multiplies the preceding map by, for each channel of a padded width."""
    channel = link.communication
    if isinstance(channel, LearnableCommunication):
        weight = channel.weight.detach().flatten()
        return pad_to(weight, width) if channel.per_channel else weight.expand(width)
    return link.distill.weight.new_full((width,), channel.weight if isinstance(channel, LinearCommunication) else 0.0)


class FoldedMREBs(nn.Module):
    """Several MREBs of one width in a row; the maps between them keep their padded width."""

    def __init__(self, blocks: list[FoldedMREB]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.channels = blocks[0].channels

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("MREB", x, self.channels)
        wide = widen(x)
        for block in cast("list[FoldedMREB]", list(self.blocks)):
            wide = block.between_wide(wide)
        return wide[:, : self.channels]


class FoldedAlone(nn.Module):
    """A single SCACB between maps of the width that it was built for."""

    def __init__(self, block: SCACB) -> None:
        super().__init__()
        self.channels, self.block = block.channels, FoldedSCACB(block)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("SCACB", x, self.channels)
        wide = widen(x)
        if not in_place(x):
            return self.block(wide)[:, : self.channels]
        wide = wide.permute(0, 2, 3, 1)
        result = torch.empty_like(wide)
        for sample, target in zip(torch.split(wide, 1), torch.split(result, 1), strict=True):
            for _ in self.block.pieces(sample, target):
                pass
        return result.permute(0, 3, 1, 2)[:, : self.channels]


def widen(x: Tensor) -> Tensor:
    """A copy with channels of zeros behind those of a map, up to the next padded width."""
    missing = padded(x.shape[1]) - x.shape[1]
    if in_place(x):  # in NHWC order
        return F.pad(x.permute(0, 2, 3, 1), (0, missing)).contiguous().permute(0, 3, 1, 2)
    return F.pad(x, (0, 0, 0, 0, 0, missing))


def strips(length: int, width: int, size: int) -> list[slice]:
    """The rows of a map ``width`` pixels wide, cut into strips of about ``size`` pixels."""
    step = max(8, size * torch.get_num_threads() // width)  # each thread has a cache
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]


def gates(attention: WSILBV, statistics: tuple[Tensor, Tensor], width: int) -> Tensor:
    contrast, peak = (statistic[:, : attention.channels] for statistic in statistics)
    gate = attention.gate(attention.shared(contrast) + attention.shared(peak))
    return F.pad(gate, (0, 0, 0, 0, 0, width - attention.channels))
