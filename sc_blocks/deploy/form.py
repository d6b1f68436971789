"""Proof that a module has the form that a rewriting knows.

It is compared with one that was freshly built from the same arguments. If they agree in everything but the values of
parameters, it computes what its class says. Another padding mode, a hook, a method of its own, a parametrization and
what pruning leaves behind would all show.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV

# Without parameters, and the same for every value: they may be applied to a part of a map.
ELEMENTWISE = frozenset(
    {
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Identity,
        nn.LeakyReLU,
        nn.LogSigmoid,
        nn.Mish,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
        nn.Tanhshrink,
    }
)


class _Activation(nn.Identity):
    """In a freshly built block, the place of any elementwise activation."""


def why_not_scacb(block: nn.Module) -> str | None:
    """What keeps a module from being an SCACB as its class says, or ``None``."""
    if not isinstance(block, SCACB) or type(block) is not SCACB:
        return _other_type(block, SCACB)
    return _difference(
        block,
        lambda: SCACB(
            block.channels,
            reduction=block.reduction,
            parts=block.parts,
            exchange=block.exchange,
            residual=block.residual,
            act_layer=_Activation,
            bias=_has_bias(block.compress),
            device="meta",
        ),
    )


def why_not_wsilbv(block: nn.Module) -> str | None:
    """What keeps a module from being a WSILBV as its class says, or ``None``."""
    if not isinstance(block, WSILBV) or type(block) is not WSILBV:
        return _other_type(block, WSILBV)
    return _difference(
        block,
        lambda: WSILBV(
            block.channels,
            reduction=block.reduction,
            local=block.local,
            eps=block.eps,
            act_layer=_Activation,
            gate_layer=_Activation,
            bias=_has_bias(block.shared.squeeze),
            device="meta",
        ),
    )


def why_not_rbwa(block: nn.Module) -> str | None:
    """What keeps a module from being an RBWA as its class says, or ``None``."""
    if not isinstance(block, RBWA) or type(block) is not RBWA:
        return _other_type(block, RBWA)

    def fresh() -> RBWA:
        built = RBWA(
            block.in_channels,
            block.out_channels,
            scale_factor=block.scale_factor,
            reduction=block.attention.reduction,
            act_layer=_Activation,
            gate_layer=_Activation,
            bias=_has_bias(block.expand),
            device="meta",
        )
        built.attention.local, built.attention.eps = block.attention.local, block.attention.eps
        return built

    return _difference(block, fresh)


def why_not_conv3x3(conv: nn.Module) -> str | None:
    """What keeps a module from being a 3x3 convolution with a padding of 1 and nothing else, or ``None``."""
    if not isinstance(conv, nn.Conv2d) or type(conv) is not nn.Conv2d:
        return _other_type(conv, nn.Conv2d)
    return _difference(
        conv,
        lambda: nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None, device="meta"),
    )


def why_not_called_in_order(row: nn.Sequential) -> str | None:
    """What keeps a container from calling its modules in order, and nothing else, or ``None``."""
    if type(row) is not nn.Sequential:
        return f"stands in a {type(row).__name__}, not in an nn.Sequential"
    if "forward" in vars(row):
        return "stands in a Sequential that has forward of its own"
    return None if patched_method(nn.Sequential) is None else "stands in a Sequential whose class was changed"


def _other_type(module: nn.Module, wanted: type[nn.Module]) -> str:
    return f"is {type(module).__module__}.{type(module).__qualname__}, not {wanted.__name__}"


def _has_bias(conv: Any) -> bool:
    return getattr(conv, "bias", None) is not None


def _difference(module: nn.Module, build: Callable[[], nn.Module]) -> str | None:
    try:
        fresh = build()
    except (AttributeError, TypeError, ValueError) as error:
        return f"its arguments are no longer valid: {error}"
    return _of_modules(module, fresh, "")


def _of_modules(module: nn.Module, fresh: nn.Module, name: str) -> str | None:
    place = name or "it"
    any_options = type(fresh) is _Activation
    if any_options:
        if type(module) not in ELEMENTWISE:
            return f"{place} is {type(module).__name__}, which is not known to treat every value alike"
        fresh = type(module)()
    if type(module) is not type(fresh):
        return f"{place} is {type(module).__name__}, not {type(fresh).__name__}"
    if patched := patched_method(type(module)):
        return f"{place} is {type(module).__name__}, {patched}"
    ours, theirs = vars(module), vars(fresh)
    for key in sorted(ours.keys() | theirs.keys()):
        if key == "training" or (key not in theirs and not hasattr(type(module), key)):
            continue  # what a class does not know of it does not read
        if any_options and key in theirs and not isinstance(theirs[key], dict):
            continue  # such as a slope
        if key not in ours or key not in theirs:
            return f"{place} {'has' if key in ours else 'lacks'} {_readable(key)} of its own"
        if found := _of_values(ours[key], theirs[key], name, key):
            return found
    return None


def _of_values(ours: Any, theirs: Any, name: str, key: str) -> str | None:
    same_type = type(ours) is type(theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        values, fresh = cast("dict[Any, Any]", ours), cast("dict[Any, Any]", theirs)
        if values.keys() != fresh.keys():
            changed = ", ".join(sorted(map(str, values.keys() ^ fresh.keys())))
            return f"{name or 'it'} has other {_readable(key)} than its class: {changed}"
        found = (_of_values(values[each], fresh[each], f"{name}.{each}".lstrip("."), each) for each in values)
        return next((reason for reason in found if reason), None)
    if isinstance(ours, nn.Module) and isinstance(theirs, nn.Module):
        return _of_modules(ours, theirs, name)
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        alike = same_type and ours.shape == theirs.shape and ours.layout == theirs.layout
        return None if alike else f"{name} is a {type(ours).__name__} of {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    if not same_type or ours != theirs:
        return f"{f'{name}.' * bool(name)}{key} is {ours!r}, not {theirs!r}"
    return None


def patched_method(cls: type[nn.Module]) -> str | None:
    """What says that a method of a class was replaced from outside the module that defines it, or ``None``."""
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        home = vars(sys.modules[base.__module__])
        for name, value in vars(base).items():
            if callable(value) and getattr(value, "__globals__", None) is not home:
                return f"whose {name} was replaced"
    return None


def _readable(key: str) -> str:
    return key.strip("_").replace("_", " ")
