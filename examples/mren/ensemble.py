"""Self-ensemble: a network asked eight times, with the image mirrored and rotated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sc_blocks import _checks


class SelfEnsemble(nn.Module):
    r"""The mean of what a network makes of an image in its eight orientations.

    .. math:: \bar f(x) = \frac{1}{8} \sum_{g \in D_4} g^{-1} f(g x)

    :math:`D_4` holds the four rotations by multiples of 90° and their mirror images. A network that is trained on all
    of them makes different errors in each, which partly cancel. It takes eight times as long. Papers mark scores with
    it by a plus, such as EDSR+.

    Source: Timofte, Rothe and Van Gool, *Seven ways to improve example-based single image super resolution* (CVPR
    2016), who call it enhanced prediction.

    Args:
        net: From images of shape (N, C, H, W), of any height and width, to images that are larger by a whole factor: a
            network or an engine.

    Shape:
        Those of the network.

    Raises:
        ValueError: If an image has not four dimensions.
        TypeError: If it is no floating-point tensor.

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
        """Returns the mean."""
        _checks.check_feature_map("SelfEnsemble", image, None, name="image")
        total = 0
        for turns in range(4):
            turned = image.rot90(turns, (2, 3))
            for mirrored in (False, True):
                large = self.net(turned.flip(3)).flip(3) if mirrored else self.net(turned)
                total = total + large.rot90(-turns, (2, 3))
        return total / 8
