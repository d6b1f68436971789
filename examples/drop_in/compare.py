"""Train a host with and without blocks of this library, at equal cost and budget, with paired seeds.

    python -m examples.drop_in.compare --host rfdn --blocks plain scacb scacb+chain --task sr \
        --data BSDS500 --test Set5 B100 --seeds 3 -o runs/drop_in

trains and scores every row with every seed, and writes ``rfdn_sr.csv``, with a line for each run and test set, and the
table, ``rfdn_sr.md``. The first row is the reference: it has ``--channels``, and every other row the width that comes
closest to the parameters of the reference, or to its MACs (``--match macs``); with ``--match channels``, all have the
same width. With ``--minutes``, all rows train for equal time instead of equal steps. Finished runs are not trained
again, interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from examples.compare.options import add_options, setup_from
from examples.compare.runner import compare
from examples.compare.tables import Run, write_runs
from examples.compare.tasks import Denoising, SuperResolution
from examples.drop_in.report import comparison_tables
from examples.drop_in.variants import HOSTS, LOCAL, MIN_CHANNELS, PLAIN, Match, plan_rows
from examples.mren.arguments import positive_number, whole_number
from examples.mren.cli import run_command
from examples.mren.files import write_text
from examples.mren.model import STAGES
from examples.mren.options import scale_factor
from examples.mren.training.options import checked, configure_torch

PATCH_SIZES = {"sr": 96, "denoise": 48}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.drop_in.compare",
        description="Train a host with and without blocks of this library, at equal cost and budget.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", choices=tuple(HOSTS), required=True, help="host network")
    parts = "; ".join(f"{name}: {', '.join(host.parts)}" for name, host in HOSTS.items())
    add(
        "--blocks",
        nargs="+",
        metavar="ROW",
        required=True,
        help=f"rows to compare, the reference first: {PLAIN}, or parts joined by +, from {parts}. A row that ends in "
        f"+{LOCAL} scores the networks of the row without it with windowed statistics",
    )
    add("--task", choices=tuple(PATCH_SIZES), required=True, help="super-resolution or denoising")
    add("--scale", type=scale_factor, choices=tuple(STAGES), default=4, help="upscaling factor for --task sr")
    add("--sigma", type=positive_number, default=25.0, help="noise for --task denoise, on the scale of 0 to 255")
    add("--skip", action=argparse.BooleanOptionalAction, default=True, help="start from the bicubic or noisy image")
    add("--match", choices=get_args(Match), default="parameters", help="cost that all rows share")
    add("--tolerance", type=positive_number, default=3.0, metavar="PERCENT", help="allowed deviation from it")
    add("--channels", type=whole_number(MIN_CHANNELS), help="width of the reference; the host's own if not given")
    add_options(parser)
    parser.set_defaults(steps=600, batch_size=8, output=Path("runs/drop_in"))
    args = parser.parse_args(argv)
    if args.init is not None:
        parser.error("argument --init: is for weights of MREN, which no host can load; leave it out")
    if args.warm_up_new:
        parser.error("argument --warm-up-new: needs --init, which no host supports; leave it out")
    args.patch_size = args.patch_size or PATCH_SIZES[args.task]
    return checked(parser, args) if args.task == "sr" else args


def run(args: argparse.Namespace) -> list[Run]:
    """Run the command."""
    configure_torch(args)
    task = SuperResolution(args.scale) if args.task == "sr" else Denoising(args.sigma)
    rows = plan_rows(
        args.host,
        args.blocks,
        scale=task.scale,
        channels=args.channels,
        match=args.match,
        tolerance=args.tolerance,
        skip=args.skip,
    )
    # Only results that can be compared go into the same file.
    unusual = {"_no_skip": not args.skip, f"_x{args.scale}": args.task == "sr" and args.scale != 4}
    unusual[f"_sigma{args.sigma:g}"] = args.task == "denoise" and args.sigma != 25
    name = f"{args.host}_{args.task}" + "".join(suffix for suffix, is_so in unusual.items() if is_so)
    scores, page = (args.output / f"{name}.{suffix}" for suffix in ("csv", "md"))
    setup = setup_from(args, task, args.output / name, matched=args.match, targets=(scores, page))
    runs = compare(rows, setup, max_minutes=args.max_minutes, dry_run=args.dry_run)
    if runs:
        text = comparison_tables(runs)
        write_runs(scores, runs)
        write_text(page, text)
        print(f"\n{HOSTS[args.host].title}\n\n{text}")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(run, _parse, argv)


if __name__ == "__main__":
    sys.exit(main())
