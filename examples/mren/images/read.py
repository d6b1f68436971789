"""Reading of image files of many kinds without loss.

Supported are gray, RGB, palette and one-bit images with or without transparency, with 8 bits per value, or 16 in PNG
and TIFF. CMYK and Lab are converted to sRGB by their profiles. Images that would lose precision, such as floating-point
ones, are refused with a message.

Files are not trusted: their size is checked before decoding, and only the formats listed here are tried.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tifffile
import torch
from PIL import Image, UnidentifiedImageError

from examples.mren.files import check_regular
from examples.mren.images.colorprofile import profile_space, srgb_profile, to_srgb
from examples.mren.images.deep import OTHER_CHANNEL, OTHER_PROFILE, read_deep_png, read_deep_tiff, tiff_bits, turned
from examples.mren.images.metadata import read_color_chunks, read_metadata, read_orientation
from examples.mren.images.picture import Picture
from examples.mren.images.pixels import Pixels, RefusedError, check_size, rewind
from examples.mren.messages import is_out_of_memory, one_line

# Recognised by content, not by name. Formats that start other programs, such as EPS, are excluded.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "GIF", "BMP", "DIB", "AVIF", "PPM", "HEIF")
_LOSSY = ("JPEG", "MPO", "AVIF", "HEIF")
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".ppm", ".pgm"),
)
MAX_PIXELS = 178_956_970  # Pillow's own limit, half a gigabyte of RGB

_SAMPLES_PER_PIXEL = 277  # the TIFF tag
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_REFUSED = {
    "CMYK": "CMYK without a profile, which defines its colours; convert it to RGB first",
    "I": "32 bits per pixel; save it with 8 or 16 bits",
    "F": "floating-point; save it with 8 bits, or with 16 as whole numbers",
}

# Factors from 2- and 4-bit gray to 8 bits: Pillow applies them to the pixels, but not to the transparent gray value.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}

_stderr_lock = threading.Lock()  # images may be read in several threads


def read_picture(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file, upright and with its transparency.

    One-bit images become gray and palettes RGB; the EXIF orientation is applied. Of an animation, or a phone's JPEG
    with several pictures, the first one is read.

    Args:
        source: The file, or a binary file object.
        max_pixels: Maximum number of pixels; larger images are refused before they are decoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image, is damaged or too large, or is of a kind that cannot be preserved; the
            message names the file.

    Example:
        >>> from skimage import data_dir
        >>> read_picture(Path(data_dir) / "coins.png").color.shape
        torch.Size([1, 303, 384])
    """
    pixels = read_pixels(source, max_pixels=max_pixels)
    bits: Literal[8, 16] = 16 if pixels.values.dtype == np.uint16 else 8
    values = pixels.values.astype(np.float32)
    values /= 2**bits - 1
    channels = torch.from_numpy(values).permute(2, 0, 1)
    has_alpha = channels.shape[0] in (2, 4)
    return Picture(
        color=channels[:-1] if has_alpha else channels,
        alpha=channels[-1:] if has_alpha else None,
        bits=bits,
        icc_profile=pixels.icc_profile,
        metadata=pixels.metadata,
        lossy=pixels.lossy,
        notes=pixels.notes,
    )


def is_image(path: Path) -> bool:
    """Whether a path is a regular file with the suffix of an image, and not hidden.

    Raises:
        OSError: If its folder cannot be searched.
    """
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_size(source: str | Path | BinaryIO) -> tuple[int, int]:
    """Width and height in the header of an image file, before orientation; nothing is decoded.

    Raises:
        ValueError: If it is not an image; the message names the file.
    """
    with _opened(source) as file:
        if _is_tiff(file):
            with tifffile.TiffFile(rewind(file)) as tiff:
                page: Any = tiff.pages[0]
                return page.imagewidth, page.imagelength
        with _open_with_pillow(file) as opened:
            return opened.size


def read_pixels(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read the integer pixel values of an image file; see :func:`read_picture`."""
    with _opened(source) as file:
        if _is_tiff(file):
            with tifffile.TiffFile(rewind(file)) as tiff:
                if tiff_bits(tiff) == 16:
                    return read_deep_tiff(tiff, file, max_pixels)
        with _open_with_pillow(file) as opened:
            check_size(opened.size, max_pixels)
            if opened.format == "PNG" and any(";16" in str(tile[3]) for tile in opened.tile):
                return read_deep_png(opened, file)
            return _read_with_pillow(opened, file)


@contextmanager
def _opened(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open a file, and prefix all errors with its name."""
    name = "standard input"
    if isinstance(source, (str, Path)):
        name = str(source)
        check_regular(source)
    # Opened here: given a path, Pillow memory-maps the file, and misreads rotated images.
    with open(source, "rb") if isinstance(source, (str, Path)) else nullcontext(source) as file:
        try:
            yield _not_empty(file)
        except RefusedError as error:
            raise RefusedError(f"{name}: {error}.") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: has more than {MAX_PIXELS // 10**6} megapixels; scale it down first.") from error
        except UnidentifiedImageError as error:
            kinds = ", ".join(kind for kind in _FORMATS if kind not in ("MPO", "DIB"))
            raise ValueError(f"{name}: not a readable image (its content is none of {kinds}).") from error
        except Exception as error:  # Pillow's decoders may raise anything on damaged files
            if is_out_of_memory(error):
                raise
            reason = one_line(error)[:200] or type(error).__name__
            raise ValueError(f"{name}: not a readable image ({reason}); save or copy it again.") from error


def _not_empty(file: BinaryIO) -> BinaryIO:
    if not rewind(file).read(1):
        raise RefusedError("is empty; copy or save it again")
    return rewind(file)


def _is_tiff(file: BinaryIO) -> bool:
    return rewind(file).read(4) in _TIFF_MAGIC


def _open_with_pillow(file: BinaryIO) -> Image.Image:
    head = rewind(file).read(12)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not _register_heif():
        raise RefusedError("HEIC, which needs pillow-heif; python -m pip install -e '.[heif]' installs it")
    Image.init()  # loads Pillow's plugins; those for AVIF and HEIF may be missing
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _read_with_pillow(opened: Image.Image, file: BinaryIO) -> Pixels:
    """Read an image with 8 bits per value."""
    notes: list[str] = []
    if getattr(opened, "is_animated", False) and opened.format not in ("MPO", "TIFF"):  # previews, or a second view
        frames = getattr(opened, "n_frames", 2)
        notes.append(f"only the first of its {frames} frames is read")
    arguments = opened.tile[0][3] if opened.format == "PPM" else None
    deep = opened.format == "PPM" and (opened.mode in ("I", "F") or (type(arguments) is tuple and arguments[1] > 255))
    if deep or opened.mode.startswith("I;16"):
        raise RefusedError(
            f"{opened.format} of more than 8 bits per value; save it as PNG or TIFF, which are read with 16"
        )
    bits = _deep_bits(opened, file)
    if bits > 8:
        notes.append(f"its {bits} bits per value are reduced to 8")
    if opened.format == "TIFF" and opened.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > len(opened.getbands()):
        notes.append(OTHER_CHANNEL)
    is_lossy = opened.format in _LOSSY or (opened.format == "WEBP" and _first_frame(rewind(file)) == b"VP8 ")
    chunks = read_color_chunks(rewind(file)) if opened.format == "PNG" else ()
    step = _GRAY_STEPS.get(opened.tile[0][3]) if opened.format == "PNG" and opened.tile else None
    if step and "transparency" in opened.info and opened.info["transparency"] * step <= 255:
        opened.info["transparency"] *= step
    icc_profile = opened.info.get("icc_profile") or None
    if opened.mode in _REFUSED and not (opened.mode == "CMYK" and profile_space(icc_profile) == b"CMYK"):
        raise RefusedError(_REFUSED[opened.mode])
    rewind(file)
    with _silenced_libtiff() if opened.format == "TIFF" else nullcontext():
        opened.load()
    metadata, orientation = read_metadata(opened, chunks), read_orientation(opened)
    image = opened
    if image.mode in ("CMYK", "LAB"):
        notes.append(f"{image.mode.replace('LAB', 'Lab')} is converted to sRGB by its profile")
        image = to_srgb(image, icc_profile)
        icc_profile = srgb_profile()
    is_gray = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if is_gray else "RGB") + ("A" if image.has_transparency_data else "")
    if icc_profile is not None and mode.startswith("RGB") and profile_space(icc_profile) != b"RGB ":
        notes.append(OTHER_PROFILE)
        icc_profile = None
    values = np.array(image.convert(mode))
    values = turned(values.reshape(*values.shape[:2], -1), orientation)
    return Pixels(values, icc_profile, metadata, is_lossy, tuple(notes))


def _first_frame(file: BinaryIO) -> bytes:
    """The name of the chunk of a WebP's first picture: ``VP8 `` if lossy, ``VP8L`` if lossless."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        if head[:4] in (b"VP8 ", b"VP8L"):
            return head[:4]
        size = int.from_bytes(head[4:], "little")
        # The chunks of an animation frame follow after 16 bytes for its position and duration.
        file.seek(16 if head[:4] == b"ANMF" else size + size % 2, 1)
    return b"VP8 "


def _deep_bits(opened: Image.Image, file: BinaryIO) -> int:
    """Bits per value, in formats that Pillow silently reduces to 8."""
    if opened.format == "AVIF":
        head = rewind(file).read(4096)
        place = head.find(b"av1C")
        flags = head[place + 6] if 0 <= place < len(head) - 6 else 0
        return {0b00: 8, 0b10: 10, 0b11: 12}.get(flags >> 5 & 0b11, 8)
    return int(opened.info.get("bit_depth") or 8) if opened.format == "HEIF" else 8


@contextmanager
def _silenced_libtiff() -> Iterator[None]:
    """Silence errors of libtiff on stderr, which Pillow raises anyway."""
    if sys.stderr is None:  # closed, as in a service: descriptor 2 may be another file
        yield
        return
    with _stderr_lock:
        sys.stderr.flush()
        saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(devnull, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(devnull)
