"""When to compute in the order that suits a processor, and not as the formula is written."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether all are on a CPU, and computed with at once.

    While a graph is recorded for another engine it stays as the formula is written; so it does for derivatives in
    forward mode.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not recorded and all(
        tensor.device.type == "cpu" and forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors
    )
