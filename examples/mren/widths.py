"""Copying weights into a wider network, given which convolutions write or read several concatenated maps."""

from __future__ import annotations

from torch import Tensor

from examples.mren.model import MREN
from sc_blocks import MREB, SCACB, GatedCommunication

LEVELS = 3  # of an SCACB, whose concatenated maps the weighing reads and writes


def maps_side_by_side(net: MREN) -> dict[str, tuple[int, int]]:
    """The parameters of convolutions on several maps, with the numbers of maps that they write and read."""
    maps: dict[str, tuple[int, int]] = {}
    for path, block in net.named_modules():
        found: dict[str, tuple[int, int]] = {}
        if isinstance(block, SCACB):
            found = {f"{part}.weighing": (LEVELS, LEVELS) for part in ("spatial", "channel")}
            found["fuse"] = (1, LEVELS * (2 if block.parts == "both" else 1))
        elif isinstance(block, MREB):
            found["fuse"] = (1, block.num_stages + 1)
        elif isinstance(block, GatedCommunication):
            found["weigh"] = (1, 2)  # the predecessor's map and the block's own
        for layer, numbers in found.items():
            maps |= {f"{path}.{layer}.{name}": numbers for name in ("weight", "bias")}
    return maps


def widened(tensor: Tensor, own: Tensor, written: int = 1, read: int = 1) -> Tensor:
    """A weight or bias with that of a narrower convolution in the first channels of each map.

    Args:
        tensor: The weight or bias of the narrower convolution.
        own: That of the wider one; it is not changed.
        written: Number of maps that the convolution writes.
        read: Number of maps that it reads.
    """
    widened = own.clone()
    if tensor.dim() < 2:  # a bias
        widened.unflatten(0, (written, -1))[:, : len(tensor) // written] = tensor.unflatten(0, (written, -1))
        return widened
    narrow, wide = (weight.unflatten(1, (read, -1)).unflatten(0, (written, -1)) for weight in (tensor, widened))
    outputs, inputs = narrow.shape[1], narrow.shape[3]
    wide[:, :outputs] = 0  # the first channels must not read the others
    wide[:, :outputs, :, :inputs] = narrow
    return widened
