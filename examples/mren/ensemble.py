"""Networks as functions of 8-bit images; self-ensemble, the mean over the eight flips and rotations of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.mren.metrics import to_uint8
from sc_blocks import _checks
from sc_blocks.tiling import tiled

Upscale = Callable[[Tensor], Tensor]


class SelfEnsemble(nn.Module):
    r"""The mean of the results of a network for the eight orientations of an image.

    .. math:: \bar f(x) = \frac{1}{8} \sum_{g \in D_4} g^{-1} f(g x)

    :math:`D_4` holds the four rotations by multiples of 90° and their mirror images. A network trained on all
    of them makes different errors in each, which partly cancel. It takes eight times as long. Papers mark such scores
    with a plus, as in EDSR+.

    Source: Timofte, Rothe and Van Gool, *Seven ways to improve example-based single image super resolution* (CVPR
    2016), who call it enhanced prediction.

    Args:
        net: A network or an engine that upscales images of shape (N, C, H, W), of any height and width, by a whole
            factor.

    Shape:
        Those of the network.

    Raises:
        ValueError: If an image does not have four dimensions.
        TypeError: If it is not a floating-point tensor.

    Example:
        >>> import torch
        >>> net = SelfEnsemble(nn.Upsample(scale_factor=2, mode="bicubic"))
        >>> net(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 24, 20])
    """

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """The mean over the eight orientations."""
        _checks.check_feature_map("SelfEnsemble", image, None, name="image")
        total = 0
        for turns in range(4):
            turned = image.rot90(turns, (2, 3))
            for mirrored in (False, True):
                large = self.net(turned.flip(3)).flip(3) if mirrored else self.net(turned)
                total = total + large.rot90(-turns, (2, 3))
        return total / 8


def network_upscaler(net: nn.Module, device: torch.device | str, *, tile: int | None = None, scale: int = 1) -> Upscale:
    """A network as a function from uint8 images of shape (3, H, W) to upscaled uint8 images.

    Args:
        net: The network.
        device: The device of the network.
        tile: Height and width of the tiles in which larger images are processed, as by the upscaling command; ``None``
            for whole images.
        scale: Upscaling factor of the network; needed for tiles.
    """

    def upscale(lr: Tensor) -> Tensor:
        x = (lr.to(device).float() / 255).unsqueeze(0)
        with torch.inference_mode():
            sr = net(x) if tile is None else tiled(net, x, scale=scale, tile=tile)
        return to_uint8(sr.squeeze(0).cpu())  # to the CPU first: some devices clamp in place

    return upscale
