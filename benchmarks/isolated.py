"""Latency and peak memory of one network, in a process of its own.

Run by :mod:`benchmarks.suites` as ``python -m benchmarks.isolated``; prints JSON. Only so is the memory that
one candidate takes not what another one left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def measure(
    net: str,
    form: str,
    size: tuple[int, int],
    *,
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 0,
    tile: int | None = None,
    num_blocks: int | None = None,
    keep_freed: bool = False,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Start the process and return what it found.

    Args:
        net: Name in :data:`benchmarks.candidates.NETS`.
        form: See :func:`benchmarks.candidates.prepare`.
        size: Height and width of the input.
        device: Where the network runs.
        threads: Of torch, and of what else is built on OpenMP.
        repeats: Forwards to time; 0 measures memory alone.
        tile: Run in tiles of this size.
        num_blocks: Depth of MREN, for quick runs.
        keep_freed: Leave the allocator as it comes, which may keep what was freed, and look at the first forward. By
            default freed memory goes back at once, and the number is what the tensors of a forward take.
        timeout: Seconds after which the process is ended.

    Returns:
        ``peak_bytes`` and ``rounds``, or ``skipped`` with the reason.
    """
    command = [sys.executable, "-m", "benchmarks.isolated", net, form, *map(str, size)]
    command += ["--device", device, "--threads", str(threads), "--repeats", str(repeats)]
    command += ["--tile", str(tile)] if tile else []
    command += ["--blocks", str(num_blocks)] if num_blocks else []
    command += ["--keep-freed"] if keep_freed else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    if not keep_freed:  # glibc's names for: every block of 64 KiB and more is a mapping of its own
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {timeout:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return {"skipped": f"the process was ended by signal {-done.returncode}, as happens when memory runs out"}
    from benchmarks.candidates import reason

    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"skipped": reason(RuntimeError(last)).removeprefix("RuntimeError: ")}


def resident(key: str) -> int:
    """``VmRSS``, what is resident now, or ``VmHWM``, the most that was, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isolated", description=__doc__.partition("\n")[0])
    parser.add_argument("net")
    parser.add_argument("form")
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--keep-freed", action="store_true")
    given = parser.parse_args()

    import torch

    from benchmarks.candidates import NETS, Unavailable, prepare
    from benchmarks.timing import significant, stopwatch
    from sc_blocks.tiling import tiled

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    entry = NETS[given.net]
    found: dict[str, Any] = {}
    with torch.no_grad():
        x = torch.rand(1, 3, given.height, given.width, device=device)
        try:
            net = shortened(entry.make(), given.blocks).to(device)
            example = x if given.tile is None else x[..., : given.tile, : given.tile]
            call, example = prepare(net, example, given.form)
        except Unavailable as error:
            print(json.dumps({"skipped": str(error)}))
            return 0
        if given.tile is None:
            x = example

        def forward() -> object:
            if given.tile is None:
                return call(x)
            return tiled(call, x, scale=entry.scale, tile=given.tile, overlap=min(32, given.tile // 4))

        # ONNX Runtime keeps what it once had, so its first forward is the one to look at. Of torch, which gives it
        # back, the second: the first also packs weights.
        if "onnx" not in given.form and not given.keep_freed:
            call(example)
        found["peak_bytes"] = peak(forward, device)
        if given.repeats:
            turn = stopwatch(forward, device) if given.repeats > 1 else _once(forward, device)
            found["rounds"] = [significant(turn(), 5) for _ in range(given.repeats)]
    print(json.dumps(found))
    return 0


def _once(call: Any, device: Any) -> Any:
    """As :func:`benchmarks.timing.stopwatch`, for calls that take so long that warming up again is a waste."""
    import time

    from benchmarks.timing import synchronise

    def turn() -> float:
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        return time.perf_counter() - start

    return turn


def peak(call: Any, device: Any) -> int | None:
    """Most memory that one call holds above what was held before it; its result counts, weights and input do not."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        CLEAR.write_text("5")  # sets the high-water mark back to what is resident now
    except OSError:  # only Linux has it
        call()
        return None
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


def shortened(net: Any, num_blocks: int | None) -> Any:
    """MREN with only so many of its blocks, for quick runs; other networks as they are."""
    if num_blocks and hasattr(net, "body"):
        net.body = net.body[:num_blocks]
    return net


if __name__ == "__main__":
    sys.exit(main())
