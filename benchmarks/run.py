"""Measure, and write the numbers to a JSON file: ``python -m benchmarks.run``.

``benchmarks/README.md`` says how it is measured, :mod:`benchmarks.report` draws what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.candidates import STEPS
from benchmarks.suites import SUITES, Settings
from examples.mren.files import write_text

FORMAT = 1


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    names = ", ".join(SUITES)
    parser.add_argument("--suite", nargs="+", default=["blocks", "nets", "memory"], choices=list(SUITES),
                        metavar="NAME", help=f"of {names}; default: blocks nets memory")  # fmt: skip
    parser.add_argument("--threads", default="1", help="a number, or 'all'; default: 1")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=15, help="rounds; default: 15")
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and the order within a round")
    parser.add_argument("--limit", type=float, help="minutes for the rounds of each suite; default: none")
    parser.add_argument("--against", type=Path, help="a checkout whose training step is timed in the same rounds")
    parser.add_argument("--without", nargs="+", default=[], choices=[step for step in STEPS if step != "eager"],
                        metavar="STEP", help="leave out forms that take this step, such as compiled")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json",
                        help="written after every suite; suites in it that are not run now stay")  # fmt: skip
    return parser


def settings_from(given: argparse.Namespace) -> Settings:
    """Check what was asked for.

    Raises:
        ValueError: If something cannot be; the message says what would work.
    """
    cores = machine.usable_cores()
    if given.threads != "all" and (not given.threads.isdecimal() or int(given.threads) < 1):
        raise ValueError(f"--threads must be 1 or more, or 'all' ({cores} here); got {given.threads!r}.")
    if given.repeats < 1:
        raise ValueError(f"--repeats must be 1 or more, got {given.repeats}; 15 gives usable quartiles.")
    if given.limit is not None and not given.limit > 0:
        raise ValueError(f"--limit must be more than 0 minutes, got {given.limit:g}.")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine or this build of torch has none; use --device cpu.")
    if "gpu" in given.suite and given.device != "cuda":
        raise ValueError("--suite gpu needs --device cuda.")
    if given.against is not None:
        if "training" not in given.suite:
            raise ValueError("--against is for --suite training, which was not asked for.")
        if not (given.against / "sc_blocks" / "__init__.py").is_file():
            raise ValueError(f"--against {given.against}: there is no sc_blocks in it; name the root of a checkout.")
    if given.output.suffix != ".json":
        raise ValueError(f"--output must be a .json file, got {given.output}.")
    return Settings(
        device=torch.device(given.device),
        threads=cores if given.threads == "all" else int(given.threads),
        repeats=given.repeats,
        seed=given.seed,
        limit=math.inf if given.limit is None else 60 * given.limit,
        quick=given.quick,
        without=frozenset(given.without),
        against=given.against.resolve() if given.against else None,
    )


def read(file: Path) -> dict[str, Any]:
    """What a file of results holds, or a fresh beginning.

    Raises:
        ValueError: If it is something else.
    """
    if not file.exists():
        return {"format": FORMAT, "suites": {}}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error}); move it away or name another file.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("suites"), dict):
        raise ValueError(f"{file}: not written by benchmarks.run, or by another version; name another file.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    given = parser.parse_args(argv)
    try:
        settings = settings_from(given)
        results = read(given.output)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(settings.threads)
    for name in dict.fromkeys(given.suite):
        print(f"{name}, {settings.threads} thread(s)", flush=True)
        about = machine.describe(settings.device)
        rows = SUITES[name](settings)
        results["suites"][name] = {
            "machine": about,
            "settings": {
                "device": settings.device.type,
                "threads": settings.threads,
                "repeats": settings.repeats,
                "seed": settings.seed,
                "without": sorted(settings.without),
                "quick": settings.quick,
            },
            "rows": rows,
        }
        write_text(given.output, dumps(results))
        for row in rows:
            print("  " + describe(row))
    print(given.output)
    return 0


def dumps(results: dict[str, Any]) -> str:
    """JSON with a line for each row: differences between two runs can be read."""
    text = ['{\n "format": ' + json.dumps(results["format"]) + ',\n "suites": {']
    for number, (name, suite) in enumerate(results["suites"].items()):
        head = {key: value for key, value in suite.items() if key != "rows"}
        text.append((",\n  " if number else "\n  ") + json.dumps(name) + ": {")
        text += [f"\n   {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
        lines = (json.dumps(row, ensure_ascii=False) for row in suite["rows"])
        text.append('\n   "rows": [\n    ' + ",\n    ".join(lines) + "\n   ]\n  }")
    return "".join(text) + "\n }\n}\n"


def describe(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    parts = [", ".join(str(row[key]) for key in ("name", "form", "mode", "code", "tile") if row.get(key))]
    if "skipped" in row:
        return f"{parts[0]}: skipped, {row['skipped']}"
    if "seconds" in row:
        parts.append(f"{1000 * row['seconds']['median']:.4g} ms")
    if "ratio" in row:
        low, high = row["ratio"]["q1"], row["ratio"]["q3"]
        parts.append(f"{row['ratio']['median']:.3g} ({low:.3g} to {high:.3g}) of {row['ratio']['to']}")
    if row.get("peak_bytes") is not None:
        parts.append(f"{row['peak_bytes'] / 2**20:.4g} MiB")
    return ": ".join([parts[0], ", ".join(parts[1:])])


if __name__ == "__main__":
    sys.exit(main())
