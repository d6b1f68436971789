"""Images for training and scoring: folders of high-resolution images, and their low-resolution versions.

The low-resolution images are made by the bicubic downscaling of MATLAB's ``imresize``, as in the usual test sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.cores import usable_cores
from examples.mren.files import missing_path_hint
from examples.mren.images.read import IMAGE_SUFFIXES, MAX_PIXELS, is_image, read_pixels
from examples.mren.messages import describe, is_out_of_memory
from examples.mren.metrics import smallest_scored

T = TypeVar("T")


def imresize(image: Tensor, scale: float) -> Tensor:
    """Resize like MATLAB's bicubic ``imresize``: Keys' kernel (a = -0.5), antialiased when shrinking, mirrored borders.

    Eight-bit images are rounded after each axis, rows first, like in MATLAB; so the results are identical to the
    low-resolution images of the usual test sets.

    Args:
        image: Shape (C, H, W), uint8, or floating-point in any range.
        scale: A whole number to enlarge, or the reciprocal of one to shrink.

    Returns:
        The resized image, in the type of ``image``.

    Raises:
        ValueError: If the image has other dimensions, the factor is not whole, or a side is not a multiple of it (see
            :func:`mod_crop`).

    Example:
        >>> imresize(torch.full((3, 8, 12), 7, dtype=torch.uint8), 1 / 4).shape
        torch.Size([3, 2, 3])
    """
    _check_dimensions("imresize", image)
    ratio = max(scale, 1 / scale) if 0 < scale < math.inf else 0
    factor = round(ratio)
    if factor < 1 or abs(ratio - factor) > 1e-9:
        raise ValueError(
            f"imresize: scale must be a whole number or the reciprocal of one, got {scale}; for example 1 / 4."
        )
    _, height, width = image.shape
    if scale < 1 and (height % factor or width % factor):
        raise ValueError(
            f"imresize: height and width must be multiples of {factor}, got {height} x {width}; "
            f"mod_crop(image, {factor}) makes them {height - height % factor} x {width - width % factor}."
        )
    resized = image.double()
    for _ in ("height", "width"):
        resized = _resize_last_axis(resized.transpose(1, 2).contiguous(), factor, shrink=scale < 1)
        if image.dtype == torch.uint8:
            resized = (resized + 0.5).floor().clamp(0, 255)
    return resized.to(image.dtype)


def _resize_last_axis(image: Tensor, factor: int, *, shrink: bool) -> Tensor:
    # At the border, torch renormalises the kernel, and MATLAB mirrors the image. A mirrored margin as wide as the
    # kernel, cropped afterwards, makes them equal.
    margin = 4 * factor if shrink else 4
    across, side = image.shape[1:]
    mirrored = np.pad(np.arange(side), margin, mode="symmetric")
    padded = image[:, :, torch.from_numpy(mirrored).to(image.device)].unsqueeze(0)
    size = (across, padded.shape[3] // factor if shrink else padded.shape[3] * factor)
    # antialias=True even when enlarging: only then does torch's kernel have a = -0.5. Only along the last axis: torch
    # 2.15 computes the other one incorrectly for images that are one pixel wide.
    resized = F.interpolate(padded, size, mode="bicubic", align_corners=False, antialias=True).squeeze(0)
    kept = side // factor if shrink else side * factor
    return resized[:, :, margin // factor if shrink else margin * factor :][:, :, :kept]


def mod_crop(image: Tensor, factor: int) -> Tensor:
    """Crop height and width of a (C, H, W) image to multiples of ``factor``, keeping the top left.

    Raises:
        ValueError: If the image has other dimensions, or nothing would be left.
    """
    _check_dimensions("mod_crop", image)
    height, width = image.shape[1:]
    if min(height, width) < factor:
        raise ValueError(
            f"images must be at least {factor} x {factor} pixels, got {width} x {height}; take larger ones."
        )
    return image[:, : height - height % factor, : width - width % factor]


def _check_dimensions(function: str, image: Tensor) -> None:
    if image.ndim != 3:
        wanted = f"3 dimensions (channels, height, width), got shape {tuple(image.shape)}"
        raise ValueError(f"{function}: image must have {wanted}; pass the images of a batch one by one.")


def list_images(*folders: str | Path) -> list[Path]:
    """The image files in folders, each sorted by name; without hidden files, such as the ``._x.jpg`` of a Mac.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a folder has no images, or is given twice, which could mix training and validation images.
    """
    files: list[Path] = []
    known: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            there = f"that is a file in {folder.parent}." if folder.exists() else missing_path_hint(folder)
            raise FileNotFoundError(f"no folder at {folder}; {there} Give one that holds images, such as PNG files.")
        if folder.resolve() in known:
            raise ValueError(f"{folder}: is given twice; give each folder once.")
        known.add(folder.resolve())
        inside = sorted(folder.iterdir())
        found = [path for path in inside if is_image(path)]
        if not found:
            wanted = ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
            nested = next((path for path in inside if any(map(is_image, path.glob("*")))), None)
            remedy = "" if nested is None else f"; give a folder in it, such as {nested}"
            raise ValueError(f"{folder}: no images; looked for {wanted}{remedy}.")
        files += found
    return files


def read_rgb(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file as uint8 RGB of shape (3, H, W); gray is repeated, opacity dropped.

    Args:
        path: The file.
        max_pixels: Maximum number of pixels; larger images are refused before they are decoded.

    Raises:
        ValueError: If the file is not an image, is damaged or too large, or has more than 8 bits per value; the message
            names it.
    """
    pixels = read_pixels(path, max_pixels=max_pixels)
    if pixels.values.dtype != np.uint8:
        raise ValueError(f"{path}: has more than 8 bits per value; training and scores take 8; convert it first.")
    values = torch.from_numpy(pixels.values).permute(2, 0, 1)
    colors = values[:1].expand(3, -1, -1) if values.shape[0] < 3 else values[:3]
    return colors.contiguous()


def photograph(name: str) -> Tensor:
    """A photograph from scikit-image, such as ``"coffee"``: uint8 RGB of shape (3, H, W)."""
    from skimage import data  # imported here, as it takes a second and is rarely needed

    return torch.from_numpy(np.array(getattr(data, name)())).permute(2, 0, 1)


@dataclass(frozen=True)
class ImagePair:
    """A high-resolution image, cropped to a multiple of the scale, and its low-resolution version; uint8 (3, H, W)."""

    path: Path
    hr: Tensor
    lr: Tensor


def load_pairs(
    files: list[Path],
    scale: int,
    *,
    min_size: int = 1,
    on_bad: Callable[[str], object] | None = None,
) -> list[ImagePair]:
    """Read images into memory and make their low-resolution versions.

    Args:
        files: The high-resolution images.
        scale: Ratio of the sizes of high- and low-resolution images.
        min_size: Smallest height and width allowed, in high-resolution pixels, such as the patch size.
        on_bad: Called with a message for each file that is skipped because it is unreadable or too small.

    Raises:
        ValueError: If a file is unreadable or an image is smaller than ``min_size``, and there is no ``on_bad``.
    """

    def load(path: Path) -> ImagePair | None:
        try:
            image = read_rgb(path)
            side = min(image.shape[1:]) // scale * scale
            if side < min_size:
                size = f"{path}: {image.shape[2]} x {image.shape[1]} pixels"
                if side < (minimum := smallest_scored(scale)):
                    raise ValueError(f"{size}, less than the {minimum} x {minimum} that scoring needs; remove it.")
                raise ValueError(
                    f"{size}, less than the patch of {min_size} x {min_size}; remove it, or train with --patch-size "
                    f"{side} or less."
                )
        except (ValueError, OSError) as error:
            if on_bad is None or is_out_of_memory(error):
                raise
            on_bad(describe(error, path))
            return None
        hr = mod_crop(image, scale)
        return ImagePair(path, hr, imresize(hr, 1 / scale))

    # Threads suffice: decoding and resizing release the GIL.
    with ThreadPoolExecutor(usable_cores()) as pool:
        loaded = tqdm(pool.map(load, files), total=len(files), desc="images", unit="image", leave=False, disable=None)
        return [pair for pair in loaded if pair is not None]


def split_held_out(files: list[T], held_out: int) -> tuple[list[T], list[T]]:
    """Split files or images into those to train on, and ``held_out`` evenly spaced ones to validate on."""
    if not 0 < held_out < len(files):
        choose = f"choose 1 to {len(files) - 1}" if len(files) > 1 else "at least two images are needed"
        raise ValueError(f"--held-out {held_out} of {len(files)} images: {choose}, so that some remain to train on.")
    chosen = {int((i + 0.5) * len(files) / held_out) for i in range(held_out)}
    return (
        [path for i, path in enumerate(files) if i not in chosen],
        [path for i, path in enumerate(files) if i in chosen],
    )
