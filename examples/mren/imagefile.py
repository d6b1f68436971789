"""Image files in and out, in one place: :mod:`~examples.mren.imageread` and :mod:`~examples.mren.imagewrite`."""

from examples.mren.imageread import IMAGE_SUFFIXES, is_image, read_picture, read_pixels, read_size
from examples.mren.imagewrite import FORMATS, Format, check_writable, encode_picture, save_image, write_picture
from examples.mren.picture import Picture, bleed, composite

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "Format",
    "Picture",
    "bleed",
    "check_writable",
    "composite",
    "encode_picture",
    "is_image",
    "read_picture",
    "read_pixels",
    "read_size",
    "save_image",
    "write_picture",
]
