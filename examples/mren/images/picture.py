"""A picture in memory: colours, transparency and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from examples.mren.images.metadata import Metadata


@dataclass(frozen=True)
class Picture:
    """An image with the metadata of its file."""

    color: Tensor
    """Values between 0 and 1, float32 of shape (1, H, W) for gray and (3, H, W) for RGB."""

    alpha: Tensor | None = None
    """Opacity between 0 and 1, float32 of shape (1, H, W); ``None`` where everything is opaque."""

    bits: Literal[8, 16] = 8
    """Bits per value in the file."""

    icc_profile: bytes | None = None
    """Colour profile, as stored."""

    metadata: Metadata = field(default_factory=Metadata)
    """Other metadata."""

    lossy: bool = False
    """Whether the file was compressed with loss, so that lossless output would be needlessly large."""

    notes: tuple[str, ...] = ()
    """Messages for users about what was lost or changed on reading."""


def bleed(color: Tensor, alpha: Tensor) -> Tensor:
    """Give every fully transparent pixel the colour of the nearest visible one.

    The colours of such pixels are arbitrary, mostly black, and any filter would blend them into visible edges.

    Args:
        color: Shape (C, H, W).
        alpha: Shape (1, H, W).

    Example:
        >>> bleed(torch.tensor([[[0.0, 0.0, 0.8, 0.6]]]), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]))
        tensor([[[0.8000, 0.8000, 0.8000, 0.6000]]])
    """
    hidden = alpha[0] == 0
    if not hidden.any() or hidden.all():
        return color
    nearest: Any = distance_transform_edt(hidden.numpy(), return_distances=False, return_indices=True)
    rows, columns = torch.from_numpy(nearest).long()
    return color[:, rows, columns]


def gamma_to_srgb(picture: Picture) -> Picture:
    """Convert a picture to sRGB if it was encoded with another exponent; any other is returned unchanged.

    A colour profile overrides the exponent, which programs add for readers without colour management.
    """
    gamma = picture.metadata.gamma
    if gamma is None or picture.icc_profile is not None:
        return picture
    linear = picture.color.clamp(0, 1).double() ** (1 / gamma)
    encoded = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return replace(picture, color=encoded.float(), metadata=replace(picture.metadata, color_chunks=()))


def composite(picture: Picture, background: tuple[int, int, int]) -> Picture:
    """Composite a picture over a background of one colour.

    Args:
        picture: The picture.
        background: Red, green and blue from 0 to 255, in the colour profile of the picture, or sRGB if it has none.

    Example:
        >>> half = Picture(torch.zeros(1, 1, 1), alpha=torch.full((1, 1, 1), 0.5))
        >>> composite(half, (255, 255, 255)).color
        tensor([[[0.5000]]])
    """
    if picture.alpha is None:
        return picture
    picture = gamma_to_srgb(picture)
    backdrop = torch.tensor(background).view(3, 1, 1) / 255
    if len(set(background)) == 1:
        backdrop = backdrop[: picture.color.shape[0]]
    color = picture.color * picture.alpha + backdrop * (1 - picture.alpha)
    icc_profile = picture.icc_profile if color.shape == picture.color.shape else None  # no gray profile for colours
    return replace(picture, color=color, alpha=None, icc_profile=icc_profile)
