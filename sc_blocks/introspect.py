"""Inspect the attention maps and the computational cost of a network without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from numbers import Integral
from threading import RLock
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sc_blocks._capture import ThreadHook, capture_attention
from sc_blocks._checks import check_int, shown
from sc_blocks._dry_run import dry_run, original_module, placement, refuse_script, tensors_in

__all__ = ["Complexity", "Cost", "InputSize", "capture_attention", "complexity"]

# A run swaps the network's buffers and global attention settings, which all threads share.
_counting_lock = RLock()

#: Input of :func:`complexity`: a shape, or a sequence or mapping with shapes or a tensor for each argument.
InputSize = Sequence[int] | Sequence[Sequence[Any] | Tensor] | Mapping[str, Sequence[Any] | Tensor]


@dataclass(frozen=True)
class Cost:
    """Cost of a module, including its submodules.

    Example:
        >>> from sc_blocks import SCACB
        >>> from sc_blocks.introspect import complexity
        >>> complexity(SCACB(60), (1, 60, 24, 17)).modules["compress"]
        Cost(parameters=610, macs=244800)
    """

    parameters: int
    """Number of parameters, trainable and frozen; shared ones count once."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products. Activations, sums and resizing do not count."""

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs


@dataclass(frozen=True)
class Complexity(Cost):
    """Cost of a network for one input size, in total and by module. Prints as a table.

    Example:
        >>> from sc_blocks import DRACB
        >>> from sc_blocks.introspect import complexity
        >>> complexity(DRACB(60, 15), (1, 60, 24, 17)).output_sizes
        ((1, 15, 24, 17), (1, 15, 24, 17))
    """

    input_sizes: tuple[tuple[int, ...], ...]
    """Shape of each input tensor for which ``macs`` were counted."""
    output_sizes: tuple[tuple[int, ...], ...]
    """Shape of each output tensor; most networks have one."""
    modules: dict[str, Cost] = field(hash=False, repr=False)
    """Cost of every module by its first qualified name; the network itself has the name ``""``."""

    def table(self, depth: int | None = 2) -> str:
        """Format the costs as text, one line for each module with parameters or multiply-accumulates.

        Args:
            depth: Levels to show: 1 for the network's children, 2 for their children as well; ``None`` for all.
        """
        if depth is not None:
            check_int("Complexity.table", "depth", depth)
        lines = [["module", "parameters", "MACs", "FLOPs"]]
        for name, cost in self.modules.items():
            within = depth is None or name.count(".") < depth
            if not name or (within and (cost.parameters or cost.macs)):
                lines.append([name or "total", f"{cost.parameters:,}", f"{cost.macs:,}", f"{cost.flops:,}"])
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        inputs, outputs = (", ".join(map(str, sizes)) for sizes in (self.input_sizes, self.output_sizes))
        rows = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
        return "\n".join([f"input {inputs}, output {outputs}", *rows])

    __str__ = table


def complexity(model: nn.Module, input_size: InputSize) -> Complexity:
    """Count the parameters and multiply-accumulates of a network and of each of its modules.

    Papers often report multiply-accumulates as FLOPs, for a 1280 x 720 *output*: for a network that enlarges by 4, use
    ``input_size=(1, 3, 180, 320)``.

    Args:
        model: The network. It runs once on zeros, in eval mode, on the device of its parameters. Modes, buffers and
            random number generators do not change, but lazy layers are initialised, as in any first run. On the
            ``meta`` device, the run takes no time and memory, recurrent layers are counted, which other devices may
            miss, and folded blocks count as before :func:`~sc_blocks.deploy.fold`.
        input_size: Input of the network.

            - a shape, such as ``(1, 60, 180, 320)``, for a network of one input;
            - a sequence with an entry for each argument: a shape, a list of shapes for a list of tensors, or, where
              zeros do not work, a tensor, such as integers for an embedding;
            - a mapping of names to such entries, for keyword arguments.

    Raises:
        TypeError: If ``model`` is not a module or holds TorchScript, or ``input_size`` is none of the above.
        ValueError: If a side of a shape is negative.

    Example:
        >>> from sc_blocks import DRACB, DRACBChain, WSILBV
        >>> from sc_blocks.introspect import complexity
        >>> print(complexity(WSILBV(60), (1, 60, 180, 320)))
        input (1, 60, 180, 320), output (1, 60, 180, 320)
        module          parameters   MACs  FLOPs
        total                1,875  3,600  7,200
        shared               1,875  3,600  7,200
        shared.squeeze         915  1,800  3,600
        shared.expand          960  1,800  3,600
        >>> complexity(DRACB(60, 15), [(1, 60, 24, 24), (1, 15, 24, 24)]).macs
        518400
        >>> complexity(DRACBChain(60, 15, 4), [[(1, 60, 24, 24)] * 4]).macs
        2073600
    """
    network = original_module("complexity", "model", model)
    # Lazy parameters have no elements yet, but a device and a dtype.
    first = next((each for each in network.parameters() if each.is_floating_point()), torch.empty(0))
    device, dtype = placement(network) or (first.device, first.dtype)
    args, kwargs = _zeros(input_size, like=torch.empty(0, device=device, dtype=dtype))
    names = {module: name for name, module in cast(Iterator[tuple[str, nn.Module]], network.named_modules())}
    for module, name in names.items():
        refuse_script("complexity", f"model.{name}", module)
    parameters = dict.fromkeys(names.values(), 0)
    macs = dict.fromkeys(names.values(), 0)
    running: list[str] = []
    counted = 0

    def count_for_running_module() -> None:
        # The innermost one. The counter's own totals by module miss shared and directly called modules.
        nonlocal counted
        total = counter.get_total_flops()
        if running:
            macs[running[-1]] += (total - counted) // 2
        counted = total

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        count_for_running_module()
        running.append(names[module])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        count_for_running_module()
        running.pop()

    with _counting_lock, ExitStack() as stack:
        # Attention as matrix products: torch cannot count fused attention on a CPU.
        stack.enter_context(cast(AbstractContextManager[object], sdpa_kernel(SDPBackend.MATH)))  # torch is untyped
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        for module in names:
            stack.enter_context(module.register_forward_pre_hook(ThreadHook(enter)))
            stack.enter_context(module.register_forward_hook(ThreadHook(leave)))
        counter = stack.enter_context(FlopCounterMode(display=False))
        output = dry_run(network, args, kwargs)

    for name, tensor in network.named_parameters():
        parameters[name.rpartition(".")[0]] += tensor.numel()
    for name in reversed(list(names.values())):  # children come after their parents
        if name:
            parent = name.rpartition(".")[0]
            parameters[parent] += parameters[name]
            macs[parent] += macs[name]
    return Complexity(
        parameters=parameters[""],
        macs=macs[""],
        input_sizes=tuple(tuple(tensor.shape) for tensor in tensors_in([args, kwargs])),
        output_sizes=tuple(tuple(tensor.shape) for tensor in tensors_in(output)),
        modules={name: Cost(parameters[name], macs[name]) for name in names.values()},
    )


def _zeros(input_size: InputSize, like: Tensor) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return zeros of the given sizes, with device and dtype of ``like``, as positional and keyword arguments."""

    def fill(size: Any) -> Any:
        if isinstance(size, Tensor):
            return size.to(like.device)
        if not isinstance(size, Sequence) or isinstance(size, str):
            wanted = "a shape such as (1, 60, 180, 320), or hold one for each argument"
            raise TypeError(f"complexity: input_size must be {wanted}, got {shown(input_size)}.")
        sides = cast(Sequence[Any], size)
        if all(isinstance(side, Integral) for side in sides):
            shape = [check_int("complexity", "input_size side", side, least=0) for side in sides]
            return torch.zeros(shape, device=like.device, dtype=like.dtype)
        return [fill(each) for each in sides]

    if isinstance(input_size, Mapping):
        return [], {name: fill(size) for name, size in input_size.items()}
    filled = fill(input_size)
    return ([filled] if isinstance(filled, Tensor) else filled), {}
