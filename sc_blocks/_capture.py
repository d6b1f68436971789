"""Capture the gates and attention maps of a running network with hooks."""

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
    """A hook that acts only in the thread that created it. Copies and pickles of it do nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call, self.thread = call, get_ident()

    def __call__(self, *args: Any) -> None:
        if self.call is not None and get_ident() == self.thread:
            self.call(*args)

    def __reduce__(self) -> tuple[type[ThreadHook], tuple[()]]:
        return ThreadHook, ()


@contextmanager
def capture_attention(model: nn.Module, names: Sequence[str] | None = None) -> Generator[dict[str, Tensor], None, None]:
    """Capture the gates and attention maps of every block in a network while it runs.

    Each tensor is named after its block, as in ``model.named_modules()``, plus

    - ``.gate`` for the factor by which a :class:`~sc_blocks.WSILB`, :class:`~sc_blocks.WSILBV` or
      :class:`~sc_blocks.DRACB` multiplies its map, or a :class:`~sc_blocks.GatedCommunication` the previous map;
    - ``.map`` for the attention map :math:`F_l` that a DRACB computes from its input alone;
    - ``.fused`` for that map fused with the predecessor's, :math:`F'_l`; in the first block of a chain, the map itself.

    The tensors are detached but not copied. The dictionary holds the last run of ``model`` in the thread that opened
    the context, in the order in which the blocks finish; each run clears it. If a run calls a block several times, the
    later calls are named ``name#2``, ``name#3`` and so on; a block with several names is listed under the first.
    Calling a block while ``model`` is not running overwrites its entries, unless the last run called it several times;
    recomputation of a block by activation checkpointing therefore changes nothing. Checkpointing ``model`` itself runs
    it again, and that run may stop before the last blocks.

    Compiled code ignores hooks, so everything in the process runs eagerly while the context is open. If anything is
    compiled, contexts in different threads must not overlap.

    Args:
        model: A network or a block. Its outputs do not change.
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
        wanted, got = "a DRACB, WSILB, WSILBV or GatedCommunication", f"{type(network).__name__}, which has none"
        raise ValueError(f"capture_attention: model must contain {wanted}, got {got}; {remedy}.")
    wanted = set(available) if names is None else _select(names, available, network)
    captured: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    outputs: dict[nn.Module, Tensor] = {}  # of the submodules of the running block
    running = False

    def begin_run(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal running
        running = True
        captured.clear()
        calls.clear()
        outputs.clear()  # a failed run may have left some

    def end_run(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal running
        running = False

    def record_part(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs[module] = output

    def record_block(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Outputs are assigned to a block only here, because several blocks may share a submodule.
        name, parts = blocks.get(block, ("", {}))  # a shallow copy of a block has the hooks, but is ignored
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
        # Last, because the network may itself be a block. Also called when a run fails.
        stack.enter_context(network.register_forward_hook(ThreadHook(end_run), always_call=True))
        yield captured


def _parts(block: nn.Module) -> dict[str, nn.Module]:
    """Map the name of each tensor that a block offers to the submodule that computes it."""
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
            got = f"{name!r}; {nearby(name, available)}"
            raise ValueError(f"capture_attention: names must be in {type(network).__name__}, got {got}.")
        selected.update(matching)
    return selected
