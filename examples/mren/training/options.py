"""The options of every command that trains, and what ``run.json`` keeps of those of a run for ``--resume``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from examples.mren.cli import UsageError, number, one_line, path_name, positive_number, whole_number
from examples.mren.files import check_regular
from examples.mren.model import STAGES, VARIANTS
from examples.mren.options import scale_factor
from examples.mren.training.recipes import LOSSES, PRECISIONS, RECIPES, Training

OPTIONS = "options"  # of run.json
_PER_INVOCATION = ("output", "resume", "dry_run", "max_minutes")  # and not of the run
VALIDATE_EVERY = 500  # steps
HELD_OUT = 10  # images


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; with ``--resume`` those of the run that are not given again are read.

    Raises:
        UsageError: If there is no run to resume, or an option contradicts it.
        SystemExit: If the command line is malformed.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(argparse.ArgumentParser)
    given = parser.parse_args(argv)
    if not given.resume:
        if given.data is None:
            parser.error("the following arguments are required: --data")
        return checked(parser, given)
    another_length = given.steps is not None or given.minutes is not None
    without = ("steps", "minutes") if another_length else ()
    saved_argv, saved, settings = _read_options(given.output, without=without)
    args = parser.parse_args([*saved_argv, *argv])
    for name in _PER_INVOCATION:
        setattr(args, name, getattr(given, name))
    contradicting = _contradicting(args, saved, settings)
    if contradicting:
        raise UsageError(
            f"{given.output} was begun with {'; '.join(contradicting)}; leave it out to go on with the run, or start "
            "afresh in another folder."
        )
    return checked(parser, args)


def training_of(args: argparse.Namespace) -> Training:
    """How the options say that networks are trained; threads and determinism are set."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(args.deterministic)
    return Training(**{each.name: getattr(args, each.name) for each in dataclasses.fields(Training)})


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What ``run.json`` keeps of the options, of types that JSON has."""
    options = {name: value for name, value in vars(args).items() if name not in _PER_INVOCATION}
    return json.loads(json.dumps(options, default=str))  # paths become text


def _read_options(output: Path, *, without: Collection[str]) -> tuple[list[str], argparse.Namespace, Mapping[str, Any]]:
    """The options that a run was started with, except some, as a command line and parsed; and its settings."""
    file = output / "run.json"
    if not file.exists():
        raise UsageError(f"{output}: holds no run to resume (no run.json); leave out --resume to start one.")
    parser = _parser(_RaisingParser)
    try:
        check_regular(file)
        settings = json.loads(file.read_text(encoding="utf-8"))
        options = settings[OPTIONS]
        unknown = options.keys() - vars(parser.parse_args([])).keys()
        if unknown:
            raise ValueError(f"unknown option {min(unknown)!r}")
        words = {name: _as_argv(name, value) for name, value in options.items() if name not in without}
        argv = [word for each in words.values() for word in each]
        return argv, checked(parser, parser.parse_args(argv)), settings
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file}: does not hold the options of a run ({one_line(error)[:200]}); start afresh in another folder."
        ) from error


def _as_argv(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):  # of folders; one whose name begins with a dash would be an option
        return [f"--{option}", *(f"./{each}" if str(each).startswith("-") else str(each) for each in value)]
    return [f"--{option}={json.dumps(value) if isinstance(value, dict) else value}"]


def _contradicting(args: argparse.Namespace, saved: argparse.Namespace, settings: Mapping[str, Any]) -> list[str]:
    """The options by which a command line would make another run of the one that was saved.

    Data and initial weights are not among them: what counts is their content, wherever it is.
    """
    names = ("scale", "variant", "num_blocks", "config", "recipe", "degrade", "warm_up_new", "held_out", "seed")
    names += ("precision", "accumulate", "compile", "channels_last", "textured")
    stages = ("batch_size", "patch_size", "lr", "loss")

    def decisive(args: argparse.Namespace) -> dict[str, Any]:
        recipe = training_of(args).plan(1, args.scale)
        values = {name: getattr(args, name) for name in names}
        for name in stages:
            values[name] = [getattr(stage, name) for stage in recipe.stages]
        return values | {"ema_decay": recipe.ema_decay or 0}

    before = decisive(saved)
    for name in stages:  # the recipe may be another one by now
        before[name] = settings.get(name, before[name])
    return [
        f"--{name.replace('_', '-')} {before[name]}, not {value}"
        for name, value in decisive(args).items()
        if value != before[name] and getattr(args, name) != getattr(saved, name)
    ]


class _RaisingParser(argparse.ArgumentParser):
    """For options from a file: an error in them is not a usage error."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that trains; their values go to :func:`training_of`."""
    add = parser.add_argument
    add("--recipe", choices=sorted(RECIPES), help="how networks are trained")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole_number(1), help="length instead of the recipe's")
    length.add_argument("--minutes", type=positive_number, help="the same by the clock: the schedule ends on time")
    add("--batch-size", type=whole_number(1), help="instead of the recipe's, in all its stages")
    add("--patch-size", type=whole_number(1), help="of the high-resolution patches, likewise")
    add("--lr", type=_learning_rate, help="learning rate instead of that of the recipe's first stage")
    add("--loss", choices=tuple(LOSSES), help="likewise; l1+fft is L1 plus 0.05 times the L1 of the spectrum")
    add(
        "--ema-decay",
        type=number(lambda value: 0 <= value < 1, "at least 0 and below 1"),
        help="instead of the recipe's; 0 for no exponential moving average (EMA) of the weights",
    )
    add("--init", type=path_name, help="weight file to begin from, such as that of another scale")
    add(
        "--warm-up-new",
        type=whole_number(0),
        default=0,
        metavar="STEPS",
        help="steps at the start that train only what --init does not have",
    )
    add("--textured", action=argparse.BooleanOptionalAction, default=False, help="prefer patches with much texture")
    add("--precision", choices=tuple(PRECISIONS), default="no", help="mixed precision")
    for name, meaning in {
        "compile": "torch.compile the blocks of the network",
        "cuda-graph": "replay a step as CUDA graphs",
        "channels-last": "the network's memory format",
        "deterministic": "refuse operations that are not",
    }.items():
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=meaning)
    add("--accumulate", type=whole_number(1), default=1, metavar="PARTS", help="parts that a batch is processed in")
    add("--threads", type=whole_number(1, 4096), help="threads of the processor")
    add("--max-minutes", type=positive_number, default=math.inf, help="stop after this long, to be resumed")


def _parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(
        prog="python -m examples.mren.train",
        description="Train MREN on a folder of high-resolution images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=path_name, nargs="+", help="folders of high-resolution images; required, but with --resume")
    add("-o", "--output", type=path_name, default=Path("runs/mren"), help="folder for everything that is written")
    add("--scale", type=scale_factor, choices=tuple(STAGES), default=4, help="what the network enlarges by")
    add("--variant", choices=tuple(VARIANTS), default="mren", help="widths of the network")
    add("--num-blocks", type=whole_number(1), default=6, help="MREBs")
    add("--config", type=json_object, default={}, metavar="JSON", help="further arguments of the network")
    add_training_options(parser)
    parser.set_defaults(recipe="paper")
    add("--degrade", choices=("photo",), help="JPEG, noise and blur in half of the low-resolution patches")
    validation = parser.add_mutually_exclusive_group()
    about = f"training images kept for validation; {HELD_OUT}, if left out"
    validation.add_argument("--held-out", type=whole_number(1), metavar="N", help=about)
    validation.add_argument(
        "--val-data", type=path_name, nargs="+", help="folders of high-resolution images to validate on instead"
    )
    add("--skip-bad", action=argparse.BooleanOptionalAction, default=False, help="go on without images that are bad")
    add(
        "--validate-every",
        type=whole_number(1),
        help=f"steps between validations and checkpoints; {VALIDATE_EVERY}, or about a minute if --minutes are given",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in the output folder; its options need not be repeated, --steps or --minutes may "
        "make it longer",
    )
    add(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of the initial weights and of everything that is drawn",
    )
    add("--cpu", action=argparse.BooleanOptionalAction, default=False, help="even if there is a GPU")
    add("--dry-run", action="store_true", help="read the images, draw one batch, say what there is, stop")
    return parser


def _learning_rate(text: str) -> float:
    try:
        return positive_number(text)
    except argparse.ArgumentTypeError as error:
        if not Path(text).is_dir():
            raise
        hint = "this is the learning rate; low-resolution images are made by the command (for pairs of your own see"
        raise argparse.ArgumentTypeError(f"{error}; {hint} docs/how-to/frameworks.md)") from None


def json_object(text: str) -> dict[str, Any]:
    """A parser's type: a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r}")
    return value


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """The options, unless those of :func:`add_training_options` contradict each other, which ends the process."""
    if args.patch_size is not None and args.patch_size < args.scale:
        parser.error(f"argument --patch-size: must be at least --scale, {args.scale}, got {args.patch_size}")
    if args.warm_up_new and args.init is None:
        parser.error("argument --warm-up-new: needs --init, which says what is not new")
    return args
