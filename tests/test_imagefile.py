"""Image files of every kind: read right, or refused by name; and what they say besides their pixels is kept."""

from __future__ import annotations

import errno
import io
import itertools
import os
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, PngImagePlugin

from examples.mren.data import list_images, read_rgb
from examples.mren.images import read
from examples.mren.images.colorprofile import srgb_profile
from examples.mren.images.picture import Picture, composite
from examples.mren.images.read import IMAGE_SUFFIXES, read_picture, read_size
from examples.mren.images.write import check_writable, write_picture
from examples.mren.messages import describe
from tests.images import photo, pil_photo

HEIGHT, WIDTH = 12, 17


def rgb() -> Image.Image:
    return pil_photo(HEIGHT, WIDTH)


def deep(channels: int) -> np.ndarray:
    """Values of which 8 bits would not do."""
    values = np.random.default_rng(0).integers(0, 65_536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    return values[:, :, 0] if channels == 1 else values


def values_of(picture: Picture) -> np.ndarray:
    """All channels of a picture as its file has them."""
    channels = picture.color if picture.alpha is None else torch.cat([picture.color, picture.alpha])
    levels = 2**picture.bits - 1
    return (channels * levels).round().permute(1, 2, 0).numpy().astype(np.uint16 if picture.bits == 16 else np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(chunks: dict[bytes, bytes], image: Image.Image | None = None) -> bytes:
    """A PNG with chunks that Pillow does not write by itself."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for kind, content in chunks.items():
        info.add(kind, content)
    (image or rgb()).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["gray", "16-bit gray", "palette", "rgb", "rgba", "16-bit rgb"])
def test_a_turned_tiff_is_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    file = tmp_path / "turned.tif"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "16-bit rgb":
        stored = deep(3)
        tifffile.imwrite(file, stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    else:
        image = {
            "gray": lambda: rgb().convert("L"),
            "16-bit gray": lambda: Image.fromarray(deep(1)),
            "palette": lambda: rgb().quantize(16),
            "rgb": rgb,
            "rgba": lambda: rgb().convert("RGBA"),
        }[kind]()
        image.save(file, exif=exif)
        stored = np.array(image.convert("RGB") if kind == "palette" else image)
    stored = stored.reshape(HEIGHT, WIDTH, -1)
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.fliplr(np.rot90(a, -1)),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.fliplr(np.rot90(a, 1)),
        8: lambda a: np.rot90(a, 1),
    }[orientation](stored)
    np.testing.assert_array_equal(values_of(read_picture(file)), upright)


def test_a_turned_png_of_sixteen_bits_is_upright(tmp_path: Path) -> None:
    exif, values = Image.Exif(), deep(3)
    exif[0x0112] = 6  # to be turned clockwise
    turned = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    content = imagecodecs.png_encode(values)
    (tmp_path / "in.png").write_bytes(content[:33] + turned + content[33:])  # behind the signature and the header
    np.testing.assert_array_equal(values_of(read_picture(tmp_path / "in.png")), np.rot90(values, -1))


# Depth


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_come_in_and_go_out(channels: int, suffix: str, tmp_path: Path) -> None:
    values = deep(channels)
    if suffix == ".png":
        (tmp_path / "in.png").write_bytes(imagecodecs.png_encode(values))
    else:
        extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
        kind = "rgb" if channels > 2 else "minisblack"
        tifffile.imwrite(tmp_path / "in.tif", values, photometric=kind, planarconfig="contig", **extra)
    picture = read_picture(tmp_path / f"in{suffix}")
    assert picture.bits == 16
    np.testing.assert_array_equal(values_of(picture), values.reshape(HEIGHT, WIDTH, -1))
    for target in (tmp_path / "out.png", tmp_path / "out.tif"):
        write_picture(target, picture)
        np.testing.assert_array_equal(values_of(read_picture(target)), values.reshape(HEIGHT, WIDTH, -1))
    # Other programs' readers see the same.
    png = imagecodecs.png_decode((tmp_path / "out.png").read_bytes())
    np.testing.assert_array_equal(png, values)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), values)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_tiffs_of_every_layout(compression: str | None, planar: str, order: str, tmp_path: Path) -> None:
    values = deep(3)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(
        tmp_path / "in.tif", stored, photometric="rgb", planarconfig=planar, compression=compression, byteorder=order
    )
    np.testing.assert_array_equal(values_of(read_picture(tmp_path / "in.tif")), values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"photometric": "miniswhite", "shape": (8, 9)}, "0 is white"),
        ({"photometric": "separated", "shape": (8, 9, 4)}, "16 bits per value of SEPARATED"),
        ({"photometric": "minisblack", "shape": (8, 9, 5), "planarconfig": "contig"}, "5 values per pixel"),
        ({"photometric": "rgb", "shape": (2, 8, 9, 3)}, "holds 2 pictures"),
        # Its size is that of its own data, whatever the file says.
        ({"photometric": "rgb", "shape": (8, 9, 3), "compression": "jpeg2000"}, "compressed as JPEG2000"),
    ],
)
def test_deep_tiffs_of_other_kinds_are_refused(options, words: str, tmp_path: Path) -> None:
    shape = options.pop("shape")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint16), metadata=None, **options)
    with pytest.raises(ValueError, match=rf"a\.tif: .*{words}"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_channel_that_is_no_opacity_is_left_out_of_a_tiff_and_said(dtype: type, tmp_path: Path) -> None:
    values = deep(4).astype(dtype)
    values[..., 3] = 0  # as opacity, it would hide everything
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.alpha is None
    assert picture.notes == ("a channel that is neither colour nor opacity is left out",)
    np.testing.assert_array_equal(values_of(picture), values[..., :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_of_several_pictures_in_a_tiff_only_previews_are_passed_over(dtype: type, tmp_path: Path) -> None:
    whole, preview = deep(3).astype(dtype), np.zeros((3, 4, 3), dtype)
    pages = {"preview": [(whole, 0), (preview, 1)], "first": [(preview, 1), (whole, 0)], "two": [(whole, 0)] * 2}
    for name, pictures in pages.items():
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for values, kind in pictures:
                file.write(values, photometric="rgb", subfiletype=kind, metadata=None)
    np.testing.assert_array_equal(values_of(read_picture(tmp_path / "preview.tif")), whole)
    with pytest.raises(ValueError, match=r"first\.tif: begins with a preview, as raw photographs do; develop it"):
        read_picture(tmp_path / "first.tif")
    with pytest.raises(ValueError, match=r"two\.tif: holds 2 pictures"):
        read_picture(tmp_path / "two.tif")


def test_what_a_deep_tiff_says_besides_its_pixels(tmp_path: Path) -> None:
    # Colours multiplied by their opacity, as half of the programs write them; where nothing shows, they are nothing.
    values = np.array([[[20_000, 0, 10_000, 40_000], [0, 0, 0, 0]]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "a.tif")
    wanted = torch.tensor([20_000, 0, 10_000]) / 40_000
    torch.testing.assert_close(picture.color[:, 0, 0], wanted, rtol=0, atol=2e-5)
    assert picture.color[:, 0, 1].tolist() == [0, 0, 0]
    # Where next to nothing shows, its colour is as bright; no colour is brighter than white.
    values = np.array([[[60, 30, 0, 60], [50_000, 0, 10_000, 40_000]]], np.uint16)
    tifffile.imwrite(tmp_path / "c.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    wanted = torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.0, 0.25]])
    torch.testing.assert_close(read_picture(tmp_path / "c.tif").color[:, 0], wanted, rtol=0, atol=2e-5)
    # A profile of something else than RGB, and an orientation that there is not.
    gray = bytearray(srgb_profile())
    gray[16:20] = b"GRAY"
    extratags = [(0x112, "H", 1, 77, True)]
    tifffile.imwrite(
        tmp_path / "b.tif", values[..., :3], photometric="rgb", iccprofile=bytes(gray), extratags=extratags
    )
    picture = read_picture(tmp_path / "b.tif")
    assert picture.icc_profile is None
    assert picture.notes == ("its colour profile is not for RGB and is left out",)
    assert picture.color.shape == (3, 1, 2)


def png_of_rows(rows: list[bytes], width: int, bits: int, kind: int, transparent: bytes) -> bytes:
    """A PNG of a depth, or with a colour that stands for transparency, as Pillow does not write it."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0),
        b"tRNS": transparent,
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks.items())


@pytest.mark.parametrize(("bits", "gray"), [(1, 1), (2, 1), (2, 3), (4, 1), (4, 15)])
def test_a_gray_of_few_bits_that_stands_for_transparency(bits: int, gray: int, tmp_path: Path) -> None:
    rows = [bytes([0b00011011] * bits), bytes([0b11100100] * bits), bytes([0b11111111] * bits)]
    (tmp_path / "in.png").write_bytes(png_of_rows(rows, 8, bits, 0, struct.pack(">H", gray)))
    picture = read_picture(tmp_path / "in.png")
    assert picture.alpha is not None
    assert torch.equal(picture.alpha == 0, (picture.color * (2**bits - 1)).round() == gray)
    assert (picture.alpha == 0).any()


def test_a_deep_colour_that_stands_for_transparency(tmp_path: Path) -> None:
    values = deep(3)
    rows = [row.astype(">u2").tobytes() for row in values]
    (tmp_path / "in.png").write_bytes(png_of_rows(rows, WIDTH, 16, 2, rows[0][:6]))
    picture = read_picture(tmp_path / "in.png")
    assert picture.alpha is not None
    assert picture.alpha[0, 0, 0] == 0
    assert picture.alpha.sum() == HEIGHT * WIDTH - 1


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (lambda p: tifffile.imwrite(p, deep(1).astype(np.int16), photometric="minisblack"), "a.tif", "signed whole"),
        (lambda p: tifffile.imwrite(p, deep(1).astype(np.int8), photometric="minisblack"), "a.tif", "signed whole"),
        (lambda p: tifffile.imwrite(p, deep(3).astype(np.float32), photometric="rgb"), "a.tif", "floating-point"),
        (
            lambda p: tifffile.imwrite(p, deep(1).astype(np.float16), photometric="minisblack"),
            "a.tif",
            "floating-point",
        ),
        (lambda p: tifffile.imwrite(p, deep(1).astype(np.uint32), photometric="minisblack"), "a.tif", "32 bits"),
        (
            lambda p: tifffile.imwrite(p, deep(1) >> 4, photometric="minisblack", bitspersample=12),
            "a.tif",
            "12 bits",
        ),
        (lambda p: tifffile.imwrite(p, np.stack([deep(3)] * 2), photometric="rgb"), "a.tif", "holds 2 pictures"),
        (lambda p: p.write_bytes(b"P6\n2 2\n65535\n" + bytes(24)), "a.ppm", "more than 8 bits"),
        (lambda p: p.write_bytes(b"P5\n2 2\n65535\n" + bytes(8)), "a.pgm", "more than 8 bits"),
        (lambda p: p.write_bytes(b"P6\n2 2\n1023\n" + bytes(24)), "a.png", "more than 8 bits"),
        (lambda p: rgb().convert("CMYK").save(p), "a.jpg", "CMYK.*without a profile"),
        (lambda p: rgb().save(p, format="EPS"), "a.png", "content is none of PNG"),
        (lambda p: rgb().save(p, format="ICO"), "a.png", "content is none of PNG"),
        (lambda p: p.write_bytes(b""), "a.png", "is empty; copy or save it again"),
        (lambda p: p.write_bytes(b"P5\n60000 60000\n255\n"), "a.pgm", "megapixels"),
        (
            lambda p: Image.fromarray(deep(1)).save(p, save_all=True, append_images=[Image.fromarray(deep(1)[::-1])]),
            "a.png",
            "an animation of 16 bits",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(make, name: str, words: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: .*{words}"):
        read_picture(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: "):
        read_rgb(tmp_path / name)


def test_a_file_that_must_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb().save(tmp_path / "a.png")

    def refuse(file: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(read, "open", refuse, raising=False)
    with pytest.raises(PermissionError) as caught:
        read_picture(tmp_path / "a.png")
    assert describe(caught.value).endswith("a.png: Permission denied; change its permissions, or choose another.")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_training_and_scoring_refuse_sixteen_bits(channels: int, suffix: str, tmp_path: Path) -> None:
    write_picture(tmp_path / f"a{suffix}", Picture(torch.rand(channels, 4, 5), bits=16))
    with pytest.raises(ValueError, match=r"a\..*more than 8 bits per value"):
        read_rgb(tmp_path / f"a{suffix}")


def test_scoring_sees_what_pillow_sees(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "P", "RGBA", "LA", "1"):
        image = rgb().quantize(8) if mode == "P" else rgb().convert(mode)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(
            read_rgb(tmp_path / "a.png").permute(1, 2, 0).numpy(), np.array(image.convert("RGB"))
        )


# Formats


def test_the_first_picture_of_an_animation_is_taken_and_said(tmp_path: Path) -> None:
    for suffix in (".gif", ".png", ".webp"):
        first, second = Image.new("RGB", (9, 8), "red"), Image.new("RGB", (9, 8), "blue")
        first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second])
        picture = read_picture(tmp_path / f"a{suffix}")
        assert picture.notes == ("only the first of its 2 frames is read",)
        assert picture.color[0].mean() > 0.9 > 0.1 > picture.color[2].mean()


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".avif", ".heic", ".ppm", ".bmp", ".webp"])
def test_formats_by_their_suffix(suffix: str, tmp_path: Path) -> None:
    if suffix == ".heic":
        pillow_heif.register_heif_opener()
    file = tmp_path / f"a{suffix}"
    rgb().save(file, **({"format": "JPEG"} if suffix == ".jfif" else {}))
    assert suffix in IMAGE_SUFFIXES
    assert list_images(tmp_path) == [file]
    assert read_size(file) == (WIDTH, HEIGHT)
    assert read_picture(file).lossy == (suffix in (".jfif", ".avif", ".heic", ".webp"))
    difference = values_of(read_picture(file)).astype(int) - np.array(rgb())
    assert np.abs(difference).mean() < 40


def test_bits_that_are_not_kept_are_said(tmp_path: Path) -> None:
    pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), deep(3).tobytes()).save(tmp_path / "a.heic")
    assert read_picture(tmp_path / "a.heic").notes == ("its 10 bits per value are reduced to 8",)
    for bits in (8, 10, 12):
        values = deep(3) >> (16 - bits)
        content = imagecodecs.avif_encode(values.astype(np.uint8) if bits == 8 else values, bitspersample=bits)
        (tmp_path / "a.avif").write_bytes(content)
        said = () if bits == 8 else (f"its {bits} bits per value are reduced to 8",)
        assert read_picture(tmp_path / "a.avif").notes == said


def test_heic_without_its_package_says_which(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(ValueError, match=r"a\.heic: HEIC, which needs pillow-heif; .*\[heif\]"):
        read_picture(tmp_path / "a.heic")


def test_hidden_files_and_pipes_are_no_images(tmp_path: Path) -> None:
    rgb().save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".0123.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path) == [tmp_path / "a.png"]


def test_images_may_be_read_in_several_threads(tmp_path: Path, capfd) -> None:
    files = [tmp_path / f"{number}.tif" for number in range(24)]
    for file in files:
        rgb().save(file, compression="tiff_lzw")
    files[7].write_bytes(files[7].read_bytes()[:300])
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda file: values_of(read_picture(file)) if file != files[7] else None, files))
    for number, values in enumerate(results):
        if number != 7:
            np.testing.assert_array_equal(values, np.array(rgb()))
    with pytest.raises(ValueError, match=r"7\.tif"):
        read_picture(files[7])
    os.write(2, b"stderr is as it was")
    assert capfd.readouterr().err == "stderr is as it was"


# Bombs


def test_the_size_is_looked_at_before_anything_is_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 3_000, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1000)), b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks.items())
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: has 50000 x 3000 pixels, 150 megapixels"):
        read_picture(tmp_path / "a.png", max_pixels=10**8)
    (tmp_path / "b.png").write_bytes(content.replace(struct.pack(">I", 50_000), struct.pack(">I", 90_000)))
    with pytest.raises(ValueError, match=r"b\.png: "):
        read_picture(tmp_path / "b.png")


def test_a_tiff_whose_tiles_are_larger_than_itself_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", deep(3), photometric="rgb", tile=(16, 16), compression="zlib")
    content = (tmp_path / "a.tif").read_bytes()
    for tag in (322, 323):  # width and length of a tile
        old = struct.pack("<HHII", tag, 4, 1, 16)
        assert content.count(old) == 1
        content = content.replace(old, struct.pack("<HHII", tag, 4, 1, 2**15 * 3))
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif: .*tiles far larger"):
        read_picture(tmp_path / "a.tif")


# What files say


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    b'tiff:Orientation="6" dc:title="A title"/></rdf:RDF></x:xmpmeta>'
)


# What it shows, the program, the date, who made it, and on which computer.
DESCRIPTION = {0x010E: "A boat", 0x0131: "Program", 0x0132: "2026:01:02 03:04:05", 0x013B: "Artist", 0x013C: "Host"}


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F], exif[0x0110], exif[0x8298] = "Maker", "Model", "Who made it"
    exif[0x4746], exif[0x9C9B] = 4, "Title".encode("utf-16-le")
    exif.update(DESCRIPTION)
    exif[0x8769] = {0x829A: (1, 250), 0x9003: "2026:01:02 03:04:05", 0xA002: WIDTH, 0xA003: HEIGHT}
    exif[0x8825] = {1: "N", 2: (47.0, 30.0, 0.0)}
    return exif


def check_exif(exif: Image.Exif) -> None:
    assert 0x0112 not in exif or exif[0x0112] == 1, "turned already"
    assert (exif[0x010F], exif[0x0110], exif[0x8298]) == ("Maker", "Model", "Who made it")
    assert (exif[0x4746], bytes(exif[0x9C9B]).decode("utf-16-le").rstrip("\0")) == (4, "Title")
    assert {tag: exif[tag] for tag in DESCRIPTION} == DESCRIPTION
    camera = exif.get_ifd(0x8769)
    assert camera[0x9003] == "2026:01:02 03:04:05"
    assert not {0xA002, 0xA003} & camera.keys(), "the old width and height"
    assert exif.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_a_negative_number_in_exif_is_kept(target: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x4746], exif[0x8769] = -1, {0x9204: -2}  # the rating of a file that was rejected; exposure bias
    rgb().save(tmp_path / "in.jpg", exif=exif)
    assert write_picture(tmp_path / f"out{target}", read_picture(tmp_path / "in.jpg")) == ()
    with Image.open(tmp_path / f"out{target}") as result:
        assert result.getexif()[0x4746] == -1
        assert result.getexif().get_ifd(0x8769)[0x9204] == -2


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_exif_xmp_resolution_and_profile_are_kept(source: str, target: str, tmp_path: Path) -> None:
    options = {"exif": camera_exif(), "icc_profile": srgb_profile()}
    if source in (".jpg", ".webp"):
        options["xmp"] = XMP
    if source == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if source == ".tif":  # written by Pillow, which takes EXIF as bytes only
        options["exif"][700] = XMP
        options["exif"] = options["exif"].tobytes()
    if source != ".webp":
        options["dpi"] = (300, 300)
    rgb().save(tmp_path / f"in{source}", **options)
    picture = read_picture(tmp_path / f"in{source}")
    assert picture.color.shape[1:] == (WIDTH, HEIGHT), "turned"
    assert write_picture(tmp_path / f"out{target}", picture) == ()
    with Image.open(tmp_path / f"out{target}") as result:
        check_exif(result.getexif())
        xmp = result.info.get("xmp") or result.info.get("XML:com.adobe.xmp") or result.tag_v2[700]
        assert b"A title" in (xmp.encode() if isinstance(xmp, str) else xmp)
        assert b'Orientation="6"' not in (xmp.encode() if isinstance(xmp, str) else xmp)
        assert result.info["icc_profile"] == srgb_profile()
        if source != ".webp" and target in (".jpg", ".png", ".tif"):
            assert result.info["dpi"] == pytest.approx((300, 300), abs=0.1)

    stripped = Picture(picture.color, icc_profile=picture.icc_profile, metadata=picture.metadata.stripped())
    write_picture(tmp_path / f"bare{target}", stripped)
    content = (tmp_path / f"bare{target}").read_bytes()
    assert not any(word in content for word in (b"Maker", b"A title", b"2026:01:02"))


def test_deep_colour_keeps_what_its_format_can_hold(tmp_path: Path) -> None:
    rgb().save(tmp_path / "in.jpg", exif=camera_exif(), icc_profile=srgb_profile(), dpi=(300, 300), xmp=XMP)
    flat = read_picture(tmp_path / "in.jpg")
    picture = Picture(flat.color, None, 16, flat.icc_profile, flat.metadata)
    assert write_picture(tmp_path / "out.png", picture) == ()
    assert write_picture(tmp_path / "out.tif", picture) == ()
    for name in ("out.png", "out.tif"):
        again = read_picture(tmp_path / name)
        assert again.bits == 16
        assert again.icc_profile == srgb_profile()
        assert b"A title" in (again.metadata.xmp or b"")
        assert again.metadata.dpi == pytest.approx((300, 300), abs=0.1)
        assert again.metadata.exif is not None
        exif = Image.Exif()
        exif.load(again.metadata.exif)
        check_exif(exif)


def test_text_of_a_png_is_kept_in_a_png_and_said_elsewhere(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Ångström")
    info.add_itxt("Title", "日本")
    info.add_text("Raw profile type iptc", "\niptc\n       4\n38000000\n")  # no text, whatever it is stored as
    rgb().save(tmp_path / "in.png", pnginfo=info)
    picture = read_picture(tmp_path / "in.png")
    assert write_picture(tmp_path / "out.png", picture) == ()
    with Image.open(tmp_path / "out.png") as result:
        assert result.text == {"Author": "Ångström", "Title": "日本"}
    assert write_picture(tmp_path / "out.jpg", picture) == ("its PNG text",)


def test_the_orientation_in_xmp_is_reset_in_both_ways_of_writing_it(tmp_path: Path) -> None:
    element = XMP.replace(b'tiff:Orientation="6" ', b"").replace(
        b"/></rdf", b"><tiff:Orientation>6</tiff:Orientation></rdf:Description></rdf"
    )
    for xmp in (XMP, element):
        rgb().save(tmp_path / "in.jpg", xmp=xmp, exif=camera_exif())
        write_picture(tmp_path / "out.jpg", read_picture(tmp_path / "in.jpg"))
        with Image.open(tmp_path / "out.jpg") as result:
            assert b"Orientation" in result.info["xmp"]
            assert b"6" not in result.info["xmp"].replace(b"1999/02/22", b"")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_resolutions_across_and_down_may_differ(suffix: str, tmp_path: Path) -> None:
    rgb().save(tmp_path / f"in{suffix}", dpi=(300, 150))
    write_picture(tmp_path / f"out{suffix}", read_picture(tmp_path / f"in{suffix}"))
    with Image.open(tmp_path / f"out{suffix}") as result:
        assert result.info["dpi"] == pytest.approx((300, 150), abs=0.1)


@pytest.mark.parametrize("dpi", [(0, 0), (300, 0), (300, 100_000)])
def test_a_resolution_that_no_picture_has_is_left_out(dpi: tuple[int, int], tmp_path: Path) -> None:
    rgb().save(tmp_path / "in.png", dpi=dpi)
    with Image.open(tmp_path / "in.png") as opened:
        assert opened.info["dpi"] == pytest.approx(dpi, abs=0.1)
    assert read_picture(tmp_path / "in.png").metadata.dpi is None


def test_xmp_in_the_manner_of_older_programs_is_kept(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("XML:com.adobe.xmp", XMP.decode())
    rgb().save(tmp_path / "in.png", pnginfo=info)
    assert b"A title" in (read_picture(tmp_path / "in.png").metadata.xmp or b"")


def test_damaged_metadata_does_not_cost_the_picture(tmp_path: Path) -> None:
    file = io.BytesIO()
    rgb().save(file, format="JPEG", exif=camera_exif(1))
    content = bytearray(file.getvalue())
    start = content.index(b"Exif\0\0") + 14
    content[start : start + 60] = bytes(range(200, 256)) + b"\xff" * 4
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_picture(tmp_path / "a.jpg").color.shape == (3, HEIGHT, WIDTH)
    rgb().save(tmp_path / "a.webp", exif=b"Exif\0\0nonsense")
    assert read_picture(tmp_path / "a.webp").color.shape == (3, HEIGHT, WIDTH)
    # Turned, and with a resolution in letters.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"300")
    rgb().save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4))
    assert read_picture(tmp_path / "b.jpg").color.shape == (3, WIDTH, HEIGHT)


def test_too_long_metadata_is_left_out_of_a_jpeg_and_said(tmp_path: Path) -> None:
    rgb().save(tmp_path / "in.webp", xmp=b"<x>" + b" " * 100_000 + b"</x>")
    picture = read_picture(tmp_path / "in.webp")
    assert write_picture(tmp_path / "out.jpg", picture) == ("XMP of more than 64 KiB",)
    assert read_picture(tmp_path / "out.jpg").color.shape == (3, HEIGHT, WIDTH)


# Colours


def profile_of(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile with these tags, and the white of D50."""
    white = struct.pack(">3i", 63_190, 65_536, 54_061)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white} | tags
    offset, listing, content = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        listing += name + struct.pack(">II", offset + len(content), len(data))
        content += data
    header = struct.pack(
        ">I4sI4s4s4s", 128 + len(listing) + len(content), b"none", 0x02400000, device, space, connection
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + listing + content


def cmyk_profile() -> bytes:
    """A small profile of a press that does not exist: white paper, and inks that darken and colour."""
    corners = []
    for c, m, y, k in itertools.product((0, 1), repeat=4):  # the last varies fastest
        light = (1 - k) * (1 - 0.3 * (c + m + y) / 1.5)
        corners += [
            round(255 * light),
            round(128 + 60 * (m - c) * (1 - k)),
            round(128 + 60 * (y - (c + m) / 2) * (1 - k)),
        ]
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65_536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + bytes(corners) + identity * 3
    table += bytes(-len(table) % 4)
    return profile_of(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def test_cmyk_is_converted_by_its_profile_and_said(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 255, 0), (0, 0, 4, 8))
    image.paste((0, 0, 0, 255), (4, 0, 8, 4))
    for suffix in (".jpg", ".tif"):
        options = {"quality": 100} if suffix == ".jpg" else {}
        image.save(tmp_path / f"a{suffix}", icc_profile=cmyk_profile(), **options)
        picture = read_picture(tmp_path / f"a{suffix}")
        assert picture.notes == ("CMYK is converted to sRGB by its profile",)
        assert picture.icc_profile == srgb_profile()
        yellow, black, white = (picture.color[:, y, x] for y, x in ((4, 1), (1, 6), (6, 6)))
        assert white.min() > 0.97
        assert black.max() < 0.1
        assert yellow[2] < yellow[0] - 0.2


def test_the_profile_of_what_was_converted_is_the_same_on_every_day() -> None:
    assert srgb_profile()[24:36] == struct.pack(">6H", 2000, 1, 1, 0, 0, 0)


def test_lab_is_converted_and_said(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(rgb(), to_lab).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert picture.notes == ("Lab is converted to sRGB by its profile",)
    assert np.abs(values_of(picture).astype(int) - np.array(rgb())).mean() < 3


def gray_profile() -> bytes:
    """That of linear gray."""
    return profile_of(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})


def test_a_profile_of_gray_does_not_end_up_in_colour(tmp_path: Path) -> None:
    rgb().quantize(16).save(tmp_path / "palette.png", icc_profile=gray_profile())
    picture = read_picture(tmp_path / "palette.png")
    assert picture.icc_profile is None
    assert picture.notes == ("its colour profile is not for RGB and is left out",)

    Image.new("L", (8, 8), 55).save(tmp_path / "gray.png", icc_profile=gray_profile())
    gray = read_picture(tmp_path / "gray.png")
    assert gray.icc_profile == gray_profile()
    write_picture(tmp_path / "gray.tif", gray)
    with Image.open(tmp_path / "gray.tif") as result:
        assert (result.mode, result.info["icc_profile"]) == ("L", gray_profile())
    write_picture(tmp_path / "gray.webp", gray)  # has no gray
    with Image.open(tmp_path / "gray.webp") as result:
        assert result.info["icc_profile"] == srgb_profile()
        # 55 of 255 of the light is 0.2157, in sRGB 0.502.
        assert abs(result.convert("RGB").getpixel((4, 4))[0] - 128) <= 2
    write_picture(tmp_path / "transparent.webp", replace(gray, alpha=torch.zeros_like(gray.color)))
    with Image.open(tmp_path / "transparent.webp") as result:
        assert result.getchannel("A").getextrema() == (0, 0)


def test_gamma_of_a_png_is_kept_or_converted(tmp_path: Path) -> None:
    gamma = struct.pack(">I", 100_000)  # linear
    (tmp_path / "in.png").write_bytes(png_with({b"gAMA": gamma}, Image.new("RGB", (8, 8), (55, 55, 55))))
    picture = read_picture(tmp_path / "in.png")
    write_picture(tmp_path / "out.png", picture)
    with Image.open(tmp_path / "out.png") as result:
        assert result.info["gamma"] == 1
        assert result.getpixel((4, 4)) == (55, 55, 55)
    write_picture(tmp_path / "out.tif", picture)
    with Image.open(tmp_path / "out.tif") as result:
        assert abs(result.getpixel((4, 4))[0] - 128) <= 1
    # Of another exponent, from dark to light: in sRGB the same light, to within a step of eight bits.
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = png_with({b"gAMA": struct.pack(">I", 60_000)}, Image.fromarray(ramp).convert("RGB"))
    (tmp_path / "other.png").write_bytes(content)
    write_picture(tmp_path / "other.tif", read_picture(tmp_path / "other.png"))
    written = np.asarray(Image.open(tmp_path / "other.tif"))[..., 0].astype(float)
    lower, upper = (
        np.where(sides <= 0.04045, sides / 12.92, ((sides + 0.055) / 1.055) ** 2.4)
        for sides in ((written + offset).clip(0, 255) / 255 for offset in (-0.6, 0.6))
    )
    light = (ramp / 255) ** (1 / 0.6)
    assert ((lower <= light) & (light <= upper)).all()
    # What says sRGB is sRGB, whatever its gamma is for programs that know nothing of sRGB.
    both = {b"gAMA": gamma, b"sRGB": b"\0"}
    (tmp_path / "both.png").write_bytes(png_with(both, Image.new("RGB", (8, 8), (55, 55, 55))))
    write_picture(tmp_path / "both.tif", read_picture(tmp_path / "both.png"))
    with Image.open(tmp_path / "both.tif") as result:
        assert result.getpixel((4, 4)) == (55, 55, 55)
    # Likewise a profile.
    profiled = Image.new("RGB", (8, 8), (55, 55, 55))
    profiled.info["icc_profile"] = srgb_profile()
    (tmp_path / "profile.png").write_bytes(png_with({b"gAMA": gamma}, profiled))
    write_picture(tmp_path / "profile.tif", read_picture(tmp_path / "profile.png"))
    with Image.open(tmp_path / "profile.tif") as result:
        assert result.getpixel((4, 4)) == (55, 55, 55)
        assert result.info["icc_profile"] == srgb_profile()
    # That of sRGB changes nothing, nor one that no picture has.
    for number in (45_455, 0, 5_000, 2_000_000):
        content = png_with({b"gAMA": struct.pack(">I", number)}, Image.new("RGB", (8, 8), (55, 55, 55)))
        (tmp_path / "usual.png").write_bytes(content)
        write_picture(tmp_path / "usual.tif", read_picture(tmp_path / "usual.png"))
        with Image.open(tmp_path / "usual.tif") as result:
            assert result.getpixel((4, 4)) == (55, 55, 55)


def test_the_gamma_of_a_png_is_found_behind_a_long_chunk(tmp_path: Path) -> None:
    chunks = {b"tEXt": b"Comment\0" + b"x" * 5000, b"gAMA": struct.pack(">I", 100_000)}
    (tmp_path / "in.png").write_bytes(png_with(chunks))
    assert read_picture(tmp_path / "in.png").metadata.gamma == pytest.approx(1)


def test_a_background_has_its_own_colour_whatever_the_gamma_of_the_picture(tmp_path: Path) -> None:
    content = png_with({b"gAMA": struct.pack(">I", 100_000)}, Image.new("RGBA", (8, 8), (55, 55, 55, 0)))
    (tmp_path / "in.png").write_bytes(content)
    write_picture(tmp_path / "out.jpg", composite(read_picture(tmp_path / "in.png"), (128, 128, 128)))
    with Image.open(tmp_path / "out.jpg") as result:
        assert result.getpixel((4, 4)) == (128, 128, 128)


def test_hdr_stays_in_a_png(tmp_path: Path) -> None:
    pq = bytes([9, 16, 0, 1])  # BT.2020 with the curve of PQ
    (tmp_path / "in.png").write_bytes(png_with({b"cICP": pq}))
    picture = read_picture(tmp_path / "in.png")
    write_picture(tmp_path / "out.png", picture)
    assert b"cICP" + pq in (tmp_path / "out.png").read_bytes()
    write_picture(tmp_path / "deep.png", Picture(picture.color, None, 16, None, picture.metadata.stripped()))
    assert b"cICP" + pq in (tmp_path / "deep.png").read_bytes()
    for suffix in (".jpg", ".tif", ".webp"):
        with pytest.raises(ValueError, match=r"cannot store the colour space .* write \.png"):
            check_writable(tmp_path / f"out{suffix}", picture)


def test_transparency_over_a_background() -> None:
    color, alpha = torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.5, 1.0]]])
    white = composite(Picture(color, alpha), (255, 255, 255))
    assert white.alpha is None
    assert torch.equal(white.color, torch.tensor([[[1.0, 0.5, 0.0]]]))
    black = composite(Picture(torch.ones(1, 1, 3), alpha), (0, 0, 0))
    assert torch.equal(black.color, alpha)
    red = composite(Picture(color, alpha, icc_profile=gray_profile()), (255, 0, 0))
    assert red.color.shape == (3, 1, 3)
    assert red.icc_profile is None
    assert torch.equal(red.color[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert composite(white, (255, 0, 0)) is white


def test_webp_is_as_lossy_as_what_it_came_from(tmp_path: Path) -> None:
    rgb().resize((200, 150)).save(tmp_path / "in.jpg")
    rgb().resize((200, 150)).save(tmp_path / "in.png")
    sizes = {}
    for source in ("in.jpg", "in.png"):
        picture = read_picture(tmp_path / source)
        write_picture(tmp_path / "out.webp", picture)
        sizes[source] = (tmp_path / "out.webp").stat().st_size
        again = read_picture(tmp_path / "out.webp")
        assert again.lossy == picture.lossy == (source == "in.jpg")
        if source == "in.png":
            np.testing.assert_array_equal(values_of(again), values_of(picture))
    assert sizes["in.jpg"] < sizes["in.png"] / 2
    write_picture(tmp_path / "low.webp", picture, quality=10)
    assert (tmp_path / "low.webp").stat().st_size < sizes["in.jpg"]


@pytest.mark.parametrize(("suffix", "quality"), [(".jpg", 95), (".avif", 90), (".webp", 95)])
def test_the_quality_of_formats_with_loss_is_high_unless_said(suffix: str, quality: int, tmp_path: Path) -> None:
    picture = Picture(photo(32, 40).float() / 255, lossy=True)
    write_picture(tmp_path / f"usual{suffix}", picture)
    write_picture(tmp_path / f"said{suffix}", picture, quality=quality)
    assert (tmp_path / f"usual{suffix}").read_bytes() == (tmp_path / f"said{suffix}").read_bytes()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_is_compressed(bits: Literal[8, 16], tmp_path: Path) -> None:
    write_picture(tmp_path / "out.tif", Picture(torch.full((3, 200, 200), 0.5), bits=bits))
    assert (tmp_path / "out.tif").stat().st_size < 20_000


@pytest.mark.parametrize("suffix", [".jpg", ".avif"])
def test_fine_colours_survive_formats_with_loss(suffix: str, tmp_path: Path) -> None:
    columns = np.zeros((32, 32, 3), np.uint8)
    columns[:, ::2, 0] = columns[:, 1::2, 2] = 200  # red and blue; with colours at half the width, all are purple
    Image.fromarray(columns).save(tmp_path / "in.png")
    write_picture(tmp_path / f"out{suffix}", read_picture(tmp_path / "in.png"))
    assert np.abs(values_of(read_picture(tmp_path / f"out{suffix}")).astype(int) - columns).mean() < 10


def test_webp_keeps_colours_that_do_not_show(tmp_path: Path) -> None:
    picture = Picture(photo(16, 16).float() / 255, alpha=torch.zeros(1, 16, 16))
    write_picture(tmp_path / "out.webp", picture)
    again = read_picture(tmp_path / "out.webp")
    assert again.alpha is not None
    assert again.alpha.max() == 0
    np.testing.assert_array_equal(values_of(again), values_of(picture))


@pytest.mark.parametrize("bits", [8, 16])
def test_values_out_of_range_are_black_and_white(bits: Literal[8, 16], tmp_path: Path) -> None:
    color = torch.tensor([-0.3, 0.5, 1.3]).view(1, 1, 3).expand(3, 8, 3)
    write_picture(tmp_path / "out.png", Picture(color, bits=bits))
    written = read_picture(tmp_path / "out.png").color
    torch.testing.assert_close(written, color.clamp(0, 1), rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("options", [{"icc_profile": srgb_profile() + bytes(9001)}, {"save_all": True}])
def test_a_webp_is_known_as_lossy_whatever_precedes_its_pixels(lossless: bool, options, tmp_path: Path) -> None:
    if "save_all" in options:
        options = options | {"append_images": [rgb().rotate(180)]}
    rgb().save(tmp_path / "a.webp", lossless=lossless, **options)
    assert read_picture(tmp_path / "a.webp").lossy != lossless
