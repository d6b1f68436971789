"""The suites of :mod:`benchmarks.run`: each returns the rows that go into its JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import isolated, machine
from benchmarks.candidates import BLOCKS, CONVOLUTION, FOLDED_BLOCKS, NETS, REFERENCE_NET, Unavailable, prepare, reason
from benchmarks.gpu import gpu
from benchmarks.steps import Worker
from benchmarks.timing import interleave, ratio, significant, stopwatch, summarise
from sc_blocks.introspect import complexity

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
FORWARD, BACKWARD = "forward", "forward+backward"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for."""

    device: torch.device
    threads: int
    repeats: int = 15
    seed: int = 0
    limit: float = math.inf
    """Seconds for the rounds of a suite; preparing what is timed comes on top."""
    quick: bool = False
    """Tiny sizes and few candidates: shows that everything runs, measures nothing."""
    without: frozenset[str] = frozenset()
    """Steps, such as ``compiled``: no form that takes one is measured."""
    against: Path | None = None
    """Another checkout whose training step is timed as well."""
    say: Callable[[str], object] = print


def blocks(settings: Settings) -> list[Row]:
    """Each block on a map of 60 channels, forward and with backward, beside a plain convolution."""
    height, width = (12, 16) if settings.quick else (180, 320)
    names = [CONVOLUTION, "SCACB", "CCA of IMDN"] if settings.quick else list(BLOCKS)
    rows: dict[str, Row] = {}
    turns: dict[str, Callable[[], float]] = {}
    for name in names:
        for form in ("eager", "channels_last", *(["folded"] if name in FOLDED_BLOCKS else [])):
            for mode in (FORWARD,) if form == "folded" else (FORWARD, BACKWARD):
                row: Row = {"name": name, "form": form, "mode": mode, "size": [1, 60, height, width]}
                key = f"{name} | {form} | {mode}"
                rows[key] = row
                try:
                    torch.manual_seed(settings.seed)
                    block = BLOCKS[name]().to(settings.device)
                    x = torch.rand(1, 60, height, width, device=settings.device)
                    row |= _cost(block, x)
                    call, x = prepare(block, x, form)
                    turns[key] = stopwatch(_mode(call, x, mode), settings.device)
                except Unavailable as error:
                    row["skipped"] = str(error)
                settings.say(f"  ready: {key}{_skip(row)}")
    return _timed(
        rows, turns, settings, lambda row: f"{CONVOLUTION} | eager | {row['mode']}" if "mode" in row else None
    )


def nets(settings: Settings) -> list[Row]:
    """Latency of whole networks in the forms in which they can run, and the rate of a plain convolution."""
    height, width = (12, 16) if settings.quick else (120, 160)
    wide = (12, 16) if settings.quick else (180, 320)
    rows: dict[str, Row] = {}
    turns: dict[str, Callable[[], float]] = {}
    wanted = [(CONVOLUTION, "eager"), (CONVOLUTION, "channels_last")]
    wanted += [(name, form) for name in _quick_nets(settings) for form in _left(NETS[name].forms, settings)]
    if settings.quick:
        wanted = [(name, form) for name, form in wanted if form in ("eager", "channels_last", "folded")]
    for name, form in wanted:
        key = f"{name} | {form}"
        size = [1, 60, *wide] if name == CONVOLUTION else [1, 3, height, width]
        row = rows[key] = {"name": name, "form": form, "size": size}
        try:
            torch.manual_seed(settings.seed)
            make = BLOCKS[name] if name == CONVOLUTION else NETS[name].make
            net = isolated.shortened(make().to(settings.device), 1 if settings.quick else None)
            x = torch.rand(size, device=settings.device)
            row |= _cost(net, x)
            call, x = prepare(net, x, form)
            turns[key] = stopwatch(_mode(call, x, FORWARD), settings.device)
        except Unavailable as error:
            row["skipped"] = str(error)
        settings.say(f"  ready: {key}{_skip(row)}")
    return _timed(rows, turns, settings, lambda row: f"{REFERENCE_NET} | eager")


def memory(settings: Settings) -> list[Row]:
    """Peak memory of one forward, each candidate in a process of its own."""
    size = (12, 16) if settings.quick else (180, 320)
    rows = []
    for name in _quick_nets(settings):
        for form in _left(NETS[name].memory_forms, settings)[: 1 if settings.quick else None]:
            row: Row = {"name": name, "form": form, "size": [1, 3, *size]}
            row |= _isolated(name, form, size, settings)
            # Compilers leave so much behind that a first forward of theirs says nothing.
            if "skipped" not in row and "compiled" not in form and settings.device.type == "cpu":
                as_it_comes = _isolated(name, form, size, settings, keep_freed=True)
                row["peak_bytes_with_default_allocator"] = as_it_comes.get("peak_bytes")
            settings.say(f"  {name}, {form}: {row.get('peak_bytes')} bytes{_skip(row)}")
            rows.append(row)
    return rows


GROWTH_SIZES = ((64, 64), (128, 128), (180, 320), (270, 480), (360, 640), (540, 960), (720, 1280), (1080, 1920))
GROWTH = (("MREN ×4", "eager"), ("MREN ×4", "folded"), ("IMDN ×4", "eager"))
TILE = 256


def growth(settings: Settings) -> list[Row]:
    """Latency and peak memory from 64 × 64 to 1080p input, whole and in tiles; not in turn, a process for each.

    Small sizes first, so that a limit of time cuts the large ones off for all alike.
    """
    sizes = ((12, 12), (16, 24)) if settings.quick else GROWTH_SIZES
    tile = 16 if settings.quick else TILE
    start = time.monotonic()
    rows: dict[tuple[str, str, int | None], list[Row]] = {
        (name, form, tiled): [] for name, form in GROWTH[: 1 if settings.quick else None] for tiled in (None, tile)
    }
    for size in sizes:
        for (name, form, tiled), before in rows.items():
            if tiled and max(size) <= tiled:
                continue  # a single call
            row: Row = {"name": name, "form": form, "size": [1, 3, *size], "tile": tiled}
            done = [other for other in before if "rounds" in other]
            too_large = _too_large(done, size, tiled, settings.limit - (time.monotonic() - start))
            row |= {"skipped": too_large} if too_large else {}
            if not too_large:
                repeats = 3 if math.prod(size) < 200_000 else 1
                row |= _isolated(name, form, size, settings, repeats=repeats, tile=tiled)
            if "rounds" in row:
                row["seconds"] = summarise(row["rounds"]).as_dict()
            settings.say(f"  {name}, {form}, {size}, tile {tiled}: {row.get('seconds')}{_skip(row)}")
            before.append(row)
    return [row for of_one in rows.values() for row in of_one]


def training(settings: Settings) -> list[Row]:
    """One training step of MREN ×4, and the same step of another checkout in the same rounds."""
    forms = ("eager", "channels_last") if settings.quick else _left(("eager", "channels_last", "compiled"), settings)
    # What the two recipes train with on a CPU and as published: so many patches of that side.
    batches = {(1, 8): forms} if settings.quick else {(4, 24): forms, (16, 48): ("eager",)}
    sizes = {"num_blocks": 1} if settings.quick else {}
    checkouts = {"this code": ROOT}
    if settings.against is not None:
        checkouts[f"code of {machine.revision(settings.against) or 'another checkout'}"] = settings.against
    rows: dict[str, Row] = {}
    workers: dict[str, Worker] = {}
    try:
        for (number, side), tried in batches.items():
            for code, checkout in checkouts.items():
                for form in tried:
                    key = f"{code} | {form} | {number} x {side}"
                    row = rows[key] = {"name": "MREN ×4, training step", "form": form, "code": code}
                    row["patches"] = [number, side]
                    try:
                        workers[key] = Worker(
                            checkout,
                            form,
                            device=settings.device.type,
                            threads=settings.threads,
                            batch_size=number,
                            patch_size=side,
                            **sizes,
                        )
                        row["first_loss"] = significant(workers[key].loss, 6)
                    except RuntimeError as error:
                        row["skipped"] = reason(error)
                    settings.say(f"  ready: {key}{_skip(row)}")
        # The last checkout is the one to compare with, itself where there is no other.
        last = list(checkouts)[-1]
        turns = {key: worker.step for key, worker in workers.items()}
        return _timed(rows, turns, settings, lambda row: "{} | eager | {} x {}".format(last, *row["patches"]))
    finally:
        for worker in workers.values():
            worker.close()


SUITES: dict[str, Callable[[Settings], list[Row]]] = {
    "blocks": blocks,
    "nets": nets,
    "memory": memory,
    "growth": growth,
    "training": training,
    "gpu": lambda settings: gpu(settings.device, settings.repeats, settings.seed, quick=settings.quick),
}


def _quick_nets(settings: Settings) -> list[str]:
    return ["MREN ×4", REFERENCE_NET] if settings.quick else list(NETS)


def _left(forms: Sequence[str], settings: Settings) -> list[str]:
    return [form for form in forms if not settings.without & set(form.split(", "))]


def _isolated(name: str, form: str, size: tuple[int, int], settings: Settings, **more: Any) -> Row:
    return isolated.measure(
        name,
        form,
        size,
        device=settings.device.type,
        threads=settings.threads,
        num_blocks=1 if settings.quick else None,
        timeout=None if math.isinf(settings.limit) else settings.limit,
        **more,
    )


def _cost(net: nn.Module, x: Tensor) -> Row:
    """Of the network as it was written, whatever form it is about to take."""
    try:
        cost = complexity(net.eval(), x.shape)
    except Exception as error:  # the counter does not know every operation of every package
        return {"parameters": sum(p.numel() for p in net.parameters()), "macs": None, "no_macs": reason(error)}
    return {"parameters": cost.parameters, "macs": cost.macs}


def _mode(call: Callable[[Tensor], object], x: Tensor, mode: str) -> Callable[[], object]:
    if mode == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return call(x)

        return forward

    x = x.detach().requires_grad_()

    def backward() -> None:
        x.grad = None
        if isinstance(call, nn.Module):
            call.zero_grad(set_to_none=True)
        outputs = call(x)
        tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
        torch.autograd.backward(tensors, [torch.ones_like(tensor) for tensor in tensors])

    return backward


def _timed(
    rows: dict[str, Row],
    turns: Mapping[str, Callable[[], float]],
    settings: Settings,
    reference_of: Callable[[Row], str | None],
) -> list[Row]:
    """Run the rounds and fill in what they gave."""
    rounds = interleave(turns, settings.repeats, seed=settings.seed, limit=settings.limit)
    rounds = {key: [significant(value, 5) for value in values] for key, values in rounds.items()}
    for key, values in rounds.items():
        row = rows[key]
        row["seconds"] = summarise(values).as_dict()
        reference = reference_of(row)
        if reference in rounds:
            row["ratio"] = {"to": reference} | ratio(values, rounds[reference]).as_dict()
        row["rounds"] = values
    return list(rows.values())


def _too_large(done: list[Row], size: tuple[int, int], tiled: int | None, seconds_left: float) -> str | None:
    """Why the next size is not tried, by what the last one took."""
    if not done:
        return None
    last = done[-1]
    factor = math.prod(size) / math.prod(last["size"][-2:])
    seconds = 3 * factor * last["seconds"]["median"]  # a warm-up, one for memory, one for time
    if seconds > seconds_left:
        return f"would take about {seconds:.0f} s, more than is left of the time limit"
    free = machine.available_memory()
    if last.get("peak_bytes") and free is not None and not tiled and factor * last["peak_bytes"] > 0.8 * free:
        return (
            f"would need about {factor * last['peak_bytes'] / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB are free"
        )
    return None


def _skip(row: Row) -> str:
    return f" (skipped: {row['skipped']})" if "skipped" in row else ""
