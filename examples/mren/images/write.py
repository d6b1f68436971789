"""Atomic writing of pictures to image files, within what each format supports."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from examples.mren.files import atomic_write
from examples.mren.images.colorprofile import gray_to_srgb, profile_space, srgb_profile
from examples.mren.images.metadata import SUB_IFDS, Metadata
from examples.mren.images.picture import Picture, gamma_to_srgb


@dataclass(frozen=True)
class Format:
    """The capabilities of a file format, and the options for writing it."""

    name: str
    longest_side: int
    alpha: bool = True
    gray: bool = True
    sixteen_bits: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    lossy_options: dict[str, Any] | None = None
    """Options for a picture that was compressed with loss before; ``None`` for a format that is never lossy."""


_PNG = Format("PNG", 2**31 - 1, sixteen_bits=True)
_TIFF = Format("TIFF", 2**31 - 1, sixteen_bits=True, options={"compression": "tiff_deflate"})
_JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
_JPEG = Format("JPEG", 65_500, alpha=False, options=_JPEG_OPTIONS, lossy_options=_JPEG_OPTIONS)
# exact: keeps colours under transparent pixels, in case the result is scaled again.
_WEBP = Format(
    "WebP", 16_383, gray=False, options={"lossless": True, "exact": True}, lossy_options={"quality": 95, "exact": True}
)
_AVIF_OPTIONS = {"quality": 90, "subsampling": "4:4:4"}
_AVIF = Format("AVIF", 65_535, gray=False, options=_AVIF_OPTIONS, lossy_options=_AVIF_OPTIONS)

FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jfif": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".avif": _AVIF,
}

_MAX_JPEG_SEGMENT = 65_000
_XMP_TAG = 700
_BYTE, _ASCII, _LONG, _SIGNED_LONG = 1, 2, 4, 9  # TIFF field types


def check_writable(path: str | Path, picture: Picture, *, scale: int = 1, background: bool = False) -> None:
    """Check that the format of a path's suffix can hold a picture, upscaled by ``scale``.

    Args:
        path: Path of the file.
        picture: The picture.
        scale: The factor by which it will be upscaled.
        background: Whether transparency will be composited over a background.

    Raises:
        ValueError: If it cannot, or the suffix is unknown; the message names the path and what would work.
    """
    fmt = FORMATS.get(Path(path).suffix.lower())
    if fmt is None:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}.")
    if picture.alpha is not None and not fmt.alpha and not background:
        raise ValueError(
            f"{path}: {fmt.name} has no transparency, but the picture does; write .png, .webp or .tif, or choose a "
            "--background."
        )
    if picture.bits == 16 and not fmt.sixteen_bits:
        kind = "16-bit gray" if picture.color.shape[0] == 1 else "16-bit colour"
        raise ValueError(f"{path}: {fmt.name} has no {kind}, which the picture is; write .png or .tif.")
    if picture.metadata.has_unusual_colors and fmt is not _PNG:
        raise ValueError(f"{path}: {fmt.name} cannot store the colour space of the picture (cICP chunk); write .png.")
    longest = max(picture.color.shape[1:]) * scale
    if longest > fmt.longest_side:
        raise ValueError(
            f"{path}: {fmt.name} allows at most {fmt.longest_side} pixels a side, got {longest}; write .png or .tif."
        )


def write_picture(
    path: str | Path, picture: Picture, *, quality: int | None = None, overwrite: bool = True
) -> tuple[str, ...]:
    """Write a picture atomically in the format of the path's suffix.

    Values are clamped to between 0 and 1.

    Args:
        path: The file to write; missing folders are created.
        picture: The picture. WebP and AVIF store gray as RGB.
        quality: Of JPEG, WebP and AVIF, from 1 to 100; makes WebP lossy. Without it, JPEG and AVIF are written at high
            quality, and WebP losslessly if the picture was never compressed with loss.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The metadata of the picture that the format cannot hold, in words.

    Raises:
        ValueError: If the format cannot hold the picture, see :func:`check_writable`.
        FileExistsError: If the file exists and must not be replaced.
        OSError: If the file cannot be written.
    """
    check_writable(path, picture)
    with atomic_write(Path(path), overwrite=overwrite) as scratch, scratch.open("w+b") as file:
        return encode_picture(file, picture, Path(path).suffix, quality=quality)


def encode_picture(file: BinaryIO, picture: Picture, suffix: str, *, quality: int | None = None) -> tuple[str, ...]:
    """Write a picture into a seekable file object; see :func:`write_picture`."""
    fmt = FORMATS[suffix.lower()]
    if fmt is not _PNG:
        picture = gamma_to_srgb(picture)
    channels = picture.color if picture.alpha is None else torch.cat([picture.color, picture.alpha])
    levels, kind = (65535, np.uint16) if picture.bits == 16 else (255, np.uint8)
    values = channels.clamp(0, 1).mul_(levels).round_().permute(1, 2, 0).numpy().astype(kind)
    values = values[:, :, 0] if values.shape[2] == 1 else values
    metadata, left_out = _supported_metadata(fmt, picture.metadata)
    icc_profile = picture.icc_profile
    if fmt is _TIFF:
        _write_tiff(file, np.ascontiguousarray(values), metadata, icc_profile)
        return left_out
    if picture.bits == 16 and values.ndim == 3:  # which Pillow cannot write
        _write_deep_png(file, np.ascontiguousarray(values), metadata, icc_profile)
        return left_out
    image = Image.fromarray(values)
    if not fmt.gray and icc_profile is not None and profile_space(icc_profile) == b"GRAY":
        image, icc_profile = gray_to_srgb(image, icc_profile), srgb_profile()
    options = fmt.lossy_options if fmt.lossy_options is not None and picture.lossy else fmt.options
    if quality is not None and fmt.lossy_options is not None:
        options = fmt.lossy_options | {"quality": quality}
    image.save(file, format=fmt.name, **options, **_pillow_options(fmt, metadata, icc_profile))
    return left_out


def save_image(image: Image.Image, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a Pillow image atomically in the format of the path's suffix."""
    fmt = FORMATS[Path(path).suffix.lower()]
    with atomic_write(Path(path), overwrite=overwrite) as scratch:
        image.save(scratch, format=fmt.name, **fmt.options)


def _supported_metadata(fmt: Format, metadata: Metadata) -> tuple[Metadata, tuple[str, ...]]:
    """The metadata that a format supports, and descriptions of what it does not."""
    left_out: list[str] = []
    if fmt is not _PNG:
        if metadata.text:
            left_out.append("its PNG text")
        metadata = replace(metadata, text=(), color_chunks=())
    if fmt is _JPEG:
        for name in ("exif", "xmp"):
            if len(getattr(metadata, name) or b"") > _MAX_JPEG_SEGMENT:
                left_out.append(f"{name.upper()} of more than 64 KiB")
                metadata = replace(metadata, **{name: None})
    return metadata, tuple(left_out)


def _pillow_options(fmt: Format, metadata: Metadata, icc_profile: bytes | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if icc_profile is not None:
        options["icc_profile"] = icc_profile
    if metadata.dpi is not None and fmt in (_PNG, _JPEG):
        options["dpi"] = metadata.dpi
    if metadata.exif is not None:
        options["exif"] = metadata.exif
    if fmt is _PNG:
        options["pnginfo"] = _png_info(metadata)
    elif metadata.xmp is not None:
        options["xmp"] = metadata.xmp
    return options


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for kind, content in metadata.color_chunks:
        info.add(kind, content)
    for key, text in metadata.text:
        info.add_text(key, text)  # as iTXt if it is not Latin-1
    if metadata.xmp is not None:
        info.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    return info


def _write_deep_png(file: BinaryIO, values: np.ndarray, metadata: Metadata, icc_profile: bytes | None) -> None:
    """Write the pixels with libpng, and the metadata chunks as Pillow writes them into a PNG of one pixel."""
    pixels: bytes = imagecodecs.png_encode(values)
    one_pixel = io.BytesIO()
    mode = {2: "LA", 3: "RGB", 4: "RGBA"}[values.shape[2]]
    Image.new(mode, (1, 1)).save(one_pixel, format="PNG", **_pillow_options(_PNG, metadata, icc_profile))
    encoded = one_pixel.getvalue()
    header = 8 + 25  # the signature and IHDR
    end = encoded.rindex(b"IDAT") - 4  # the last chunk before IEND; its length precedes its name
    file.write(pixels[:header] + encoded[header:end] + pixels[header:])


def _write_tiff(file: BinaryIO, values: np.ndarray, metadata: Metadata, icc_profile: bytes | None) -> None:
    """Write with tifffile: Pillow supports neither 16-bit colour nor EXIF in a compressed file."""
    exif = Image.Exif()
    if metadata.exif is not None:
        exif.load(metadata.exif)
    sub_ifds = {tag: dict(exif.get_ifd(tag)) for tag in SUB_IFDS if tag in exif}
    tags = [(tag, *_tiff_value(value), True) for tag, value in exif.items() if tag not in SUB_IFDS]
    # tifffile drops sub-IFDs. Placeholder entries take the tag before each one's own, which nothing else uses; the tag
    # and the offset are patched at the end.
    tags += [(tag - 1, _LONG, 1, 0, True) for tag in sub_ifds]
    if metadata.xmp is not None:
        tags.append((_XMP_TAG, _BYTE, len(metadata.xmp), metadata.xmp, True))
    color = values.ndim == 3 and values.shape[2] > 2
    tifffile.imwrite(
        file,
        values,
        bigtiff=False,
        byteorder="<",
        photometric="rgb" if color else "minisblack",
        planarconfig="contig" if values.ndim == 3 else None,
        extrasamples=["unassalpha"] if values.ndim == 3 and values.shape[2] in (2, 4) else None,
        compression="zlib",
        predictor=True,
        iccprofile=icc_profile,
        resolution=metadata.dpi,
        resolutionunit=None if metadata.dpi is None else "inch",
        extratags=tags,
        metadata=None,
        software=False,
    )
    for tag, fields in sub_ifds.items():
        offset = file.seek(0, io.SEEK_END)
        file.write(bytes(offset % 2))
        ifd = ImageFileDirectory_v2()
        for key, value in fields.items():
            ifd[key] = value
        file.write(ifd.tobytes(offset + offset % 2))
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            entry = tiff.pages[0].tags[tag - 1].offset
        file.seek(entry)
        file.write(struct.pack("<HHII", tag, _LONG, 1, offset + offset % 2))


def _tiff_value(value: Any) -> tuple[int, int, Any]:
    """The type, count and value of a TIFF field."""
    if isinstance(value, bytes):
        return _BYTE, len(value), value
    if isinstance(value, int):
        return _LONG if value >= 0 else _SIGNED_LONG, 1, value
    text = str(value).encode("utf-8", "replace") + b"\0"
    return _ASCII, len(text), text
