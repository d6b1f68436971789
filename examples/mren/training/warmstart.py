"""Begin a training from the weights of another network: another scale, depth or reconstruction, or a narrower one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from examples.mren.model import MREN, read_weights
from sc_blocks import MREB, SCACB, GatedCommunication

TAIL = ("reduce.", "reconstruct.", "tail.")
LEVELS = 3  # of an SCACB, whose maps the weighing reads and writes side by side


def warm_start(net: MREN, file: str | Path) -> list[str]:
    """Begin from the weights of another network: copy every tensor that fits by name and shape.

    A wider network also takes those of a narrower one. Its first channels get the weights, and read nothing from the
    others, which keep their own: at first, it computes what the narrower network computes. That is the idea of Chen et
    al., *Net2Net* (2016), who copy channels where we draw them.

    Args:
        net: The network, changed in place.
        file: A weight file.

    Returns:
        The names of the parameters for which the file has nothing that fits: those stay as they were.

    Raises:
        ValueError: If the network of the file is wider, or is narrower and has other blocks, or the file is not one of
            ours.
    """
    config, given = read_weights(Path(file))
    own = net.state_dict()
    width, wanted = (state["head.weight"].shape[0] for state in (given, own))
    if width > wanted:  # next to nothing fits
        raise ValueError(f"{file}: has {width} channels, the network {wanted}; begin from one that is not wider.")
    maps = _maps(net)
    # Blocks with other parts, or a last convolution that reads other features, have nothing to widen.
    others = _maps(MREN(**config, device="meta"))
    same_blocks = all(others[name] == numbers for name, numbers in maps.items() if name in others)
    same_tail = _tail(given) == _tail(own)
    fitting = {}
    for name, tensor in given.items():
        widens = same_blocks and (same_tail or not name.startswith(TAIL))
        if name in own and (tensor.shape == own[name].shape or (widens and _is_narrower(tensor, own[name]))):
            fitting[name] = _widened(tensor, own[name], *maps.get(name, (1, 1)))
    if "head.weight" not in fitting:
        came = f"has {width} channels and other blocks, the network {wanted} channels"
        raise ValueError(f"{file}: {came}; begin from one that is as wide, or whose SCACBs have the same parts.")
    net.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _tail(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(TAIL)}


def _maps(net: MREN) -> dict[str, tuple[int, int]]:
    """Parameters of convolutions that write or read several maps side by side, and the numbers of these maps."""
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


def _is_narrower(tensor: Tensor, own: Tensor) -> bool:
    sizes = zip(tensor.shape, own.shape, strict=False)
    return tensor.dim() == own.dim() and all(size <= wanted for size, wanted in sizes)


def _widened(tensor: Tensor, own: Tensor, written: int, read: int) -> Tensor:
    """A weight or a bias with that of a narrower convolution in the first channels of each map."""
    widened = own.clone()
    if tensor.dim() < 2:  # a bias
        widened.unflatten(0, (written, -1))[:, : len(tensor) // written] = tensor.unflatten(0, (written, -1))
        return widened
    narrow, wide = (weight.unflatten(1, (read, -1)).unflatten(0, (written, -1)) for weight in (tensor, widened))
    outputs, inputs = narrow.shape[1], narrow.shape[3]
    wide[:, :outputs] = 0  # what the narrower network computes does not depend on other channels
    wide[:, :outputs, :, :inputs] = narrow
    return widened
