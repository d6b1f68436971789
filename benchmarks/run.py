"""Run benchmarks and write the results to a JSON file: ``python -m benchmarks.run``.

benchmarks/README.md describes the method; benchmarks.report makes tables and plots of the files.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import psutil
import torch

from benchmarks import machine, results
from benchmarks.candidates import BLOCKS, NETS, STEPS
from benchmarks.results import Row
from benchmarks.runner import Settings
from benchmarks.suites import SUITES
from examples.cores import usable_cores
from examples.mren.arguments import command_parser, path_name, positive_number, whole_number
from examples.mren.cli import check_target, run_command
from examples.mren.files import write_text

CUDA_SECONDS = 75.0
AS_GIVEN = ("threads", "repeats", "seed", "quick")  # options that go into the settings and the results
WRITE_SECONDS = 4.0  # reserved for writing the results and exiting
# Share of the time that a suite gets; 1 for the others. On a GPU, "nets" repeats a part of "gpu" at another size.
WEIGHTS = {"gpu": 12, "blocks": 8}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("benchmarks.run", __doc__)
    names = ", ".join(SUITES)
    parser.add_argument("--suite", nargs="+", default=["blocks", "nets", "memory"], choices=list(SUITES),
                        metavar="NAME", help=f"one or more of {names}; default: blocks nets memory")  # fmt: skip
    parser.add_argument("--threads", type=_threads, default=1, help="a number, or 'all'; default: 1")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=whole_number(1), default=15, help="rounds; default: 15")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, inputs and the order within a round")
    parser.add_argument(
        "--limit", type=positive_number, default=math.inf, help="minutes for the rounds of each suite; default: none"
    )
    parser.add_argument("--budget", type=positive_number, metavar="SECONDS",
                        help="time for everything, from the start of the process; what does not fit is listed; "
                        f"default: {CUDA_SECONDS:g} on cuda, none on a CPU")  # fmt: skip
    parser.add_argument("--against", type=path_name, help="a checkout whose training step is timed in the same rounds")
    parser.add_argument("--without", nargs="+", default=[], choices=[step for step in STEPS if step != "eager"],
                        metavar="STEP", help="leave out forms that use this step, such as compiled")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], choices=[*NETS, *BLOCKS], metavar="NAME",
                        help="networks and blocks to measure; default: all of a suite")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: check that everything runs, measure nothing")
    parser.add_argument("-o", "--output", type=path_name, metavar="FILE.json",
                        help="written after every suite; its other suites are kept; "
                        "default on cuda: benchmarks/results/cuda.json")  # fmt: skip
    return parser


def _threads(text: str) -> int:
    return usable_cores() if text == "all" else whole_number(1, 4096)(text)


def settings_from(given: argparse.Namespace) -> Settings:
    """Check the arguments.

    Raises:
        ValueError: If one is out of range; the message says what would work.
    """
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine or this build of torch has none; use --device cpu.")
    if "gpu" in given.suite and given.device != "cuda" and not given.quick:
        raise ValueError("--suite gpu needs --device cuda; with --quick it runs on a CPU, too.")
    if given.against is not None:
        if "training" not in given.suite:
            raise ValueError("--against needs --suite training.")
        if not (given.against / "sc_blocks" / "__init__.py").is_file():
            raise ValueError(f"--against {given.against}: there is no sc_blocks in it; name the root of a checkout.")
    if given.output is None and (given.device != "cuda" or given.quick):
        raise ValueError("--output is needed: name a .json file.")
    if given.output is not None and given.output.suffix != ".json":
        raise ValueError(f"--output must be a .json file, got {given.output}.")
    if given.budget is None and given.device == "cuda":
        given.budget = CUDA_SECONDS
    budget = given.budget or math.inf
    running = time.time() - psutil.Process().create_time()
    return Settings(
        device=torch.device(given.device),
        limit=60 * given.limit,
        deadline=time.monotonic() + budget - running - WRITE_SECONDS,
        without=frozenset(given.without),
        only=frozenset(given.only),
        against=given.against.resolve() if given.against else None,
        **{name: getattr(given, name) for name in AS_GIVEN},
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    given = parser.parse_args(argv)
    try:
        given.settings = settings_from(given)
        given.output = given.output or results.FOLDER / "cuda.json"
        check_target(given.output, overwrite=True)
        results.read(given.output)  # fail before hours of work if it is another kind of file
    except ValueError as error:
        parser.error(str(error))
    return given


def run(given: argparse.Namespace) -> None:
    """Run the command."""
    settings, output = given.settings, given.output
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True  # as in the examples: a candidate's sizes do not change
    suites = list(dict.fromkeys(given.suite))
    for number, name in enumerate(suites):
        print(f"{name}, {settings.threads} thread(s)", flush=True)
        about = machine.describe(settings.device)
        suite_settings = replace(settings, deadline=deadline_of(suites[number:], settings.deadline))
        rows = SUITES[name](suite_settings)
        if not rows:
            raise ValueError(f"--only and --without leave nothing of --suite {name}; name something it measures.")
        found = results.read(output)  # only now: another run may have added to it
        found["suites"][name] = {
            "machine": about,
            "settings": {
                "device": settings.device.type,
                "without": sorted(settings.without),
                "only": sorted(settings.only),
                "budget": given.budget,
                **{name: getattr(given, name) for name in AS_GIVEN},
            },
            "rows": rows,
        }
        write_text(output, results.dumps(found))
        for row in rows:
            print("  " + describe(row))
    print(output)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(run, _parse, argv)


def deadline_of(suites: Sequence[str], end: float) -> float:
    """Return the deadline of the first remaining suite, so that each has its share of the time."""
    now = time.monotonic()
    weights = [WEIGHTS.get(name, 1) for name in suites]
    return now + (end - now) * weights[0] / sum(weights)


def describe(row: Row) -> str:
    """Format a row for the terminal."""
    parts = [", ".join(str(row[key]) for key in ("name", "form", "mode", "code", "tile", "engine") if row.get(key))]
    if "skipped" in row:
        return f"{parts[0]}: skipped, {row['skipped']}"
    if "seconds" in row:
        parts.append(f"{1000 * row['seconds']['median']:.4g} ms")
    if "ratio" in row:
        low, high = row["ratio"]["q1"], row["ratio"]["q3"]
        parts.append(f"{row['ratio']['median']:.3g} ({low:.3g} to {high:.3g}) of {row['ratio']['to']}")
    if row.get("peak_bytes") is not None:
        parts.append(f"{row['peak_bytes'] / 2**20:.4g} MiB")
    if "kept_bytes" in row:
        parts.append(f"{row['kept_bytes'] / 2**20:.4g} MiB kept for the backward pass")
    return ": ".join([parts[0], ", ".join(parts[1:])])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # do not wait for an interrupted compiler
