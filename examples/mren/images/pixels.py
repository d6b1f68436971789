"""The integer pixel values of an image file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from examples.mren.images.metadata import Metadata


class RefusedError(ValueError):
    """A readable file of a kind that cannot be preserved in the result."""


@dataclass
class Pixels:
    """An image as stored in its file, but upright."""

    values: np.ndarray
    """uint8 or uint16, shape (H, W, C): gray, gray and alpha, RGB, or RGB and alpha."""
    icc_profile: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)
    lossy: bool = False
    notes: tuple[str, ...] = ()


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise if an image of this width and height has too many pixels."""
    if size[0] * size[1] > max_pixels:
        raise RefusedError(
            f"has {size[0]} x {size[1]} pixels, {size[0] * size[1] / 1e6:.3g} megapixels; "
            f"{max_pixels / 1e6:.3g} are allowed; scale it down, or raise the limit"
        )


def rewind(file: BinaryIO) -> BinaryIO:
    """Seek to the beginning of a file, and return it."""
    file.seek(0)
    return file
