"""Degradations of low-resolution photographs: slight blur, noise and JPEG.

Networks trained on clean images amplify the block artifacts of a JPEG. Trained on low-resolution images degraded as
here, they learn to remove them (``--degrade photo`` of :mod:`examples.mren.train`).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

Subsampling = Literal["4:4:4", "4:2:0"]

QUALITIES = (30, 95)  # of JPEG, both included
MAX_NOISE = 10.0  # standard deviation, on the scale of 0 to 255
MAX_BLUR = 0.8  # standard deviation, in low-resolution pixels
MCU = 16  # side of JPEG's minimum coded unit with 4:2:0, in pixels


@dataclass(frozen=True)
class Degradation:
    """The degradation of one image: blur, then noise, then JPEG, as in a camera."""

    quality: int | None = None
    """JPEG quality, from 1 to 100; ``None`` for no compression."""

    subsampling: Subsampling = "4:2:0"
    """Chroma subsampling of the JPEG."""

    noise: float = 0.0
    """Standard deviation of the Gaussian noise, on the scale of 0 to 255, independent in each value."""

    blur: float = 0.0
    """Standard deviation of the Gaussian blur, in pixels."""

    offset: tuple[int, int] = (0, 0)
    """Shift of the JPEG grid in rows and columns, from 0 to 15; only used by :func:`degrade_patch`."""


def make_generator(*numbers: int) -> torch.Generator:
    """A random generator seeded by non-negative numbers, such as a seed, a step and an index in the batch.

    Example:
        >>> torch.equal(torch.rand(3, generator=make_generator(0, 7)), torch.rand(3, generator=make_generator(0, 7)))
        True
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def draw_degradation(generator: torch.Generator) -> Degradation:
    """Draw a random degradation, such as that of a photograph.

    JPEG of quality 30 to 95 in all cases, with 4:2:0 in three quarters, and its grid anywhere; noise of up to 10 in
    half of them; blur of up to 0.8 pixels in a quarter. All values are uniformly distributed.
    """
    lowest, highest = QUALITIES
    uniform = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    top, left = torch.randint(MCU, (2,), generator=generator).tolist()
    return Degradation(
        quality=lowest + int(uniform[0] * (highest - lowest + 1)),
        subsampling="4:2:0" if uniform[1] < 0.75 else "4:4:4",
        noise=uniform[2] * MAX_NOISE if uniform[3] < 0.5 else 0.0,
        blur=uniform[4] * MAX_BLUR if uniform[5] < 0.25 else 0.0,
        offset=(top, left),
    )


def draw_patch_degradation(generator: torch.Generator) -> Degradation | None:
    """Like :func:`draw_degradation`, but ``None``, for a clean patch, in half of the cases."""
    clean = torch.rand((), generator=generator).item() < 0.5
    return None if clean else draw_degradation(generator)


def degrade(image: Tensor, degradation: Degradation, generator: torch.Generator) -> Tensor:
    """Blur an image, add noise, and compress it.

    Args:
        image: Shape (3, H, W), uint8, on the CPU.
        degradation: The degradation; the grid of the JPEG starts at the top left.
        generator: Random generator of the noise.

    Returns:
        An image of the same shape and type.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> photograph = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
        >>> degrade(photograph, Degradation(quality=50, noise=5.0), make_generator(0)).shape
        torch.Size([3, 20, 30])
    """
    if degradation.noise < 0 or degradation.blur < 0:
        raise ValueError(
            f"degrade: noise and blur must be 0 or more, got {degradation.noise:g} and {degradation.blur:g}."
        )
    values = image
    if degradation.blur:
        values = _blur(values.float(), degradation.blur)
    if degradation.noise:
        values = values.float() + degradation.noise * torch.randn(values.shape, generator=generator)
    if values.is_floating_point():
        values = values.round().clamp(0, 255).to(torch.uint8)
    if degradation.quality is not None:
        values = compress(values, degradation.quality, degradation.subsampling)
    return values


def degrade_patch(patch: Tensor, degradation: Degradation | None, generator: torch.Generator) -> Tensor:
    """Degrade a patch as if it were cropped from a degraded image, and crop its margin.

    The JPEG is made from the patch and its surroundings, starting at ``degradation.offset``; so its grid can have any
    position in the result, and no block of it is incomplete.

    Args:
        patch: Shape (3, H + 32, W + 32), uint8, on the CPU: the patch with 16 pixels of its surroundings on each side.
        degradation: The degradation; ``None`` to crop only.
        generator: Random generator of the noise.

    Returns:
        The patch without its margin, shape (3, H, W), uint8.

    Example:
        >>> surroundings = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
        >>> degrade_patch(surroundings, Degradation(quality=75, offset=(3, 12)), make_generator(0)).shape
        torch.Size([3, 32, 32])
    """
    height, width = (side - 2 * MCU for side in patch.shape[1:])
    top = left = 0
    if degradation is not None:
        top, left = degradation.offset
        if not (0 <= top < MCU and 0 <= left < MCU):
            raise ValueError(f"degrade_patch: offset must be two numbers from 0 to {MCU - 1}, got {(top, left)}.")
        patch = degrade(patch[:, top:, left:], degradation, generator)
    return patch[:, MCU - top :, MCU - left :][:, :height, :width]


def compress(image: Tensor, quality: int, subsampling: Subsampling = "4:2:0") -> Tensor:
    """Compress an image as JPEG with Pillow, and decode it again.

    Args:
        image: Shape (3, H, W), uint8, on the CPU.
        quality: From 1 to 100.
        subsampling: Chroma at full resolution (``"4:4:4"``), or at half the height and width (``"4:2:0"``).

    Raises:
        ValueError: If the quality is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"compress: quality must be from 1 to 100, got {quality}.")
    file = io.BytesIO()
    pixels = rearrange(image, "channel height width -> height width channel").contiguous().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as read:
        return rearrange(torch.from_numpy(np.array(read)), "height width channel -> channel height width")


def _blur(image: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = F.pad(image.unsqueeze(1), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, kernel), kernel.transpose(2, 3)).squeeze(1)
