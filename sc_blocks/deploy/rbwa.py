r"""Rewritten RBWA: upsampling after the convolution, and the last two convolutions merged.

- **Bilinear upsampling by an integer factor and the 3x3 convolution behind it** are both convolutions of the input with
  zeros inserted between its pixels, so they commute: a transposed convolution at low resolution, then a fixed blur of
  each channel. At a factor of 2 that takes a quarter of the multiplications.
- **Two 3x3 convolutions without an activation between them** are one 5x5 convolution with the convolution of their
  kernels. It is faster if the second has few channels. It computes a square of pixels at once, as channels, because a
  few channels would leave most of a processor's vector unit idle.

Neither holds for the outermost pixels, where the convolutions read zero padding. They are computed in the original
order, from narrow bands of the map. Each call recomputes the kernels, so other weights may be loaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks.deploy import strips
from sc_blocks.deploy.strips import MapFunction, in_strips, runs_on_cpu, to_layout
from sc_blocks.rbwa import RBWA

# Blurs of larger factors would cost more than they save.
FACTORS = (2, 3, 4, 5)
# The fastest memory format for transposed and depthwise convolutions on a CPU.
NHWC = torch.channels_last


class FoldedRBWA(RBWA):
    """An RBWA that computes the same in another order, optionally merged with a narrow convolution behind it."""

    strip_values = strips.STRIP_VALUES
    # On smaller inputs, the outermost pixels cost more time than the others save.
    least_values = 1 << 18

    def forward(self, x: Tensor, tail: nn.Conv2d | None = None) -> Tensor:
        self._check_input(x)
        on_cpu = runs_on_cpu(x)
        # On a GPU, resizing is cheap, and the blur and the frame take longer than they save.
        plain = not strips.is_on_cpu(x) or (on_cpu and x.numel() < self.least_values)
        if plain or strips.any_offloaded(self.expand, self.project, tail):
            y = super().forward(x)
            return tail(y) if isinstance(tail, nn.Module) else y  # while torch.fx traces, None is a proxy
        expanded, layout = self._expanded(x), strips.memory_format(x) if on_cpu else None
        if not on_cpu or self.attention.local is not None:
            return self._last(self.act(self.attention(expanded)), tail, lambda rows: rows, layout)
        # Gated strip by strip: the whole gated map would need as much memory again.
        gate = strips.gate_in_strips(self.attention, expanded, self.strip_values)
        return self._last(expanded, tail, lambda rows: self.act(rows * gate), layout)

    def _expanded(self, x: Tensor) -> Tensor:
        """``self.expand(self.resize(x))``."""

        def plain(x: Tensor) -> Tensor:
            return self.expand(self.resize(x))

        if self.scale_factor not in FACTORS:
            return plain(x)
        factor = int(self.scale_factor)
        line, padding = _bilinear_line(factor)
        blur = self.expand.weight.new_tensor(line)
        blur = (blur[:, None] * blur).expand(self.out_channels, 1, -1, -1)
        weight = self.expand.weight.flip(2, 3).transpose(0, 1)

        def commuted(rows: Tensor) -> Tensor:
            if runs_on_cpu(rows):
                rows = to_layout(rows, NHWC)
            around = F.pad(rows, (1, 1, 1, 1), mode="replicate")
            spread = F.conv_transpose2d(around, weight, stride=factor, padding=padding)
            return F.conv2d(spread, blur, self.expand.bias, groups=self.out_channels)

        inner = in_strips(commuted, x, NHWC, halo=1, scale=factor, values=self.strip_values)
        return self.with_frame(inner, x, plain, 2)

    def _last(
        self, x: Tensor, tail: nn.Conv2d | None, prepare: MapFunction, layout: torch.memory_format | None
    ) -> Tensor:
        """``tail(self.project(prepare(x)))``, in the given layout or in that of the convolution."""

        def projected(rows: Tensor) -> Tensor:
            return to_layout(self.project(prepare(rows)), layout)

        if tail is None:
            return in_strips(projected, x, layout or NHWC, halo=1, values=self.strip_values)
        side = merged_side(self)
        weight, bias = _merged(self.project, tail, side)

        def merged(rows: Tensor) -> Tensor:
            squares = F.conv2d(prepare(rows), weight, bias, stride=side, padding=2)
            return to_layout(F.pixel_shuffle(squares, side), layout)

        inner = in_strips(merged, x, layout or NHWC, halo=side, values=self.strip_values)
        return self.with_frame(inner, x, lambda band: tail(projected(band)), 3)

    def with_frame(self, inner: Tensor, x: Tensor, plain: MapFunction, band: int) -> Tensor:
        """Overwrite the outermost pixels of ``inner`` by applying ``plain`` to the outer ``band`` pixels of ``x``."""
        # Export records that these slices are smaller than the map, so that the program rejects maps of two rows or
        # columns. Indexing would avoid that, but take a fifth longer in OpenVINO.
        top, bottom = plain(x[:, :, :band])[:, :, :1], plain(x[:, :, -band:])[:, :, -1:]
        left, right = plain(x[..., :band])[..., :1], plain(x[..., -band:])[..., -1:]
        if runs_on_cpu(x):
            inner[:, :, :1], inner[:, :, -1:], inner[..., :1], inner[..., -1:] = top, bottom, left, right
            return inner
        return self.place_frame(inner, top, bottom, left, right)

    def place_frame(self, inner: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Replace the outermost pixels of a map out of place."""
        # By scatter: inference engines write all of them in one pass, but would copy the map for each slice.
        height, width = inner.shape[2:]
        row = torch.arange(width, device=inner.device)
        column = torch.arange(height, device=inner.device)[1:-1] * width
        place = torch.cat([row, (height - 1) * width + row, column, column + width - 1])
        sides = [top[:, :, 0], bottom[:, :, 0], left[:, :, 1:-1, 0], right[:, :, 1:-1, 0]]
        frame = torch.cat(sides, dim=2)
        return inner.flatten(2).scatter(2, place.expand_as(frame), frame).view_as(inner)


class NarrowConv(nn.Conv2d):
    """A 3x3 convolution directly behind a :class:`FoldedRBWA`, which may be merged with the last one of that."""


class FoldedSequential(nn.Sequential):
    """A Sequential that calls an RBWA together with the narrow convolution behind it."""

    def forward(self, input: Tensor) -> Tensor:
        x, modules = input, list(self)
        while modules:
            module = modules.pop(0)
            following = modules[0] if modules else None
            if isinstance(module, FoldedRBWA) and isinstance(following, NarrowConv) and merged_side(module):
                x = module(x, modules.pop(0))
            else:
                x = module(x)
        return x


def merged_side(block: RBWA) -> int:
    """Side of the pixel squares to compute at once, a divisor of every output size; 0 if there is none."""
    numerator = round(block.scale_factor * block.size_multiple)
    enlarges = block.scale_factor > 1  # the output must be larger than its frame
    return next((side for side in (2, 3, 5) if numerator % side == 0), 0) if enlarges else 0


def why_not_merged(block: RBWA, tail: nn.Conv2d) -> str | None:
    """Return why a convolution is not merged with the last one of an RBWA, or ``None`` if it is."""
    side, width = merged_side(block), block.out_channels
    if side == 0:
        return f"no square of pixels fits scale_factor={block.scale_factor}"
    # Multiplications per pixel; the same number takes longer in a larger kernel.
    together, apart = (side + 4) ** 2 * width * tail.out_channels, 9 * width * (width + tail.out_channels)
    return None if 3 * together < 2 * apart else f"{tail.out_channels} channels are too many to save time"


def _bilinear_line(factor: int) -> tuple[list[float], int]:
    """1-D kernel of bilinear upsampling, for pixels with zeros inserted between them, and its padding."""
    # Keyed by the distance from the first output pixel of an input pixel.
    weights = {d: 1 - abs(d + (factor - 1) / 2) / factor for d in range(-2 * factor, factor + 1)}
    reached = [d for d in weights if weights[d] > 0]
    return [weights[d] for d in reached], factor + 1 + reached[0]


def _merged(first: nn.Conv2d, second: nn.Conv2d, side: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the merged convolution, of stride ``side``, with the pixels of a square as channels."""
    exact = torch.promote_types(first.weight.dtype, torch.float32)
    weight, then = first.weight.to(exact), second.weight.to(exact)
    kernel = F.conv2d(weight.transpose(0, 1), then.flip(2, 3), padding=2).transpose(0, 1)
    squares = [
        F.pad(kernel, (column, side - 1 - column, row, side - 1 - row)) for row in range(side) for column in range(side)
    ]
    bias = then.new_zeros(second.out_channels) if second.bias is None else second.bias.to(exact)
    if first.bias is not None:
        bias = bias + then.sum((2, 3)) @ first.bias.to(exact)
    # Plain ints: the TorchScript-based ONNX exporter needs static kernel shapes.
    shape = (second.out_channels * side**2, first.in_channels, side + 4, side + 4)
    merged = torch.stack(squares, dim=1).reshape(shape)
    return merged.to(first.weight.dtype), bias.repeat_interleave(side * side).to(first.weight.dtype)
