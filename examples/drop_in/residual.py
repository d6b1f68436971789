"""A residual network for super-resolution in the style of EDSR and RCAN, with a block of this library in each branch.

EDSR (Lim et al., 2017) stacks residual blocks of two convolutions without batch norm; RCAN (Zhang et al., 2018) ends
each residual branch with channel attention. Here any block that keeps its width can end the branch: WSILBV, which
scales channels like RCAN's attention, but by contrast and maximum, or SCACB, which also attends to regions.

``python -m examples.drop_in.residual`` prints a summary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.drop_in.tails import pixel_shuffle
from sc_blocks import SCACB, WSILBV


class ResidualBlock(nn.Module):
    """Two convolutions and a block, added to the input.

    Args:
        channels: Width of the input and of the output.
        block: Called with the width to build the block at the end of the branch.

    Example:
        >>> ResidualBlock(24, block=SCACB)(torch.rand(1, 24, 9, 7)).shape
        torch.Size([1, 24, 9, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        block: Callable[[int], nn.Module] = WSILBV,
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            block(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ResidualNet(nn.Module):
    """Upscales images by an integer factor.

    Args:
        scale: The factor.
        channels: Width of the features.
        num_blocks: Number of residual blocks.
        block: Called with the width to build the block at the end of each branch, such as ``WSILBV``, ``SCACB``,
            ``functools.partial(SCACB, reduction=4)`` or ``lambda channels: nn.Identity()`` for EDSR's plain branch.
        tail: Called with the width and the factor to build the upsampling.

    Example:
        >>> net = ResidualNet(scale=2, channels=24, num_blocks=2, block=SCACB)
        >>> net(torch.rand(1, 3, 9, 7)).shape
        torch.Size([1, 3, 18, 14])
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        channels: int = 48,
        num_blocks: int = 8,
        block: Callable[[int], nn.Module] = WSILBV,
        tail: Callable[[int, int], nn.Module] = pixel_shuffle,
    ) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualBlock(channels, block=block) for _ in range(num_blocks)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.tail = tail(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        return self.tail(shallow + self.body(shallow))


def main() -> None:
    """Print a summary of the network with either block."""
    x = torch.rand(1, 3, 33, 47)
    for block in (WSILBV, SCACB):
        net = ResidualNet(block=block)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        print(
            f"ResidualNet with {block.__name__}: {parameters:,} parameters, {tuple(x.shape)} -> {tuple(net(x).shape)}"
        )


if __name__ == "__main__":
    main()
