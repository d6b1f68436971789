"""A distillation network for super-resolution in the style of RFDN, built from these blocks.

The idea is that of Liu, Tang and Wu, *Residual Feature Distillation Network for Lightweight Image Super-Resolution*
(2020): a block refines its features stage by stage, keeps a narrow, distilled copy of each stage, and fuses the copies
with attention. Here SCACB is the residual block, a DRACBChain makes the distilled copies, each guided by the attention
map of the previous one, and WSILBV is the attention.

``python -m examples.drop_in.distillation`` prints a summary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.drop_in.tails import pixel_shuffle
from sc_blocks import SCACB, WSILBV, DRACBChain


class DistillationBlock(nn.Module):
    """A sequence of residual blocks with a distilled copy of each stage.

    With the defaults, it is an MREB without the outer shortcut that distils to half of the width instead of a quarter.

    Args:
        channels: Width of the input and of the output, at least 6.
        block: Called with the width to build each residual block.
        distill: Called with the width, half of it and the number of stages to build the module that makes the narrow
            copies. Like a :class:`~sc_blocks.DRACBChain`, it is called with the list of features.
        attention: Called with the width to build the attention.
        num_stages: Number of residual blocks.

    Example:
        >>> DistillationBlock(24)(torch.rand(1, 24, 9, 7)).shape
        torch.Size([1, 24, 9, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        block: Callable[[int], nn.Module] = SCACB,
        distill: Callable[[int, int, int], nn.Module] = DRACBChain,
        attention: Callable[[int], nn.Module] = WSILBV,
        num_stages: int = 3,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(channels) for _ in range(num_stages))
        # One stage more than there are blocks: the input is distilled as well.
        self.distill = distill(channels, channels // 2, num_stages + 1)
        self.fuse = nn.Conv2d((num_stages + 1) * (channels // 2), channels, 1)
        self.attention = attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for block in self.blocks:
            features.append(block(features[-1]))
        return self.attention(self.fuse(torch.cat(self.distill(features), dim=1)))


class DistillationNet(nn.Module):
    """Upscales images by an integer factor.

    Args:
        scale: The factor.
        channels: Width of the features, at least 6.
        num_blocks: Number of distillation blocks, whose outputs are fused.
        block: Called with the width to build each residual block.
        distill: Called with the width, half of it and the number of stages to build the distillation, such as
            ``DRACBChain`` or ``functools.partial(DRACBChain, communication=GatedCommunication)``.
        attention: Called with the width to build each attention.
        tail: Called with the width and the factor to build the upsampling.

    Example:
        >>> net = DistillationNet(scale=4, channels=24, num_blocks=2)
        >>> net(torch.rand(1, 3, 9, 7)).shape
        torch.Size([1, 3, 36, 28])
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        channels: int = 48,
        num_blocks: int = 4,
        block: Callable[[int], nn.Module] = SCACB,
        distill: Callable[[int, int, int], nn.Module] = DRACBChain,
        attention: Callable[[int], nn.Module] = WSILBV,
        tail: Callable[[int, int], nn.Module] = pixel_shuffle,
    ) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList(
            DistillationBlock(channels, block=block, distill=distill, attention=attention) for _ in range(num_blocks)
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(num_blocks * channels, channels, 1), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.tail = tail(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = features = self.head(x)
        collected = []
        for block in self.body:
            features = block(features)
            collected.append(features)
        return self.tail(shallow + self.fuse(torch.cat(collected, dim=1)))


def main() -> None:
    """Print a summary of the network."""
    net, x = DistillationNet(), torch.rand(1, 3, 33, 47)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"DistillationNet: {parameters:,} parameters, {tuple(x.shape)} -> {tuple(net(x).shape)}")


if __name__ == "__main__":
    main()
