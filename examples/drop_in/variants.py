"""The hosts of ``compare``, and the parts for their slots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from examples.compare.cost import cost_of, count_parameters, nearest_width
from examples.compare.setup import Row
from examples.drop_in.distillation import DistillationNet
from examples.drop_in.plain import ChannelAttention, ContrastAttention, Distillation, ShallowResidual, Skips
from examples.drop_in.residual import ResidualNet
from examples.drop_in.tails import narrow_rbwa, pixel_shuffle
from examples.drop_in.unet import ChainedSkips, UNet
from examples.peers import IMDN
from sc_blocks import SCACB, WSILB, WSILBV, DRACBChain, GatedCommunication, LearnableCommunication
from sc_blocks.init import init_weights

Match = Literal["parameters", "macs", "channels"]
Parts = Mapping[str, Mapping[str, Callable[..., nn.Module]]]

PLAIN = "plain"
LOCAL = "local"  # not a part, but a way of scoring the trained network
MIN_CHANNELS = 6  # of SCACB


@dataclass(frozen=True)
class Host:
    """A network with slots for parts."""

    title: str
    build: Callable[..., nn.Module]
    """Called with ``channels`` and the parts for its slots."""
    channels: int
    """Default width of the reference row."""
    plain: Mapping[str, Callable[..., nn.Module]]
    """The default part of every slot."""
    parts: Parts
    """Available parts: by name of the part, then by slot, how to build it."""
    enlarges: bool = True
    """Whether it takes a ``scale``; otherwise, its output has the size of its input."""
    lowest: int = MIN_CHANNELS
    """The narrowest width that all its parts support."""


def _chains(slot: str, chain: Callable[..., nn.Module]) -> dict[str, dict[str, Callable[..., nn.Module]]]:
    return {
        "dracb": {slot: partial(chain, communication=None)},  # the same stages without communication
        "chain": {slot: chain},
        "chain-learnable": {slot: partial(chain, communication=LearnableCommunication)},
        "chain-gated": {slot: partial(chain, communication=GatedCommunication)},
    }


def imdn(*, scale: int, channels: int, tail: Callable[[int, int], nn.Module]) -> IMDN:
    """IMDN with another tail."""
    net = IMDN(scale, channels=channels)
    net.enlarge = tail(channels, scale)
    return net


RBWA_TAIL = {"rbwa": {"tail": narrow_rbwa}}
HOSTS = {
    "imdn": Host("IMDN", imdn, 64, {"tail": pixel_shuffle}, RBWA_TAIL, lowest=16),
    "rfdn": Host(
        "Distillation network, in the manner of RFDN",
        partial(DistillationNet, num_blocks=3),
        22,
        {"block": ShallowResidual, "distill": Distillation, "attention": ContrastAttention, "tail": pixel_shuffle},
        {
            "scacb": {"block": SCACB},
            **_chains("distill", DRACBChain),
            "wsilbv": {"attention": WSILBV},
            **RBWA_TAIL,
        },
    ),
    "edsr": Host(
        "Residual network, in the manner of EDSR",
        partial(ResidualNet, num_blocks=6),
        24,
        {"block": nn.Identity, "tail": pixel_shuffle},
        {
            "cca": {"block": ContrastAttention},
            "wsilbv": {"block": WSILBV},
            "scacb": {"block": SCACB},
            **RBWA_TAIL,
        },
    ),
    "unet": Host(
        "U-Net, in the manner of NAFNet",
        partial(UNet, num_levels=2),
        20,
        {"attention": nn.Identity, "skips": Skips},
        {
            "sca": {"attention": ChannelAttention},
            "wsilb": {"attention": WSILB},
            "wsilbv": {"attention": WSILBV},
            **_chains("skips", ChainedSkips),
        },
        enlarges=False,
    ),
}


TITLES = {
    "scacb": "SCACB",
    "dracb": "DRACBs that pass no maps",
    "chain": "DRACBChain",
    "chain-learnable": "DRACBChain, learned share",
    "chain-gated": "DRACBChain, gated",
    "wsilb": "WSILB",
    "wsilbv": "WSILB-V",
    "rbwa": "narrow RBWA",
    "cca": "IMDN's attention",
    "sca": "NAFNet's attention",
}


def without_local(row: str) -> str:
    """The row whose trained networks a row is scored with."""
    return row.removesuffix(f"+{LOCAL}")


def is_local(row: str) -> bool:
    """Whether a row is scored with local statistics."""
    return row != without_local(row)


def title_of(row: str) -> str:
    """The title of a row in a table."""
    title = " + ".join(TITLES.get(part, part) for part in without_local(row).split("+"))
    return f"{title}, local statistics" if is_local(row) else title


class BicubicSkip(nn.Module):
    """A restoration network that works on, or is added to, the bicubic image.

    Args:
        net: A network that upscales by ``scale``, or keeps the size.
        scale: Upscaling factor; 1 for none.
        enlarges: Whether ``net`` upscales by itself; the bicubic image is then added to its output. Otherwise, the
            bicubic image is its input.
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
    """The part in every slot of a host for a row such as ``"plain"`` or ``"scacb+chain"``.

    Raises:
        ValueError: If the host has no such part, or two parts need the same slot.
    """
    known = HOSTS[host].parts
    chosen: dict[str, str] = {}
    filled = dict(HOSTS[host].plain)
    for name in [] if row == PLAIN else without_local(row).split("+"):
        if name not in known:
            raise ValueError(
                f"--blocks {row}: {host} has no part {name!r}; a row is {PLAIN!r} or parts joined by +, from "
                f"{', '.join(known)}."
            )
        for slot, make in known[name].items():
            if slot in chosen:
                raise ValueError(f"--blocks {row}: {chosen[slot]} and {name} need the same slot of {host}; choose one.")
            chosen[slot] = name
            filled[slot] = make
    return filled


def build(host: str, row: str, scale: int, channels: int, *, skip: bool = True) -> nn.Module:
    """Build the network of a row, newly initialised.

    SCACBs and DRACBs are initialised by :func:`~sc_blocks.init.init_weights`, everything else by torch.

    Args:
        host: Name of the host.
        row: The parts in its slots.
        scale: Upscaling factor.
        channels: Its width.
        skip: Whether it starts from the bicubic image, see :class:`BicubicSkip`.

    Raises:
        ValueError: If the host needs the bicubic image, but ``skip`` is false.
    """
    arguments: dict[str, Any] = {"channels": channels, **parts_of(host, row)}
    enlarges = HOSTS[host].enlarges
    if not skip and not enlarges:
        raise ValueError(f"--no-skip: {host} does not upscale by itself and needs the bicubic image; leave it out.")
    net = HOSTS[host].build(**arguments, **({"scale": scale} if enlarges else {}))
    init_weights(net)
    return BicubicSkip(net, scale, enlarges=enlarges) if skip else net


def plan_rows(
    host: str,
    blocks: Sequence[str],
    *,
    scale: int,
    channels: int | None,
    match: Match,
    tolerance: float,
    skip: bool = True,
) -> list[Row]:
    """The rows of a comparison, each at the width whose cost is closest to that of the first one.

    Args:
        host: Name of the host.
        blocks: Rows, such as ``"plain"`` or ``"scacb+chain"``; the first is the reference.
        scale: Upscaling factor.
        channels: Width of the reference; ``None`` for that of the host.
        match: The cost that is equal in all rows.
        tolerance: Allowed deviation of that cost, in percent.
        skip: Whether the network starts from the bicubic image.

    Raises:
        ValueError: If a row is unknown, given twice, or local without attention that has statistics, if ``channels`` is
            too small, or if no width comes close enough.
    """
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"--blocks: give each row only once, got {' '.join(blocks)}.")
    reference = HOSTS[host].channels if channels is None else channels
    if reference < HOSTS[host].lowest:
        raise ValueError(f"--channels {reference}: {host} needs at least {HOSTS[host].lowest}.")
    rows: list[Row] = []
    target = None
    for name in blocks:
        make = partial(build, host, name, scale, skip=skip)

        def cost(width: int, make: Callable[[int], nn.Module] = make) -> int:
            if match == "channels":
                return width
            network = partial(make, width)
            return count_parameters(network) if match == "parameters" else cost_of(network, scale).macs

        width = reference if target is None else nearest_width(cost, target, lowest=HOSTS[host].lowest)
        found = cost(width)
        target = found if target is None else target
        off = 100 * (found / target - 1)
        if abs(off) > tolerance:
            raise ValueError(
                f"{name}: the closest to the {target:,} {match} of {blocks[0]} is {found:,} ({off:+.1f} %), at "
                f"{width} channels; try --channels {reference + 1}, or --tolerance {math.ceil(abs(off))}."
            )
        local = is_local(name)
        if local and not any(isinstance(module, (WSILB, WSILBV)) for module in make(width).modules()):
            raise ValueError(f"--blocks {name}: {LOCAL} is for rows with WSILB or WSILB-V; leave it out.")
        rows.append(Row(name, partial(make, width), channels=width, trained_as=without_local(name), local=local))
    return rows
