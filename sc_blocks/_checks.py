"""Checks of arguments and inputs, with one wording for all blocks.

They read shapes and types, never the values of tensors, so they work in compiled graphs and never wait for a device.
"""

from __future__ import annotations

import difflib
import math
import reprlib
import sys
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

Device = torch.device | str | None

# Larger than any width or image, and small enough that torch can count the values of every tensor.
LARGEST = 1 << 28


def check_int(block: str, name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` as an int if it is an integer, of Python or NumPy, from ``least`` to ``LARGEST``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = "an integer" if least < 1 else "a positive integer"
        raise TypeError(f"{block}: {name} must be {kind}, got {shown(value)} ({type(value).__name__}).")
    number = int(value)
    if not least <= number <= LARGEST:
        limit = f"at least {least}" if number < least else f"at most {LARGEST}"
        raise ValueError(f"{block}: {name} must be {limit}, got {shown(number)}.")
    return number


def check_number(block: str, name: str, value: Any, *, least: float = -math.inf, hint: str) -> float:
    """Return ``value`` as a float if it is a finite number, of Python or NumPy, of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{block}: {name} must be a number, got {shown(value)} ({type(value).__name__}); {hint}.")
    number = value if isinstance(value, (int, Fraction)) else float(value)
    if not abs(number) <= sys.float_info.max:  # not "greater": NaN must not pass
        raise ValueError(f"{block}: {name} must be finite, got {shown(value)}; {hint}.")
    if number < least:
        raise ValueError(f"{block}: {name} must be {least} or more, got {shown(value)}; {hint}.")
    return float(number)


def check_flag(block: str, name: str, value: Any) -> bool:
    """Return ``value`` as a bool if it is one, of Python or NumPy."""
    if type(value).__name__ not in ("bool", "bool_"):  # the names of NumPy's, 2 and 1
        raise TypeError(f"{block}: {name} must be True or False, got {shown(value)} ({type(value).__name__}).")
    return bool(value)


def shown(value: Any) -> str:
    """A value as a message shows it, without the thousands of digits that an integer may have."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return reprlib.repr(value)


def check_module(function: str, name: str, value: Any) -> None:
    """Raise unless ``value`` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{function}: {name} must be a torch.nn.Module, got {type(value).__name__}.")


def build_layer(
    block: str, name: str, layer: Callable[[], nn.Module], *, device: Device, dtype: torch.dtype | None
) -> nn.Module:
    """Build the layer for an argument such as ``act_layer``."""
    wanted = "a class or another callable that builds a module, such as torch.nn.GELU without parentheses"
    if isinstance(layer, nn.Module) or not callable(layer):
        raise TypeError(f"{block}: {name} must be {wanted}, got {shown(layer)}.")
    try:
        built: Any = layer()
    except TypeError as error:
        raise TypeError(f"{block}: {name} must be {wanted}, got {shown(layer)}, which fails: {error}.") from error
    check_module(block, f"what {name} builds", built)
    return moved(built, device, dtype)


def moved(module: nn.Module, device: Device, dtype: torch.dtype | None) -> nn.Module:
    """Move a module to a device and a type, if they are given."""
    # Not by .to(None, None), which torch refuses for modules of fake tensors.
    return module if device is None and dtype is None else module.to(device=device, dtype=dtype)


def check_choice(block: str, name: str, value: Any, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    # Arrays are compared value by value; they are not hashable.
    if not isinstance(value, Hashable) or value not in choices:
        raise ValueError(f"{block}: {name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}.")


def width_of(layer: nn.Module, name: str, built: int) -> int:
    """Width of a layer, as its attribute of this name says, or that which it was built with if it has none.

    Pruning whole channels gives the layers of a block other widths after the block was built.
    """
    return getattr(layer, name, built)


def reduced_width(block: str, channels: int, reduction: int, *, factor: int = 1, name: str = "channels") -> int:
    """Return ``factor * channels // reduction`` if that leaves a channel."""
    width = factor * channels // reduction
    if width < 1:
        fits = f"reduction <= {factor * channels} or {name} >= {-(-reduction // factor)}"
        raise ValueError(f"{block}: reduction={reduction} leaves no channel of {name}={channels}; use {fits}.")
    return width


def check_feature_map(block: str, x: Tensor, channels: int | None, *, name: str = "x", size_multiple: int = 1) -> None:
    """Raise unless ``x`` is a floating-point NCHW tensor of ``channels`` channels, or of any number, and not empty."""
    if not isinstance(x, Tensor):
        part = "second" if name == "previous" else "first"
        kind = type(x).__name__
        hints = {
            "tuple": f"; a block that returns (refined, attention_map): pass the {part}",
            "int": f"; where layers are built by width, pass the class {block}, not an instance",
            "ndarray": f"; pass torch.from_numpy({name}), for an image .permute(2, 0, 1)[None], and / 255 if of 8 bits",
        }
        if type(x).__module__.startswith("PIL."):
            hints[kind] = f"; pass torch.from_numpy(numpy.array({name})).permute(2, 0, 1)[None] / 255"
        raise TypeError(f"{block}: {name} must be a tensor, got {kind}{hints.get(kind, '')}.")
    if x.ndim != 4:
        hint = f"; for a single image pass {name}.unsqueeze(0)" if x.ndim == 3 else ""
        if x.ndim == 3 and x.shape[2] == channels != x.shape[0]:
            hint = f"; it looks like tokens: pass {name}.transpose(1, 2).unflatten(2, (height, width))"
        if x.ndim == 5:
            hint = f"; for frames pass {name}.flatten(0, 1), and unflatten the result"
        wanted = f"4 dimensions (batch, {channels or 'channels'}, height, width)"
        raise ValueError(f"{block}: {name} must have {wanted}, got shape {tuple(x.shape)}{hint}.")
    if channels is not None and x.shape[1] != channels:
        hint = f"pass {channels} channels, or build {block} for {x.shape[1]}"
        if x.shape[3] == channels:
            hint = f"it looks like NHWC: pass {name}.permute(0, 3, 1, 2)"
        came = f"{x.shape[1]} in shape {tuple(x.shape)}"
        raise ValueError(f"{block}: {name} must have {channels} channels in dimension 1 (NCHW), got {came}; {hint}.")
    if not x.is_floating_point():
        whole = f"{name}.float() / 255" if x.dtype == torch.uint8 else f"{name}.float()"
        hint = f"pass {f'torch.cat([{name}.real, {name}.imag], dim=1)' if x.is_complex() else whole}"
        raise TypeError(f"{block}: {name} must be a floating-point tensor, got {x.dtype}; {hint}.")
    height, width = x.shape[2:]
    if height < 1 or width < 1:
        raise ValueError(f"{block}: {name} must be at least 1 x 1 in height and width, got shape {tuple(x.shape)}.")
    if size_multiple > 1 and (height % size_multiple != 0 or width % size_multiple != 0):
        padded = " x ".join(str(-(-side // size_multiple) * size_multiple) for side in (height, width))
        needed = f"multiples of {size_multiple}, so that the result has a whole size"
        hint = f"pad to {padded} and crop the result"
        raise ValueError(f"{block}: height and width of {name} must be {needed}, got {height} x {width}; {hint}.")


def check_same_shape(name: str, value: Any, reference_name: str, reference: Tensor, *, hint: str) -> None:
    """Raise unless ``value`` is a map of the shape of ``reference``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; {hint}.")
    if reference.shape != value.shape:
        shapes = f"{tuple(reference.shape)}, got {tuple(value.shape)}"
        raise ValueError(f"{name} must have the shape of {reference_name}, {shapes}; {hint}.")


def check_previous_map(block: str, previous: Any, *, takes_map: bool) -> None:
    """Raise unless a previous attention map was given exactly if the block was built to take one."""
    if takes_map and previous is None:
        wanted = "the last attention map of the block before"
        raise ValueError(f"{block}: previous must be {wanted}, got None; pass it, or build with takes_map=False.")
    if previous is not None and not takes_map:
        hint = "leave previous out, or build with takes_map=True"
        raise ValueError(f"{block}: takes no previous attention map, got one; {hint}.")


def nearby(wanted: str, names: Sequence[str]) -> str:
    """Tell which names there are, those close to ``wanted`` first."""
    close = difflib.get_close_matches(wanted, names)
    listed = ", ".join(map(repr, close or names[:3]))
    return f"close are {listed}" if close else f"of {len(names)} there are {listed}"


# Leaves for torch.fx, if called through the module, _checks.check_feature_map(...): a traced network checks its inputs.
torch.fx.wrap("check_feature_map")
torch.fx.wrap("check_same_shape")
torch.fx.wrap("check_previous_map")
