"""Colour profiles: what they are for, and pictures converted by them to sRGB."""

from __future__ import annotations

import io
import struct

from PIL import Image, ImageCms


def profile_space(icc_profile: bytes | None) -> bytes:
    """The colour space of what a profile is for, as it names it: RGB, GRAY, CMYK."""
    return b"" if icc_profile is None else icc_profile[16:20]


def srgb_profile() -> bytes:
    """The colour profile of sRGB, which does not depend on the day: one file in gives one file out."""
    made_now = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made_now[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + made_now[36:]


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """An image of CMYK by its profile, or of Lab, as sRGB."""
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


def gray_to_srgb(image: Image.Image, icc_profile: bytes) -> Image.Image:
    """A gray image by its profile as RGB, for a format without gray."""
    alpha = image.getchannel("A") if image.mode == "LA" else None
    converted = ImageCms.profileToProfile(
        image.convert("L"), io.BytesIO(icc_profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    if converted is None:  # only where it works in place
        raise ValueError("the gray colour profile cannot be converted to sRGB")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
