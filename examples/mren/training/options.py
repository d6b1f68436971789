"""Command-line options of training, and their storage in ``run.json`` for ``--resume``."""

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

from examples.mren.arguments import number, path_name, positive_number, whole_number
from examples.mren.files import check_regular
from examples.mren.messages import UsageError, one_line
from examples.mren.model import STAGES, VARIANTS
from examples.mren.options import scale_factor
from examples.mren.training.recipes import LOSSES, PRECISIONS, RECIPES, Training

OPTIONS = "options"  # of run.json
_PER_INVOCATION = ("output", "resume", "dry_run", "max_minutes")  # not part of the run
VALIDATE_EVERY = 500  # steps
HELD_OUT = 10  # images


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; with ``--resume``, options that are not given are those of the run.

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
            f"{given.output} was started with {'; '.join(contradicting)}; leave it out to resume the run, or start "
            "afresh in another folder."
        )
    return checked(parser, args)


def configure_torch(args: argparse.Namespace, *, same_shapes: bool = False) -> None:
    """Set the number of threads and determinism, once, before any work.

    Args:
        args: The values of the options.
        same_shapes: Whether the shapes of the run do not change, so that cuDNN may time its algorithms for them.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = same_shapes and not args.deterministic


def training_of(args: argparse.Namespace) -> Training:
    """The :class:`Training` that the options describe."""
    return Training(**{each.name: getattr(args, each.name) for each in dataclasses.fields(Training)})


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that ``run.json`` stores; JSON-serialisable."""
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
    if isinstance(value, list):  # of folders; a name that starts with a dash would be taken for an option
        return [f"--{option}", *(f"./{each}" if str(each).startswith("-") else str(each) for each in value)]
    return [f"--{option}={json.dumps(value) if isinstance(value, dict) else value}"]


def _contradicting(args: argparse.Namespace, saved: argparse.Namespace, settings: Mapping[str, Any]) -> list[str]:
    """The options in which a command line contradicts a saved run.

    Data and initial weights are not among them: their contents count, wherever they are.
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
    for name in stages:  # the recipe may have changed since
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
    """Add the options of every command that trains, for :func:`training_of` and :func:`configure_torch`."""
    add = parser.add_argument
    add("--recipe", choices=sorted(RECIPES), help="training recipe")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole_number(1), help="number of training steps, instead of the recipe's")
    length.add_argument("--minutes", type=positive_number, help="training time instead of a number of steps")
    add("--batch-size", type=whole_number(1), help="patches per step, instead of the recipe's, in all stages")
    add("--patch-size", type=whole_number(1), help="side of the high-resolution patches, likewise")
    add("--lr", type=_learning_rate, help="learning rate of the first stage, instead of the recipe's")
    add("--loss", choices=tuple(LOSSES), help="loss, likewise; l1+fft is L1 plus 0.05 times the L1 of the spectrum")
    add(
        "--ema-decay",
        type=number(lambda value: 0 <= value < 1, "at least 0 and below 1"),
        help="decay of the exponential moving average (EMA) of the weights, instead of the recipe's; 0 for no EMA",
    )
    add("--init", type=path_name, help="weight file to start from, such as that of another scale")
    add(
        "--warm-up-new",
        type=whole_number(0),
        default=0,
        metavar="STEPS",
        help="number of initial steps that train only the parameters missing in --init",
    )
    add("--textured", action=argparse.BooleanOptionalAction, default=False, help="prefer patches with more texture")
    add("--precision", choices=tuple(PRECISIONS), default="no", help="mixed precision")
    for name, meaning in {
        "compile": "compile the blocks of the network with torch.compile",
        "cuda-graph": "replay forward and backward as CUDA graphs",
        "channels-last": "use the channels_last memory format",
        "deterministic": "use only deterministic operations",
    }.items():
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=meaning)
    about = "accumulate the gradients of each batch over PARTS parts"
    add("--accumulate", type=whole_number(1), default=1, metavar="PARTS", help=about)
    add("--threads", type=whole_number(1, 4096), help="number of CPU threads")
    add("--max-minutes", type=positive_number, default=math.inf, help="stop with a checkpoint after this many minutes")


def _parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(
        prog="python -m examples.mren.train",
        description="Train MREN on a folder of high-resolution images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=path_name, nargs="+", help="folders of high-resolution images; required without --resume")
    add("-o", "--output", type=path_name, default=Path("runs/mren"), help="output folder")
    add("--scale", type=scale_factor, choices=tuple(STAGES), default=4, help="upscaling factor")
    add("--variant", choices=tuple(VARIANTS), default="mren", help="network variant")
    add("--num-blocks", type=whole_number(1), default=6, help="number of MREBs")
    add("--config", type=json_object, default={}, metavar="JSON", help="further arguments of the network")
    add_training_options(parser)
    parser.set_defaults(recipe="paper")
    add("--degrade", choices=("photo",), help="degrade half of the low-resolution patches: JPEG, noise and blur")
    validation = parser.add_mutually_exclusive_group()
    about = f"training images held out for validation; {HELD_OUT} if not given"
    validation.add_argument("--held-out", type=whole_number(1), metavar="N", help=about)
    validation.add_argument(
        "--val-data", type=path_name, nargs="+", help="folders of high-resolution images to validate on instead"
    )
    add("--skip-bad", action=argparse.BooleanOptionalAction, default=False, help="skip unreadable and too small images")
    add(
        "--validate-every",
        type=whole_number(1),
        help=f"steps between validations and checkpoints; if not given, {VALIDATE_EVERY}, or a minute with --minutes",
    )
    add(
        "--resume",
        action="store_true",
        help="resume the run in the output folder; its options need not be repeated, and --steps or --minutes may "
        "extend it",
    )
    add(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="random seed",
    )
    add("--cpu", action=argparse.BooleanOptionalAction, default=False, help="train on the CPU even if there is a GPU")
    add("--dry-run", action="store_true", help="read the images, draw one batch, print a summary, then exit")
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
    """An argparse type: a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r}")
    return value


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Return the options; those of :func:`add_training_options` that contradict each other are a usage error."""
    if args.patch_size is not None and args.patch_size < args.scale:
        parser.error(f"argument --patch-size: must be at least --scale, {args.scale}, got {args.patch_size}")
    if args.warm_up_new and args.init is None:
        parser.error("argument --warm-up-new: needs --init, which tells which parameters are new")
    return args
