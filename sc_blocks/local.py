"""Switch the channel statistics of an existing network between windows and whole maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from torch import Tensor, nn

from sc_blocks import _checks
from sc_blocks._dry_run import arguments, dry_run, original_module
from sc_blocks.wsilb import WSILB, WSILBV, Window

Network = TypeVar("Network", bound=nn.Module)


def to_local(module: Network, example: Tensor | Sequence[Any] | Mapping[str, Any], *, factor: float = 1.5) -> Network:
    """Switch every WSILB and WSILBV of a network to windowed statistics, in place, and return the network.

    This follows the test-time local converter (TLC) of Chu et al.: a network trained on patches has seen statistics of
    patch-sized areas only. The network runs once on ``example`` in eval mode, and the window of each
    :class:`~sc_blocks.WSILB` and :class:`~sc_blocks.WSILBV` becomes ``factor`` times the size of its map. Train/eval
    modes, buffers and random number generators do not change; lazy layers are initialised, as in any first run.

    Args:
        module: The network.
        example: Any input of the size of the training patches, a sequence of arguments, or a mapping of keyword
            arguments.
        factor: Ratio of the window's side to the map's; Chu et al. use 1.5.

    Raises:
        ValueError: If ``factor`` is not positive, the run on ``example`` calls no such block or calls one with maps of
            several sizes, or the network was folded and an RBWA in it does not call its attention; the network is then
            unchanged.
        TypeError: If an argument has the wrong type.

    Source:
        Chu et al., *Improving Image Restoration by Revisiting Global Information Aggregation* (2022).

    Example:
        >>> import torch
        >>> from sc_blocks import WSILBV, to_local
        >>> to_local(WSILBV(60), torch.zeros(1, 60, 48, 48)).local
        (72, 72)
    """
    from sc_blocks.deploy.rbwa import FoldedRBWA  # here, so that importing the blocks does not import deploy

    factor = _checks.check_number("to_local", "factor", factor, hint="1.5 is usual")
    if not 0 < factor <= 1e6:
        raise ValueError(f"to_local: factor must be positive and at most 1e6, got {factor:g}; 1.5 is usual.")
    network = original_module("to_local", "module", module)
    given = arguments("to_local", example)
    windows: dict[WSILB | WSILBV, Window] = {}

    def record(block: WSILB | WSILBV, args: tuple[Any, ...], output: Tensor) -> None:
        # The output has the input's size; the input may be positional or by keyword.
        # A larger window has the same effect: it covers the whole map.
        height, width = (min(max(1, round(side * factor)), _checks.LARGEST) for side in output.shape[2:])
        window = height, width
        if windows.setdefault(block, window) != window:
            got = f"windows of {windows[block]} and {window} for one {type(block).__name__}"
            raise ValueError(f"to_local: each block must be called with maps of one size, got {got}; set its local.")

    with ExitStack() as hooks:
        for block in network.modules():
            if isinstance(block, (WSILB, WSILBV)):
                hooks.enter_context(block.register_forward_hook(record))
        dry_run(network, *given)
    if any(isinstance(part, FoldedRBWA) and part.attention not in windows for part in network.modules()):
        got = f"{type(network).__name__} with an RBWA that does not call its attention"
        raise ValueError(f"to_local: module must not be folded yet, got {got}; call to_local first, then fold.")
    if not windows:
        raise ValueError(f"to_local: {type(network).__name__} calls no WSILB or WSILBV on the example.")
    for block, window in windows.items():
        block.local = window
    return module


def to_global(module: Network) -> Network:
    """Switch every WSILB and WSILBV of a network back to whole-map statistics, in place, and return the network.

    Raises:
        TypeError: If ``module`` is not a module.

    Example:
        >>> from sc_blocks import WSILBV, to_global
        >>> to_global(WSILBV(60, local=(8, 8))).local is None
        True
    """
    for block in original_module("to_global", "module", module).modules():
        if isinstance(block, (WSILB, WSILBV)):
            block.local = None
    return module
