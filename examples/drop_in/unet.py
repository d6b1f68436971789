"""A U-Net for denoising in the style of NAFNet, with one DRACBChain across its levels.

NAFNet (Chen et al., *Simple Baselines for Image Restoration*, 2022) is a U-Net of blocks with gates instead of
activations and a light channel attention; here that is WSILBV. The skip connections are the stages of one chain: each
stage distils the features of its level to half their width, guided by the map of the finer level, which the chain
resamples and projects.

``python -m examples.drop_in.unet`` prints a summary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks import WSILBV, DRACBChain

ChainedSkips = partial(DRACBChain, resample="bilinear")


class GatedBlock(nn.Module):
    """A residual block whose branch multiplies one half of the channels by the other and applies attention.

    Args:
        channels: Width of the input and of the output, at least 4.
        attention: Called with the width to build the attention.

    Example:
        >>> GatedBlock(16)(torch.rand(1, 16, 9, 7)).shape
        torch.Size([1, 16, 9, 7])
    """

    def __init__(self, channels: int, *, attention: Callable[[int], nn.Module] = WSILBV) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = attention(channels)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.depthwise(self.expand(self.norm(x))).chunk(2, dim=1)
        return x + self.fuse(self.attention(left * right))


class UNet(nn.Module):
    """Restores an image of any size, from 1 x 1: it pads itself and crops the result.

    Args:
        channels: Width at full size, at least 4; each level is twice as wide as the one above.
        num_levels: Number of times the size is halved.
        num_blocks: Number of gated blocks of each level, in the encoder and in the decoder.
        attention: Called with the width to build the attention of each gated block.
        skips: Called with the widths of the levels and half of these to build the skip connections. Like a
            :class:`~sc_blocks.DRACBChain`, they are called with the list of features and have ``out_channels``.

    Attributes:
        size_multiple: Heights and widths are padded to multiples of it.

    Example:
        >>> UNet(channels=8)(torch.rand(1, 3, 9, 7)).shape
        torch.Size([1, 3, 9, 7])
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        num_levels: int = 3,
        num_blocks: int = 1,
        attention: Callable[[int], nn.Module] = WSILBV,
        skips: Callable[[list[int], list[int]], nn.Module] = ChainedSkips,
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(num_levels)]
        self.size_multiple = 2**num_levels

        def blocks(width: int) -> nn.Sequential:
            return nn.Sequential(*(GatedBlock(width, attention=attention) for _ in range(num_blocks)))

        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(width) for width in widths)
        self.downs = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, stride=2) for width in widths)
        self.skips = skips(widths, [width // 2 for width in widths])
        self.middle = blocks(2 * widths[-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2)) for width in widths
        )
        self.merges = nn.ModuleList(
            nn.Conv2d(width + across, width, 1) for width, across in zip(widths, self.skips.out_channels, strict=True)
        )
        self.decoders = nn.ModuleList(blocks(width) for width in widths)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        # Replication works for any image; reflection needs one larger than the padding.
        below, right = (-size % self.size_multiple for size in (height, width))
        padded = F.pad(x, (0, right, 0, below), mode="replicate")
        features, levels = self.head(padded), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            levels.append(encoder(features))
            features = down(levels[-1])
        across = self.skips(levels)
        features = self.middle(features)
        for level in reversed(range(len(across))):
            features = torch.cat([self.ups[level](features), across[level]], dim=1)
            features = self.decoders[level](self.merges[level](features))
        return x + self.tail(features)[:, :, :height, :width]


def main() -> None:
    """Print a summary of the network."""
    net, x = UNet(), torch.rand(1, 3, 33, 47)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"UNet: {parameters:,} parameters, {tuple(x.shape)} -> {tuple(net(x).shape)}")


if __name__ == "__main__":
    main()
