"""WSILBV in networks of ``timm``: as an attention layer, and in networks without that option.

timm builds attention layers as ``layer(channels)``, which works for every block of this library that keeps its width.
Its ResNets take one as ``block_args=dict(attn_layer=...)``. Its ConvNeXts have no such option, but their blocks have an
unused norm between the two layers of the MLP, where ConvNeXt V2 has its global response norm. WSILBV replaces it.

``python -m examples.drop_in.timm_hosts`` prints a summary.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import nn

from sc_blocks import WSILBV
from sc_blocks.surgery import replace_modules


def resnet(name: str = "resnet18", *, attention: Callable[[int], nn.Module] = WSILBV) -> nn.Module:
    """A ResNet from timm with attention at the end of each residual branch.

    Args:
        name: Name of the model; any that is built from timm's ``BasicBlock`` or ``Bottleneck``.
        attention: Called with the width to build each attention, and with the keywords ``device`` and ``dtype``.

    Returns:
        The network, newly initialised.

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
    """A ConvNeXt from timm with attention on the hidden layer of each MLP.

    Args:
        name: Name of the model.
        reduction: See :class:`~sc_blocks.WSILBV`.
        pretrained: Whether to load timm's weights, which are downloaded. All of them
            fit, as the replaced layers have none.

    Returns:
        The network, with newly initialised attention.

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
    """Print a summary of the networks without and with attention."""
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
