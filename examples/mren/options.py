"""Command-line options that several commands share."""

from __future__ import annotations

import argparse

import torch

from examples.mren.arguments import path_name, whole_number
from examples.mren.messages import UsageError
from examples.mren.model import STAGES, VARIANTS

DEVICES = ("auto", "cuda", "mps", "cpu")
MAX_WINDOW = 4096  # of --local: far above any patch that a network is trained on


def scale_factor(text: str) -> int:
    """An argparse type: an upscaling factor for which there are networks."""
    if text not in map(str, STAGES):
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(map(str, STAGES))}, got {text[:40]}; for another size, resize the result"
        )
    return int(text)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--scale``, ``--variant`` and ``--weights``, which select the network."""
    add = parser.add_argument
    about = "upscaling factor (default: that of the weights, or 4)"
    add("--scale", type=scale_factor, choices=tuple(STAGES), help=about)
    add("--variant", choices=tuple(VARIANTS), help="network variant (default: that of the weights, or mren)")
    add(
        "--weights",
        type=path_name,
        metavar="FILE",
        help="weight file to use instead of the shipped one; with --variant mren_s also photo, for JPEGs and noise, "
        "or free, trained only on freely licensed images (×4)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="device to run on (default: %(default)s)")


def pick_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` selects CUDA, then MPS, then the CPU.

    Raises:
        UsageError: If the device is not available; it is a ValueError.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, found in available.items() if found))
    if not available[name]:
        others = " or ".join(device for device, found in available.items() if found)
        raise UsageError(f"--device {name}: not available on this machine or in this build of torch; choose {others}.")
    return torch.device(name)


def add_local_option(parser: argparse.ArgumentParser, effect: str) -> None:
    """Add ``--local``, for windowed statistics; ``effect`` describes what it does in this command."""
    about = f"{effect}; SIDE is the size of the low-resolution training patches"
    parser.add_argument("--local", type=whole_number(1, MAX_WINDOW), metavar="SIDE", help=about)


def add_ensemble_option(parser: argparse.ArgumentParser, effect: str) -> None:
    """Add ``--self-ensemble``; ``effect`` describes what it does in this command."""
    about = f"{effect}: average the results for the eight orientations of an image, in eight times the time"
    parser.add_argument("--self-ensemble", action="store_true", help=about)
