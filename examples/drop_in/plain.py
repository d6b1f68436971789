"""The baselines of ``compare``: the parts that blocks of this library replace in the hosts.

These are the shallow residual block and the 1x1 distillation of RFDN, the simplified channel attention of NAFNet, plain
skip connections, and the contrast-aware attention of IMDN (Hui et al., 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from examples.peers import CCA

ContrastAttention = partial(CCA, reduction=4)  # the usual 16 would leave too few channels in a narrow host


class ShallowResidual(nn.Module):
    """A convolution with a shortcut, then the activation.

    Args:
        channels: Width of the input and of the output.

    Example:
        >>> import torch
        >>> ShallowResidual(8)(torch.rand(1, 8, 9, 7)).shape
        torch.Size([1, 8, 9, 7])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.LeakyReLU(0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.conv(x))


class Distillation(nn.Module):
    """An independent 1x1 convolution and activation for each stage; called like a ``DRACBChain``.

    Args:
        in_channels: Width of the features.
        out_channels: Width of the distilled features.
        length: Number of stages.

    Example:
        >>> import torch
        >>> kept = Distillation(8, 4, 2)([torch.rand(1, 8, 9, 7), torch.rand(1, 8, 9, 7)])
        >>> len(kept), kept[0].shape
        (2, torch.Size([1, 4, 9, 7]))
    """

    def __init__(self, in_channels: int, out_channels: int, length: int) -> None:
        super().__init__()
        self.links = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in range(length))
        self.act = nn.LeakyReLU(0.05)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.act(link(x)) for link, x in zip(self.links, features, strict=True))


class ChannelAttention(nn.Module):
    """Scales channels by a linear map of their means.

    Args:
        channels: Width of the input and of the output.

    Example:
        >>> import torch
        >>> ChannelAttention(8)(torch.rand(1, 8, 9, 7)).shape
        torch.Size([1, 8, 9, 7])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3), keepdim=True))


class Skips(nn.Module):
    """Identity skip connections; called like a ``DRACBChain``.

    Args:
        widths: Widths of the levels.
        kept: Widths after distillation; not used here.

    Example:
        >>> import torch
        >>> across = Skips([8, 16], [4, 8])([torch.rand(1, 8, 18, 14), torch.rand(1, 16, 9, 7)])
        >>> across[1].shape
        torch.Size([1, 16, 9, 7])
    """

    def __init__(self, widths: Sequence[int], kept: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = tuple(widths)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(features)
