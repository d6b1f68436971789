"""The options of every command that compares."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import torch

from examples.compare.runner import Setup
from examples.compare.tasks import Task
from examples.compare.training import TYPES, Training
from examples.mren.cli import UsageError, positive_number, whole_number
from examples.mren.model import DEVICES, pick_device
from examples.mren.recipes import RECIPES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that compares; their values go to :func:`setup_from`."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of images to train on")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="folders of images to score on")
    parser.add_argument("--seeds", type=whole_number(1), default=3, help="runs of each row")
    parser.add_argument("--held-out", type=whole_number(0), default=0, help="images of --data to score on instead")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="short")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole_number(1), help="instead of the recipe's")
    length.add_argument(
        "--minutes", type=positive_number, help="train all rows for this long, instead of for equal steps"
    )
    parser.add_argument("--batch-size", type=whole_number(1), help="instead of the recipe's, in all its stages")
    parser.add_argument("--patch-size", type=whole_number(1), help="of the clean patches, likewise")
    parser.add_argument("--lr", type=positive_number, help="instead of that of the recipe's first stage")
    parser.add_argument("--ema-decay", type=float, help="instead of the recipe's; 0 for no average of the weights")
    parser.add_argument("--init", type=Path, help="weight file to begin all rows from")
    parser.add_argument(
        "--warm-up-new",
        type=whole_number(0),
        default=0,
        metavar="STEPS",
        help="steps that train only what --init lacks",
    )
    parser.add_argument("--precision", choices=tuple(TYPES), default="no", help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--cuda-graph", action="store_true", help="with --compile: replay steps as CUDA graphs")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--accumulate", type=whole_number(1), default=1, metavar="PARTS", help="parts in which a batch is processed"
    )
    parser.add_argument("--deterministic", action="store_true", help="refuse operations that are not deterministic")
    parser.add_argument("--threads", type=whole_number(1), help="threads of the processor")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--cpu", action="store_const", const="cpu", dest="device", help="the same as --device cpu")
    parser.add_argument(
        "--max-minutes", type=positive_number, default=math.inf, help="stop after this long, to go on later"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/compare"), help="folder for runs and tables")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, stop")


def setup_from(args: argparse.Namespace, task: Task, output: Path, *, matched: str = "") -> Setup:
    """What the options say that all rows share; threads and determinism are set."""
    if args.ema_decay is not None and not 0 <= args.ema_decay < 1:
        raise UsageError(f"--ema-decay: must be at least 0 and below 1, got {args.ema_decay}.")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(args.deterministic)
    training = {each.name: getattr(args, each.name) for each in dataclasses.fields(Training)}
    return Setup(
        task,
        Training(**training),
        data=args.data,
        test=args.test,
        output=output,
        seeds=args.seeds,
        held_out=args.held_out,
        matched=matched,
        device=pick_device(args.device),
    )
