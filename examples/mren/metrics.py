"""PSNR and SSIM as papers on super-resolution report them.

On the luma of uint8 images, with ``scale`` pixels cropped from each side:

- luma as in MATLAB's ``rgb2ycbcr``, studio range: Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, not rounded;
- PSNR with a peak of 255;
- SSIM with an 11 x 11 Gaussian window of sigma 1.5, without padding, K1 = 0.01, K2 = 0.03;
- over a data set, the mean of the values of the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
_WINDOW = 11  # of SSIM


@dataclass(frozen=True)
class Score:
    """Fidelity of one image, or the mean over several."""

    psnr: float
    """In dB; infinite for equal images."""

    ssim: float
    """At most 1."""


def smallest_scored(scale: int) -> int:
    """Minimum height and width of a scored image: the window of SSIM plus the cropped borders."""
    return _WINDOW + 2 * scale


def score(sr: Tensor, hr: Tensor, scale: int) -> Score:
    """Score an upscaled image against the original.

    Args:
        sr: The upscaled image, uint8 RGB of shape (3, H, W).
        hr: The original, likewise.
        scale: The upscaling factor; as many pixels are cropped from each side.

    Raises:
        ValueError: If the images differ in shape or are too small for the window of SSIM.
        TypeError: If an image is not uint8.

    Example:
        >>> image = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(3, 32, 32)
        >>> score(image, image, scale=4)
        Score(psnr=inf, ssim=1.0)
    """
    first, second = _cropped_luma("score", sr, hr, scale)
    return Score(_psnr(first, second), _ssim(first, second))


def psnr(sr: Tensor, hr: Tensor, scale: int) -> float:
    """PSNR alone, in dB; see :func:`score`."""
    return _psnr(*_cropped_luma("psnr", sr, hr, scale))


def psnr_rgb(sr: Tensor, hr: Tensor) -> float:
    """PSNR in dB over all pixels and the three channels, as papers on denoising report it; infinite for equal images.

    Args:
        sr: The restored image, uint8 RGB of shape (3, H, W).
        hr: The original, likewise.

    Raises:
        ValueError: If the images differ in shape.
        TypeError: If an image is not uint8.

    Example:
        >>> image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        >>> round(psnr_rgb(image, image + 5), 2)  # 20 log10(255 / 5)
        34.15
    """
    _check_images("psnr_rgb", sr, hr)
    return _psnr(sr.double(), hr.double())


def luma(rgb: Tensor) -> Tensor:
    """Studio-range luma (16 to 235) of a uint8 RGB image, shape (3, H, W), as float64 of shape (H, W)."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=rgb.device) / 255
    return 16 + torch.einsum("c,chw->hw", weights, rgb.double())


def to_uint8(image: Tensor) -> Tensor:
    """Convert an image between 0 and 1 to uint8: clamped, then rounded."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _cropped_luma(function: str, sr: Tensor, hr: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    _check_images(function, sr, hr, f"; mod_crop(hr, {scale}) before the low-resolution image is made")
    if min(sr.shape[1:]) < (minimum := smallest_scored(scale)):
        raise ValueError(
            f"{function}: images must be at least {minimum} x {minimum} (the window of SSIM and {scale} pixels cropped "
            f"from each side), got {sr.shape[1]} x {sr.shape[2]}; take larger ones."
        )
    inner = slice(scale, -scale)
    return luma(sr)[inner, inner], luma(hr)[inner, inner]


def _check_images(function: str, sr: Tensor, hr: Tensor, remedy: str = "") -> None:
    for name, image in (("sr", sr), ("hr", hr)):
        if image.dtype != torch.uint8:
            raise TypeError(f"{function}: {name} must be uint8, got {image.dtype}; convert it with to_uint8.")
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"{function}: {name} must have shape (3, height, width), got {tuple(image.shape)}.")
    if sr.shape != hr.shape:
        shapes = f"{tuple(sr.shape)} and {tuple(hr.shape)}"
        raise ValueError(f"{function}: sr and hr must have the same shape, got {shapes}{remedy}.")


def _psnr(first: Tensor, second: Tensor) -> float:
    error = (first - second).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def _ssim(first: Tensor, second: Tensor) -> float:
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=first.device) - _WINDOW // 2
    gaussian = torch.exp(-offsets.square() / (2 * 1.5**2))
    gaussian = gaussian / gaussian.sum()

    def blur(image: Tensor) -> Tensor:
        rows = F.conv2d(image[None, None], gaussian.view(1, 1, _WINDOW, 1))
        return F.conv2d(rows, gaussian.view(1, 1, 1, _WINDOW))[0, 0]

    mean1, mean2 = blur(first), blur(second)
    variance1 = blur(first.square()) - mean1.square()
    variance2 = blur(second.square()) - mean2.square()
    covariance = blur(first * second) - mean1 * mean2
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * structure).mean().item()
