"""Command-line options shared by the comparisons."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.compare.setup import Setup
from examples.compare.tables import read_runs
from examples.compare.tasks import Task
from examples.mren.arguments import path_name, whole_number
from examples.mren.cli import check_target
from examples.mren.options import add_device_option, pick_device
from examples.mren.training.options import add_training_options, training_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by the comparisons; :func:`setup_from` takes their values."""
    add = parser.add_argument
    add("--data", type=path_name, nargs="+", required=True, help="folders of images to train on")
    add("--test", type=path_name, nargs="+", required=True, help="folders of images to score on")
    add("--seeds", type=whole_number(1), default=3, help="runs per row, one for each seed")
    add("--held-out", type=whole_number(0), default=0, help="images of --data to score on instead of training on them")
    add_training_options(parser)
    parser.set_defaults(recipe="short", channels_last=True)
    add_device_option(parser)
    add("--cpu", action="store_const", const="cpu", dest="device", help="the same as --device cpu")
    add("-o", "--output", type=path_name, default=Path("runs/compare"), help="folder for runs and tables")
    add("--dry-run", action="store_true", help="print what would be trained, then exit")


def setup_from(
    args: argparse.Namespace, task: Task, output: Path, *, matched: str = "", targets: Sequence[Path] = ()
) -> Setup:
    """The :class:`Setup` that the options describe.

    Args:
        args: The values of the options.
        task: What the networks are trained for.
        output: Folder of the runs.
        matched: What is equal in all rows.
        targets: Result files, besides ``runs.csv`` in that folder, that are written or replaced at the end.

    Raises:
        UsageError: If the output folder or a result file is not writable.
        ValueError: If an existing result file cannot be read.
    """
    for target in (output / "runs.csv", *targets):
        check_target(target, overwrite=True)
        if target.suffix == ".csv" and target.exists():
            read_runs(target)
    return Setup(
        task,
        training_of(args),
        data=args.data,
        test=args.test,
        output=output,
        seeds=args.seeds,
        held_out=args.held_out,
        matched=matched,
        device=pick_device(args.device),
    )
