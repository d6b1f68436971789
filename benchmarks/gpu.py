"""Frames per second on a GPU, and how far that is from what the device could do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.candidates import NETS, REFERENCE_NET, Unavailable, prepare
from benchmarks.timing import interleave, ratio, significant, stopwatch, summarise
from sc_blocks.introspect import complexity

FORMS = (
    "bf16, channels_last",
    "bf16, channels_last, compiled",
    "folded, bf16, channels_last",
    "folded, bf16, channels_last, compiled",
)


def gpu(device: torch.device, repeats: int, seed: int, *, quick: bool = False) -> list[dict[str, Any]]:
    """MREN ×4 and its reference in bfloat16 to 1280 × 720, one frame and eight at a time.

    The bound is the longer of two times: of the multiply-accumulates at the rate of a large matrix product, and of the
    bytes at the rate of a copy, both measured in the same rounds. The bytes are those of a run in which every
    convolution reads its input and writes its result once and all else is fused with it; a network that fuses
    convolutions can beat that.

    Raises:
        ValueError: If the device is no GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"the suite gpu needs --device cuda, got {device.type}.")
    side, cells = (256, 2**20) if quick else (8192, 2**29)
    a, b = (torch.rand(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(cells, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    turns = {
        "product": stopwatch(lambda: a @ b, device),
        "copy": stopwatch(lambda: target.copy_(source), device),
    }
    rows: dict[str, dict[str, Any]] = {}
    height, width = (12, 16) if quick else (180, 320)
    for name in ("MREN ×4", REFERENCE_NET):
        for form in FORMS if name == "MREN ×4" else FORMS[:2]:
            for batch in (1, 8):
                key = f"{name} | {form} | {batch}"
                row = rows[key] = {"name": name, "form": form, "size": [batch, 3, height, width]}
                try:
                    torch.manual_seed(seed)
                    net = NETS[name].make().eval().to(device)
                    x = torch.rand(batch, 3, height, width, device=device)
                    row |= {"macs": complexity(net, x.shape).macs, "bytes": convolution_bytes(net, x)}
                    call, x = prepare(net, x, form)
                    turns[key] = stopwatch(_without_gradient(call, x), device)
                except Unavailable as error:
                    row["skipped"] = str(error)
    rounds = interleave(turns, repeats, seed=seed)
    mac_rate = side**3 / summarise(rounds["product"]).median
    byte_rate = 2 * cells / summarise(rounds["copy"]).median
    for key, row in rows.items():
        if key not in rounds:
            continue
        values = [significant(value, 5) for value in rounds[key]]
        bound = max(row["macs"] / mac_rate, row["bytes"] / byte_rate)
        row["rounds"] = values
        row["seconds"] = summarise(values).as_dict()
        row["frames_per_second"] = significant(row["size"][0] / summarise(values).median)
        row["fraction_of_bound"] = significant(bound / summarise(values).median)
        row["bound"] = {"macs_per_second": significant(mac_rate), "bytes_per_second": significant(byte_rate)}
        reference = f"{REFERENCE_NET} | {FORMS[1]} | {row['size'][0]}"
        if reference in rounds:
            row["ratio"] = {"to": reference} | ratio(rounds[key], rounds[reference]).as_dict()
    return list(rows.values())


def convolution_bytes(net: nn.Module, x: Tensor, *, width: int = 2) -> int:
    """Bytes that the convolutions of a forward read and write, each tensor once, at so many bytes a number."""
    total = 0

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += width * (args[0].numel() + output.numel() + sum(p.numel() for p in module.parameters()))

    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _without_gradient(call: Any, x: Tensor) -> Any:
    def forward() -> object:
        with torch.no_grad():
            return call(x)

    return forward
