"""The options that several commands share: which network, and where it computes."""

from __future__ import annotations

import argparse

from examples.mren.cli import path_name, whole_number
from examples.mren.model import DEVICES, STAGES, VARIANTS

MAX_WINDOW = 4096  # of --local: far above any patch that a network is trained on


def scale_factor(text: str) -> int:
    """A parser's type: a scale of which there are networks."""
    if text not in map(str, STAGES):
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(map(str, STAGES))}, got {text[:40]}; for another size, resize the result"
        )
    return int(text)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Which network is loaded: ``--scale``, ``--variant`` and ``--weights``."""
    add = parser.add_argument
    about = "upscaling factor; by default that of the weights, or 4"
    add("--scale", type=scale_factor, choices=tuple(STAGES), help=about)
    add("--variant", choices=tuple(VARIANTS), help="which network; by default that of the weights, or mren")
    add(
        "--weights",
        type=path_name,
        metavar="FILE",
        help="weights of your own instead of the shipped ones; with --variant mren_s also photo, for JPEGs and noise, "
        "and free, trained on freely licensed images only (×4)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Where a network computes: ``--device``."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="what the network runs on (%(default)s)")


def add_local_option(parser: argparse.ArgumentParser, effect: str) -> None:
    """Statistics of windows: ``--local``, with what it does in this command."""
    about = f"{effect}; SIDE is the side of the low-resolution patches that the network was trained on"
    parser.add_argument("--local", type=whole_number(1, MAX_WINDOW), metavar="SIDE", help=about)


def add_ensemble_option(parser: argparse.ArgumentParser, effect: str) -> None:
    """The mean over eight orientations: ``--self-ensemble``, with what it does in this command."""
    about = f"{effect}: the mean of the results for the image in its eight orientations, in eight times the time"
    parser.add_argument("--self-ensemble", action="store_true", help=about)
