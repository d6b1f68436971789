"""What the blocks compute from parameters and inputs that a formula fills: the numbers of ``golden.json``.

No generator of random numbers takes part, so the numbers are the same on every machine, up to rounding.
``python -m tests.golden`` adds the cases that the file lacks and keeps the others; delete an entry by hand where a
result is meant to change.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from tests.blocks import CASES, Case

FILE = Path(__file__).with_name("golden.json")


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers between -1 and 1 that neither repeat nor line up with the rows of a map."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.7 * numbers + 0.003 * numbers.square().remainder(977) + phase).reshape(shape)


def compute(case: Case) -> dict[str, list[float]]:
    """Values of the output, of the gradient with respect to the input, and of those with respect to the parameters."""
    module = case.build(perturbed=False, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # By name, not by position: the order of the parts in a constructor is no part of the result.
            fan_in = max(1, math.prod(parameter.shape[1:]))
            parameter.copy_(waves(tuple(parameter.shape), crc32(name.encode()) % 1000) / fan_in**0.5)
    x = waves((2, case.channels, 8, 10), 0.5).requires_grad_()
    out = module(x)
    names, parameters = zip(*module.named_parameters(), strict=True)
    of_input, *of_parameters = torch.autograd.grad((out * waves(tuple(out.shape), 0.25)).sum(), (x, *parameters))
    values = {"output": elements(out) + weighted_sum(out), "input": elements(of_input) + weighted_sum(of_input)}
    return values | {name: weighted_sum(gradient) for name, gradient in zip(names, of_parameters, strict=True)}


def elements(tensor: Tensor) -> list[float]:
    flat = tensor.detach().flatten()
    return flat[torch.linspace(0, len(flat) - 1, 6).round().long()].tolist()


def weighted_sum(tensor: Tensor) -> list[float]:
    """One number that depends on every element and its place."""
    return [(tensor * waves(tuple(tensor.shape), 0.75)).sum().item()]


if __name__ == "__main__":
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    for case in CASES:
        if case.name not in golden:
            golden[case.name] = {name: [float(f"{v:.14g}") for v in values] for name, values in compute(case).items()}
    lines = (f"  {json.dumps(name)}: {json.dumps(golden[name])}" for name in sorted(golden))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
