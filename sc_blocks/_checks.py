"""Checks of arguments and inputs, with one wording for all blocks.

Each message names the block and the argument, says what is needed and what came, and gives something that would work.
The checks read shapes and types, never the values of tensors. So they work under ``torch.compile`` and ``torch.export``
and need no synchronisation with a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn


def check_positive_int(block: str, name: str, value: Any) -> int:
    """Return ``value`` if it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{block}: {name} must be a positive integer, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"{block}: {name} must be at least 1, got {value}.")
    return value


def check_finite_number(block: str, name: str, value: Any, *, hint: str) -> float:
    """Return ``value`` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{block}: {name} must be a number, got {value!r} ({type(value).__name__}); {hint}.")
    if not math.isfinite(value):
        raise ValueError(f"{block}: {name} must be finite, got {value}; {hint}.")
    return float(value)


def build_layer(
    block: str,
    name: str,
    layer: Callable[[], nn.Module],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """Build the layer for an argument such as ``act_layer``."""
    if isinstance(layer, nn.Module) or not callable(layer):
        raise TypeError(
            f"{block}: {name} must be a class or another callable that builds a module, got {layer!r}; for example "
            f"{name}=torch.nn.GELU, without parentheses."
        )
    return layer().to(device=device, dtype=dtype)


def check_choice(block: str, name: str, value: Any, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices or isinstance(value, bool):
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{block}: {name} must be one of {options}; got {value!r}.")


def check_width(block: str, width: int, *, channels: int, reduction: int, at_least: int) -> int:
    """Return ``width``, the channels left after a reduction, if any are left."""
    if width < 1:
        raise ValueError(
            f"{block}: reduction={reduction} leaves no channel of channels={channels}; "
            f"use reduction <= {channels} or channels >= {at_least}."
        )
    return width


def check_feature_map(block: str, x: Tensor, channels: int, *, name: str = "x", size_multiple: int = 1) -> None:
    """Raise unless ``x`` is a floating-point NCHW tensor of ``channels`` channels, at least 1 x 1 large."""
    if not isinstance(x, Tensor):
        hints = {
            tuple: "; DRACB returns (refined, attention_map): pass the first",
            int: f"; where layers are built by width, pass the class {block}, not an instance",
        }
        raise TypeError(f"{block}: {name} must be a tensor, got {type(x).__name__}{hints.get(type(x), '')}.")
    if x.ndim != 4:
        hint = f"; for a single image pass {name}.unsqueeze(0)" if x.ndim == 3 else ""
        raise ValueError(
            f"{block}: {name} must have 4 dimensions (batch, {channels}, height, width), got shape "
            f"{tuple(x.shape)}{hint}."
        )
    if x.shape[1] != channels:
        if x.shape[3] == channels:
            hint = f"it looks like NHWC: pass {name}.permute(0, 3, 1, 2)"
        else:
            hint = f"pass {channels} channels, or build {block} for {x.shape[1]}"
        raise ValueError(
            f"{block}: {name} must have {channels} channels in dimension 1 (NCHW), got {x.shape[1]} in shape "
            f"{tuple(x.shape)}; {hint}."
        )
    if not x.is_floating_point():
        raise TypeError(f"{block}: {name} must be a floating-point tensor, got {x.dtype}; pass {name}.float().")
    height, width = x.shape[2], x.shape[3]
    if height < 1 or width < 1:
        raise ValueError(f"{block}: {name} must be at least 1 x 1 in height and width, got shape {tuple(x.shape)}.")
    if size_multiple > 1 and (height % size_multiple != 0 or width % size_multiple != 0):
        padded = tuple(-(-side // size_multiple) * size_multiple for side in (height, width))
        raise ValueError(
            f"{block}: height and width of {name} must be multiples of {size_multiple}, so that the result has a whole "
            f"size, got {height} x {width}; pad to {padded[0]} x {padded[1]} and crop the result."
        )


def check_same_shape(block: str, reference: Tensor, other: Any, *, reference_name: str, name: str, hint: str) -> None:
    """Raise unless ``other`` is a map of the shape of ``reference``."""
    if not isinstance(other, Tensor):
        raise TypeError(f"{block}: {name} must be a tensor, got {type(other).__name__}; {hint}.")
    if reference.shape != other.shape:
        raise ValueError(
            f"{block}: {name} must have the shape of {reference_name}, {tuple(reference.shape)}, got "
            f"{tuple(other.shape)}; {hint}."
        )


def check_previous_map(block: str, previous: Any, *, takes_map: bool) -> None:
    """Raise unless a previous attention map was given exactly if the block was built to take one."""
    if takes_map and previous is None:
        raise ValueError(
            f"{block}: a block built with takes_map=True needs the last attention map of the block before it; pass "
            "that as previous, or build the block with takes_map=False."
        )
    if previous is not None and not takes_map:
        raise ValueError(
            f"{block}: takes no previous attention map, got one; leave previous out, or build the block with "
            "takes_map=True."
        )


# Leaves for torch.fx: a traced network still checks its inputs. Only calls through this module are recorded, so blocks
# write _checks.check_feature_map(...).
torch.fx.wrap("check_feature_map")
torch.fx.wrap("check_same_shape")
torch.fx.wrap("check_previous_map")
