"""Argument and input checks with the same error messages in all blocks.

They read shapes and types, never tensor values, so they work in compiled graphs and never synchronise with a device.
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

# Larger than any width or image, and small enough that no tensor's number of elements overflows.
LARGEST = 1 << 28


def check_int(block: str, name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value``, a Python or NumPy integer from ``least`` to ``LARGEST``, as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = "an integer" if least < 1 else "a positive integer"
        raise TypeError(f"{block}: {name} must be {kind}, got {shown(value)} ({type(value).__name__}).")
    number = int(value)
    if not least <= number <= LARGEST:
        limit = f"at least {least}" if number < least else f"at most {LARGEST}"
        raise ValueError(f"{block}: {name} must be {limit}, got {shown(number)}.")
    return number


def check_number(block: str, name: str, value: Any, *, least: float = -math.inf, hint: str) -> float:
    """Return ``value``, a finite Python or NumPy number of at least ``least``, as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{block}: {name} must be a number, got {shown(value)} ({type(value).__name__}); {hint}.")
    number = value if isinstance(value, (int, Fraction)) else float(value)
    if not abs(number) <= sys.float_info.max:  # not "greater": NaN must not pass
        raise ValueError(f"{block}: {name} must be finite, got {shown(value)}; {hint}.")
    if number < least:
        raise ValueError(f"{block}: {name} must be {least} or more, got {shown(value)}; {hint}.")
    return float(number)


def check_flag(block: str, name: str, value: Any) -> bool:
    """Return ``value``, a Python or NumPy bool, as a bool."""
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy 1 names its type bool_
        raise TypeError(f"{block}: {name} must be True or False, got {shown(value)} ({type(value).__name__}).")
    return bool(value)


def shown(value: Any) -> str:
    """Return the representation of a value for an error message, shortened if it is long."""
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
    example = "torch.nn.Sigmoid" if name == "gate_layer" else "torch.nn.GELU"
    wanted = f"a class or another callable that builds a module, such as {example} without parentheses"
    if isinstance(layer, nn.Module) or not callable(layer):
        raise TypeError(f"{block}: {name} must be {wanted}, got {shown(layer)}.")
    try:
        built: Any = layer()
    except TypeError as error:
        if not is_mismatch(error):
            raise
        raise TypeError(f"{block}: {name} must be {wanted}, got {shown(layer)}, which fails: {error}.") from error
    check_module(block, f"the result of {name}()", built)
    return moved(built, device, dtype)


def is_mismatch(error: TypeError) -> bool:
    """Return whether the call itself failed, because the function does not take these arguments.

    An error inside a function is its own, and must not be reported as a wrong argument.
    """
    return error.__traceback__ is not None and error.__traceback__.tb_next is None


def moved(module: nn.Module, device: Device, dtype: torch.dtype | None) -> nn.Module:
    """Move a module to the given device and dtype, if any."""
    # Not .to(None, None), which torch rejects for modules with fake tensors.
    return module if device is None and dtype is None else module.to(device=device, dtype=dtype)


def check_choice(block: str, name: str, value: Any, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    # Unhashable values, such as arrays, may compare elementwise.
    if not isinstance(value, Hashable) or value not in choices:
        raise ValueError(f"{block}: {name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}.")


def width_of(layer: nn.Module, name: str, built: int) -> int:
    """Return the layer's width, its attribute ``name``, or ``built`` if it has no such attribute.

    Channel pruning changes the widths of layers after the block was built.
    """
    return getattr(layer, name, built)


def reduced_width(block: str, channels: int, reduction: int, *, factor: int = 1, name: str = "channels") -> int:
    """Return ``factor * channels // reduction`` if that is at least 1."""
    width = factor * channels // reduction
    if width < 1:
        fits = f"reduction <= {factor * channels} or {name} >= {-(-reduction // factor)}"
        raise ValueError(f"{block}: reduction={reduction} leaves no channels for {name}={channels}; use {fits}.")
    return width


def check_feature_map(block: str, x: Tensor, channels: int | None, *, name: str = "x", size_multiple: int = 1) -> None:
    """Raise unless ``x`` is a floating-point NCHW tensor with ``channels`` channels (``None``: any) and H, W >= 1."""
    if not isinstance(x, Tensor):
        part = "second" if name == "previous" else "first"
        kind = type(x).__name__
        hints = {
            "tuple": f"; if a block returned (refined, attention_map), pass the {part} element",
            "int": f"; to have layers built from a width, pass the class {block}, not an instance",
            "ndarray": f"; pass torch.from_numpy({name}); for an 8-bit image append .permute(2, 0, 1)[None] / 255",
        }
        if type(x).__module__.startswith("PIL."):
            hints[kind] = f"; pass torch.from_numpy(numpy.array({name})).permute(2, 0, 1)[None] / 255"
        raise TypeError(f"{block}: {name} must be a tensor, got {kind}{hints.get(kind, '')}.")
    if x.ndim != 4:
        hint = f"; for a single image pass {name}.unsqueeze(0)" if x.ndim == 3 else ""
        if x.ndim == 3 and x.shape[2] == channels != x.shape[0]:  # or an image as wide as the block
            hint += f"; for tokens pass {name}.transpose(1, 2).unflatten(2, (height, width))"
        if x.ndim == 5:
            hint = f"; for video frames pass {name}.flatten(0, 1) and unflatten the result"
        wanted = f"4 dimensions (batch, {channels or 'channels'}, height, width)"
        raise ValueError(f"{block}: {name} must have {wanted}, got shape {tuple(x.shape)}{hint}.")
    if channels is not None and x.shape[1] != channels:
        hint = f"pass {channels} channels, or build {block} for {x.shape[1]}"
        if x.shape[3] == channels:  # NHWC, or a map as wide as the block
            hint += f"; for NHWC pass {name}.permute(0, 3, 1, 2)"
        got = f"{x.shape[1]} in shape {tuple(x.shape)}"
        raise ValueError(f"{block}: {name} must have {channels} channels in dimension 1 (NCHW), got {got}; {hint}.")
    if not x.is_floating_point():
        whole = f"{name}.float() / 255" if x.dtype == torch.uint8 else f"{name}.float()"
        hint = f"pass {f'torch.cat([{name}.real, {name}.imag], dim=1)' if x.is_complex() else whole}"
        raise TypeError(f"{block}: {name} must be a floating-point tensor, got {x.dtype}; {hint}.")
    height, width = x.shape[2:]
    if height < 1 or width < 1:
        raise ValueError(f"{block}: {name} must be at least 1 x 1 in height and width, got shape {tuple(x.shape)}.")
    if size_multiple > 1 and (height % size_multiple != 0 or width % size_multiple != 0):
        padded = " x ".join(str(-(-side // size_multiple) * size_multiple) for side in (height, width))
        needed = f"multiples of {size_multiple}, so that the output size is an integer"
        hint = f"pad to {padded} and crop the result"
        raise ValueError(f"{block}: height and width of {name} must be {needed}, got {height} x {width}; {hint}.")


def check_same_shape(name: str, value: Any, reference_name: str, reference: Tensor, *, hint: str) -> None:
    """Raise unless ``value`` is a tensor of the same shape as ``reference``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; {hint}.")
    if reference.shape != value.shape:
        shapes = f"{tuple(reference.shape)}, got {tuple(value.shape)}"
        raise ValueError(f"{name} must have the shape of {reference_name}, {shapes}; {hint}.")


def check_previous_map(block: str, previous: Any, *, takes_map: bool) -> None:
    """Raise if a previous attention map is missing where the block takes one, or given where it does not."""
    if takes_map and previous is None:
        wanted = "the last attention map of the preceding block"
        raise ValueError(f"{block}: previous must be {wanted}, got None; pass it, or build with takes_map=False.")
    if previous is not None and not takes_map:
        hint = "omit previous, or build with takes_map=True"
        raise ValueError(f"{block}: takes no previous attention map, got one; {hint}.")


def nearby(wanted: str, names: Sequence[str]) -> str:
    """Return a hint that lists the names closest to ``wanted`` or, without close matches, the first few."""
    close = difflib.get_close_matches(wanted, names)
    listed = ", ".join(map(repr, close or names[:3]))
    return f"close matches are {listed}" if close else f"there are {len(names)}, such as {listed}"


# Leaves for torch.fx when called as _checks.check_feature_map(...), so that a traced network still checks its inputs.
torch.fx.wrap("check_feature_map")
torch.fx.wrap("check_same_shape")
torch.fx.wrap("check_previous_map")
