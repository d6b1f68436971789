"""The hosts of ``compare``, what goes into their places, and the width at which one costs as much as another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.drop_in.distillation import DistillationNet
from examples.drop_in.plain import (
    ChannelAttention,
    ContrastAttention,
    Distillation,
    ShallowResidual,
    Skips,
    nothing,
)
from examples.drop_in.residual import ResidualNet
from examples.drop_in.unet import ChainedSkips, UNet
from sc_blocks import SCACB, WSILBV, DRACBChain, GatedCommunication, LearnableCommunication
from sc_blocks.introspect import complexity

Match = Literal["parameters", "macs"]
Parts = Mapping[str, Mapping[str, Callable[..., nn.Module]]]

PLAIN = "plain"
MIN_CHANNELS = 6  # of SCACB


@dataclass(frozen=True)
class Host:
    """A network with places."""

    title: str
    build: Callable[..., nn.Module]
    """Called with ``channels`` and what goes into its places."""
    channels: int
    """Width of the reference row, unless another is asked for."""
    plain: Mapping[str, Callable[..., nn.Module]]
    """What is in every place by default."""
    parts: Parts
    """What can be put in: name of the part, then place and what to put there."""
    enlarges: bool
    """Whether it takes a ``scale``; one that does not works at the size of its input."""


def _chains(place: str, chain: Callable[..., nn.Module]) -> dict[str, dict[str, Callable[..., nn.Module]]]:
    return {
        "dracb": {place: partial(chain, communication=None)},  # the same stages, each on its own
        "chain": {place: chain},
        "chain-learnable": {place: partial(chain, communication=LearnableCommunication)},
        "chain-gated": {place: partial(chain, communication=GatedCommunication)},
    }


HOSTS = {
    "rfdn": Host(
        "Distillation network, in the manner of RFDN",
        partial(DistillationNet, num_blocks=3),
        22,
        {"block": ShallowResidual, "distill": Distillation, "attention": ContrastAttention},
        {"scacb": {"block": SCACB}, **_chains("distill", DRACBChain), "wsilbv": {"attention": WSILBV}},
        enlarges=True,
    ),
    "edsr": Host(
        "Residual network, in the manner of EDSR",
        partial(ResidualNet, num_blocks=6),
        24,
        {"block": nothing},
        {"cca": {"block": ContrastAttention}, "wsilbv": {"block": WSILBV}, "scacb": {"block": SCACB}},
        enlarges=True,
    ),
    "unet": Host(
        "U-Net, in the manner of NAFNet",
        partial(UNet, num_levels=2),
        20,
        {"attention": nothing, "skips": Skips},
        {
            "sca": {"attention": ChannelAttention},
            "wsilbv": {"attention": WSILBV},
            **_chains("skips", ChainedSkips),
        },
        enlarges=False,
    ),
}


class OnEnlarged(nn.Module):
    """A network between an image and its restoration: every host starts from the bicubic image, and adds to it.

    Args:
        net: Enlarges by ``scale``, or keeps the size.
        scale: What the image is enlarged by; 1 for none.
        enlarges: Whether ``net`` enlarges by itself; the bicubic image is then added to its result. Otherwise it is
            given the bicubic image.
    """

    def __init__(self, net: nn.Module, scale: int, *, enlarges: bool) -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.enlarges = enlarges

    def forward(self, x: Tensor) -> Tensor:
        enlarged = x
        if self.scale > 1:
            enlarged = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return enlarged + self.net(x) if self.enlarges else self.net(enlarged)


def parts_of(host: str, row: str) -> dict[str, Callable[..., nn.Module]]:
    """What is in every place of a host in a row such as ``"plain"`` or ``"scacb+chain"``.

    Raises:
        ValueError: If the host has no such part, or two parts want one place.
    """
    known = HOSTS[host].parts
    chosen: dict[str, str] = {}
    filled = dict(HOSTS[host].plain)
    for name in [] if row == PLAIN else row.split("+"):
        if name not in known:
            raise ValueError(
                f"--blocks {row}: {host} has no part {name!r}; a row is {PLAIN!r} or parts joined by +, of "
                f"{', '.join(known)}."
            )
        for place, make in known[name].items():
            if place in chosen:
                raise ValueError(f"--blocks {row}: {chosen[place]} and {name} go to one place of {host}; take one.")
            chosen[place] = name
            filled[place] = make
    return filled


def build(host: str, row: str, channels: int, scale: int) -> nn.Module:
    """A network of a row, between image and restoration, with fresh weights."""
    options: dict[str, Any] = {"channels": channels, **parts_of(host, row)}
    if HOSTS[host].enlarges:
        options["scale"] = scale
    return OnEnlarged(HOSTS[host].build(**options), scale, enlarges=HOSTS[host].enlarges)


def count_parameters(host: str, row: str, channels: int, scale: int) -> int:
    """Parameters of a network."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(host, row, channels, scale).parameters())


def count_macs(host: str, row: str, channels: int, scale: int) -> int:
    """Multiply-accumulates of a network for a result of 1280 x 720."""
    with torch.device("meta"):
        return complexity(build(host, row, channels, scale), (1, 3, 720 // scale, 1280 // scale)).macs


def nearest_width(cost: Callable[[int], int], target: int, *, lowest: int = MIN_CHANNELS) -> int:
    """The width whose cost is closest to a target; of two that are as close the narrower.

    Args:
        cost: What a width costs; grows with it.
        target: What it should cost.
        lowest: Narrowest width to try.

    Example:
        >>> nearest_width(lambda width: width**2, 150)
        12
    """
    above = lowest
    while cost(above) < target:
        above *= 2
    below = max(lowest, above // 2)
    while above - below > 1:
        middle = (below + above) // 2
        if cost(middle) < target:
            below = middle
        else:
            above = middle
    return min((below, above), key=lambda width: (abs(cost(width) - target), width))


@dataclass(frozen=True)
class Row:
    """A host with something in its places, at the width that makes it cost what the reference costs."""

    blocks: str
    channels: int
    parameters: int
    macs: int
    """For a result of 1280 x 720."""


def plan_rows(
    host: str, blocks: Sequence[str], *, scale: int, channels: int | None, match: Match, tolerance: float
) -> list[Row]:
    """The rows of a comparison, each at the width that comes closest to the first one's cost.

    Args:
        host: Name of the host.
        blocks: Rows, such as ``"plain"`` or ``"scacb+chain"``; the first is the reference.
        scale: What the network enlarges by.
        channels: Width of the reference; ``None`` for the host's.
        match: What is to be alike.
        tolerance: By how much, in percent, it may differ.

    Raises:
        ValueError: If a row is unknown or given twice, or no width comes close enough.
    """
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"--blocks: every row once, got {' '.join(blocks)}.")
    for row in blocks:
        parts_of(host, row)
    count = {"parameters": count_parameters, "macs": count_macs}[match]
    reference = HOSTS[host].channels if channels is None else channels
    target = count(host, blocks[0], reference, scale)
    rows: list[Row] = []
    for row in blocks:
        width = reference
        if row != blocks[0]:
            width = nearest_width(partial(_at_width, count, host, row, scale), target)
        found = count(host, row, width, scale)
        off = 100 * (found / target - 1)
        if abs(off) > tolerance:
            raise ValueError(
                f"{row}: comes no closer to the {target:,} {match} of {blocks[0]} than {found:,} ({off:+.1f} %), at "
                f"{width} channels; try --channels {reference + 1}, or --tolerance {math.ceil(abs(off))}."
            )
        parameters, macs = count_parameters(host, row, width, scale), count_macs(host, row, width, scale)
        rows.append(Row(row, width, parameters, macs))
    return rows


def _at_width(count: Callable[[str, str, int, int], int], host: str, row: str, scale: int, width: int) -> int:
    return count(host, row, width, scale)
