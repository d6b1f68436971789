"""Gates and attention maps of a network, read by hooks while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from threading import get_ident
from typing import Any, cast

from torch import Tensor, nn

from sc_blocks._checks import nearby
from sc_blocks._dry_run import original_module, uncompiled
from sc_blocks.communication import GatedCommunication
from sc_blocks.deploy.rbwa import FoldedRBWA
from sc_blocks.dracb import DRACB
from sc_blocks.wsilb import WSILB, WSILBV


class ThreadHook:
    """A hook for one thread. In a copy of its module, or in a file, it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call, self.thread = call, get_ident()

    def __call__(self, *args: Any) -> None:
        if self.call is not None and get_ident() == self.thread:
            self.call(*args)

    def __reduce__(self) -> tuple[type[ThreadHook], tuple[()]]:
        return ThreadHook, ()


@contextmanager
def capture_attention(model: nn.Module, names: Sequence[str] | None = None) -> Generator[dict[str, Tensor], None, None]:
    """Collect the gates and attention maps of every block in a network while it runs.

    Each tensor is named after its block, as in ``model.named_modules()``, plus

    - ``.gate`` for what a :class:`~sc_blocks.WSILB`, :class:`~sc_blocks.WSILBV` or :class:`~sc_blocks.DRACB` multiplies
      its map by, and for the weight that a :class:`~sc_blocks.GatedCommunication` gives to the previous map;
    - ``.map`` for the attention map :math:`F_l` that a DRACB computes from its input alone;
    - ``.fused`` for that map fused with the predecessor's, :math:`F'_l`; in the first block of a chain, the map itself.

    The tensors are the network's own, detached and not copied. The dictionary holds the last run of the thread that
    opened the context, in the order in which the blocks finish: each call of ``model`` clears it. A block that one run
    calls several times adds ``name#2``, ``name#3`` and so on; a block with several names is listed under the first.
    Blocks called while ``model`` is not running replace what was captured of them, unless the last run called them
    several times; so a checkpoint that computes them again in the backward pass changes nothing. A checkpoint of
    ``model`` itself calls it again, and may stop before its last blocks.

    Compiled code ignores hooks, so all code runs uncompiled, in the whole process, while the context is open: where
    something is compiled, contexts of several threads must not overlap.

    Args:
        model: The network, or a block. Its results do not change.
        names: Names, or shell-style patterns in which ``*`` also matches dots; ``None`` for everything.

    Raises:
        ValueError: If the network contains no block with a gate or a map, or if one of ``names`` matches nothing.
        TypeError: If ``model`` is not a module, or ``names`` is not a sequence of strings.

    Example:
        >>> import torch
        >>> from sc_blocks import MREB
        >>> from sc_blocks.introspect import capture_attention
        >>> block = MREB(60)
        >>> with capture_attention(block, ["attention.gate", "refine.links.3.*"]) as attention:
        ...     out = block(torch.rand(1, 60, 24, 17))
        >>> for name, tensor in attention.items():
        ...     print(name, tuple(tensor.shape))
        refine.links.3.map (1, 15, 24, 17)
        refine.links.3.fused (1, 15, 24, 17)
        refine.links.3.gate (1, 15, 24, 17)
        attention.gate (1, 60, 1, 1)
    """
    network = original_module("capture_attention", "model", model)
    modules = list(cast(Iterator[tuple[str, nn.Module]], network.named_modules()))
    folded = tuple(_join(name, "") for name, module in modules if isinstance(module, FoldedRBWA))
    blocks = {block: (name, _parts(block)) for name, block in modules if not name.startswith(folded)}
    available = [_join(name, part) for name, parts in blocks.values() for part in parts]
    if not available:
        remedy = "capture the network that it was folded from" if folded else "there is nothing to capture"
        wanted, came = "a DRACB, WSILB, WSILBV or GatedCommunication", f"{type(network).__name__} without"
        raise ValueError(f"capture_attention: model must contain {wanted}, got {came}; {remedy}.")
    wanted = set(available) if names is None else _select(names, available, network)
    captured: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    outputs: dict[nn.Module, Tensor] = {}  # of the parts of the block that is running
    running = False

    def begin_run(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal running
        running = True
        captured.clear()
        calls.clear()
        outputs.clear()  # a run that failed may have left some

    def end_run(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal running
        running = False

    def record_part(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs[module] = output

    def record_block(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Outputs of parts are assigned to a block only here, because several blocks may share one module.
        name, parts = blocks.get(block, ("", {}))  # a copy of the network has the hooks, but is not asked about
        values = {part: outputs.pop(module) for part, module in parts.items() if module in outputs}
        if "map" in values:
            values = {"map": values["map"], "fused": values["map"]} | values
        for part, value in values.items():
            full = _join(name, part)
            if full in wanted and running:
                calls[full] += 1
                captured[full if calls[full] == 1 else f"{full}#{calls[full]}"] = value.detach()
            elif full in wanted and f"{full}#2" not in captured:
                captured[full] = value.detach()

    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        stack.enter_context(network.register_forward_pre_hook(ThreadHook(begin_run)))
        for block, (name, parts) in blocks.items():
            if any(_join(name, part) in wanted for part in parts):
                for module in parts.values():
                    stack.enter_context(module.register_forward_hook(ThreadHook(record_part)))
                stack.enter_context(block.register_forward_hook(ThreadHook(record_block)))
        # Last, because the network may itself be a block. An error ends a run, too.
        stack.enter_context(network.register_forward_hook(ThreadHook(end_run), always_call=True))
        yield captured


def _parts(block: nn.Module) -> dict[str, nn.Module]:
    """The tensors that a block offers, and the module in it that computes each."""
    if not isinstance(block, (DRACB, WSILB, WSILBV, GatedCommunication)):
        return {}
    parts = {"map": block.distill, "fused": block.communication} if isinstance(block, DRACB) else {}
    return parts if block.gate is None else {**parts, "gate": block.gate}


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _select(names: Sequence[str], available: Sequence[str], network: nn.Module) -> set[str]:
    # A collection, because the check would exhaust an iterator.
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        wanted = "a sequence of names or patterns, such as ['*.gate']"
        raise TypeError(f"capture_attention: names must be {wanted}, got {names!r}.")
    selected: set[str] = set()
    for name in names:
        matching = [candidate for candidate in available if candidate == name or fnmatchcase(candidate, name)]
        if not matching:
            came = f"{name!r}; {nearby(name, available)}"
            raise ValueError(f"capture_attention: names must be in {type(network).__name__}, got {came}.")
        selected.update(matching)
    return selected
