"""Image files of many kinds, read as what they are.

Gray, RGB, palettes and one-bit images, each with or without transparency, with 8 bits per value, or with 16 in PNG and
TIFF. CMYK and Lab become sRGB by their profiles. What would have to be degraded on the way, such as floating-point
values, is refused with a message rather than degraded.

A file may come from anybody: its size is looked at before it is decoded, and only the formats listed here are tried.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from examples.mren.cli import is_out_of_memory, one_line
from examples.mren.files import check_regular
from examples.mren.metadata import Metadata, read_color_chunks, read_metadata, read_orientation
from examples.mren.picture import Picture

# By their content, whatever the name says. Not among them is what starts other programs, such as EPS.
_READ = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "GIF", "BMP", "DIB", "AVIF", "PPM", "HEIF")
_LOSSY = ("JPEG", "MPO", "AVIF", "HEIF")
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".ppm", ".pgm"),
)
MAX_PIXELS = 178_956_970  # Pillow's own limit, half a gigabyte of RGB

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_REFUSED = {
    "CMYK": "CMYK, whose colours depend on the press, without a profile that says which; convert it to RGB first",
    "I": "32 bits per pixel; save it with 8 or 16 bits",
    "F": "floating-point; save it with 8 bits, or with 16 as whole numbers",
}
_SAMPLE_KINDS = {2: "signed whole numbers", 3: "floating-point", 5: "complex numbers", 6: "complex numbers"}
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


_stderr_is_taken = threading.Lock()  # images may be read in several threads


class RefusedError(ValueError):
    """A file of a kind that cannot be kept, as opposed to one that cannot be read."""


@dataclass
class Pixels:
    """An image as its file holds it, upright."""

    values: np.ndarray
    """uint8 or uint16, shape (H, W, C): gray, gray and alpha, RGB, or RGB and alpha."""
    icc_profile: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)
    lossy: bool = False
    notes: tuple[str, ...] = ()


def read_picture(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file, upright and with its transparency.

    One-bit images become gray, palettes RGB; the orientation that a camera noted is applied. Of a phone's JPEG that
    holds several pictures, and of an animation, the first is taken.

    Args:
        source: The file, or one that is open for reading bytes.
        max_pixels: How many it may have; larger ones are refused before they are decoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image, is damaged or too large, or is of a kind that could not be kept as it is;
            the message names the file.

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
    """Whether a file of a folder is an image by its name, and a file with contents; hidden files are none.

    Raises:
        OSError: If the folder cannot be looked into.
    """
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_size(source: str | Path | BinaryIO) -> tuple[int, int]:
    """Width and height that an image file says it has, not turned; nothing is decoded.

    Raises:
        ValueError: If it is no image; the message names the file.
    """
    with _reading(source) as file:
        if _is_tiff(file):
            with tifffile.TiffFile(_at_start(file)) as tiff:
                page: Any = tiff.pages[0]
                return page.imagewidth, page.imagelength
        with _open_with_pillow(file) as opened:
            return opened.size


def read_pixels(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read an image file as the whole numbers that it holds; see :func:`read_picture`."""
    with _reading(source) as file:
        if _is_tiff(file):
            with tifffile.TiffFile(_at_start(file)) as tiff:
                if _tiff_bits(tiff) == 16:
                    return _read_deep_tiff(tiff, file, max_pixels)
        with _open_with_pillow(file) as opened:
            _check_size(opened.size, max_pixels)
            if opened.format == "PNG" and any(";16" in str(tile[3]) for tile in opened.tile):
                return _read_deep_png(opened, file)
            return _read_with_pillow(opened, file)


@contextmanager
def _reading(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file that is open, whose name every error names."""
    if isinstance(source, (str, Path)):
        name = str(source)
        check_regular(source)
    else:
        name = "standard input"
    try:
        if isinstance(source, (str, Path)):
            # Not by its path: Pillow maps such files into memory, and misreads those that are turned.
            with open(source, "rb") as file:
                yield file
        else:
            yield source
    except RefusedError as error:
        raise RefusedError(f"{name}: {error}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: has more than {MAX_PIXELS // 10**6} megapixels; scale it down first.") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(kind for kind in _READ if kind not in ("MPO", "DIB"))
        raise ValueError(f"{name}: not a readable image (its content is none of {kinds}).") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if is_out_of_memory(error):
            raise
        reason = one_line(error)[:200] or type(error).__name__
        raise ValueError(f"{name}: not a readable image ({reason}); save it anew, or copy it again.") from error


def _is_tiff(file: BinaryIO) -> bool:
    return _at_start(file).read(4) in _TIFF_MAGIC


def _open_with_pillow(file: BinaryIO) -> Image.Image:
    head = _at_start(file).read(12)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not _register_heif():
        raise RefusedError("HEIC, which needs pillow-heif; python -m pip install -e '.[heif]' installs it")
    Image.init()  # loads Pillow's readers; those of AVIF and HEIF may be missing
    return Image.open(file, formats=[form for form in _READ if form in Image.OPEN])


def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise RefusedError(
            f"has {size[0]} x {size[1]} pixels, {size[0] * size[1] / 1e6:.3g} megapixels; "
            f"{max_pixels / 1e6:.3g} are allowed; scale it down, or raise the limit"
        )


def _read_with_pillow(opened: Image.Image, file: BinaryIO) -> Pixels:
    """An image of 8 bits per value."""
    notes: list[str] = []
    if getattr(opened, "is_animated", False) and opened.format != "MPO":  # MPO: previews, or a second view
        frames = getattr(opened, "n_frames", 2)
        if opened.format == "TIFF":
            raise RefusedError(f"holds {frames} pictures; save the one that you mean as a file of its own")
        notes.append(f"the first of its {frames} pictures is taken")
    arguments = opened.tile[0][3] if opened.format == "PPM" else None
    deep = opened.format == "PPM" and (opened.mode in ("I", "F") or (type(arguments) is tuple and arguments[1] > 255))
    if deep or opened.mode.startswith("I;16"):
        raise RefusedError(
            f"{opened.format} of more than 8 bits per value; save it as PNG or TIFF, which are read with 16"
        )
    bits = _deep_bits(opened, file)
    if bits > 8:
        notes.append(f"of its {bits} bits per value 8 are taken")
    is_lossy = opened.format in _LOSSY or (opened.format == "WEBP" and not _is_lossless_webp(file))
    chunks = read_color_chunks(_at_start(file)) if opened.format == "PNG" else ()
    icc_profile = opened.info.get("icc_profile") or None
    if opened.mode in _REFUSED and not (opened.mode == "CMYK" and _space(icc_profile) == b"CMYK"):
        raise RefusedError(_REFUSED[opened.mode])
    _at_start(file)
    with _libtiff_is_quiet() if opened.format == "TIFF" else nullcontext():
        opened.load()
    metadata = read_metadata(opened, chunks)
    upright = ImageOps.exif_transpose(opened)
    if upright.mode in ("CMYK", "LAB"):
        notes.append(f"{upright.mode.replace('LAB', 'Lab')} is converted to sRGB by its profile")
        upright = _to_srgb(upright, icc_profile)
        icc_profile = srgb_profile()
    mode = _plain_mode(upright)
    if icc_profile is not None and mode.startswith("RGB") and _space(icc_profile) != b"RGB ":
        notes.append("its colour profile is not one of RGB, and left out")
        icc_profile = None
    values = np.array(upright.convert(mode))
    return Pixels(values.reshape(*values.shape[:2], -1), icc_profile, metadata, is_lossy, tuple(notes))


def _read_deep_png(opened: Image.Image, file: BinaryIO) -> Pixels:
    """A PNG of 16 bits per value, of which Pillow would keep 8 in colour."""
    if getattr(opened, "is_animated", False):
        raise RefusedError("is an animation of 16 bits per value; save the picture that you mean as a file of its own")
    orientation = read_orientation(opened)
    metadata = read_metadata(opened, read_color_chunks(_at_start(file)))
    icc_profile = opened.info.get("icc_profile") or None
    values = imagecodecs.png_decode(_at_start(file).read())
    return _deep(values, orientation, icc_profile, metadata)


def _read_deep_tiff(tiff: tifffile.TiffFile, file: BinaryIO, max_pixels: int) -> Pixels:
    """A TIFF of 16 bits per value, of which Pillow would keep 8 in colour, or stripes."""
    page: Any = tiff.pages[0]
    size = (page.imagewidth, page.imagelength)
    _check_size(size, max_pixels)
    photometric = getattr(page.photometric, "name", f"kind {page.photometric}")
    if photometric == "MINISWHITE":
        raise RefusedError("16-bit gray counted from white; save it counted from black")
    if photometric not in ("MINISBLACK", "RGB"):
        raise RefusedError(f"16 bits per value of {photometric}; save it as gray or RGB")
    colors = 1 if photometric == "MINISBLACK" else 3
    # The parts that it is stored in may be larger than the picture; those of a real file hardly are.
    if max(page.tilewidth, 1) * max(page.tilelength, 1) > size[0] * size[1] + 2**24:
        raise RefusedError("is stored in tiles far larger than itself; save it anew")
    if page.samplesperpixel not in (colors, colors + 1) or page.imagedepth != 1:
        raise RefusedError(f"{page.samplesperpixel} values per pixel; save it as gray or RGB, with or without opacity")
    values = page.asarray()
    if page.samplesperpixel > 1 and int(page.planarconfig) == 2:  # one plane after the other
        values = np.moveaxis(values, 0, -1)
    if page.samplesperpixel > colors and page.extrasamples and int(page.extrasamples[0]) == 1:
        values = _unassociated(values)
    tags = page.tags
    orientation = tags["Orientation"].value if "Orientation" in tags else 1
    icc_profile = bytes(tags["InterColorProfile"].value) if "InterColorProfile" in tags else None
    try:
        with Image.open(_at_start(file), formats=["TIFF"]) as opened:
            metadata = read_metadata(opened)
    except UnidentifiedImageError:  # gray with opacity: Pillow knows no such picture
        metadata = Metadata()
    return _deep(values, orientation, icc_profile, metadata)


def _deep(values: np.ndarray, orientation: int, icc_profile: bytes | None, metadata: Metadata) -> Pixels:
    pixels = values.reshape(*values.shape[:2], -1).astype(np.uint16, copy=False)
    notes: tuple[str, ...] = ()
    if icc_profile is not None and pixels.shape[2] > 2 and _space(icc_profile) != b"RGB ":
        icc_profile, notes = None, ("its colour profile is not one of RGB, and left out",)
    upright = np.ascontiguousarray(_UPRIGHT.get(orientation, _UPRIGHT[1])(pixels))
    return Pixels(upright, icc_profile, metadata, False, notes)


def _unassociated(values: np.ndarray) -> np.ndarray:
    """Colours that were multiplied by their opacity, as they were before."""
    alpha = values[..., -1:].astype(np.float64)
    colors = np.where(alpha > 0, values[..., :-1] * 65_535.0 / np.maximum(alpha, 1), 0)
    return np.concatenate([colors.round().clip(0, 65_535), alpha], -1).astype(np.uint16)


def _tiff_bits(tiff: tifffile.TiffFile) -> int:
    """8 or 16 bits per value.

    Raises:
        RefusedError: If the values are of another type.
    """
    page: Any = tiff.pages[0]
    bits, kind = page.bitspersample, int(page.sampleformat or 1)
    if kind in _SAMPLE_KINDS:
        raise RefusedError(f"{bits} bits per pixel and colour, {_SAMPLE_KINDS[kind]}; save it with 8 bits")
    if bits not in (1, 2, 4, 8, 16):
        raise RefusedError(f"{bits} bits per pixel and colour; save it with 8 or 16")
    if bits == 16 and len(tiff.pages) > 1 and _reads_alike(tiff):
        raise RefusedError(f"holds {len(tiff.pages)} pictures; save the one that you mean as a file of its own")
    return 16 if bits == 16 else 8


def _reads_alike(tiff: tifffile.TiffFile) -> bool:
    """Whether the further pictures are more than previews of the first."""
    return any(not getattr(page, "is_reduced", False) for page in tiff.pages[1:3])


def _deep_bits(opened: Image.Image, file: BinaryIO) -> int:
    """Bits per value of a format from which Pillow takes 8 without a word."""
    if opened.format == "AVIF":
        head = _at_start(file).read(4096)
        place = head.find(b"av1C")
        flags = head[place + 6] if 0 <= place < len(head) - 6 else 0
        return {0b00: 8, 0b10: 10, 0b11: 12}.get(flags >> 5 & 0b11, 8)
    return int(opened.info.get("bit_depth") or 8) if opened.format == "HEIF" else 8


@contextmanager
def _libtiff_is_quiet() -> Iterator[None]:
    """Keep libtiff, which has no exceptions, from printing to stderr what Pillow raises anyway."""
    with _stderr_is_taken:
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _is_lossless_webp(file: BinaryIO) -> bool:
    return b"VP8L" in _at_start(file).read(4096)


def _at_start(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _space(icc_profile: bytes | None) -> bytes:
    """The colour space of what a profile is for, as it names it: RGB, GRAY, CMYK."""
    return b"" if icc_profile is None else icc_profile[16:20]


def srgb_profile() -> bytes:
    """The colour profile of sRGB, which does not depend on the day: one file in gives one file out."""
    made_now = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made_now[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + made_now[36:]


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    given = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc_profile or b"")
    converted = ImageCms.profileToProfile(
        image,
        given,  # type: ignore[arg-type]
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if converted is None:  # only where it works in place
        raise ValueError("cannot be converted to sRGB")
    return converted


def _plain_mode(image: Image.Image) -> str:
    gray = image.mode in ("1", "L", "LA", "La")
    return ("L" if gray else "RGB") + ("A" if image.has_transparency_data else "")
