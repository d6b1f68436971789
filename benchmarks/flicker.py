"""Measure how much upscaled video flickers: a pan over photographs, upscaled frame by frame.

    python -m benchmarks.flicker

Each frame is cut from a photograph some pixels to the right of the previous one and downscaled. The table in
``docs/results/engines`` lists the RMS difference of consecutive results, in 8-bit levels, where they show the same
content, away from the borders.

If the step is a multiple of the scale, both frames contain the same low-resolution pixels. Bicubic results and those of
a network with a limited receptive field are then equal; differences come from statistics of the whole frame. With other
steps, each frame samples the scene at other points, and all results differ, sharper ones more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from examples.markdown import table
from examples.mren.arguments import command_parser
from examples.mren.cli import run_command
from examples.mren.data import imresize, photograph
from examples.mren.files import write_text
from examples.mren.fold import fold_mren
from examples.mren.model import load_mren
from sc_blocks import to_local
from sc_blocks.tiling import tiled

FILE = Path(__file__).parents[1] / "docs" / "results" / "engines" / "flicker.md"
SCALE = 4
PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
FRAME = (384, 384)  # of the original; larger at low resolution than the windows of local statistics
STEPS = (16, 6)  # pixels of the original
FRAMES = 6
BORDER = 64  # pixels of the result that padding can reach


def pan(name: str, step: int) -> list[Tensor]:
    """Low-resolution frames, uint8 of shape (3, H, W)."""
    image = photograph(name)
    height, width = FRAME
    starts = range(0, FRAMES * step, step)
    return [imresize(image[:, :height, start : start + width], 1 / SCALE) for start in starts]


def flicker(upscale: Callable[[Tensor], Tensor], frames: Sequence[Tensor], step: int) -> float:
    """RMS difference of consecutive results, in 8-bit levels, where they show the same, away from the borders."""
    with torch.inference_mode():
        results = [upscale(frame.float()[None] / 255).clamp(0, 1)[0] * 255 for frame in frames]
    squares: list[float] = []
    for before, after in pairwise(results):
        difference = (before[..., step:] - after[..., :-step])[..., BORDER:-BORDER, BORDER:-BORDER]
        squares.append(difference.square().mean().item())
    return statistics.fmean(squares) ** 0.5


def methods() -> dict[str, Callable[[Tensor], Tensor]]:
    """The upscaling methods to compare."""
    net, local = fold_mren(load_mren(SCALE)), load_mren(SCALE)
    to_local(local, torch.zeros(1, 3, 48, 48))
    return {
        "bicubic": lambda x: torch.nn.functional.interpolate(x, scale_factor=SCALE, mode="bicubic"),
        "MREN, whole frames": net,
        "MREN, tiles of 64": lambda x: tiled(net, x, scale=SCALE, tile=64, overlap=32),
        "MREN, local statistics": fold_mren(local),
    }


def run(_: argparse.Namespace) -> None:
    """Run the command: write a Markdown table."""
    pans = {(name, step): pan(name, step) for step in STEPS for name in PHOTOGRAPHS}
    head = ["", *(f"{name}, steps of {step}" for name, step in pans)]
    rows = [
        [label, *(f"{flicker(upscale, frames, step):.2f}" for (_, step), frames in pans.items())]
        for label, upscale in methods().items()
    ]
    write_text(FILE, table(head, rows))
    print(FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("benchmarks.flicker", __doc__)
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
