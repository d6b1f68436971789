"""Replace modules inside an existing network, all of them or none, and restore them.

Where a network's constructor takes a block, as timm's ResNets do with ``attn_layer``, use that instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast, overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sc_blocks._checks import check_module, is_mismatch, nearby, shown
from sc_blocks._dry_run import Placement, placement

#: Which modules: a type or several, a name pattern, or a predicate of name and module.
Where = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool]

Old = TypeVar("Old", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Swap:
    """A module that was replaced.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import WSILBV
        >>> from sc_blocks.surgery import replace_modules
        >>> net = nn.Sequential(nn.ReLU())
        >>> report = replace_modules(net, nn.ReLU, lambda old, name: WSILBV(24))
        >>> print(report.swaps[0])
        0: ReLU (0) -> WSILBV (318)
    """

    names: tuple[str, ...]
    """Qualified names of the module in the network; several if it is shared."""
    old: nn.Module
    """The module that was there."""
    new: nn.Module
    """The module that replaced it."""
    old_parameters: int
    """Number of parameters of the old module, trainable and frozen."""
    new_parameters: int
    """Number of parameters of the new module at the time of the swap."""

    def __str__(self) -> str:
        before = f"{type(self.old).__name__} ({self.old_parameters:,})"
        return f"{', '.join(self.names)}: {before} -> {type(self.new).__name__} ({self.new_parameters:,})"


@dataclass(eq=False)
class SwapReport:
    """The changes that :func:`replace_modules` made to a network. Prints as a list, and can undo them.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import WSILBV
        >>> from sc_blocks.surgery import replace_modules
        >>> net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU())
        >>> report = replace_modules(net, nn.ReLU, lambda old, name: WSILBV(24))
        >>> report.undo()
        >>> net[1]
        ReLU()
    """

    model: nn.Module = field(repr=False)
    """The network."""
    swaps: tuple[Swap, ...]
    """The modules that were replaced, in the network's order."""
    parameters_before: int
    """Number of parameters of the whole network before the swap; shared ones count once."""
    parameters_after: int
    """Number of parameters of the whole network after the swap."""
    _states: tuple[tuple[Placement | None, bool], ...] = field(repr=False)  # placement and mode of the new modules
    _undone: bool = field(default=False, init=False, repr=False)

    def undo(self) -> None:
        """Put the old module objects back.

        If the network has since been moved, cast or switched between train and eval mode, the old modules follow.

        Raises:
            RuntimeError: If ``undo`` was called before, or a new module is no longer where it was put; nothing is
                changed then.
        """
        if self._undone:
            raise RuntimeError("SwapReport: undo has been called already; to replace again, call replace_modules.")
        places = [(name, swap) for swap in self.swaps for name in swap.names]
        present = dict(_named(self.model))
        for name, swap in places:
            current = present.get(name)
            if current is not swap.new:
                got = "nothing" if current is None else f"another module, {type(current).__name__}"
                needed = f"still hold the {type(swap.new).__name__} put there"
                raise RuntimeError(f"SwapReport: {name!r} must {needed}, got {got}; undo changes in the reverse order.")
        for swap, (before, training) in zip(self.swaps, self._states, strict=True):
            now = _placement(self.model, swap.names[0])
            if now is not None and before is not None:
                # Only what has changed: casting a module of mixed types would give it a single one.
                device = now[0] if now[0] != before[0] else None
                _place(swap.old, device, now[1] if now[1] != before[1] else None)
            if swap.new.training != training:
                swap.old.train(swap.new.training)
        for name, swap in places:
            _put(self.model, name, swap.old)
        self._undone = True

    def __str__(self) -> str:
        swapped = f"{len(self.swaps)} module{'s' * (len(self.swaps) != 1)} replaced"
        parameters = f"{self.parameters_before:,} -> {self.parameters_after:,} parameters"
        return "\n  ".join([f"{type(self.model).__name__}: {swapped}, {parameters}", *map(str, self.swaps)])


@overload
def replace_modules(model: nn.Module, where: type[Old], make: Callable[[Old, str], nn.Module]) -> SwapReport: ...
@overload
def replace_modules(model: nn.Module, where: Where, make: Callable[[Any, str], nn.Module]) -> SwapReport: ...
def replace_modules(model: nn.Module, where: Where, make: Callable[[Any, str], nn.Module]) -> SwapReport:
    """Replace modules inside a network, in place, and return a report that can undo it.

    Each new module gets the train/eval mode of the old one, and the device and floating-point dtype of most of its
    elements; if it has none, those of the nearest enclosing module that has some. Modules of the network that ``make``
    reuses, such as the old one inside a wrapper, are not moved or cast. If an error is raised, the network is
    unchanged. New parameters are trainable, even in place of frozen ones; create optimizers afterwards. References to
    the old module outside the module tree, such as in a Python list, are not replaced.

    If a selected module contains another one, only the outer is replaced. A module with several names is selected if
    any of them is, and the same new module replaces it everywhere.

    Args:
        model: The network. It cannot be selected itself.
        where: Which modules to replace.

            - a type, or a tuple of types: all instances;
            - a string: all whose qualified name, as in ``model.named_modules()``, matches this shell-style pattern;
              ``*`` also matches dots;
            - a predicate ``(name, module) -> bool``.
        make: Called with each old module and its name, once for a shared one. Returns its replacement or a wrapper.

    Raises:
        ValueError: If ``where`` selects nothing or the network itself, or ``make`` returns the old module.
        TypeError: If an argument has the wrong type, or ``make`` does not return a module.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import SCACB
        >>> from sc_blocks.surgery import replace_modules
        >>> net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3))
        >>> report = replace_modules(net, "2", lambda old, name: SCACB(old.in_channels))
        >>> print(report)
        Sequential: 1 module replaced, 5,880 -> 2,088 parameters
          2: Conv2d (5,208) -> SCACB (1,416)
    """
    check_module("replace_modules", "model", model)
    wanted = "a function (old, name) -> module, such as lambda old, name: SCACB(old.in_channels)"
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(f"replace_modules: make must be {wanted}, got {type(make).__name__}.")
    own = set(model.modules())
    before = _count(model)
    swaps: list[Swap] = []
    for old, (names, name) in _select(model, where).items():
        try:
            new: Any = make(old, name)
        except TypeError as error:
            if not is_mismatch(error):
                raise
            got = f"{shown(make)}, which fails for {name!r}: {error}"
            raise TypeError(f"replace_modules: make must be {wanted}, got {got}.") from error
        if not isinstance(new, nn.Module):
            got = f"the class {new.__name__}; call it" if isinstance(new, type) else f"{new!r} ({type(new).__name__})"
            raise TypeError(f"replace_modules: make must return a torch.nn.Module for {name!r}, got {got}.")
        if new is old:
            got = f"the old {type(old).__name__}; to keep it, do not select it"
            raise ValueError(f"replace_modules: make must return another module for {name!r}, got {got}.")
        _move(new, _placement(model, name), old.training, own)
        swaps.append(Swap(names, old, new, _count(old), _count(new)))
    placed: list[tuple[str, nn.Module]] = []
    try:
        for swap in swaps:
            for name in swap.names:
                _put(model, name, swap.new)
                placed.append((name, swap.old))
    except BaseException:  # a parent may refuse to change its modules, as TorchScript does
        for name, old in placed:
            _put(model, name, old)
        raise
    states = tuple((_placement(model, swap.names[0]), swap.new.training) for swap in swaps)
    return SwapReport(model, tuple(swaps), before, _count(model), states)


def _select(model: nn.Module, where: Where) -> dict[nn.Module, tuple[tuple[str, ...], str]]:
    """Return each module to replace, with all its names and the one passed to ``make``."""
    named, selects = _named(model), _predicate(where)
    matching = {name: module for name, module in named if selects(name, module)}
    if "" in matching:
        got = f"{_describe(where)}, which selects the {type(model).__name__} itself"
        hint = 'exclude it with a predicate such as lambda name, module: name != "" and ...'
        raise ValueError(f"replace_modules: where must select modules inside model, got {got}; {hint}.")
    if not matching:
        got = f"{_describe(where)}, which selects none; {_alternatives(where, named[1:])}"
        raise ValueError(f"replace_modules: where must select a module inside {type(model).__name__}, got {got}.")
    selected: dict[nn.Module, tuple[tuple[str, ...], str]] = {}
    for name, module in _outermost(named, set(matching.values())):
        names, given = selected.get(module, ((), name))
        selected[module] = ((*names, name), given if given in matching else name)
    return selected


def _predicate(where: Any) -> Callable[[str, nn.Module], bool]:
    got = f"{'a module' if isinstance(where, nn.Module) else shown(where)} ({type(where).__name__})"
    is_predicate = callable(where) and not isinstance(where, nn.Module)
    types = cast(tuple[Any, ...], where if isinstance(where, tuple) else (where,))
    if all(isinstance(each, type) for each in types):
        return lambda name, module: isinstance(module, types)
    if isinstance(where, str):
        # The network itself has no name, so "*" means everything in it.
        return lambda name, module: name == where or (name != "" and fnmatchcase(name, where))
    wanted = "a type, a tuple of types, a name pattern or a predicate (name, module) -> bool"
    hint = "for example torch.nn.ReLU, 'body.*.act' or, for one module, lambda name, module: module is that_one"
    if not is_predicate:
        raise TypeError(f"replace_modules: where must be {wanted}, got {got}; {hint}.")
    predicate = cast(Callable[[str, nn.Module], bool], where)

    def selects(name: str, module: nn.Module) -> bool:
        try:
            return predicate(name, module)
        except TypeError as error:
            if not is_mismatch(error):
                raise
            failed = f"{shown(where)}, which fails for {name!r}: {error}"
            raise TypeError(f"replace_modules: where must be {wanted}, got {failed}; {hint}.") from error

    return selects


def _move(new: nn.Module, placement: Placement | None, training: bool, own: set[nn.Module]) -> None:
    """Give ``new`` a device, dtype and mode, except for submodules that already belong to the network."""
    if new in own:
        return
    # Reused modules are taken out meanwhile, because .to() and .train() recurse into submodules.
    reused = list(_outermost(_named(new), own))
    for name, _ in reused:
        _put(new, name, nn.Identity())
    try:
        new.train(training)  # not chained: an overridden train() may return None
        _place(new, *(placement or (None, None)))
    finally:
        for name, module in reused:
            _put(new, name, module)


def _place(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    module.to(device=device)
    casts = {torch.float16: module.half, torch.bfloat16: module.bfloat16, torch.float64: module.double}
    if dtype is not None:  # unlike .to(dtype), these leave complex tensors as they are
        casts.get(dtype, module.float)()


def _placement(model: nn.Module, name: str) -> Placement | None:
    """Return device and dtype of most elements of a module, or of the nearest enclosing module that has some."""
    while True:
        found = placement(model.get_submodule(name))
        if found is not None or not name:
            return found
        name = name.rpartition(".")[0]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return all modules under all their names, parents before children."""
    return list(cast(Iterator[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False)))  # torch is untyped


def _outermost(named: list[tuple[str, nn.Module]], wanted: Collection[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the wanted modules under all their names, except those inside another wanted one."""
    outer = "."
    for name, module in named:
        if module in wanted and not name.startswith(outer):
            outer = f"{name}."
            yield name, module


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _describe(where: Where) -> str:
    if isinstance(where, tuple):
        return f"({', '.join(map(_describe, cast(tuple[type[nn.Module], ...], where)))})"
    return f"{where.__module__}.{where.__qualname__}" if isinstance(where, type) else repr(where)


def _alternatives(where: Where, named: list[tuple[str, nn.Module]]) -> str:
    if not named:
        return "there are no modules in it"
    types = Counter(type(module) for module in dict.fromkeys(module for _, module in named))
    if isinstance(where, str):
        called = [type_ for type_ in types if type_.__name__ == where]
        if called:
            return f"to select by type pass the class, {_describe(called[0])}, not its name"
        return nearby(where, [name for name, _ in named])
    listed = ", ".join(f"{_describe(type_)} ({count})" for type_, count in types.most_common(8))
    return f"there are {listed}{', ...' * (len(types) > 8)}"
