"""Image files of many kinds, read as tensors and written back as what they were.

Gray, RGB, palettes and one-bit images, each with or without transparency, and 16-bit gray. What Pillow would have to
degrade on the way, such as 16 bits per colour or the inks of CMYK, is refused with a message rather than degraded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from examples.mren.files import atomic_write


@dataclass(frozen=True)
class Picture:
    """An image and what its file says of it."""

    color: Tensor
    """Values between 0 and 1, float32 of shape (1, H, W) for gray and (3, H, W) for RGB."""

    alpha: Tensor | None = None
    """Opacity between 0 and 1, float32 of shape (1, H, W); ``None`` where everything is opaque."""

    bits: Literal[8, 16] = 8
    """Per value, in the file."""

    icc_profile: bytes | None = None
    """Colour profile, as stored."""


@dataclass(frozen=True)
class Format:
    """What a file format can hold, and how it is written."""

    name: str
    longest_side: int
    alpha: bool = True
    sixteen_bits: bool = False
    options: dict[str, Any] = field(default_factory=dict)


_PNG = Format("PNG", 2**31 - 1, sixteen_bits=True)
_TIFF = Format("TIFF", 2**31 - 1, sixteen_bits=True, options={"compression": "tiff_deflate"})
_JPEG = Format("JPEG", 65_500, alpha=False, options={"quality": 95, "subsampling": 0})
# exact: colours under transparent pixels stay, for whoever scales the result again.
_WEBP = Format("WebP", 16_383, options={"lossless": True, "exact": True})

FORMATS = {".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP, ".tif": _TIFF, ".tiff": _TIFF}

_REFUSED = {
    "CMYK": "CMYK, whose colours depend on the press; convert it to RGB with its profile first",
    "LAB": "Lab; convert it to RGB first",
    "I": "32 bits per pixel; save it with 8, or as 16-bit gray",
    "F": "floating-point; save it with 8 bits, or as 16-bit gray",
}

_PHOTOMETRIC = 262  # the TIFF tag that says which end of the scale is black


class _RefusedError(ValueError):
    """A file of a kind that cannot be kept, as opposed to one that cannot be read."""


def read_picture(path: str | Path) -> Picture:
    """Read an image file, upright and with its transparency.

    One-bit images become gray, palettes RGB; the orientation that a camera noted is applied. Of a phone's JPEG that
    holds several pictures the first is taken.

    Args:
        path: The file, of any kind that Pillow reads.

    Raises:
        ValueError: If the file is no image, is damaged or animated, or is of a kind that could not be kept as it is;
            the message names the file.

    Example:
        >>> from skimage import data_dir
        >>> read_picture(Path(data_dir) / "coins.png").color.shape
        torch.Size([1, 303, 384])
    """
    try:
        with Image.open(path) as opened:
            sixteen_bits = _holds_sixteen_bits(opened)
            reason = _why_refused(opened, sixteen_bits)
            if reason is not None:
                raise _RefusedError(f"{path}: {reason}.")
            icc_profile = opened.info.get("icc_profile")
            upright = ImageOps.exif_transpose(opened)
            pixels = np.array(upright if sixteen_bits else upright.convert(_plain_mode(upright)))
    except _RefusedError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(f"{path}: not a readable image ({error}).") from error

    values = pixels.astype(np.float32) / (65535 if sixteen_bits else 255)
    channels = torch.from_numpy(values).view(*values.shape[:2], -1).permute(2, 0, 1)
    has_alpha = channels.shape[0] in (2, 4)
    return Picture(
        color=channels[:-1] if has_alpha else channels,
        alpha=channels[-1:] if has_alpha else None,
        bits=16 if sixteen_bits else 8,
        icc_profile=icc_profile,
    )


def check_writable(path: str | Path, picture: Picture, *, scale: int = 1) -> None:
    """Raise unless the format that a path's suffix stands for can hold a picture, enlarged by ``scale``.

    Raises:
        ValueError: If it cannot, or no format has that suffix; the message names the path and what would work.
    """
    form = FORMATS.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}.")
    if picture.alpha is not None and not form.alpha:
        raise ValueError(f"{path}: {form.name} has no transparency, the picture has; write .png, .webp or .tif.")
    if picture.bits == 16 and not form.sixteen_bits:
        raise ValueError(f"{path}: {form.name} has no 16-bit gray, the picture is; write .png or .tif.")
    longest = max(picture.color.shape[1:]) * scale
    if longest > form.longest_side:
        raise ValueError(
            f"{path}: {form.name} ends at {form.longest_side} pixels a side, got {longest}; write .png or .tif."
        )


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write a picture in the format that the path's suffix stands for, whole or not at all.

    Values are clamped to between 0 and 1. Of the metadata only the colour profile is written.

    Args:
        path: Where to; a file there is replaced, missing folders are made.
        picture: What to write. WebP stores gray as RGB.

    Raises:
        ValueError: If the format cannot hold the picture, see :func:`check_writable`.
        OSError: If the file cannot be written.
    """
    check_writable(path, picture)
    channels = picture.color if picture.alpha is None else torch.cat([picture.color, picture.alpha])
    levels, kind = (65535, np.uint16) if picture.bits == 16 else (255, np.uint8)
    values = channels.clamp(0, 1).mul_(levels).round_().permute(1, 2, 0).numpy().astype(kind)
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    save_image(image, path, icc_profile=picture.icc_profile)


def save_image(
    image: Image.Image, path: str | Path, *, icc_profile: bytes | None = None, overwrite: bool = True
) -> None:
    """Write a Pillow image in the format that the path's suffix stands for, whole or not at all."""
    form = FORMATS[Path(path).suffix.lower()]
    profile = {} if icc_profile is None else {"icc_profile": icc_profile}
    with atomic_write(Path(path), overwrite=overwrite) as scratch:
        image.save(scratch, format=form.name, **form.options, **profile)


def bleed(color: Tensor, alpha: Tensor) -> Tensor:
    """Give every fully transparent pixel the colour of the nearest one that shows.

    What stands there is arbitrary, mostly black, and any filter would draw it into the edge of what shows.

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


def _holds_sixteen_bits(opened: Image.Image) -> bool:
    """Whether the file holds 16 bits per value; of an image that is not decoded yet."""
    # Pillow opens deep colour as 8-bit RGB; only what its decoder is told gives it away.
    return opened.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in opened.tile)


def _why_refused(opened: Image.Image, sixteen_bits: bool) -> str | None:
    # MPO: a photograph that carries previews or a second view.
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != "MPO":
        return f"holds {frames} pictures; save the one that you mean as a file of its own"
    if sixteen_bits and not opened.mode.startswith("I"):
        return "16 bits per colour, of which Pillow keeps 8; save it with 8 bits (16-bit gray is kept)"
    if sixteen_bits and "transparency" in opened.info:
        return "16-bit gray with transparency, which cannot be written; save it with 8 bits"
    if sixteen_bits and isinstance(opened, TiffImageFile) and opened.tag_v2.get(_PHOTOMETRIC) == 0:
        return "16-bit gray counted from white, which Pillow would read as a negative; save it counted from black"
    return None if sixteen_bits else _REFUSED.get(opened.mode)


def _plain_mode(image: Image.Image) -> str:
    gray = image.mode in ("1", "L", "LA", "La")
    return ("L" if gray else "RGB") + ("A" if image.has_transparency_data else "")
