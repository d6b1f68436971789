"""A residual network for super-resolution, in the manner of EDSR and RCAN, with a block of this library in each branch.

EDSR (Lim et al., 2017) adds two convolutions to their input, again and again, without batch norm; RCAN (Zhang et al.,
2018) ends each such branch in channel attention. Here that place takes any block that keeps its width: WSILBV, which
weighs channels as RCAN's attention does, but by contrast and peak, or SCACB, which looks at regions as well.

``python -m examples.drop_in.residual`` prints what it is.
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
        block: Called with the width to build what ends the branch.

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
    """Enlarges images by an integer factor.

    Args:
        scale: The factor.
        channels: Width of the features.
        num_blocks: Number of residual blocks.
        block: Called with the width to build what ends each branch, such as ``WSILBV``, ``SCACB``,
            ``functools.partial(SCACB, reduction=4)`` or ``lambda channels: nn.Identity()`` for EDSR's plain branch.
        tail: Called with the width and the factor to build what makes the larger image.

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
    """Print what the network is, with either block."""
    x = torch.rand(1, 3, 33, 47)
    for block in (WSILBV, SCACB):
        net = ResidualNet(block=block)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        print(
            f"ResidualNet with {block.__name__}: {parameters:,} parameters, {tuple(x.shape)} -> {tuple(net(x).shape)}"
        )


if __name__ == "__main__":
    main()
