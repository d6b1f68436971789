"""The suites of :mod:`benchmarks.run`: each returns the rows that go into its JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks import isolated, machine
from benchmarks.candidates import (
    BLOCKS,
    CONVOLUTION,
    ENGINES,
    FOLDED_BLOCKS,
    NETS,
    REFERENCE_NET,
    UNFOLDED_ENGINES,
    Unavailable,
    make,
    reason,
)
from benchmarks.gpu import gpu
from benchmarks.results import Row
from benchmarks.runner import BACKWARD, FORWARD, Candidate, Settings, cost, entry, measure, skipped, timed_form
from benchmarks.steps import Request, Worker
from examples.timing import significant, summarise

ROOT = Path(__file__).parents[1]


def blocks(settings: Settings) -> list[Row]:
    """Time each block on a map of 60 channels, forward and with backward, against a plain convolution."""
    size = (12, 16) if settings.quick else (180, 320)
    names = [CONVOLUTION, "SCACB", "CCA of IMDN"] if settings.quick else settings.chosen(BLOCKS)
    layouts = ("eager", "channels_last") if settings.device.type == "cpu" else ("eager", "channels_last, bf16")
    candidates: dict[str, Candidate] = {}
    for name in names:
        # Folding has no effect on a GPU.
        folded = ["folded"] if name in FOLDED_BLOCKS and settings.device.type == "cpu" else []
        for form in filter(settings.allows, (*layouts, *folded)):
            for mode in (FORWARD,) if form == "folded" else (FORWARD, BACKWARD):
                reference = f"{CONVOLUTION} | eager | {mode}"
                candidate = timed_form(name, form, size, settings, reference, mode=mode)
                candidates[f"{name} | {form} | {mode}"] = candidate
    return measure(candidates, settings)


def nets(settings: Settings) -> list[Row]:
    """Time whole networks in all their forms, and a plain convolution as a reference for the rate."""
    size, wide = ((12, 16), (12, 16)) if settings.quick else ((120, 160), (180, 320))
    wanted = [(CONVOLUTION, form, wide) for form in ("eager", "channels_last")]
    wanted += [(name, form, size) for name in _nets(settings) for form in NETS[name].forms if settings.allows(form)]
    candidates = {
        f"{name} | {form}": timed_form(name, form, given, settings, f"{REFERENCE_NET} | eager")
        for name, form, given in wanted
    }
    return measure(candidates, settings)


# Engines that run converted files, and the networks compared in each engine.
CONVERTED = ("onnx", "openvino")
IN_ENGINES = ("MREN ×4", "MREN-S ×4", "IMDN ×4", "SAFMN ×4", "SPAN ×4")


def engines(settings: Settings) -> list[Row]:
    """Time each network in each engine, relative to IMDN in the same engine.

    MREN is folded, for OpenVINO with padded widths; in converted files it is timed unfolded as well.
    """
    size = (12, 16) if settings.quick else (120, 160)
    candidates: dict[str, Candidate] = {}
    for engine in filter(settings.allows, ENGINES):
        for name in _nets(settings) if settings.quick else settings.chosen(IN_ENGINES):
            forms = [engine]
            if name.startswith("MREN") and engine not in UNFOLDED_ENGINES:
                steps = ("padded", "folded") if engine.startswith("openvino") else ("folded",)
                folded = ", ".join([*steps, *([engine] if engine != "eager" else [])])
                forms = [engine, folded] if engine in CONVERTED else [folded]
            for form in forms:
                reference = f"{REFERENCE_NET} | {engine}"
                candidates[f"{name} | {form}"] = timed_form(name, form, size, settings, reference, engine=engine)
    return measure(candidates, settings)


FOLDING = (*FOLDED_BLOCKS, "DRACBChain of 4", "MREN ×2", "MREN ×4", "MREN-S ×4")
FOLDING_SIZES = ((12, 12), (24, 24), (48, 48), (120, 160), (180, 320), (270, 480))
FOLDING_MEMORY = 120 * 160  # pixels from which memory is measured: below, it is allocator noise


def fold(settings: Settings) -> list[Row]:
    """Time blocks and networks unfolded and folded in turn, at small and large sizes, and measure peak memory."""
    rows: list[Row] = []
    names, sizes = (("SCACB", "MREN ×4"), ((12, 16),)) if settings.quick else (settings.chosen(FOLDING), FOLDING_SIZES)
    sides = len(names) * sum(math.sqrt(math.prod(size)) for size in sizes)
    for name in names:
        for size in sizes:
            limited = replace(settings, limit=settings.limit * math.sqrt(math.prod(size)) / sides)
            # Pair by pair: the two run close together, and small sizes do not wait for large ones.
            pair = {form: timed_form(name, form, size, settings, "eager") for form in ("eager", "folded")}
            for row in measure(pair, limited):
                if math.prod(size) >= FOLDING_MEMORY or settings.quick:
                    row["peak_bytes"] = _isolated(name, row["form"], size, settings).get("peak_bytes")
                rows.append(row)
    return rows


def memory(settings: Settings) -> list[Row]:
    """Measure the peak memory of one forward pass, each candidate in its own process."""
    size = (12, 16) if settings.quick else (180, 320)
    rows = []
    for name in _nets(settings):
        for form in list(filter(settings.allows, NETS[name].memory_forms))[: 1 if settings.quick else None]:
            row = entry(name, form, size) | _isolated(name, form, size, settings)
            # Compilation holds so much memory that a first forward pass tells nothing.
            if "skipped" not in row and "compiled" not in form and settings.device.type == "cpu":
                kept = _isolated(name, form, size, settings, keep_freed=True)
                row["peak_bytes_with_default_allocator"] = kept.get("peak_bytes")
            settings.log(f"  {name}, {form}: {row.get('peak_bytes')} bytes{skipped(row)}")
            rows.append(row)
    return rows


GROWTH_SIZES = ((64, 64), (128, 128), (180, 320), (270, 480), (360, 640), (540, 960), (720, 1280), (1080, 1920))
GROWTH = (("MREN ×4", "eager"), ("MREN ×4", "folded"), ("IMDN ×4", "eager"))
TILE = 256


def growth(settings: Settings) -> list[Row]:
    """Measure latency and peak memory from 64 × 64 to 1080p input, whole and in tiles, each in its own process.

    Small sizes come first, so that a time limit leaves out the same large ones for all.
    """
    sizes = ((12, 12), (16, 24)) if settings.quick else GROWTH_SIZES
    tile = 16 if settings.quick else TILE
    end = min(time.monotonic() + settings.limit, settings.deadline)
    rows: dict[tuple[str, str, int | None], list[Row]] = {
        (name, form, tiled): []
        for name, form in GROWTH[: 1 if settings.quick else None]
        for tiled in (None, tile)
        if settings.chosen([name]) and settings.allows(form)
    }
    for size in sizes:
        for (name, form, tiled), before in rows.items():
            if tiled and max(size) <= tiled:
                continue  # a single tile
            row = entry(name, form, size, tile=tiled)
            too_large = _too_large([other for other in before if "rounds" in other], size, tiled, end)
            if too_large:
                row["skipped"] = too_large
            else:
                repeats = 3 if math.prod(size) < 200_000 else 1
                row |= _isolated(name, form, size, settings, repeats=repeats, tile=tiled)
            if "rounds" in row:
                row["seconds"] = summarise(row["rounds"]).as_dict()
            settings.log(f"  {name}, {form}, {size}, tile {tiled}: {row.get('seconds')}{skipped(row)}")
            before.append(row)
    return [row for group in rows.values() for row in group]


def training(settings: Settings) -> list[Row]:
    """Time one training step of MREN ×4, and the same step of another checkout in the same rounds."""
    forms = ("eager", "channels_last") if settings.quick else ("eager", "channels_last", "compiled")
    # Patches per step and their side, of the recipe for a CPU and of the paper's.
    batches = {(1, 8): forms} if settings.quick else {(4, 24): forms, (16, 48): ("eager",)}
    checkouts = {"this code": ROOT}
    if settings.against is not None:
        checkouts[f"code of {machine.revision(settings.against) or 'another checkout'}"] = settings.against
    # The last checkout is the one to compare with; it is this one if there is no other.
    last = list(checkouts)[-1]
    workers: list[Worker] = []

    def step(code: str, form: str, patches: tuple[int, int]) -> Candidate:
        def build(row: Row) -> Callable[[], float]:
            depth = settings.num_blocks or 6
            request = Request(form, settings.device.type, settings.threads, *patches, depth)
            try:
                worker = Worker(checkouts[code], request)
            except RuntimeError as error:
                raise Unavailable(reason(error)) from error
            workers.append(worker)
            row["first_loss"] = significant(worker.loss, 6)
            return worker.step

        row = {"name": "MREN ×4, training step", "form": form, "code": code, "patches": list(patches)}
        return Candidate(row, build, _step_key(last, "eager", patches))

    try:
        candidates = {
            _step_key(code, form, patches): step(code, form, patches)
            for patches, tried in batches.items()
            for code in checkouts
            for form in filter(settings.allows, tried)
            if settings.chosen(["MREN ×4"])
        }
        return measure(candidates, settings)
    finally:
        for worker in workers:
            worker.close()


def counts(settings: Settings) -> list[Row]:
    """Count parameters, multiply-accumulates and bytes kept for the backward pass of each block."""
    rows = []
    for name in settings.chosen(BLOCKS):
        row = entry(name, "eager", (180, 320))
        try:
            block, x = make(name, (180, 320), seed=settings.seed)
            row |= cost(name, (180, 320)) | {"kept_bytes": kept_for_backward(block, x.shape)}
        except Unavailable as error:
            row["skipped"] = str(error)
        rows.append(row)
    return rows


def kept_for_backward(block: nn.Module, size: Sequence[int]) -> int:
    """Count the bytes that a training step holds between forward and backward: what autograd saves, without parameters.

    Each storage is counted once, on the ``meta`` device. The block's input counts if it is saved.
    """
    block = block.to("meta")
    # Keeping the storages alive makes their ids unique: torch returns the same object for each as long as it lives.
    ours = {id(storage): storage for storage in (parameter.untyped_storage() for parameter in block.parameters())}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in ours:
            saved[id(storage)] = storage
        return tensor

    x = torch.empty(tuple(size), device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(x)
    return sum(storage.nbytes() for storage in saved.values())


SUITES: dict[str, Callable[[Settings], list[Row]]] = {
    "blocks": blocks,
    "nets": nets,
    "memory": memory,
    "growth": growth,
    "training": training,
    "fold": fold,
    "engines": engines,
    "counts": counts,
    "gpu": gpu,
}


def _step_key(code: str, form: str, patches: tuple[int, int]) -> str:
    return f"{code} | {form} | {patches[0]} x {patches[1]}"


def _nets(settings: Settings) -> list[str]:
    return ["MREN ×4", REFERENCE_NET] if settings.quick else settings.chosen(NETS)


def _isolated(name: str, form: str, size: tuple[int, int], settings: Settings, **more: Any) -> Row:
    seconds = min(settings.limit, settings.deadline - time.monotonic())
    shared = {"device": settings.device.type, "threads": settings.threads, "num_blocks": settings.num_blocks}
    request = isolated.Request(name, form, size, **shared, **more)
    return isolated.measure(request, None if math.isinf(seconds) else max(0.0, seconds))


def _too_large(done: list[Row], size: tuple[int, int], tiled: int | None, end: float) -> str | None:
    """Return why the next size is not tried, estimated from the time and memory of the last one."""
    if not done:
        return None
    last = done[-1]
    factor = math.prod(size) / math.prod(last["size"][-2:])
    seconds = 3 * factor * last["seconds"]["median"]  # a warm-up, one for memory, one for time
    if seconds > end - time.monotonic():
        return f"would take about {seconds:.0f} s, more than is left of the time limit"
    gib, free = factor * (last.get("peak_bytes") or 0) / 2**30, psutil.virtual_memory().available / 2**30
    if not tiled and gib > 0.8 * free:
        return f"would need about {gib:.1f} GiB, of which {free:.1f} GiB are free"
    return None
