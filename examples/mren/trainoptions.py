"""The options of a training run: its command line, and what ``run.json`` keeps of it for ``--resume``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from examples.mren.cli import UsageError, one_line, whole_number
from examples.mren.files import check_regular
from examples.mren.model import STAGES, VARIANTS
from examples.mren.recipes import RECIPES, Recipe

OPTIONS = "options"  # of run.json
_OF_ONE_START = ("output", "resume", "dry_run", "max_minutes")  # and not of the run
_POSITIVE = (
    *("steps", "batch_size", "patch_size", "lr", "held_out", "validate_every", "num_blocks", "minutes", "max_minutes"),
    "accumulate",
)
VALIDATE_EVERY = 500  # steps


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; with ``--resume`` those of the run that are not given again are read.

    Raises:
        UsageError: If there is no run to resume, or an option contradicts it.
        SystemExit: If the command line is malformed.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(argparse.ArgumentParser)
    given = parser.parse_args(argv)
    if given.minutes is not None and given.steps is not None:
        parser.error("argument --minutes: not allowed with argument --steps")
    if not given.resume:
        if given.data is None:
            parser.error("the following arguments are required: --data")
        return _checked(parser, given)
    saved_argv, saved = _read_options(given.output)
    args = parser.parse_args([*saved_argv, *argv])
    for name in _OF_ONE_START:
        setattr(args, name, getattr(given, name))
    if given.steps is not None:
        args.minutes = None
    elif given.minutes is not None:
        args.steps = None
    contradicting = _contradicting(args, saved)
    if contradicting:
        raise UsageError(
            f"{given.output} was begun with {'; '.join(contradicting)}; leave it out to go on with the run, or start "
            "afresh in another folder."
        )
    return _checked(parser, args)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for."""
    shape = {name: getattr(args, name) for name in ("batch_size", "patch_size") if getattr(args, name) is not None}
    recipe = RECIPES[args.recipe]
    stages = [dataclasses.replace(stage, **shape) for stage in recipe.stages]
    if args.lr is not None:
        stages[0] = dataclasses.replace(stages[0], lr=args.lr)
    given = {name: getattr(args, name) for name in ("steps", "ema_decay") if getattr(args, name) is not None}
    return dataclasses.replace(recipe, stages=tuple(stages), **given)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What ``run.json`` keeps of the options, of types that JSON has."""

    def plain(value: Any) -> Any:
        return [plain(each) for each in value] if isinstance(value, list) else _as_text(value)

    return {name: plain(value) for name, value in vars(args).items() if name not in _OF_ONE_START}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _read_options(output: Path) -> tuple[list[str], argparse.Namespace]:
    """The options that a run was begun with, as a command line and parsed."""
    file = output / "run.json"
    if not file.exists():
        raise UsageError(f"{output}: holds no run to resume (no run.json); leave out --resume to start one.")
    parser = _parser(_RaisingParser)
    try:
        check_regular(file)
        options = json.loads(file.read_text(encoding="utf-8"))[OPTIONS]
        unknown = options.keys() - vars(parser.parse_args([])).keys()
        if unknown:
            raise ValueError(f"unknown option {min(unknown)!r}")
        argv = [word for name, value in options.items() for word in _as_argv(name, value)]
        return argv, _checked(parser, parser.parse_args(argv))
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
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={json.dumps(value) if isinstance(value, dict) else value}"]


def _contradicting(args: argparse.Namespace, saved: argparse.Namespace) -> list[str]:
    """The options by which a command line would make another run of the one that was saved.

    Data and initial weights are not among them: what counts is their content, wherever it is.
    """

    def decisive(args: argparse.Namespace) -> dict[str, Any]:
        recipe = recipe_of(args)
        of_the_network = ("scale", "variant", "num_blocks", "config")
        of_the_training = ("recipe", "degrade", "warm_up_new", "held_out", "seed", "precision", "accumulate", "compile")
        values = {name: getattr(args, name) for name in (*of_the_network, *of_the_training, "channels_last")}
        for name in ("batch_size", "patch_size", "lr"):
            values[name] = [getattr(stage, name) for stage in recipe.stages]
        return values | {"ema_decay": recipe.ema_decay or 0}

    before = decisive(saved)
    return [
        f"--{name.replace('_', '-')} {before[name]}, not {value}"
        for name, value in decisive(args).items()
        if value != before[name] and getattr(args, name) != getattr(saved, name)
    ]


class _RaisingParser(argparse.ArgumentParser):
    """For options from a file: an error in them is not a usage error."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(
        prog="python -m examples.mren.train",
        description="Train MREN on a folder of high-resolution images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", help="folders of high-resolution images; required, but with --resume")
    add("-o", "--output", type=Path, default=Path("runs/mren"), help="folder for everything that is written")
    add("--scale", type=int, choices=sorted(STAGES), default=4, help="what the network enlarges by")
    add("--variant", choices=sorted(VARIANTS), default="mren", help="widths of the network")
    add("--num-blocks", type=int, default=6, help="MREBs")
    add(
        "--config",
        type=_json_object,
        default={},
        metavar="JSON",
        help="further arguments of the network",
    )
    add("--recipe", choices=sorted(RECIPES), default="paper", help="how it is trained")
    add("--steps", type=int, help="length of the run instead of the recipe's")
    add(
        "--minutes",
        type=float,
        help="length of the run instead of the recipe's: the schedule is stretched so that it ends on time",
    )
    for field in ("batch-size", "patch-size"):
        add(f"--{field}", type=int, help="instead of the recipe's, in all its stages")
    add("--lr", type=float, help="instead of that of the recipe's first stage")
    add("--ema-decay", type=float, help="instead of the recipe's; 0 for no average of the weights")
    add("--degrade", choices=("photo",), help="JPEG, noise and blur in half of the low-resolution patches")
    add("--init", type=Path, help="weight file to begin from, such as that of another scale")
    add(
        "--warm-up-new",
        type=whole_number(0),
        default=0,
        metavar="STEPS",
        help="steps at the start that train only what --init does not have",
    )
    add("--held-out", type=int, default=10, help="training images kept for validation")
    add("--skip-bad", action=argparse.BooleanOptionalAction, default=False, help="go on without images that are bad")
    add(
        "--validate-every",
        type=int,
        help=f"steps between validations and checkpoints; {VALIDATE_EVERY}, or about a minute if --minutes are given",
    )
    add("--max-minutes", type=float, help="stop after this long, to be resumed")
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
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision")
    for name, meaning in {
        "compile": "torch.compile the blocks of the network",
        "cuda-graph": "replay a step as CUDA graphs",
        "channels-last": "the network's memory format",
        "deterministic": "refuse operations that are not",
        "cpu": "even if there is a GPU",
    }.items():
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=meaning)
    add("--threads", type=whole_number(1, 4096), help="threads of the processor")
    add("--accumulate", type=int, default=1, metavar="PARTS", help="parts that a batch is processed in")
    add("--dry-run", action="store_true", help="read the images, draw one batch, say what there is, stop")
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r}")
    return value


def _checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: must be positive, got {value}")
    if args.patch_size is not None and args.patch_size < args.scale:
        parser.error(f"argument --patch-size: must be at least --scale, {args.scale}, got {args.patch_size}")
    if args.warm_up_new and args.init is None:
        parser.error("argument --warm-up-new: needs --init, which says what is not new")
    if args.ema_decay is not None and not 0 <= args.ema_decay < 1:
        parser.error(f"argument --ema-decay: must be at least 0 and below 1, got {args.ema_decay}")
    if args.validate_every is None and args.minutes is None:
        args.validate_every = VALIDATE_EVERY  # by steps, not by the clock: the choice of the best must be reproducible
    return args
