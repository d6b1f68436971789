"""Draw details upscaled by networks next to bicubic and the original, as in figure 5 of the paper.

    python -m examples.mren.compare --data Urban100 --crop img_092 img_012:300,200,96 -o details.png

A detail is IMAGE:LEFT,TOP,SIDE in pixels of the original; for IMAGE alone, the square where bicubic has the largest
error is drawn. Scores are of the whole image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from examples.mren.arguments import command_parser, path_name
from examples.mren.cli import check_no_input, check_target, run_command
from examples.mren.data import imresize, list_images, mod_crop, photograph, read_rgb
from examples.mren.ensemble import network_upscaler
from examples.mren.files import unique_names
from examples.mren.images.write import FORMATS, save_image
from examples.mren.messages import UsageError
from examples.mren.metrics import psnr, score, to_uint8
from examples.mren.model import NETWORKS, STAGES, VARIANTS, Scale, load_mren, weights_path
from examples.mren.options import add_device_option, pick_device, scale_factor
from sc_blocks.tiling import tiled

PANEL = 288  # height of a panel in pixels
OVERVIEW = 432  # width of the panel of the whole image
GAP = 12  # pixels around a panel


@dataclass(frozen=True)
class Panel:
    """A picture and its caption."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Detail:
    """A square of an image, in pixels; without ``place``, :func:`find_detail` chooses it."""

    image: str
    place: tuple[int, int] | None = None
    """Left and top."""
    side: int = 96

    @classmethod
    def parse(cls, text: str) -> Detail:
        """Read ``IMAGE`` or ``IMAGE:LEFT,TOP,SIDE``.

        Example:
            >>> Detail.parse("img092:300,200,96")
            Detail(image='img092', place=(300, 200), side=96)
        """
        name, _, square = text.rpartition(":")
        if not name or "," not in square:  # the name of an image may hold a colon
            return cls(text)
        try:
            left, top, side = (int(number) for number in square.split(","))
        except ValueError:
            left = top = side = -1
        if min(left, top) < 0 or side < 1:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a detail; give IMAGE:LEFT,TOP,SIDE, such as img092:300,200,96, or IMAGE alone"
            )
        return cls(name, (left, top), side)


def find_detail(bicubic: Tensor, hr: Tensor, side: int) -> tuple[int, int]:
    """Left and top of the square with the largest mean squared error of an upscaled image."""
    error = (bicubic.double() - hr.double()).square().mean(0, keepdim=True)
    sums = F.avg_pool2d(error.unsqueeze(0), side, stride=1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return left, top


def draw_details(
    files: dict[str, Path], details: Sequence[Detail], scale: int, networks: dict[str, nn.Module]
) -> Image.Image:
    """Draw a row for each detail: an overview, the original, bicubic, and each network.

    Args:
        files: Image files by name.
        details: The details to draw.
        scale: The factor by which the images are downscaled and upscaled again.
        networks: The networks by the name to print.

    Raises:
        ValueError: If there is no such image, or a detail is not inside it.
    """
    rows: list[list[Panel]] = []
    for detail in details:
        if detail.image not in files:
            raise ValueError(f"no image {detail.image!r}; there are {', '.join(sorted(files))}.")
        hr = mod_crop(read_rgb(files[detail.image]), scale)
        lr = imresize(hr, 1 / scale)
        enlarged = {"bicubic": imresize(lr, scale)}
        for name, net in networks.items():
            device = next(net.parameters()).device
            enlarged[name] = network_upscaler(net, device)(lr)
        height, width = hr.shape[1:]
        if detail.side > min(height, width):
            raise ValueError(f"{detail.image}: a square of {detail.side} does not fit into {width} x {height} pixels.")
        left, top = detail.place or find_detail(enlarged["bicubic"], hr, detail.side)
        if not (0 <= left <= width - detail.side and 0 <= top <= height - detail.side):
            raise ValueError(
                f"{detail.image}: the square of {detail.side} at {left},{top} is not within {width} x {height} pixels."
            )
        square = (slice(None), slice(top, top + detail.side), slice(left, left + detail.side))
        row = [Panel(_overview(hr, left, top, detail.side), detail.image), Panel(_enlarged(hr[square]), "original")]
        for name, image in enlarged.items():
            value = score(image, hr, scale)
            row.append(Panel(_enlarged(image[square]), f"{name}\n{value.psnr:.2f} dB / {value.ssim:.4f}"))
        rows.append(row)
    return draw_panels(rows)


def draw_panels(rows: Sequence[Sequence[Panel]], *, text_height: int = 48) -> Image.Image:
    """Draw rows of pictures on white, each with its caption below."""
    widths = [sum(panel.image.width + GAP for panel in row) + GAP for row in rows]
    heights = [max(panel.image.height for panel in row) + GAP + text_height for row in rows]
    canvas = Image.new("RGB", (max(widths), sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for panel in row:
            canvas.paste(panel.image, (left, top + GAP))
            middle = (left + panel.image.width / 2, top + GAP + panel.image.height + text_height / 2)
            draw.text(
                middle, panel.caption, fill=(40, 40, 40), font=ImageFont.load_default(18), anchor="mm", align="center"
            )
            left += panel.image.width + GAP
        top += height
    return canvas


def write_sample(net: nn.Module, scale: Scale, target: Path, *, label: str = "MREN", overwrite: bool = True) -> None:
    """Downscale a photograph of scikit-image, upscale it again, and draw the result next to the original.

    Args:
        net: The network, which upscales by ``scale``.
        scale: The factor.
        target: Image file to write.
        label: Name of the network in the picture.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FileExistsError: If the file exists and must not be replaced.
    """
    side = 240  # a multiple of each scale
    original = photograph("coffee")[:, 60 : 60 + side, 130 : 130 + side]
    small = imresize(original, 1 / scale)
    bicubic = imresize(small, scale)
    upscaled = to_uint8(tiled(net, small[None].float() / 255, scale=scale)[0])
    scores = {"Bicubic": psnr(bicubic, original, scale), label: psnr(upscaled, original, scale)}
    panels = {
        f"Input, {side // scale} x {side // scale}": small.repeat_interleave(scale, 1).repeat_interleave(scale, 2),
        f"Bicubic, {scores['Bicubic']:.2f} dB": bicubic,
        f"{label}, {scores[label]:.2f} dB": upscaled,
        "Original": original,
    }
    row = [Panel(_image(panel), text) for text, panel in panels.items()]
    save_image(draw_panels([row], text_height=36), target, overwrite=overwrite)
    for name, value in scores.items():
        print(f"{name}: {value:.2f} dB PSNR (Y)")
    print(f"{target}: input, bicubic, {label} and original at x{scale}")


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _enlarged(square: Tensor) -> Image.Image:
    """Enlarge to the height of a panel by nearest neighbour: interpolation would hide the differences."""
    return _image(square).resize((PANEL, PANEL), Image.Resampling.NEAREST)


def _overview(hr: Tensor, left: int, top: int, side: int) -> Image.Image:
    """The whole image with the square marked, in a box of fixed size that keeps columns aligned."""
    image = _image(hr)
    factor = min(PANEL / image.height, OVERVIEW / image.width)
    small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    corners = [round(value * factor) for value in (left, top, left + side, top + side)]
    ImageDraw.Draw(small).rectangle(corners, outline=(255, 40, 40), width=3)
    box = Image.new("RGB", (OVERVIEW, PANEL), "white")
    box.paste(small, ((OVERVIEW - small.width) // 2, (PANEL - small.height) // 2))
    return box


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.output.suffix.lower() not in FORMATS:
        raise UsageError(f"{args.output}: the name must end in one of {', '.join(FORMATS)}.")
    images = list_images(args.data)
    check_no_input([args.output], images)
    check_target(args.output, overwrite=args.overwrite)
    device = pick_device(args.device)
    if args.weights is not None:
        networks = {
            name: load_mren(args.scale, path=file, device=device) for name, file in unique_names(args.weights).items()
        }
    else:
        networks = {
            NETWORKS[variant]: load_mren(args.scale, variant, device=device)
            for variant in VARIANTS
            if variant == "mren" or weights_path(args.scale, variant).exists()
        }
    files = unique_names(images)
    save_image(draw_details(files, args.crop, args.scale, networks), args.output, overwrite=args.overwrite)
    print(f"{args.output}: {len(args.crop)} details at x{args.scale}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("examples.mren.compare", __doc__)
    add = parser.add_argument
    add("--data", type=path_name, required=True, help="folder of high-resolution images")
    add(
        "--crop",
        type=Detail.parse,
        nargs="+",
        required=True,
        metavar="DETAIL",
        help="IMAGE:LEFT,TOP,SIDE in pixels, or IMAGE for the square with the largest error of bicubic",
    )
    add("-o", "--output", type=path_name, default=Path("details.png"), help="output file (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace the output if it exists, but never an image of --data")
    add("--scale", type=scale_factor, choices=tuple(STAGES), default=4, help="upscaling factor (default: %(default)s)")
    add("--weights", type=path_name, nargs="+", help="weight files to use instead of the shipped ones")
    add_device_option(parser)
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
