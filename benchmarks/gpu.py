"""Frames and training steps per second on a GPU, and the fraction of the device's limits that they reach."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.candidates import STEPS, Call, Unavailable, make, prepare
from benchmarks.results import Row
from benchmarks.runner import Candidate, Settings, entry, forward, measure
from examples.mren.training.recipes import Mixed, blocks_of, make_optimizer
from examples.timing import significant, stopwatch

GRAPH = "CUDA graph"
OUTPUT = (720, 1280)
# Dense bfloat16 and float16 operations and bytes per second, from NVIDIA's data sheets, which print twice the
# operations, with sparsity: https://www.nvidia.com/en-us/data-center/h100/ and https://www.nvidia.com/en-us/data-center/h200/
DATA_SHEETS = {
    "H100 PCIe": (756e12, 2.0e12),
    "H100 NVL": (835e12, 3.9e12),
    "H100": (989e12, 3.35e12),
    "H200 NVL": (835e12, 4.8e12),
    "H200": (989e12, 4.8e12),
}


def gpu(settings: Settings) -> list[Row]:
    """Time networks with 1280 × 720 output, training steps, and a matrix product and a copy as limits, in turn.

    Candidates are listed by importance: if time is short, the last ones are skipped. None is folded, because folding
    has no effect on a GPU. A fraction is the minimum time that the device needs over the measured time. The minimum is
    the longer of two: the time of the multiply-accumulates, and that of the memory traffic if every convolution reads
    its input and writes its result once, with all other operations fused into it. A network that fuses convolutions can
    exceed it. The device's rates are those measured for the matrix product and the copy, and those of its data sheet.
    """
    candidates: dict[str, Candidate] = {}
    ready: dict[tuple[str, str, int], tuple[Call, Tensor]] = {}
    ours, peers = (("MREN",), ("IMDN",)) if settings.quick else (("MREN", "MREN-S"), ("IMDN", "SAFMN", "SPAN"))
    others = [("fp16", 4)] if settings.quick else [("fp16", 4), ("bf16", 2), ("fp16", 2)]

    def add(names: tuple[str, ...], form: str, scale: int, batch: int = 1) -> None:
        for name in settings.chosen(f"{name} ×{scale}" for name in names):
            for each in filter(settings.allows, (form, f"{form}, {GRAPH}")):
                key = (name, each, batch)
                row = entry(key[0], each, (12, 16) if settings.quick else (OUTPUT[0] // scale, OUTPUT[1] // scale))
                row["size"][0] = batch
                reference = f"IMDN ×{scale} | {each} | {batch}"
                candidates[" | ".join(map(str, key))] = Candidate(row, _frames(key, ready, settings), reference)

    def train(names: tuple[str, ...], *forms: str) -> None:
        patches = (1, 8) if settings.quick else (64, 48)
        for name in settings.chosen(f"{name} ×4" for name in names):
            for form in filter(settings.allows, forms):
                row: Row = {"name": f"{name}, training step", "form": form, "patches": list(patches)}
                build = _training(name, form, patches, settings)
                reference = "MREN ×4, training step | channels_last, bf16"
                candidates[f"{row['name']} | {form}"] = Candidate(row, build, reference)

    candidates |= _limits(settings)
    half = "channels_last, bf16"
    # Compiled forms come first: they take longest to prepare, and their gain matters most.
    add(("MREN", "IMDN"), half, 4)
    add(ours, f"{half}, compiled blocks", 4)
    add((*ours, *peers), half, 4)
    train(ours, half, f"{half}, {GRAPH}")
    add(peers, f"{half}, compiled blocks", 4)
    train(ours, f"{half}, compiled blocks, {GRAPH}", f"{half}, compiled blocks")
    for dtype, scale in others:
        add((*ours, *peers), f"channels_last, {dtype}", scale)
    add(("MREN", "IMDN"), half, 4, batch=8)
    add(("MREN", "IMDN"), f"{half}, compiled", 4)
    for dtype, scale in others:
        add(ours, f"channels_last, {dtype}, compiled blocks", scale)
    rows = measure(candidates, settings)
    _add_fractions(rows, settings)
    return rows


def _limits(settings: Settings) -> dict[str, Candidate]:
    """A large matrix product and a large copy: the rates achievable in practice."""
    side, count = (64, 2**12) if settings.quick else (8192, 2**29)

    def product(row: Row) -> Callable[[], float]:
        a, b = (torch.rand(side, side, device=settings.device).bfloat16() for _ in range(2))
        row["macs"] = side**3
        return stopwatch(lambda: a @ b, settings.device)

    def copied(row: Row) -> Callable[[], float]:
        source = torch.zeros(count, device=settings.device, dtype=torch.uint8)
        target = torch.empty_like(source)
        row["bytes"] = 2 * count
        return stopwatch(lambda: target.copy_(source), settings.device)

    return {
        name: Candidate({"name": name, "form": "bf16", "size": [size]}, build)
        for name, size, build in (("matrix product", side, product), ("copy", count, copied))
    }


def _frames(
    key: tuple[str, str, int], ready: dict[tuple[str, str, int], tuple[Call, Tensor]], settings: Settings
) -> Callable[[Row], Callable[[], float]]:
    """Return a builder for a network in a form; a CUDA graph records the network that also runs without one."""
    name, form, batch = key
    plain = (name, form.removesuffix(f", {GRAPH}"), batch)

    def build(row: Row) -> Callable[[], float]:
        size = tuple(row["size"][-2:])
        macs, bytes_ = convolutions(name, size, settings.num_blocks)
        row |= {"macs": batch * macs, "bytes": batch * bytes_}
        if plain not in ready:
            net, x = settings.make(name, size)
            ready[plain] = prepare(net, x.expand(batch, -1, -1, -1).contiguous(), plain[1])
        call, x = ready[plain]
        if form != plain[1]:
            call, x = STEPS[GRAPH](call, x)
        return stopwatch(forward(call, x), settings.device)

    return build


def _training(
    name: str, form: str, patches: tuple[int, int], settings: Settings
) -> Callable[[Row], Callable[[], float]]:
    """Return a builder for a training step: L1, Adam, mixed precision, as in :mod:`examples.mren.training.trainer`."""

    def build(row: Row) -> Callable[[], float]:
        number, side = patches
        device = settings.device
        net, _ = settings.make(name, (side, side))
        net = net.train().to(memory_format=torch.channels_last)
        x = torch.rand(number, 3, side, side, device=device).to(memory_format=torch.channels_last)
        y = torch.rand(number, 3, 4 * side, 4 * side, device=device).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(net, 5e-4)
        if "compiled blocks" in form:
            for block in blocks_of(net):
                block.compile(dynamic=False)
        call = Mixed(net, torch.bfloat16)
        if GRAPH in form:
            if device.type != "cuda":
                raise Unavailable("CUDA graphs need --device cuda")
            torch.cuda.make_graphed_callables(call, (torch.rand_like(x),), allow_unused_input=True)

        def step() -> None:
            loss = F.l1_loss(call(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return stopwatch(step, device)

    return build


def _add_fractions(rows: list[Row], settings: Settings) -> None:
    """Add frames and steps per second, and the fraction of the device's limits that they reach."""
    limits = {row["name"]: row for row in rows if "rounds" in row and row["name"] in ("matrix product", "copy")}
    rates: dict[str, tuple[float, float]] = {}
    if len(limits) == 2:
        product, copied = limits["matrix product"], limits["copy"]
        rates["fraction_of_measured"] = (
            product["macs"] / product["seconds"]["median"],
            copied["bytes"] / copied["seconds"]["median"],
        )
    gpu_name = torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else ""
    for name, (operations, bytes_) in DATA_SHEETS.items():
        if f" {name}" in gpu_name:  # with the space: a GH200 must not match
            rates["fraction_of_data_sheet"] = (operations / 2, bytes_)
            break
    for row in rows:
        if "rounds" not in row or row["name"] in limits:
            continue
        seconds = row["seconds"]["median"]
        if "patches" in row:
            row["steps_per_second"] = significant(1 / seconds)
            continue
        row["frames_per_second"] = significant(row["size"][0] / seconds)
        if row["macs"]:
            for name, (macs, bytes_) in rates.items():
                row[name] = significant(max(row["macs"] / macs, row["bytes"] / bytes_) / seconds)


@functools.cache
def convolutions(name: str, size: tuple[int, int], num_blocks: int | None = None) -> tuple[int, int]:
    """Count the multiply-accumulates of all convolutions of a network, and the bytes they read and write in 16 bits.

    Each tensor counts once for each convolution that reads or writes it. Other operations do not count.
    """
    net, x = make(name, size, num_blocks=num_blocks)
    macs = numbers = 0

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal macs, numbers
        weight = next(module.parameters())
        macs += output.numel() * weight.numel() // weight.shape[0]
        numbers += args[0].numel() + output.numel() + sum(p.numel() for p in module.parameters())

    net = net.to("meta")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(x.to("meta"))
    return macs, 2 * numbers
