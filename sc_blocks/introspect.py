"""What a network attends to, what it is made of and what it costs.

Nothing here changes a network or asks it for more than a run: attention maps are read off by hooks, and so are the
multiply-accumulates of each part, which are named apart from FLOPs.
"""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sc_blocks._checks import check_positive_int
from sc_blocks.communication import GatedCommunication
from sc_blocks.deploy.rbwa import FoldedRBWA
from sc_blocks.dracb import DRACB
from sc_blocks.wsilb import WSILB, WSILBV


@contextmanager
def capture_attention(model: nn.Module, names: Sequence[str] | None = None) -> Generator[dict[str, Tensor], None, None]:
    """Collect the gates and attention maps of every block in a network while it runs.

    What a block yields goes by the block's qualified name, that of ``model.named_modules()``, and

    - ``.gate`` for what a :class:`~sc_blocks.WSILB` or :class:`~sc_blocks.WSILBV` multiplies its input by, (N, C, 1, 1)
      or with windows (N, C, H, W); what a :class:`~sc_blocks.DRACB` multiplies its fused map by, unless it was built
      with ``gate=False``; and what a :class:`~sc_blocks.GatedCommunication` lets in of the previous map;
    - ``.map`` for the attention map :math:`F_l` that a DRACB makes, before anything reaches it;
    - ``.fused`` for that map together with the predecessor's, :math:`F'_l`; at the head of a chain the map itself.

    Each call of ``model`` starts the dictionary afresh, so that it holds one run: after tiles or a loop over images,
    the last. A block that one run calls again, as recursive networks do, adds ``name#2``, ``name#3`` and so on. A block
    that is registered under several names goes by the first. Of blocks that are called without ``model`` being called,
    such as by :meth:`DRACBChain.step <sc_blocks.DRACBChain.step>`, the latest call counts.

    The tensors are the network's own, detached: not copies. They stay when the context ends; the hooks go.

    Compiled code passes hooks by, so while the context is open whatever ``torch.compile`` made runs uncompiled, equal
    up to rounding. Names are those of the network that was compiled.

    Args:
        model: The network, or a block. It computes what it always does, bit for bit.
        names: What to capture, by name or by pattern in the manner of the shell, ``*`` for anything, dots included;
            ``None`` for everything.

    Yields:
        Name to tensor, in the order in which the blocks finish.

    Raises:
        ValueError: If the network contains no block with a gate or a map, such as a folded one, or one of ``names``
            matches nothing.
        TypeError: If ``model`` is no module, or ``names`` no sequence of strings.

    Example:
        >>> import torch
        >>> from sc_blocks import MREB
        >>> from sc_blocks.introspect import capture_attention
        >>> block = MREB(60)
        >>> with capture_attention(block, ["attention.gate", "refine.links.[23].*"]) as attention:
        ...     out = block(torch.rand(1, 60, 24, 17))
        >>> for name, tensor in attention.items():
        ...     print(name, tuple(tensor.shape))
        refine.links.2.map (1, 15, 24, 17)
        refine.links.2.fused (1, 15, 24, 17)
        refine.links.2.gate (1, 15, 24, 17)
        refine.links.3.map (1, 15, 24, 17)
        refine.links.3.fused (1, 15, 24, 17)
        refine.links.3.gate (1, 15, 24, 17)
        attention.gate (1, 60, 1, 1)
    """
    network = _uncompiled("capture_attention", model)
    modules = _named_modules(network)
    folded = tuple(_join(name, "") for name, module in modules if isinstance(module, FoldedRBWA))
    yields = {block: (name, _parts(block)) for name, block in modules if not name.startswith(folded)}
    available = [_join(name, part) for name, parts in yields.values() for part in parts]
    if not available:
        remedy = "capture that from which it was folded" if folded else "there is nothing to capture"
        raise ValueError(
            f"capture_attention: model must contain a DRACB, WSILB, WSILBV or GatedCommunication, got "
            f"{type(network).__name__} without; {remedy}."
        )
    wanted = set(available) if names is None else _select(names, available, network)
    captured: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    outputs: dict[nn.Module, Tensor] = {}  # of what a block that is running has called so far
    in_run = False

    def begin_run(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal in_run
        in_run = True
        captured.clear()
        outputs.clear()  # a run that failed may have left some

    def end_run(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal in_run
        in_run = False
        calls.clear()

    def note_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs[module] = output

    def note_block(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Only here is it known whose outputs those are: several blocks may share the module of a gate.
        name, parts = yields.get(block, ("", {}))  # a copy of the network that was made meanwhile brings its hooks
        values = {part: outputs.pop(module) for part, module in parts.items() if module in outputs}
        if "map" in values:
            values = {"map": values["map"], "fused": values["map"]} | values
        for part, value in values.items():
            full = _join(name, part)
            if full in wanted:
                calls[full] += in_run
                captured[full if calls[full] < 2 else f"{full}#{calls[full]}"] = value.detach()

    with ExitStack() as stack:
        stack.enter_context(_hooks_reached())
        stack.enter_context(network.register_forward_pre_hook(begin_run))
        for block, (name, parts) in yields.items():
            if any(_join(name, part) in wanted for part in parts):
                for module in parts.values():
                    stack.enter_context(module.register_forward_hook(note_output))
                stack.enter_context(block.register_forward_hook(note_block))
        # Last, as the network may itself be a block; and also after an error, which ends a run, too.
        stack.enter_context(network.register_forward_hook(end_run, always_call=True))
        yield captured


@dataclass(frozen=True)
class Cost:
    """What a module costs, everything inside it included.

    Example:
        >>> from sc_blocks import SCACB
        >>> from sc_blocks.introspect import complexity
        >>> cost = complexity(SCACB(60), (1, 60, 24, 17)).modules["compress"]
        >>> cost, cost.flops
        (Cost(parameters=610, macs=244800), 489600)
    """

    parameters: int
    """Trainable and fixed, a shared one counted once."""

    macs: int
    """Multiply-accumulates of the convolutions and matrix products; activations, sums and resizing are not counted."""

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs


@dataclass(frozen=True)
class Complexity(Cost):
    """Cost of a network for one input size, and of each of its modules; prints as a table.

    Example:
        >>> from sc_blocks import DRACB
        >>> from sc_blocks.introspect import complexity
        >>> cost = complexity(DRACB(60, 15), (1, 60, 24, 17))
        >>> cost.output_sizes
        ((1, 15, 24, 17), (1, 15, 24, 17))
        >>> print(cost.table(depth=1))
        input (1, 60, 24, 17), output (1, 15, 24, 17), (1, 15, 24, 17)
        module   parameters     MACs    FLOPs
        total           915  367,200  734,400
        distill         915  367,200  734,400
    """

    input_size: tuple[int, ...]
    """The input that ``macs`` were counted for; ``parameters`` do not depend on it."""

    output_sizes: tuple[tuple[int, ...], ...]
    """Shape of each tensor that came out; of most networks, one."""

    modules: dict[str, Cost] = field(hash=False, repr=False)
    """Every module by its qualified name, the network itself by ``""``.

    A module costs what its children cost, plus what it computes without them. What several share counts where it is
    registered first.
    """

    def table(self, depth: int | None = 2) -> str:
        """Lay out the costs for a terminal, a line for each module that costs something.

        Args:
            depth: How deep to go: 1 for the network's children, 2 for theirs as well; ``None`` for all.

        Raises:
            ValueError: If ``depth`` is below 1.
            TypeError: If ``depth`` is not an integer.
        """
        if depth is not None:
            check_positive_int("Complexity.table", "depth", depth)
        lines = [["module", "parameters", "MACs", "FLOPs"]]
        for name, cost in self.modules.items():
            level = name.count(".") + 1
            if not name or ((cost.parameters or cost.macs) and (depth is None or level <= depth)):
                lines.append([name or "total", *(f"{count:,}" for count in (cost.parameters, cost.macs, cost.flops))])
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        sizes = f"input {self.input_size}, output {', '.join(map(str, self.output_sizes))}"
        return "\n".join(
            [sizes, *("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)]
        )

    def __str__(self) -> str:
        return self.table()


def complexity(model: nn.Module, input_size: Sequence[int]) -> Complexity:
    """Count parameters and multiply-accumulates, of a network and of each of its modules.

    Papers often print multiply-accumulates under the name FLOPs, for a 1280 x 720 *output*: a network that enlarges by
    4 is then counted with ``input_size=(1, 3, 180, 320)``.

    Args:
        model: The network; it is run once, without gradients, where its parameters are. On the ``meta`` device that
            costs neither time nor memory.
        input_size: Shape of its input, such as ``(1, 60, 180, 320)``.

    Returns:
        The counts.

    Raises:
        TypeError: If ``model`` is no module.

    Example:
        >>> from sc_blocks import WSILBV
        >>> from sc_blocks.introspect import complexity
        >>> cost = complexity(WSILBV(60), (1, 60, 180, 320))
        >>> cost.parameters, cost.macs, cost.flops
        (1875, 3600, 7200)
        >>> cost.modules["shared.squeeze"]
        Cost(parameters=915, macs=1800)
        >>> print(cost)
        input (1, 60, 180, 320), output (1, 60, 180, 320)
        module          parameters   MACs  FLOPs
        total                1,875  3,600  7,200
        shared               1,875  3,600  7,200
        shared.squeeze         915  1,800  3,600
        shared.expand          960  1,800  3,600
    """
    network = _uncompiled("complexity", model)
    parameter = next(network.parameters(), torch.empty(0))
    example = torch.zeros(tuple(input_size), device=parameter.device, dtype=parameter.dtype)
    names = {module: name for name, module in _named_modules(network)}
    parameters = dict.fromkeys(names.values(), 0)
    macs = dict.fromkeys(names.values(), 0)
    running: list[str] = []
    charged = 0

    def charge() -> None:
        # To the innermost module that runs. The counter's own totals by module miss a container that is passed by.
        nonlocal charged
        total = counter.get_total_flops()
        if running:
            macs[running[-1]] += (total - charged) // 2
        charged = total

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        charge()
        running.append(names[module])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        charge()
        running.pop()

    with ExitStack() as stack:
        stack.enter_context(_hooks_reached())
        for module in names:
            stack.enter_context(module.register_forward_pre_hook(enter))
            stack.enter_context(module.register_forward_hook(leave))
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(torch.no_grad())
        output = network(example)

    for name, tensor in network.named_parameters():
        parameters[name.rpartition(".")[0]] += tensor.numel()
    for name in reversed(list(names.values())):  # children stand behind their parents
        if name:
            parent = name.rpartition(".")[0]
            parameters[parent] += parameters[name]
            macs[parent] += macs[name]
    return Complexity(
        parameters=parameters[""],
        macs=macs[""],
        input_size=tuple(input_size),
        output_sizes=tuple(_shapes(output)),
        modules={name: Cost(parameters[name], macs[name]) for name in names.values()},
    )


def _parts(block: nn.Module) -> dict[str, nn.Module]:
    """What there is to capture of a block, and which module in it makes that."""
    if not isinstance(block, (DRACB, WSILB, WSILBV, GatedCommunication)):
        return {}
    parts = {"map": block.distill, "fused": block.communication} if isinstance(block, DRACB) else {}
    return parts if block.gate is None else {**parts, "gate": block.gate}


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _select(names: Sequence[str], available: Sequence[str], network: nn.Module) -> set[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"capture_attention: names must be a sequence of names or patterns, got {names!r}; for example "
            "names=['*.gate']."
        )
    selected: set[str] = set()
    for name in names:
        matching = [candidate for candidate in available if fnmatchcase(candidate, name)]
        if not matching:
            close = difflib.get_close_matches(name, available)
            listed = ", ".join(map(repr, close or available[:3]))
            there_is = f"close are {listed}" if close else f"of {len(available)} there are {listed}"
            raise ValueError(
                f"capture_attention: names must match what is in {type(network).__name__}, got {name!r}; {there_is}."
            )
        selected.update(matching)
    return selected


def _uncompiled(function: str, model: nn.Module) -> nn.Module:
    """The network that ``torch.compile`` was given, or the model itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}.")
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def _named_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(cast(Iterator[tuple[str, nn.Module]], network.named_modules()))  # torch leaves the type open


def _hooks_reached() -> AbstractContextManager[object]:
    """Let compiled code run as it was written: once compiled, it passes later hooks by without a word."""
    # Whoever compiled something has imported the compiler; nobody else should wait for that.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _shapes(output: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(output, Tensor):
        yield tuple(output.shape)
    elif isinstance(output, (list, tuple)):
        for item in cast(Sequence[Any], output):
            yield from _shapes(item)
    elif isinstance(output, dict):
        yield from _shapes(list(cast(dict[Any, Any], output).values()))
