"""Replace modules inside a network that is already built, all of them or none, and put them back.

Where a network's own constructor takes a block, such as the ``attn_layer`` of timm's ResNets, that is the better way.
This is for all other networks.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Which modules: a type or several, a name pattern, or a predicate of name and module.
Where = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool]

Placement = tuple[torch.device, torch.dtype]


@dataclass(frozen=True, eq=False)
class Swap:
    """One module that was replaced.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import WSILBV
        >>> from sc_blocks.surgery import replace_modules
        >>> net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU())
        >>> (swap,) = replace_modules(net, nn.ReLU, lambda old, name: WSILBV(24)).swaps
        >>> print(swap)
        1: ReLU (0) -> WSILBV (318)
    """

    names: tuple[str, ...]
    """Its qualified names in the network; several if it is shared."""

    old: nn.Module
    """The module that was there."""

    new: nn.Module
    """The module that replaced it."""

    old_parameters: int
    """Parameters of the old module, trainable and frozen."""

    new_parameters: int
    """Parameters of the new module at the time of the swap."""

    def __str__(self) -> str:
        return (
            f"{', '.join(self.names)}: {type(self.old).__name__} ({self.old_parameters:,}) -> "
            f"{type(self.new).__name__} ({self.new_parameters:,})"
        )


@dataclass(eq=False)
class SwapReport:
    """What :func:`replace_modules` did to a network. Prints as a list, and can undo it.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import WSILBV
        >>> from sc_blocks.surgery import replace_modules
        >>> net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU())
        >>> report = replace_modules(net, nn.ReLU, lambda old, name: WSILBV(24))
        >>> report.parameters_before, report.parameters_after
        (672, 990)
        >>> report.undo()
        >>> net[1]
        ReLU()
    """

    model: nn.Module = field(repr=False)
    """The network."""

    swaps: tuple[Swap, ...]
    """The modules that were replaced, in the network's order."""

    parameters_before: int
    """Parameters of the whole network before the swap; a shared one counts once."""

    parameters_after: int
    """Parameters of the whole network after the swap."""

    _placements: tuple[Placement | None, ...] = field(repr=False)
    _modes: tuple[bool, ...] = field(repr=False)
    _undone: bool = field(default=False, init=False, repr=False)

    def undo(self) -> None:
        """Put the old modules back, the same objects.

        If the network has since been moved, cast or switched between train and eval mode, the old modules follow. The
        rest of the network keeps what it has learned meanwhile.

        Raises:
            RuntimeError: If ``undo`` has been called before, or one of the new modules is no longer where it was put.
                Then nothing changes.
        """
        if self._undone:
            raise RuntimeError("SwapReport: undo has been called already; to replace again, call replace_modules.")
        present = dict(_named(self.model))
        for swap in self.swaps:
            for name in swap.names:
                there = present.get(name)
                if there is not swap.new:
                    came = "nothing" if there is None else f"another module, {type(there).__name__}"
                    raise RuntimeError(
                        f"SwapReport: {name!r} must still hold the {type(swap.new).__name__} that was put there, got "
                        f"{came}; undo later changes first."
                    )
        for swap, placement, training in zip(self.swaps, self._placements, self._modes, strict=True):
            now = _placement(self.model, swap.names[0])
            if now is not None and placement is not None:
                # Only what has changed, because a cast would merge the types of a module that has several.
                swap.old.to(
                    device=now[0] if now[0] != placement[0] else None,
                    dtype=now[1] if now[1] != placement[1] else None,
                )
            if swap.new.training != training:
                swap.old.train(swap.new.training)
        for swap in self.swaps:
            _put(self.model, swap.names, swap.old)
        self._undone = True

    def __str__(self) -> str:
        title = (
            f"{type(self.model).__name__}: {len(self.swaps)} module{'s' * (len(self.swaps) != 1)} replaced, "
            f"{self.parameters_before:,} -> {self.parameters_after:,} parameters"
        )
        return "\n".join([title, *(f"  {swap}" for swap in self.swaps)])


def replace_modules(model: nn.Module, where: Where, make: Callable[[nn.Module, str], nn.Module]) -> SwapReport:
    """Replace modules inside a network, in place.

    Each new module takes the device, the floating-point type and the train or eval mode of the one that it replaces.
    Where the old module has tensors of several types or devices, the one that holds most elements counts; where it has
    no tensors, the nearest enclosing module that has some counts. Modules of the network that ``make`` reuses, such as
    the old module inside a wrapper, stay as they are.

    All modules are built before the first is replaced: if ``make`` fails, the network is as it was.

    - *Nested*: where a selected module contains another selected one, only the outer is replaced.
    - *Shared*: a module with several names is selected if any of them is, and one new module replaces it everywhere.

    Args:
        model: The network. It cannot be selected itself.
        where: Which modules to replace.

            - a type, or a tuple of types: all instances;
            - a string: all whose qualified name, as in ``model.named_modules()``, matches this shell-style pattern, in
              which ``*`` also matches dots;
            - a predicate ``(name, module) -> bool``.
        make: Called with each old module and its name, once for a shared one. Returns the replacement: a new module, or
            one that wraps the old. To keep a module, do not select it.

    Returns:
        What was replaced. Its ``undo()`` puts the old modules back.

    Raises:
        ValueError: If ``where`` selects nothing or the network itself, or ``make`` returns the old module.
        TypeError: If an argument is of another type, or ``make`` does not return a module.

    Note:
        Optimizers, hooks and plain Python lists that refer to an old module still do: create optimizers afterwards. New
        parameters are trainable, even where the old ones were frozen. The network does not run: a new module of the
        wrong width raises an error at the first call.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import SCACB
        >>> from sc_blocks.surgery import replace_modules
        >>> net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1))
        >>> report = replace_modules(net, "2", lambda old, name: SCACB(old.in_channels))
        >>> print(report)
        Sequential: 1 module replaced, 5,880 -> 2,088 parameters
          2: Conv2d (5,208) -> SCACB (1,416)
        >>> report.undo()
        >>> net[2]
        Conv2d(24, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    _check_arguments(model, where, make)
    selected = _select(model, where)
    own = set(model.modules())
    before = _count(model)
    swaps: list[Swap] = []
    for old, (names, name) in selected.items():
        new = make(old, name)
        _check_made(new, old, name)
        _move(new, _placement(model, name), old.training, own)
        swaps.append(Swap(names, old, new, _count(old), _count(new)))
    for swap in swaps:
        _put(model, swap.names, swap.new)
    return SwapReport(
        model=model,
        swaps=tuple(swaps),
        parameters_before=before,
        parameters_after=_count(model),
        _placements=tuple(_placement(model, swap.names[0]) for swap in swaps),
        _modes=tuple(swap.new.training for swap in swaps),
    )


def _select(model: nn.Module, where: Where) -> dict[nn.Module, tuple[tuple[str, ...], str]]:
    """Each module to replace, with all its names and the one that ``make`` gets."""
    named = list(_named(model))
    matching = {name: module for name, module in named if _matches(where, name, module)}
    if "" in matching:
        raise ValueError(
            f"replace_modules: where must select modules inside model, got {_describe(where)}, which selects the "
            f"{type(model).__name__} itself; build its replacement yourself, or exclude it with a predicate such as "
            'lambda name, module: name != "" and ...'
        )
    wanted = set(matching.values())
    names: dict[nn.Module, list[str]] = {}
    outer = ""
    for name, module in named:  # parents come before their children
        if not (outer and name.startswith(f"{outer}.")) and module in wanted:
            names.setdefault(module, []).append(name)
            outer = name
    if not names:
        raise ValueError(
            f"replace_modules: where must select a module inside {type(model).__name__}, got {_describe(where)}, which "
            f"selects none; {_alternatives(where, named[1:])}."
        )
    return {
        module: (tuple(all_names), next((name for name in all_names if name in matching), all_names[0]))
        for module, all_names in names.items()
    }


def _matches(where: Where, name: str, module: nn.Module) -> bool:
    if isinstance(where, (type, tuple)):
        return isinstance(module, where)
    if isinstance(where, str):
        # The network itself has no name, so "*" means everything in it.
        return fnmatchcase(name, where) if name else where == ""
    return bool(where(name, module))


def _move(new: nn.Module, placement: Placement | None, training: bool, own: set[nn.Module]) -> None:
    """Bring ``new`` to a device, type and mode, except for modules that belong to the network already."""
    kept = {module: module.training for module in new.modules() if module in own}
    new.train(training)
    for module, mode in kept.items():
        module.training = mode
    if placement is None:
        return
    device, dtype = placement

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    for module in new.modules():
        if module not in own:
            # As .to() does, without its recursion into modules of the network.
            module._apply(convert, recurse=False)  # pyright: ignore[reportPrivateUsage]


def _placement(model: nn.Module, name: str) -> Placement | None:
    """Device and type of most elements of a module, or of the nearest enclosing module that has some."""
    while True:
        module = model.get_submodule(name)
        elements: Counter[Placement] = Counter()
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and not is_lazy(tensor):
                elements[tensor.device, tensor.dtype] += tensor.numel()
        if elements:
            return elements.most_common(1)[0][0]
        if not name:
            return None
        name = name.rpartition(".")[0]


def _put(model: nn.Module, names: tuple[str, ...], module: nn.Module) -> None:
    for name in names:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast(Iterator[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False))  # torch leaves it open


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _describe(where: Where) -> str:
    if isinstance(where, tuple):
        return f"({', '.join(map(_describe, cast(tuple[type[nn.Module], ...], where)))})"
    if isinstance(where, type):
        return f"{where.__module__}.{where.__qualname__}"
    return repr(where)


def _alternatives(where: Where, named: list[tuple[str, nn.Module]]) -> str:
    if not named:
        return "there are no modules in it"
    types = Counter(type(module) for module in dict.fromkeys(module for _, module in named))
    if isinstance(where, str):
        called = [type_ for type_ in types if type_.__name__ == where]
        if called:
            return f"to select by type pass the class, {_describe(called[0])}, not its name"
        names = [name for name, _ in named]
        close = difflib.get_close_matches(where, names)
        some = ", ".join(map(repr, close or names[:3]))
        return f"close are {some}" if close else f"of {len(names)} there are {some}"
    # In full where the bare name could be mistaken for the type that was asked for.
    asked = _describe(where)
    listed: list[str] = []
    for type_, count in types.most_common(8):
        full = _describe(type_)
        listed.append(f"{full if f'.{type_.__name__}' in asked else type_.__name__} ({count})")
    return f"there are {', '.join(listed)}{', ...' * (len(types) > len(listed))}"


def _check_arguments(model: Any, where: Any, make: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_modules: model must be a torch.nn.Module, got {type(model).__name__}.")
    if isinstance(where, nn.Module):
        raise TypeError(
            "replace_modules: where must select modules by type, name or predicate, got a module, "
            f"{type(where).__name__}; for this one pass lambda name, module: module is that_one."
        )
    if isinstance(where, tuple) and not all(isinstance(type_, type) for type_ in cast(tuple[Any, ...], where)):
        raise TypeError(f"replace_modules: where, as a tuple, must hold types only, got {where!r}.")
    if not isinstance(where, (tuple, str)) and not callable(where):
        raise TypeError(
            "replace_modules: where must be a type, a tuple of types, a name pattern or a predicate (name, module) -> "
            f"bool, got {where!r} ({type(where).__name__}); for example torch.nn.ReLU or 'body.*.act'."
        )
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(
            f"replace_modules: make must be a function (old, name) -> module, got {type(make).__name__}; for example "
            "lambda old, name: SCACB(old.in_channels)."
        )


def _check_made(new: Any, old: nn.Module, name: str) -> None:
    if not isinstance(new, nn.Module):
        came = f"the class {new.__name__}; call it" if isinstance(new, type) else f"{new!r} ({type(new).__name__})"
        raise TypeError(f"replace_modules: make must return a torch.nn.Module for {name!r}, got {came}.")
    if new is old:
        raise ValueError(
            f"replace_modules: make must return another module for {name!r}, got the old {type(old).__name__}; to keep "
            "it, do not select it."
        )
