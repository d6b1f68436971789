"""Train MREN on a folder of high-resolution images.

    python -m examples.mren.train --data FOLDER --scale 4 --recipe short -o runs/x4

writes into the output folder: ``mren_x4.safetensors``, the weights of the best validation; ``log.csv``, a row for each
validation; ``run.json``, the settings; and ``checkpoints/``, from which ``--resume`` goes on as if the run had never
stopped. Under ``accelerate launch`` several processes share each batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from examples.mren.checkpoint import checkpoints
from examples.mren.cli import UsageError, run_command
from examples.mren.data import list_images, load_pairs, split_held_out
from examples.mren.files import write_text
from examples.mren.model import MREN, STAGES, VARIANTS
from examples.mren.recipes import RECIPES, Recipe
from examples.mren.trainer import Trainer


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.mren.train",
        description="Train MREN on a folder of high-resolution images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of high-resolution images")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("runs/mren"), help="folder for everything that is written"
    )
    parser.add_argument("--scale", type=int, choices=sorted(STAGES), default=4)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="mren")
    parser.add_argument("--num-blocks", type=int, default=6, help="MREBs")
    parser.add_argument(
        "--config",
        type=_json_object,
        default={},
        metavar="JSON",
        help="""further arguments of the network, such as '{"exchange": null}'""",
    )
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="paper")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    for field in ("batch-size", "patch-size"):
        parser.add_argument(f"--{field}", type=int, help="instead of the recipe's, in all its stages")
    parser.add_argument("--lr", type=float, help="instead of that of the recipe's first stage")
    parser.add_argument(
        "--minutes",
        type=float,
        help="length of the run instead of the recipe's: the schedule is stretched so that it ends on time",
    )
    parser.add_argument("--ema-decay", type=float, help="instead of the recipe's; 0 for no average of the weights")
    parser.add_argument(
        "--degrade", choices=("photo",), help="JPEG, noise and blur in half of the low-resolution patches"
    )
    parser.add_argument("--init", type=Path, help="weight file to begin from, such as that of another scale")
    parser.add_argument(
        "--warm-up-new",
        type=int,
        default=0,
        metavar="STEPS",
        help="steps at the start that train only what --init does not have",
    )
    parser.add_argument("--held-out", type=int, default=10, help="training images kept for validation")
    parser.add_argument(
        "--validate-every",
        type=int,
        help="steps between validations and checkpoints; 500, or about a minute of a run of given --minutes",
    )
    parser.add_argument("--max-minutes", type=float, help="stop after this long, to be resumed")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks of the network")
    parser.add_argument("--cuda-graph", action="store_true", help="replay a step as CUDA graphs")
    parser.add_argument("--threads", type=int, help="threads of the processor")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument(
        "--accumulate", type=int, default=1, metavar="PARTS", help="parts that a batch is worked off in"
    )
    parser.add_argument("--deterministic", action="store_true", help="refuse operations that are not")
    parser.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    parser.add_argument(
        "--dry-run", action="store_true", help="read the images, draw one batch, say what there is, stop"
    )
    args = parser.parse_args(argv)
    for name in (
        "steps",
        "batch_size",
        "patch_size",
        "lr",
        "held_out",
        "validate_every",
        "num_blocks",
        "minutes",
        "max_minutes",
        "accumulate",
        "threads",
    ):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"argument --{name.replace('_', '-')}: must be positive, got {value}")
    if args.validate_every is None and args.minutes is None:
        args.validate_every = 500  # by steps, not by the clock: what is chosen as the best must repeat
    if args.warm_up_new < 0:
        parser.error(f"argument --warm-up-new: must be 0 or more, got {args.warm_up_new}")
    if args.ema_decay is not None and not 0 <= args.ema_decay < 1:
        parser.error(f"argument --ema-decay: must be at least 0 and below 1, got {args.ema_decay}")
    return args


def _recipe(args: argparse.Namespace) -> Recipe:
    shape = {name: getattr(args, name) for name in ("batch_size", "patch_size") if getattr(args, name) is not None}
    recipe = RECIPES[args.recipe]
    stages = [dataclasses.replace(stage, **shape) for stage in recipe.stages]
    if args.lr is not None:
        stages[0] = dataclasses.replace(stages[0], lr=args.lr)
    given = {name: getattr(args, name) for name in ("steps", "ema_decay") if getattr(args, name) is not None}
    return dataclasses.replace(recipe, stages=tuple(stages), **given)


def _check(config: dict[str, Any]) -> None:
    """Before anything is read: would the network be built?"""
    try:
        MREN(**config, device="meta")
    except TypeError as error:
        raise ValueError(f"--config: {error}") from error


@contextmanager
def _stopping_in_good_order(trainer: Trainer) -> Iterator[list[int]]:
    """Let signals end a run with a checkpoint; yields the list of those received. A second signal ends it at once.

    Machines that can be taken back, and schedulers whose time is up, send SIGTERM.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield received
        return

    def stop(number: int, _: object) -> None:
        received.append(number)
        trainer.interrupt()
        signal.signal(number, before[number])

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {number: signal.getsignal(number) for number in (getattr(signal, n) for n in names if hasattr(signal, n))}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_output(args: argparse.Namespace) -> None:
    """Raise if the output folder holds something that this run would replace."""
    there = [args.output / name for name in (f"{args.variant}_x{args.scale}.safetensors", "log.csv", "run.json")]
    for path in [*checkpoints(args.output), *(file for file in there if file.exists())]:
        raise UsageError(
            f"{args.output} holds a run already ({path.name}); add --resume to go on with it, or choose another folder."
        )


def train(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    started = time.monotonic()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = not args.deterministic  # the shapes of a training do not change
    if not args.resume:
        _check_output(args)
    recipe = _recipe(args)
    torch.use_deterministic_algorithms(args.deterministic)
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.precision,
        gradient_accumulation_steps=args.accumulate,
    )
    config = {"scale": args.scale, **VARIANTS[args.variant], "num_blocks": args.num_blocks, **args.config}
    _check(config)
    files = [path for folder in args.data for path in list_images(folder)]
    to_train, to_validate = split_held_out(files, args.held_out)
    first = recipe.stages[0]
    patch_size = max(stage.patch_size for stage in recipe.stages) // args.scale * args.scale
    # Of held-out images as well: what can be trained on can be scored, which takes 11 pixels and the border.
    min_size = max(patch_size, 11 + 2 * args.scale)
    train_pairs = load_pairs(to_train, args.scale, min_size=min_size)
    trainer = Trainer(
        config,
        recipe,
        train_pairs,
        load_pairs(to_validate, args.scale, min_size=min_size),
        args.output,
        accelerator=accelerator,
        variant=args.variant,
        seed=args.seed,
        minutes=args.minutes,
        channels_last=args.channels_last,
        compile=args.compile,
        cuda_graph=args.cuda_graph,
        degrade=args.degrade == "photo",
        init=args.init,
        warm_up_new=args.warm_up_new,
    )
    if trainer.untouched is not None:
        afresh = trainer.untouched
        listed = ", ".join(afresh[:3]) + f" and {len(afresh) - 3} more" * (len(afresh) > 3)
        accelerator.print(f"begun from {args.init}; nothing there for {listed or 'no parameter'}")
    side = first.patch_size // args.scale
    size = f"{side * args.scale} x {side * args.scale}"
    length = f"{trainer.steps} steps" if args.minutes is None else f"{args.minutes:g} minutes"
    accelerator.print(
        f"{len(to_train)} images to train on, {len(to_validate)} to validate on; {length} of {first.batch_size} "
        f"patches, {size} from {side} x {side}; device {accelerator.device}, mixed precision "
        f"{args.precision}"
    )
    if args.dry_run:
        low, high = trainer.sampler.batch(0)
        accelerator.print(f"first batch: low resolution {tuple(low.shape)}, high resolution {tuple(high.shape)}")
        return 0
    (args.output / "checkpoints").mkdir(parents=True, exist_ok=True)
    lock = FileLock(args.output / "checkpoints" / ".lock")
    if accelerator.is_main_process:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"{args.output}: another training writes there; wait for it, or choose another folder."
            ) from None
    try:
        if args.resume:
            accelerator.print(f"resumed at step {trainer.resume()}")
        if accelerator.is_main_process:
            settings = trainer.progress.settings | {"recipe": args.recipe, "torch": torch.__version__}
            write_text(args.output / "run.json", json.dumps(settings, indent=2) + "\n")
        with _stopping_in_good_order(trainer) as received:
            progress = trainer.run(validate_every=args.validate_every, max_minutes=args.max_minutes, started=started)
    finally:
        lock.release()
    if received:
        accelerator.print(f"stopped at step {progress.step}; the same command with --resume goes on from there.")
        return 128 + received[0]
    accelerator.print(
        f"step {progress.step} of {trainer.steps or 'some'}, {progress.seconds / 60:.1f} minutes, best validation "
        f"{progress.best_psnr:.2f} dB; weights in {args.output}"
    )
    accelerator.print(trainer.timing.describe(first.batch_size))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(train, _parse, argv)


if __name__ == "__main__":
    sys.exit(main())
