"""Colour profiles: their colour spaces, and conversion to sRGB."""

from __future__ import annotations

import io
import struct
from typing import Any, cast

from PIL import Image, ImageCms


def profile_space(icc_profile: bytes | None) -> bytes:
    """The colour space of a profile as stored, such as ``b"RGB "``, ``b"GRAY"`` or ``b"CMYK"``."""
    return b"" if icc_profile is None else icc_profile[16:20]


def srgb_profile() -> bytes:
    """An sRGB profile with a fixed date, so that output files are reproducible."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Convert a CMYK image with its profile, or a Lab image, to sRGB."""
    source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc_profile or b"")
    return _convert(
        image,
        source,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def gray_to_srgb(image: Image.Image, icc_profile: bytes) -> Image.Image:
    """Convert a gray image with its profile to sRGB, for a format without gray."""
    converted = _convert(image.convert("L"), io.BytesIO(icc_profile))
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _convert(image: Image.Image, source: Any, **options: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB", **options)
    return cast(Image.Image, converted)  # None only if it works in place
