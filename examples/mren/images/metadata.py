"""The metadata of an image file that is kept in an upscaled picture.

Kept are the descriptive EXIF fields with camera settings and GPS, XMP, the resolution in dots per inch, and the text of
a PNG. The orientation is reset, because pictures are turned upright; size, thumbnail and file layout are dropped, as
they do not apply to the new picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

ORIENTATION = 0x0112
SUB_IFDS = (0x8769, 0x8825)  # the camera's settings, GPS
# Description, make, model, software, date, artist, computer, rating, copyright, and Windows' title to subject.
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 0x4746, 0x4749, 33432, *range(0x9C9B, 0x9CA0))
_SIZE_TAGS = (0xA002, 0xA003, 0xA005)  # width, height, interoperability
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
# Chunks that define the colours of a PNG.
_COLOR_CHUNKS = (b"cICP", b"gAMA", b"cHRM", b"sRGB")


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file besides its colour profile."""

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    """Keywords and texts of a PNG."""
    color_chunks: tuple[tuple[bytes, bytes], ...] = ()
    """PNG chunks that define its colours: part of the picture, so kept when metadata is stripped."""

    def stripped(self) -> Metadata:
        """Only the metadata without which the picture would look wrong."""
        return Metadata(color_chunks=self.color_chunks)

    @property
    def gamma(self) -> float | None:
        """The encoding exponent of a PNG, if no other chunk overrides it and it is not that of sRGB."""
        chunks = dict(self.color_chunks)
        if b"cICP" in chunks or b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
            return None
        gamma = int.from_bytes(chunks[b"gAMA"], "big") / 100_000
        return gamma if 0.1 < gamma < 10 and abs(gamma - 1 / 2.2) > 0.01 else None

    @property
    def has_unusual_colors(self) -> bool:
        """Whether the cICP chunk of a PNG declares colours other than sRGB: HDR or a wide gamut."""
        code = dict(self.color_chunks).get(b"cICP")
        return code is not None and code[:2] != bytes([1, 13])


def read_metadata(opened: Image.Image, color_chunks: tuple[tuple[bytes, bytes], ...] = ()) -> Metadata:
    """The metadata to keep from an image decoded by Pillow, without damaged entries.

    Args:
        opened: The image.
        color_chunks: Colour chunks of a PNG.
    """
    return Metadata(
        exif=_kept_exif(opened),
        xmp=_kept_xmp(opened),
        dpi=_kept_dpi(opened.info.get("dpi")),
        text=_kept_text(getattr(opened, "text", {})),
        color_chunks=color_chunks,
    )


def read_orientation(opened: Image.Image) -> int:
    """The EXIF orientation, from 1 (upright) to 8."""
    try:
        value = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged: Pillow's parser may raise anything
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_color_chunks(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks of a PNG that define its colours; the content of long ones is dropped."""
    chunks: list[tuple[bytes, bytes]] = []
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"IEND"):
            break
        content = file.read(length) if length <= 1024 else b""
        file.seek(length - len(content) + 4, 1)
        if kind in _COLOR_CHUNKS:
            chunks.append((kind, content))
    return tuple(chunks)


def _kept_exif(opened: Image.Image) -> bytes | None:
    try:
        found, kept = opened.getexif(), Image.Exif()
        for tag in _DESCRIPTIVE:
            if tag in found:
                kept[tag] = found[tag]
        for tag in SUB_IFDS:
            fields: dict[int, Any] = {k: v for k, v in found.get_ifd(tag).items() if k not in _SIZE_TAGS}
            if fields:
                kept[tag] = fields
        return kept.tobytes() if len(kept) else None
    except Exception:  # damaged, as in read_orientation
        return None


def _kept_xmp(opened: Image.Image) -> bytes | None:
    found = next((opened.info[key] for key in _XMP_KEYS if key in opened.info), None)
    if isinstance(found, str):
        found = found.encode("utf-8", "surrogatepass")
    if not isinstance(found, bytes) or not found:
        return None
    upright = re.sub(rb"""(tiff:Orientation=["'])\d(["'])""", rb"\g<1>1\2", found)
    return re.sub(rb"(<tiff:Orientation>)\d(</tiff:Orientation>)", rb"\g<1>1\2", upright)


def _kept_dpi(found: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in found)
    except Exception:  # missing, or not two numbers
        return None
    return (across, down) if all(math.isfinite(d) and 0 < d <= 65_535 for d in (across, down)) else None


def _kept_text(found: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    # Without the EXIF and XMP that older programs store as text; these have their own fields.
    return tuple(
        (str(key), str(value))
        for key, value in found.items()
        if key not in _XMP_KEYS and not str(key).startswith("Raw profile type")
    )
