"""Draw the masks of the DRACBs of an MREN, and the effect of their communication.

    python -m examples.mren.attention photo.jpg -o attention.png
    python -m examples.mren.attention photo.jpg -o attention.pdf --weights own.safetensors --blocks 1 3 6

Each row is an MREB, each column one of its DRACBs. On the left are the masks, averaged over their channels; on the
right the same masks minus those of a copy of the network without communication between the DRACBs, W = 0. The command
prints the correlation between the maps of neighbouring DRACBs before and after communication. Without a picture, it
uses a photograph from scikit-image.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from tabulate import tabulate
from torch import Tensor

from examples.mren.arguments import command_parser, path_name, whole_number
from examples.mren.cli import check_no_input, check_target, run_command
from examples.mren.data import imresize, mod_crop, photograph
from examples.mren.files import atomic_write
from examples.mren.images.picture import bleed
from examples.mren.images.read import read_picture
from examples.mren.messages import UsageError
from examples.mren.model import MREN, NETWORKS, find_weights, load_mren
from examples.mren.options import add_device_option, add_network_options, pick_device
from sc_blocks import DRACB, NoCommunication
from sc_blocks.introspect import capture_attention

OUTPUT = "mren_attention.png"
SUFFIXES = (".png", ".pdf", ".svg")
MAX_SIDE = 512  # more than a cell of the figure can show
CELL = 1.7  # longer side of a mask in inches
OUTSIDE = 0.002  # fraction of pixels clipped at each end of a colour scale


@dataclass(frozen=True)
class Attention:
    """Outputs of the DRACBs of a network for one picture: by MREB, then by DRACB, of shape (C, H, W)."""

    maps: list[list[Tensor]]
    """The map that each DRACB computes from its input."""

    fused: list[list[Tensor]]
    """That map fused with the one of the previous DRACB."""

    masks: list[list[Tensor]]
    """The gates that multiply the fused maps, between 0 and 1."""


def collect_attention(net: MREN, image: Tensor, blocks: Sequence[int]) -> Attention:
    """Run the body of a network on an RGB image and collect the outputs of its DRACBs.

    Args:
        net: The network.
        image: Shape (3, H, W), on the device of the network.
        blocks: Indices of the MREBs, from 0.

    Raises:
        ValueError: If the DRACBs have no masks because they were built with ``gate=False``.
    """
    with torch.inference_mode(), capture_attention(net.body, ["*.refine.links.*"]) as captured:
        net.body(net.head(image[None]))  # without the upsampling, which costs most and has no DRACBs
    links = range(net.body[0].refine.length)
    if "0.refine.links.0.gate" not in captured:
        raise ValueError("collect_attention: net must have masks, got DRACBs that were built with gate=False.")

    def collect(what: str) -> list[list[Tensor]]:
        return [[captured[f"{block}.refine.links.{link}.{what}"][0].cpu() for link in links] for block in blocks]

    return Attention(collect("map"), collect("fused"), collect("gate"))


def without_communication(net: MREN) -> MREN:
    """A copy of a network without communication between the DRACBs: W = 0."""
    ablated = copy.deepcopy(net)
    for block in ablated.modules():
        if isinstance(block, DRACB):
            block.communication = NoCommunication()
    return ablated


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over positions, averaged over channels; that of a constant channel is 0.

    Args:
        a: Shape (C, H, W).
        b: Of the same shape.

    Example:
        >>> ramp = torch.arange(12.0).view(1, 3, 4)
        >>> round(correlation(ramp, 5 - 2 * ramp), 4)
        -1.0
    """
    a, b = (map_.double().flatten(1) for map_ in (a, b))
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)).mean().item()


def correlation_table(attention: Attention, blocks: Sequence[int]) -> str:
    """A table of the correlations between the maps of neighbouring DRACBs, with a line for each MREB."""
    pairs = range(len(attention.maps[0]) - 1)
    lines = [["MREB", *(f"{what} {pair + 1}-{pair + 2}" for what in ("own", "fused") for pair in pairs)]]
    for block, *rows in zip(blocks, attention.maps, attention.fused, strict=True):
        cells = [f"{correlation(row[pair], row[pair + 1]):+.2f}" for row in rows for pair in pairs]
        lines.append([f"{block + 1}", *cells])
    return tabulate(lines, tablefmt="plain", disable_numparse=True, stralign="right")


def draw(
    image: Tensor, full: Attention, ablated: Attention, blocks: Sequence[int], *, title: str, channel: str
) -> Figure:
    """Draw the masks, and how communication changes them.

    Args:
        image: The input of the network, shape (3, H, W).
        full: The attention with communication.
        ablated: The attention without communication.
        blocks: Indices of the MREBs, from 0.
        title: Title of the figure.
        channel: Description of the communication.
    """
    masks, ablated_masks = (
        torch.stack([torch.stack([mask.mean(0) for mask in row]) for row in attention.masks])
        for attention in (full, ablated)
    )
    change = masks - ablated_masks
    # Clip outliers: otherwise, a few pixels take up most of the colour scale.
    lowest, highest = np.quantile(masks.numpy(), (OUTSIDE, 1 - OUTSIDE))
    limit = np.quantile(change.abs().numpy(), 1 - 2 * OUTSIDE)
    rows, columns, height, width = masks.shape

    cell_height, cell_width = (CELL * side / max(height, width) for side in (height, width))
    heights = [1.5 * cell_height + 0.5, rows * (cell_height + 0.05) + 1.2]
    figure = Figure((2 * columns * (cell_width + 0.05) + 1, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    axes = top.subplots()
    axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    axes.set_axis_off()
    top.suptitle(title)
    left, right = bottom.subfigures(1, 2)
    numbers = [block + 1 for block in blocks]
    _draw_grid(left, masks, numbers, "Masks, mean of the channels", colors="magma", limits=(lowest, highest))
    _draw_grid(
        right, change, numbers, f"The same minus those at W = 0: {channel}", colors="RdBu_r", limits=(-limit, limit)
    )
    return figure


def _draw_grid(
    figure: SubFigure, images: Tensor, blocks: Sequence[int], title: str, *, colors: str, limits: tuple[float, float]
) -> None:
    rows, columns = images.shape[:2]
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False)
    norm = Normalize(*limits)
    for row, block in enumerate(blocks):
        grid[row, 0].set_ylabel(f"MREB {block}", fontsize=9)
        for column in range(columns):
            grid[row, column].imshow(images[row, column].numpy(), cmap=colors, norm=norm)
            grid[row, column].set(xticks=[], yticks=[])
    for column in range(columns):
        grid[0, column].set_title(f"DRACB {column + 1}", fontsize=9)
    figure.colorbar(
        ScalarMappable(norm, colors), ax=grid, location="bottom", extend="both", aspect=40, shrink=0.9, pad=0.015
    )


def read_image(source: Path | None, max_side: int) -> Tensor:
    """Read a picture as RGB of shape (3, H, W), downscaled by a whole factor if it is too large."""
    if source is None:
        image = photograph("chelsea").float() / 255
    else:
        picture = read_picture(source)
        color = picture.color if picture.alpha is None else bleed(picture.color, picture.alpha)
        image = color.expand(3, -1, -1)
    factor = -(-max(image.shape[1:]) // max_side)
    if factor == 1:
        return image
    if min(image.shape[1:]) < factor:
        raise ValueError(f"{source}: too narrow to downscale it by {factor}; raise --max-side, which is {max_side}.")
    return imresize(mod_crop(image, factor), 1 / factor).clamp(0, 1)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    source, target = args.input, args.output
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{target}: must end in one of {', '.join(SUFFIXES)}.")
    check_no_input([target], [] if source is None else [source])
    check_target(target, overwrite=args.overwrite)
    device = pick_device(args.device)
    net = load_mren(args.scale, args.variant, device=device, path=args.weights)
    count = len(net.body)
    numbers = range(1, count + 1) if args.blocks is None else args.blocks
    if not all(1 <= number <= count for number in numbers):
        raise UsageError(f"--blocks: must be numbers from 1 to {count}, got {' '.join(map(str, numbers))}.")
    blocks = [number - 1 for number in numbers]
    image = read_image(source, args.max_side)
    full, ablated = (collect_attention(each, image.to(device), blocks) for each in (net, without_communication(net)))
    weights = find_weights(args.scale, args.variant, args.weights)
    label = NETWORKS[args.variant or "mren"] if args.weights is None else weights.stem
    name = "chelsea, from scikit-image" if source is None else source.name
    title = f"{label} ×{net.scale}, {name}, {image.shape[2]} × {image.shape[1]}"
    channel = net.body[0].refine.links[1].communication  # the first link has none
    about = f"{type(channel).__name__}({channel.extra_repr()})"
    figure = draw(image, full, ablated, blocks, title=title, channel=about)
    with atomic_write(target, overwrite=args.overwrite) as scratch:
        figure.savefig(scratch, format=target.suffix[1:].lower(), dpi=150)
    print("Correlation between the maps of neighbouring DRACBs, before (own) and after (fused) communication:")
    print(correlation_table(full, blocks))
    print(f"{target}: masks of {len(blocks)} MREBs, and the effect of communication on them")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("examples.mren.attention", __doc__)
    add = parser.add_argument
    add("input", nargs="?", type=path_name, metavar="IN", help="an image file")
    add(
        "-o", "--output", type=path_name, default=Path(OUTPUT), metavar="OUT", help="output file (default: %(default)s)"
    )
    add_network_options(parser)
    add("--blocks", type=int, nargs="+", metavar="N", help="MREBs to show, counted from 1 (default: all)")
    add(
        "--max-side",
        type=whole_number(1),
        default=MAX_SIDE,
        metavar="N",
        help="downscale larger images (default: %(default)s)",
    )
    add_device_option(parser)
    add("--overwrite", action="store_true", help="replace the output if it exists, but never the input")
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
