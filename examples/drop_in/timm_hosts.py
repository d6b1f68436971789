"""WSILBV in networks of the ``timm`` package: as its attention layer, and where there is no such option.

timm builds attention layers as ``layer(channels)``, which every block of this library that keeps its width answers to.
Its ResNets take one as ``block_args=dict(attn_layer=...)``. Its ConvNeXts take none; but their blocks leave a place
free between the two layers of the perceptron, where ConvNeXt V2 has its global response norm, and there one can be put.

``python -m examples.drop_in.timm_hosts`` prints what they are.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import nn

from sc_blocks import WSILBV
from sc_blocks.surgery import replace_modules


def resnet(name: str = "resnet18", *, attention: Callable[[int], nn.Module] = WSILBV) -> nn.Module:
    """A ResNet of timm's, with attention at the end of each residual branch.

    Args:
        name: Which of timm's; any that is built of its ``BasicBlock`` or ``Bottleneck``.
        attention: Called with the width to build each attention; also ``device`` and ``dtype`` come, by name.

    Returns:
        The network, with fresh weights.

    Example:
        >>> resnet()(torch.rand(1, 3, 33, 47)).shape
        torch.Size([1, 1000])
    """
    return timm.create_model(name, pretrained=False, block_args={"attn_layer": attention})


def convnext(
    name: str = "convnext_atto",
    *,
    reduction: int = 32,
    pretrained: bool = False,
) -> nn.Module:
    """A ConvNeXt of timm's, with attention on the hidden layer of each MLP.

    Args:
        name: Which of timm's.
        reduction: Of the attention, see :class:`~sc_blocks.WSILBV`.
        pretrained: Whether to start from timm's weights, which are downloaded. They all
            fit: the layers that are replaced have none.

    Returns:
        The network; the attention has fresh weights.

    Example:
        >>> convnext()(torch.rand(1, 3, 33, 47)).shape
        torch.Size([1, 1000])
    """
    # An MLP of 1x1 convolutions; linear layers would be channels-last (NHWC).
    net = timm.create_model(name, pretrained=pretrained, conv_mlp=True)

    def make(old: nn.Module, name: str) -> nn.Module:
        mlp = net.get_submodule(name.rpartition(".")[0])
        return WSILBV(mlp.fc1.out_channels, reduction=reduction)

    replace_modules(net, "stages.*.mlp.norm", make)
    return net


def main() -> None:
    """Print what the networks are, as timm builds them and with attention."""
    x = torch.rand(1, 3, 65, 97)
    for title, net in {
        "resnet18": timm.create_model("resnet18"),
        "resnet18 with WSILBV": resnet(),
        "convnext_atto": timm.create_model("convnext_atto"),
        "convnext_atto with WSILBV": convnext(),
    }.items():
        parameters = sum(parameter.numel() for parameter in net.parameters())
        print(f"{title}: {parameters:,} parameters, {tuple(x.shape)} -> {tuple(net(x).shape)}")


if __name__ == "__main__":
    main()
