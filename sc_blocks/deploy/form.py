"""Check that a module computes what its class defines, so that it can be rewritten.

This holds if it has no hooks, patched methods and the like, and differs from a module freshly built from the same
arguments only in the values of its parameters.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from torch import Tensor, nn

from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV

# Elementwise and without parameters: they may be applied to a part of a map.
# fmt: off
ELEMENTWISE = frozenset({
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
})
# fmt: on


class _Activation(nn.Identity):
    """Placeholder for any elementwise activation in a freshly built block."""


def why_not(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Return why a module is not what its class builds, or ``None``. ``nn.Conv2d`` must be 3x3 with a padding of 1."""
    if type(module) is not cls:
        return f"is {type(module).__module__}.{type(module).__qualname__}, not {cls.__name__}"
    try:
        fresh = _freshly_built(module)
    except (AttributeError, TypeError, ValueError) as error:
        return f"its arguments are no longer valid: {error}"
    return _difference(module, fresh, "")


def why_not_called_in_order(container: nn.Sequential) -> str | None:
    """Return why a container does not just call its modules in order, or ``None`` if it does."""
    if type(container) is not nn.Sequential:
        return f"is in a {type(container).__name__}, not in an nn.Sequential"
    changed = "forward" in vars(container) or _patched_method(nn.Sequential)
    return "is in a Sequential whose forward or class was changed" if changed else None


def _freshly_built(module: Any) -> nn.Module:
    options: dict[str, Any] = {"act_layer": _Activation, "device": "meta"}
    if isinstance(module, SCACB):
        same = _attributes(module, "reduction", "parts", "exchange", "residual")
        return SCACB(module.channels, bias=_has_bias(module.compress), **same, **options)
    if isinstance(module, WSILBV):
        same = _attributes(module, "reduction", "local", "eps")
        return WSILBV(module.channels, gate_layer=_Activation, bias=_has_bias(module.shared.squeeze), **same, **options)
    if isinstance(module, RBWA):
        same = _attributes(module, "out_channels", "scale_factor") | _attributes(module.attention, "reduction")
        fresh = RBWA(module.in_channels, gate_layer=_Activation, bias=_has_bias(module.expand), **same, **options)
        fresh.attention.local, fresh.attention.eps = module.attention.local, module.attention.eps
        return fresh
    return nn.Conv2d(module.in_channels, module.out_channels, 3, padding=1, bias=_has_bias(module), device="meta")


def _attributes(module: nn.Module, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


def _has_bias(conv: Any) -> bool:
    return getattr(conv, "bias", None) is not None


def _difference(module: nn.Module, fresh: nn.Module, name: str) -> str | None:
    place = name or "it"
    any_options = type(fresh) is _Activation
    if any_options:
        if type(module) not in ELEMENTWISE:
            return f"{place} is {type(module).__name__}, which is not known to treat every value alike"
        fresh = type(module)()
    if type(module) is not type(fresh):
        return f"{place} is {type(module).__module__}.{type(module).__qualname__}, not {type(fresh).__name__}"
    if patched := _patched_method(type(module)):
        return f"{place} is {type(module).__name__}, whose {patched} was replaced"
    ours, theirs = vars(module), vars(fresh)
    for key in sorted(ours.keys() | theirs.keys()):
        if key == "training" or (key not in theirs and not hasattr(type(module), key)):
            continue  # the class does not use an attribute that it does not define
        if key == "_compiled_call_impl":
            continue  # fold rewrites copies, and torch does not copy it
        if "state_dict" in key:
            continue  # hooks of saving and loading, which fold keeps; parametrizations leave one when they are removed
        if any_options and key in theirs and not isinstance(theirs[key], dict):
            continue  # such as a slope
        if key not in ours or key not in theirs:
            return f"{place} {'has' if key in ours else 'lacks'} {_readable(key)} of its own"
        if found := _difference_of_values(ours[key], theirs[key], name, key):
            return found
    return None


def _difference_of_values(ours: Any, theirs: Any, name: str, key: str) -> str | None:
    same_type = type(ours) is type(theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        values, fresh = cast("dict[Any, Any]", ours), cast("dict[Any, Any]", theirs)
        if values.keys() != fresh.keys():
            changed = ", ".join(sorted(map(str, values.keys() ^ fresh.keys())))
            return f"{name or 'it'} differs from its class in {_readable(key)}: {changed}"
        for each, value in values.items():
            if found := _difference_of_values(value, fresh[each], f"{name}.{each}".lstrip("."), each):
                return found
        return None
    if isinstance(ours, nn.Module) and isinstance(theirs, nn.Module):
        return _difference(ours, theirs, name)
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        alike = same_type and ours.shape == theirs.shape and ours.layout == theirs.layout
        return None if alike else f"{name} is a {type(ours).__name__} of {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    if not same_type or ours != theirs:
        return f"{f'{name}.' * bool(name)}{key} is {ours!r}, not {theirs!r}"
    return None


def _patched_method(cls: type[nn.Module]) -> str | None:
    """Return a method that was replaced from outside the module that defines the class, or ``None``."""
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        home = vars(sys.modules[base.__module__])
        for name, value in vars(base).items():
            if callable(value) and getattr(value, "__globals__", None) is not home:
                return name
    return None


def _readable(key: str) -> str:
    return key.strip("_").replace("_", " ")
