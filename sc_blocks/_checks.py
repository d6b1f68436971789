"""Checks of arguments and inputs, with one wording for all blocks.

The checks read shapes and types, never the values of tensors, so they work under ``torch.compile`` and
``torch.export`` and need no synchronisation with a device.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

Device = torch.device | str | None


def check_int(block: str, name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        kind = "a positive integer" if least == 1 else "an integer"
        raise TypeError(f"{block}: {name} must be {kind}, got {value!r} ({type(value).__name__}).")
    if value < least:
        raise ValueError(f"{block}: {name} must be at least {least}, got {value}.")
    return value


def check_finite_number(block: str, name: str, value: Any, *, hint: str) -> float:
    """Return ``value`` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
        raise TypeError(f"{block}: {name} must be a number, got {value!r} ({type(value).__name__}); {hint}.")
    if not math.isfinite(value):
        raise ValueError(f"{block}: {name} must be finite, got {value}; {hint}.")
    return float(value)


def check_module(function: str, name: str, value: Any) -> None:
    """Raise unless ``value`` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{function}: {name} must be a torch.nn.Module, got {type(value).__name__}.")


def build_layer(
    block: str, name: str, layer: Callable[[], nn.Module], *, device: Device, dtype: torch.dtype | None
) -> nn.Module:
    """Build the layer for an argument such as ``act_layer``."""
    if isinstance(layer, nn.Module) or not callable(layer):
        wanted = "a class or another callable that builds a module, such as torch.nn.GELU without parentheses"
        raise TypeError(f"{block}: {name} must be {wanted}, got {layer!r}.")
    return layer().to(device=device, dtype=dtype)


def check_choice(block: str, name: str, value: Any, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices or isinstance(value, bool):
        raise ValueError(f"{block}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def reduced_width(block: str, channels: int, reduction: int, *, factor: int = 1) -> int:
    """Return ``factor * channels // reduction`` if that leaves a channel."""
    check_int(block, "channels", channels)
    check_int(block, "reduction", reduction)
    width = factor * channels // reduction
    if width < 1:
        fits = f"reduction <= {factor * channels} or channels >= {-(-reduction // factor)}"
        raise ValueError(f"{block}: reduction={reduction} leaves no channel of channels={channels}; use {fits}.")
    return width


def check_feature_map(block: str, x: Tensor, channels: int | None, *, name: str = "x", size_multiple: int = 1) -> None:
    """Raise unless ``x`` is a floating-point NCHW tensor of ``channels`` channels, or of any number, and not empty."""
    if not isinstance(x, Tensor):
        hints = {
            tuple: "; DRACB returns (refined, attention_map): pass the first",
            int: f"; where layers are built by width, pass the class {block}, not an instance",
        }
        raise TypeError(f"{block}: {name} must be a tensor, got {type(x).__name__}{hints.get(type(x), '')}.")
    if x.ndim != 4:
        hint = f"; for a single image pass {name}.unsqueeze(0)" if x.ndim == 3 else ""
        wanted = f"4 dimensions (batch, {channels or 'channels'}, height, width)"
        raise ValueError(f"{block}: {name} must have {wanted}, got shape {tuple(x.shape)}{hint}.")
    if channels is not None and x.shape[1] != channels:
        hint = f"pass {channels} channels, or build {block} for {x.shape[1]}"
        if x.shape[3] == channels:
            hint = f"it looks like NHWC: pass {name}.permute(0, 3, 1, 2)"
        came = f"{x.shape[1]} in shape {tuple(x.shape)}"
        raise ValueError(f"{block}: {name} must have {channels} channels in dimension 1 (NCHW), got {came}; {hint}.")
    if not x.is_floating_point():
        raise TypeError(f"{block}: {name} must be a floating-point tensor, got {x.dtype}; pass {name}.float().")
    height, width = x.shape[2:]
    if height < 1 or width < 1:
        raise ValueError(f"{block}: {name} must be at least 1 x 1 in height and width, got shape {tuple(x.shape)}.")
    if size_multiple > 1 and (height % size_multiple != 0 or width % size_multiple != 0):
        padded = tuple(-(-side // size_multiple) * size_multiple for side in (height, width))
        needed = f"multiples of {size_multiple}, so that the result has a whole size"
        came = f"{height} x {width}; pad to {padded[0]} x {padded[1]} and crop the result"
        raise ValueError(f"{block}: height and width of {name} must be {needed}, got {came}.")


def check_same_shape(name: str, value: Any, reference_name: str, reference: Tensor, *, hint: str) -> None:
    """Raise unless ``value`` is a map of the shape of ``reference``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; {hint}.")
    if reference.shape != value.shape:
        came, needed = tuple(value.shape), tuple(reference.shape)
        raise ValueError(f"{name} must have the shape of {reference_name}, {needed}, got {came}; {hint}.")


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


# Leaves for torch.fx: a traced network still checks its inputs. torch.fx records only calls through the module, so
# blocks write _checks.check_feature_map(...).
torch.fx.wrap("check_feature_map")
torch.fx.wrap("check_same_shape")
torch.fx.wrap("check_previous_map")
