"""Measure latency and peak memory of one network or block in its own process, free of memory left by others.

:mod:`benchmarks.suites` starts it as ``python -m benchmarks.isolated REQUEST``, with JSON in and out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.candidates import NETS, Unavailable, make, prepare, reason
from benchmarks.runner import forward
from examples.timing import elapsed, significant, stopwatch
from sc_blocks.tiling import tiled

ROOT = Path(__file__).parents[1]
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Request:
    """A measurement."""

    net: str
    """Name in :data:`benchmarks.candidates.NETS` or ``BLOCKS``."""
    form: str
    """See :func:`benchmarks.candidates.prepare`."""
    size: tuple[int, int]
    """Height and width of the input."""
    device: str = "cpu"
    threads: int = 1
    repeats: int = 0
    """Forward passes to time; 0 measures memory only."""
    tile: int | None = None
    """Side of the tiles in which it runs."""
    num_blocks: int | None = None
    """Depth of MREN, for quick runs."""
    keep_freed: bool = False
    """Leave the allocator at its defaults, with which it may keep freed memory, and measure the first forward pass.
    Otherwise freed memory is returned at once, and the result is the memory of the tensors of a forward pass."""


def measure(request: Request, timeout: float | None = None) -> dict[str, Any]:
    """Start the process; return ``peak_bytes`` and ``rounds``, or ``skipped`` with the reason.

    Args:
        request: What is measured.
        timeout: Seconds after which the process is ended.
    """
    command = [sys.executable, "-m", "benchmarks.isolated", json.dumps(asdict(request))]
    environment = os.environ | {"OMP_NUM_THREADS": str(request.threads), "PYTHONPATH": str(ROOT)}
    if not request.keep_freed:  # glibc: map every block of 64 KiB or more separately
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {timeout:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return {"skipped": f"the process was ended by signal {-done.returncode}, as happens when memory runs out"}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"skipped": reason(RuntimeError(last)).removeprefix("RuntimeError: ")}


def main(request: Request) -> dict[str, Any]:
    """Run a measurement, in the separate process."""
    torch.set_num_threads(request.threads)
    device, tile = torch.device(request.device), request.tile
    found: dict[str, Any] = {}
    with torch.no_grad():
        try:
            net, x = make(request.net, request.size, num_blocks=request.num_blocks)
            net, x = net.to(device), x.to(device)
            call, example = prepare(net, x if tile is None else x[..., :tile, :tile], request.form)
        except Unavailable as error:
            return {"skipped": str(error)}
    run = forward(call, example)
    # ONNX Runtime never returns memory, so its first forward is measured. torch does, and its first forward also packs
    # weights, so its second one is measured.
    if "onnx" not in request.form and not request.keep_freed:
        run()
    if tile is not None:
        in_tiles = partial(tiled, call, scale=NETS[request.net].scale, tile=tile, overlap=min(32, tile // 4))
        run = forward(in_tiles, x)
    found["peak_bytes"] = peak(run, device)
    if request.repeats:
        # A single forward pass is timed only if it is so slow that another warm-up would be a waste.
        turn = stopwatch(run, device) if request.repeats > 1 else partial(elapsed, run, device)
        found["rounds"] = [significant(turn(), 5) for _ in range(request.repeats)]
    return found


def resident(key: str) -> int:
    """``VmRSS``, the resident memory, or ``VmHWM``, its highest value, in bytes."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of one call above what was held before it; its result counts, weights and input do not."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        CLEAR_REFS.write_text("5", encoding="utf-8")  # sets the high-water mark to what is resident now
    except OSError:  # only Linux has it
        call()
        return None
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


if __name__ == "__main__":
    print(json.dumps(main(Request(**json.loads(sys.argv[1])))))
