"""Colour profiles: what they are for, and pictures converted by them to sRGB."""

from __future__ import annotations

import io
import struct
from typing import Any, cast

from PIL import Image, ImageCms


def profile_space(icc_profile: bytes | None) -> bytes:
    """The colour space of what a profile is for, as it names it: RGB, GRAY, CMYK."""
    return b"" if icc_profile is None else icc_profile[16:20]


def srgb_profile() -> bytes:
    """The colour profile of sRGB, which does not depend on the day: one file in gives one file out."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """An image of CMYK by its profile, or of Lab, as sRGB."""
    source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc_profile or b"")
    return _convert(
        image,
        source,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def gray_to_srgb(image: Image.Image, icc_profile: bytes) -> Image.Image:
    """A gray image by its profile as RGB, for a format without gray."""
    converted = _convert(image.convert("L"), io.BytesIO(icc_profile))
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _convert(image: Image.Image, source: Any, **options: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB", **options)
    return cast(Image.Image, converted)  # None only if it works in place
