r"""Bilinear enlargement by a whole factor :math:`s` and the 3x3 convolution behind it, at the smaller size.

The enlargement is a convolution of the input with :math:`s - 1` zeros put between its pixels, so it commutes with the
one behind it. That one comes first: a transposed convolution of the input, with a product for each tap and input pixel,
then the enlargement as a depthwise convolution with a fixed kernel. Beyond the border, the enlargement repeats the
outermost pixels, but the convolution reads zeros there. What it would have read is a line of the input, enlarged along
its length; that is subtracted from the outermost pixels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks._eager import eager_in_full, plain_3x3

# Larger kernels of the enlargement would cost more than they save.
FACTORS = (2, 3, 4, 5)


def spread_weight(weight: Tensor) -> Tensor:
    """The weight of a convolution for a transposed one that does the same."""
    return weight.flip(2, 3).transpose(0, 1).contiguous()


def enlarging_line(factor: int) -> tuple[list[float], int]:
    """What pixels with zeros between them count for one of the enlarged pixels, in one direction.

    Returns:
        The counts, and how many pixels the transposed convolution makes too many on each side of a map with one more
        pixel all around.
    """
    # Of the output pixel that lies `distance` before the first one of an input pixel.
    counts = {d: 1 - abs(d + (factor - 1) / 2) / factor for d in range(-2 * factor, factor + 1)}
    reached = [d for d in counts if counts[d] > 0]
    return [counts[d] for d in reached], factor + 1 + reached[0]


def enlarging_kernel(spread: Tensor, factor: int) -> Tensor:
    """The enlargement as the weight of a depthwise convolution of a map; it is symmetric."""
    line = spread.new_tensor(enlarging_line(factor)[0])
    return (line[:, None] * line).expand(spread.shape[1], 1, -1, -1).contiguous()


def pays(conv: nn.Module, x: Tensor) -> bool:
    """Whether :func:`enlarge_then_convolve` may stand for a convolution, unnoticed, and is faster."""
    return plain_3x3(conv) and eager_in_full(x, *conv.parameters())


def enlarge_then_convolve(x: Tensor, conv: nn.Conv2d, factor: int) -> Tensor:
    """``conv(interpolate(x, scale_factor=factor, mode="bilinear"))`` for a 3x3 convolution with a padding of 1."""
    weight = conv.weight
    around, ends, sides = cast("tuple[Tensor, Tensor, Tensor]", _Framed.apply(x))
    spread = F.conv_transpose2d(around, spread_weight(weight), stride=factor, padding=enlarging_line(factor)[1])
    rows = _beyond(ends, weight, factor)
    columns = _beyond(sides.transpose(2, 3), weight.transpose(2, 3), factor, corners=False).transpose(2, 3)
    return cast(Tensor, _Enlarged.apply(spread, conv.bias, rows, columns, factor))


class _Framed(torch.autograd.Function):
    """A map with its outermost pixels repeated all around, and these: first and last row, first and last column.

    Written out because torch makes a gradient as large as the map for every line that is taken from it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = x.shape[2:]
        ends, sides = x[:, :, :: max(1, height - 1)].clone(), x[..., :: max(1, width - 1)].clone()
        return F.pad(x, (1, 1, 1, 1), mode="replicate"), ends, sides

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        around, ends, sides = grads
        # What lies beyond a side goes to it, and what lies beyond a corner with it.
        grad = around[:, :, 1:-1, 1:-1].clone()
        for column in (0, -1):
            beyond = around[:, :, 1:-1, column].clone()
            beyond[:, :, 0] += around[:, :, 0, column]
            beyond[:, :, -1] += around[:, :, -1, column]
            grad[..., column] += beyond
        for row in (0, -1):
            grad[:, :, row] += around[:, :, row, 1:-1]
        grad[:, :, :: max(1, grad.shape[2] - 1)] += ends
        grad[..., :: max(1, grad.shape[3] - 1)] += sides
        return grad


class _Enlarged(torch.autograd.Function):
    """The enlargement of a map with zeros between its pixels, plus the bias, less what belongs to the border.

    Written out because torch takes the gradient of a depthwise convolution several times as long as the same
    convolution of the gradient, and copies the whole gradient for every line that is written to a map.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(spread: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor, factor: int) -> Tensor:
        result = F.conv2d(spread, enlarging_kernel(spread, factor), bias, groups=spread.shape[1])
        height, width = result.shape[2:]
        result[:, :, :: height - 1] -= rows
        result[..., :: width - 1] -= columns
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.has_bias, ctx.factor = inputs[1] is not None, inputs[4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        kernel = enlarging_kernel(grad, ctx.factor)
        spread = F.conv2d(grad, kernel, padding=kernel.shape[2] - 1, groups=grad.shape[1])
        bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
        height, width = grad.shape[2:]
        return spread, bias, -grad[:, :, :: height - 1], -grad[..., :: width - 1], None


def _beyond(ends: Tensor, weight: Tensor, factor: int, *, corners: bool = True) -> Tensor:
    """What the taps that reach above the first row and below the last would add to these two, were there no border."""
    lines = F.interpolate(ends, scale_factor=(1, factor), mode="bilinear")
    lines = F.pad(lines, (1, 1, 0, 0), mode="replicate" if corners else "constant")
    first = F.conv2d(lines[:, :, :1], weight[:, :, :1])
    last = F.conv2d(lines[:, :, -1:], weight[:, :, 2:])
    return torch.cat([first, last], dim=2)
