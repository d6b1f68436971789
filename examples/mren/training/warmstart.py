"""Start training from the weights of another network: of another scale, depth or reconstruction, or narrower."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from examples.mren.model import MREN, read_weights
from examples.mren.widths import maps_side_by_side, widened

TAIL = ("reduce.", "reconstruct.", "tail.")


def warm_start(net: MREN, file: str | Path) -> list[str]:
    """Initialise a network from the weights of another: copy every tensor that fits by name and shape.

    A wider network also takes the weights of a narrower one. Its first channels get these weights and read nothing from
    the other channels, which keep their own: initially, it computes what the narrower network computes. This is the
    idea of Chen et al., *Net2Net* (2016), who replicate channels where we initialise them randomly.

    Args:
        net: The network, changed in place.
        file: A weight file.

    Returns:
        The names of the parameters for which the file has nothing that fits; these are unchanged.

    Raises:
        ValueError: If the network of the file is wider, or narrower with other blocks, or the file is not one of ours.
    """
    config, given = read_weights(Path(file))
    own = net.state_dict()
    width, wanted = (state["head.weight"].shape[0] for state in (given, own))
    if width > wanted:  # almost nothing fits
        raise ValueError(f"{file}: has {width} channels, the network {wanted}; start from one that is not wider.")
    maps = maps_side_by_side(net)
    # Blocks with other parts, or a last convolution that reads other features, cannot be widened.
    others = maps_side_by_side(MREN(**config, device="meta"))
    same_blocks = all(others[name] == numbers for name, numbers in maps.items() if name in others)
    same_tail = _tail(given) == _tail(own)
    fitting = {}
    for name, tensor in given.items():
        widens = same_blocks and (same_tail or not name.startswith(TAIL))
        if name in own and (tensor.shape == own[name].shape or (widens and _is_narrower(tensor, own[name]))):
            fitting[name] = widened(tensor, own[name], *maps.get(name, ()))
    if "head.weight" not in fitting:
        raise ValueError(
            f"{file}: has {width} channels and other blocks, the network {wanted} channels; start from one that is as "
            "wide, or whose SCACBs have the same parts."
        )
    net.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _tail(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(TAIL)}


def _is_narrower(tensor: Tensor, own: Tensor) -> bool:
    sizes = zip(tensor.shape, own.shape, strict=False)
    return tensor.dim() == own.dim() and all(size <= wanted for size, wanted in sizes)
