"""Tails of super-resolution networks, which turn the last features into the upscaled image.

Most lightweight networks end with a pixel shuffle. The narrow RBWA tail replaces it in a network of any width: as the
cost of a tail depends mostly on its width, a 1x1 convolution reduces the width before upsampling.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from examples.mren.model import STAGES
from sc_blocks import RBWA


def pixel_shuffle(channels: int, scale: int) -> nn.Module:
    """A convolution that computes all pixels of the upscaled image, and a pixel shuffle.

    Args:
        channels: Width of the features.
        scale: Upscaling factor.

    Example:
        >>> import torch
        >>> pixel_shuffle(48, 4)(torch.rand(1, 48, 9, 7)).shape
        torch.Size([1, 3, 36, 28])
    """
    return nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))


def narrow_rbwa(
    channels: int,
    scale: int,
    *,
    widths: tuple[int, int] = (24, 16),
) -> nn.Module:
    """The tail of MREN-S: a 1x1 convolution, one or two RBWAs, a 3x3 convolution.

    Args:
        channels: Width of the features.
        scale: 2, 3 or 4.
        widths: Width after the 1x1 convolution, and width after the second stage,
            which only ×3 and ×4 have.

    Raises:
        ValueError: If the scale is not supported.

    Example:
        >>> import torch
        >>> narrow_rbwa(48, 3)(torch.rand(1, 48, 9, 7)).shape
        torch.Size([1, 3, 27, 21])
    """
    if scale not in STAGES:
        known = ", ".join(map(str, STAGES))
        raise ValueError(f"narrow_rbwa: scale must be one of {known}; got {scale}.")
    first, last = widths
    wide = [first, first, last][: len(STAGES[scale]) + 1]
    stages = zip(pairwise(wide), STAGES[scale], strict=True)
    return nn.Sequential(
        nn.Conv2d(channels, first, 1),
        *(RBWA(*pair, scale_factor=factor) for pair, factor in stages),
        nn.Conv2d(wide[-1], 3, 3, padding=1),
    )
