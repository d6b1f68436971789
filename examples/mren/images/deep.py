"""Images with 16 bits per value, whose colours Pillow reduces to 8 bits: PNG by libpng, TIFF by tifffile."""

from __future__ import annotations

from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from examples.mren.images.colorprofile import profile_space
from examples.mren.images.metadata import Metadata, read_color_chunks, read_metadata, read_orientation
from examples.mren.images.pixels import Pixels, RefusedError, check_size, rewind

_SAMPLE_KINDS = {2: "signed whole numbers", 3: "floating-point", 5: "complex numbers", 6: "complex numbers"}
# Others, such as JPEG 2000, decode to a size given in the compressed data, whatever the TIFF says.
_COMPRESSIONS = {"NONE", "LZW", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS", "LZMA", "ZSTD"}
_UNSPECIFIED, _ASSOCIATED, _UNASSOCIATED = range(3)  # kinds of extra samples
OTHER_CHANNEL = "a channel that is neither colour nor opacity is left out"
OTHER_PROFILE = "its colour profile is not for RGB and is left out"
_UPRIGHT: dict[int, Any] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


def read_deep_png(opened: Image.Image, file: BinaryIO) -> Pixels:
    """Read a PNG with 16 bits per value, whose colours Pillow would reduce to 8 bits."""
    if getattr(opened, "is_animated", False):
        raise RefusedError("is an animation of 16 bits per value; save the frame you want as a separate file")
    orientation = read_orientation(opened)
    metadata = read_metadata(opened, read_color_chunks(rewind(file)))
    icc_profile = opened.info.get("icc_profile") or None
    values = imagecodecs.png_decode(rewind(file).read())
    return _deep(values, orientation, icc_profile, metadata)


def read_deep_tiff(tiff: tifffile.TiffFile, file: BinaryIO, max_pixels: int) -> Pixels:
    """Read a TIFF with 16 bits per value, whose colours Pillow would reduce to 8 bits or garble."""
    page: Any = tiff.pages[0]
    size = (page.imagewidth, page.imagelength)
    check_size(size, max_pixels)
    photometric = getattr(page.photometric, "name", f"kind {page.photometric}")
    if photometric == "MINISWHITE":
        raise RefusedError("16-bit gray where 0 is white; save it with black as 0")
    if photometric not in ("MINISBLACK", "RGB"):
        raise RefusedError(f"16 bits per value of {photometric}; save it as gray or RGB")
    colors = 1 if photometric == "MINISBLACK" else 3
    compression = getattr(page.compression, "name", f"kind {page.compression}")
    if compression not in _COMPRESSIONS:
        raise RefusedError(f"16 bits per value, compressed as {compression}; save it with LZW or Deflate")
    # Tiles may be larger than the picture, but in real files rarely by much.
    if max(page.tilewidth, 1) * max(page.tilelength, 1) > size[0] * size[1] + 2**24:
        raise RefusedError("has tiles far larger than the picture; save it again")
    if page.samplesperpixel not in (colors, colors + 1) or page.imagedepth != 1:
        raise RefusedError(f"{page.samplesperpixel} values per pixel; save it as gray or RGB, with or without opacity")
    values, notes = page.asarray(), ()
    if page.samplesperpixel > 1 and int(page.planarconfig) == 2:  # one plane after the other
        values = np.moveaxis(values, 0, -1)
    extra = int(page.extrasamples[0]) if page.extrasamples else _UNASSOCIATED
    if page.samplesperpixel > colors and extra == _UNSPECIFIED:  # a mask or an infrared channel, not opacity
        values, notes = values[..., :colors], (OTHER_CHANNEL,)
    elif page.samplesperpixel > colors and extra == _ASSOCIATED:
        values = _unpremultiplied(values)
    tags = page.tags
    orientation = int(tags["Orientation"].value) if "Orientation" in tags else 1
    icc_profile = bytes(tags["InterColorProfile"].value) if "InterColorProfile" in tags else None
    try:
        with Image.open(rewind(file), formats=["TIFF"]) as opened:
            metadata = read_metadata(opened)
    except UnidentifiedImageError:  # gray with opacity, which Pillow does not support
        metadata = Metadata()
    return _deep(values, orientation, icc_profile, metadata, notes)


def _deep(
    values: np.ndarray, orientation: int, icc_profile: bytes | None, metadata: Metadata, notes: tuple[str, ...] = ()
) -> Pixels:
    pixels = values.reshape(*values.shape[:2], -1).astype(np.uint16, copy=False)
    if icc_profile is not None and pixels.shape[2] > 2 and profile_space(icc_profile) != b"RGB ":
        icc_profile, notes = None, (*notes, OTHER_PROFILE)
    return Pixels(turned(pixels, orientation), icc_profile, metadata, False, notes)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels upright from an EXIF orientation."""
    return np.ascontiguousarray(_UPRIGHT.get(orientation, _UPRIGHT[1])(pixels))


def _unpremultiplied(values: np.ndarray) -> np.ndarray:
    """Divide premultiplied colours by their opacity."""
    alpha = values[..., -1:].astype(np.float64)
    colors = np.where(alpha > 0, values[..., :-1] * 65_535.0 / np.maximum(alpha, 1), 0)
    return np.concatenate([colors.round().clip(0, 65_535), alpha], -1).astype(np.uint16)


def tiff_bits(tiff: tifffile.TiffFile) -> int:
    """The bits per value to read, 8 or 16.

    Raises:
        RefusedError: If the values are of another type.
    """
    page: Any = tiff.pages[0]
    if page.is_reduced:
        raise RefusedError("begins with a preview, as raw photographs do; develop it, or save it as TIFF")
    bits, kind = page.bitspersample, int(page.sampleformat or 1)
    if kind in _SAMPLE_KINDS:
        raise RefusedError(f"{bits} bits per pixel and colour, {_SAMPLE_KINDS[kind]}; save it with 8 bits")
    if bits not in (1, 2, 4, 8, 16):
        raise RefusedError(f"{bits} bits per pixel and colour; save it with 8 or 16")
    # Further pictures are accepted only if they are previews.
    if any(not getattr(page, "is_reduced", False) for page in tiff.pages[1:3]):
        raise RefusedError(f"holds {len(tiff.pages)} pictures; save the one you want as a separate file")
    return 16 if bits == 16 else 8
