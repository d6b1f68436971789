"""Begin a training from the weights of another network: another scale, depth or reconstruction, or a narrower one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from examples.mren.model import MREN, read_weights
from examples.mren.widths import maps_side_by_side, widened

TAIL = ("reduce.", "reconstruct.", "tail.")


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
    maps = maps_side_by_side(net)
    # Blocks with other parts, or a last convolution that reads other features, have nothing to widen.
    others = maps_side_by_side(MREN(**config, device="meta"))
    same_blocks = all(others[name] == numbers for name, numbers in maps.items() if name in others)
    same_tail = _tail(given) == _tail(own)
    fitting = {}
    for name, tensor in given.items():
        widens = same_blocks and (same_tail or not name.startswith(TAIL))
        if name in own and (tensor.shape == own[name].shape or (widens and _is_narrower(tensor, own[name]))):
            fitting[name] = widened(tensor, own[name], *maps.get(name, ()))
    if "head.weight" not in fitting:
        came = f"has {width} channels and other blocks, the network {wanted} channels"
        raise ValueError(f"{file}: {came}; begin from one that is as wide, or whose SCACBs have the same parts.")
    net.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _tail(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(TAIL)}


def _is_narrower(tensor: Tensor, own: Tensor) -> bool:
    sizes = zip(tensor.shape, own.shape, strict=False)
    return tensor.dim() == own.dim() and all(size <= wanted for size, wanted in sizes)
