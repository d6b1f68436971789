"""Two 3x3 convolutions in a row, the second of few channels, as one of 5x5.

Beyond the border of the map the second convolution reads zeros. The merged one reads what the first would make there of
the outermost pixels; that is computed for these lines alone and subtracted.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sc_blocks._eager import eager_in_full, plain_3x3

# How many pixels in a row are written at once: one would leave most of a processor idle, more than five make kernels
# larger than they are worth.
SIDES = (2, 3, 4, 5)
# Pixels of a batch below which composing the kernels takes longer than it saves.
FEWEST = 80 * 80


def pays(first: nn.Module, second: nn.Module, x: Tensor, side: int) -> bool:
    """Whether :func:`convolve_twice` may stand for ``second(first(x))``, unnoticed, and is faster."""
    if not (plain_3x3(first) and plain_3x3(second) and first.out_channels == second.in_channels):
        return False
    # Multiplications for each pixel; as many of them take longer in larger kernels.
    merged = (side + 4) ** 2 * first.in_channels * second.out_channels
    apart = 9 * first.out_channels * (first.in_channels + second.out_channels)
    return (
        3 * merged < 2 * apart
        and eager_in_full(x, *first.parameters(), *second.parameters())
        and _lies_like(x, first.weight, second.weight)
        and x.shape[0] * x.shape[2] * x.shape[3] >= FEWEST
        and x.shape[2] % side == 0
        and x.shape[3] % side == 0
    )


def _lies_like(x: Tensor, *weights: Tensor) -> bool:
    """Whether the result of convolutions lies in memory as ``x`` does: weights in NHWC order would change it."""
    return x.is_contiguous(memory_format=torch.channels_last) or all(weight.is_contiguous() for weight in weights)


def convolve_twice(x: Tensor, first: nn.Conv2d, second: nn.Conv2d, side: int) -> Tensor:
    """``second(first(x))``, ``side`` by ``side`` pixels at once.

    Args:
        x: Shape (N, C, H, W), height and width multiples of ``side`` and at least 2.
        first: A convolution of 3x3 with a padding of 1.
        second: Another, of few channels.
        side: Of the squares that are written at once.
    """
    x, ends, sides = cast("tuple[Tensor, Tensor, Tensor]", _Bordered.apply(x))
    weight, bias = merge(first, second, (side, side))
    tiles = F.conv2d(x, weight, bias, stride=side, padding=2)
    rows = _beyond(ends, first.weight, second.weight, first.bias)
    sideways = first.weight.transpose(2, 3), second.weight.transpose(2, 3)
    columns = _beyond(sides.transpose(2, 3), *sideways, first.bias, corners=False).transpose(2, 3)
    return cast(Tensor, _Tiled.apply(tiles, rows, columns, side))


def merge(
    first: nn.Conv2d, second: nn.Conv2d, tile: tuple[int, int], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that is two; its stride is ``tile``, the pixels of which are its channels."""
    weight, then = first.weight.to(dtype), second.weight.to(dtype)
    kernel = F.conv2d(weight.transpose(0, 1), then.flip(2, 3), padding=2).transpose(0, 1)
    down, across = tile
    shifted = [
        F.pad(kernel, (column, across - 1 - column, row, down - 1 - row))
        for row in range(down)
        for column in range(across)
    ]
    merged = rearrange(torch.stack(shifted, dim=1), "out tile channels y x -> (out tile) channels y x")
    bias = bias_of(second).to(dtype) + then.sum((2, 3)) @ bias_of(first).to(dtype)
    return merged, bias.repeat_interleave(down * across)


def bias_of(conv: nn.Conv2d) -> Tensor:
    """The bias of a convolution, zeros if it has none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


class _Bordered(torch.autograd.Function):
    """A map, its first and last row, and its first and last column.

    Written out because torch makes a gradient as large as the map for every line that is taken from it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = x.shape[2:]
        return x.view_as(x), x[:, :, :: height - 1].clone(), x[..., :: width - 1].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad, ends, sides = grads[0].clone(), *grads[1:]
        grad[:, :, :: grad.shape[2] - 1] += ends
        grad[..., :: grad.shape[3] - 1] += sides
        return grad


class _Tiled(torch.autograd.Function):
    """A map from its squares of pixels, less what belongs to the border.

    Written out because torch copies the whole gradient for every line that is written to a map.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(tiles: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
        result = F.pixel_shuffle(tiles, side)
        height, width = result.shape[2:]
        result[:, :, :: height - 1] -= rows
        result[..., :: width - 1] -= columns
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.side = inputs[3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        height, width = grad.shape[2:]
        return F.pixel_unshuffle(grad, ctx.side), -grad[:, :, :: height - 1], -grad[..., :: width - 1], None


def _beyond(ends: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, *, corners: bool = True) -> Tensor:
    """What the second convolution would read above the first row and below the last, were there no border."""
    # The lines beyond are made with their ends beyond the corners, or without; then those are zeros again.
    longer = int(corners)
    above = F.conv2d(ends[:, :, :1], first[:, :, 2:], bias, padding=(0, 1 + longer))
    below = F.conv2d(ends[:, :, 1:], first[:, :, :1], bias, padding=(0, 1 + longer))
    padding = (0, 1 - longer)
    return torch.cat(
        [F.conv2d(above, second[:, :, :1], padding=padding), F.conv2d(below, second[:, :, 2:], padding=padding)], dim=2
    )
