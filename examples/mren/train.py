"""Train MREN on a folder of high-resolution images.

    python -m examples.mren.train --data FOLDER --scale 4 --recipe short -o runs/x4
    python -m examples.mren.train --resume -o runs/x4
    python -m examples.mren.train --resume --steps 20000 -o runs/x4

The first writes into the output folder: ``mren_x4.safetensors``, the weights of the best validation; ``log.csv``, a row
for each validation; ``run.json``, the options and settings; and ``checkpoints/``. The second goes on from the newest
checkpoint as if the run had never stopped. The third gives it another length, whether it was finished or not: the
schedule is laid over all 20,000 steps, and the learning rate goes on from where it is in such a run.
Under ``accelerate launch`` several processes share each batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from examples.mren.cli import UsageError, check_target, fail, note, run_command
from examples.mren.data import ImagePair, list_images, load_pairs, split_held_out
from examples.mren.degradation import degrade, draw_degradation, make_generator
from examples.mren.metrics import smallest_scored
from examples.mren.model import MREN, VARIANTS, save_weights
from examples.mren.training.checkpoint import checkpoints
from examples.mren.training.options import HELD_OUT, OPTIONS, VALIDATE_EVERY, options_of, parse, training_of
from examples.mren.training.patches import PatchSampler
from examples.mren.training.recipes import Stage
from examples.mren.training.trainer import Trainer, check_settings
from examples.mren.training.warmstart import warm_start
from examples.mren.weightfile import check_arguments
from examples.records import read_json, read_rows, write_json

FEW_IMAGES = 20  # of which a network learns little; the field trains on hundreds


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the network.

    Raises:
        UsageError: If no network can be built of them, or a weight file could not hold them.
    """
    if "scale" in args.config:
        raise UsageError("--config: the scale is that of --scale; leave it out.")
    config = {"scale": args.scale, **VARIANTS[args.variant], "num_blocks": args.num_blocks, **args.config}
    try:
        check_arguments(config)
        MREN(**config, device="meta")
    except (ValueError, TypeError) as error:
        raise UsageError(f"--config: {error}") from error
    return config


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
    """Raise if the output folder holds something that this run would replace, or takes no files."""
    check_target(args.output / "run.json", overwrite=True)
    there = [_weights_file(args), args.output / "log.csv", args.output / "run.json"]
    for path in [*checkpoints(args.output), *(file for file in there if file.exists())]:
        raise UsageError(
            f"{args.output} holds a run already ({path.name}); add --resume to go on with it, or choose another folder."
        )


def _load_images(
    args: argparse.Namespace, patch_size: int, *, is_main_process: bool
) -> tuple[list[ImagePair], list[ImagePair]]:
    """Images to train on and to validate on. All bad images are named before anything else is done."""
    val_folders = args.val_data or []
    files = list_images(*args.data, *val_folders)  # of all at once, so that none is given twice
    val_files = files[len(files) - len(list_images(*val_folders)) :]
    problems: list[str] = []
    scored = smallest_scored(args.scale)
    to_validate = load_pairs(val_files, args.scale, min_size=scored, on_bad=problems.append)
    # Any image may be held out and scored, which needs more pixels than a small patch.
    least = patch_size if val_folders else max(patch_size, scored)
    pairs = load_pairs(files[: len(files) - len(val_files)], args.scale, min_size=least, on_bad=problems.append)
    for problem in sorted(problems) if is_main_process else []:
        if args.skip_bad:
            note(f"skipped: {problem}")
        else:
            fail(problem)
    if problems and not args.skip_bad:
        raise ValueError(
            f"{len(problems)} of {len(files)} images cannot be trained on; repair or remove them, or go on "
            "without them by --skip-bad."
        )
    to_train, remain, fewer = pairs, "", ""
    if not val_folders:
        held_out = args.held_out or HELD_OUT
        to_train, to_validate = split_held_out(pairs, held_out)
        remain = f" of {len(pairs)} images remain to train on after --held-out {held_out}"
        fewer = "; a smaller --held-out leaves more" * (len(to_validate) > len(to_train))
    elif not pairs or not to_validate:
        raise ValueError(f"--{'data' if not pairs else 'val-data'}: no images remain; give a folder of others.")
    if len(to_train) < FEW_IMAGES and is_main_process:
        remain = remain or " images are there to train on"
        note(f"{len(to_train)}{remain}, and a network learns little from so few{fewer}.")
    return to_train, to_validate


def _without_flat(pairs: list[ImagePair], *, is_main_process: bool) -> list[ImagePair]:
    """Images to validate on that have several colours: a flat one can come out exact, with infinite PSNR."""
    kept = [pair for pair in pairs if (pair.hr != pair.hr[:, :1, :1]).any()]
    if not kept:
        raise ValueError(
            f"all {len(pairs)} images to validate on are of one colour; choose another --held-out or --val-data."
        )
    if len(kept) < len(pairs) and is_main_process:
        note(f"{len(pairs) - len(kept)} of {len(pairs)} images to validate on are of one colour, and left out.")
    return kept


def _degraded(pairs: list[ImagePair]) -> list[ImagePair]:
    """Images to validate on, each degraded in a way of its own, the same in all runs."""
    degraded: list[ImagePair] = []
    for number, pair in enumerate(pairs):
        generator = make_generator(number)
        degraded.append(dataclasses.replace(pair, lr=degrade(pair.lr, draw_degradation(generator), generator)))
    return degraded


def _fingerprint(pairs: list[ImagePair]) -> int:
    """A checksum of the names and the contents of images."""
    checksum = 0
    for pair in pairs:
        checksum = zlib.crc32(pair.lr.numpy().tobytes(), zlib.crc32(os.fsencode(pair.path.name), checksum))
    return checksum


def _announce(args: argparse.Namespace, trainer: Trainer, first: Stage, *, images: int, validated: int) -> None:
    """Print what is about to be trained, from which weights, and for how long."""
    say, untouched = trainer.accelerator.print, trainer.untouched
    if args.init is not None:
        listed = ", ".join(untouched[:3]) + f" and {len(untouched) - 3} more" * (len(untouched) > 3)
        say(f"begun from {args.init}" + f"; nothing there for {listed}" * bool(untouched))
        if args.warm_up_new and not untouched:
            say("--warm-up-new changes nothing: the weights begun from have every parameter")
    side = first.patch_size // args.scale
    if args.patch_size not in (None, first.patch_size):
        say(f"--patch-size {args.patch_size}: is no multiple of the scale; patches are {first.patch_size} wide")
    length = f"{trainer.steps} steps" if args.minutes is None else f"{args.minutes:g} minutes"
    say(
        f"{images} images to train on, {validated} to validate on; {length} of {first.batch_size} patches, "
        f"{first.patch_size} x {first.patch_size} from {side} x {side}; device {trainer.device}, mixed precision "
        f"{args.precision}"
    )


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep a second training out of the output folder."""
    folder = output / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{output}: another training writes there; wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()


def _resume(args: argparse.Namespace, trainer: Trainer, settings: Mapping[str, Any]) -> int:
    """Go back to the newest checkpoint, if it is of a run of these settings; returns its step."""
    same = {name: value for name, value in settings.items() if name not in ("steps", "minutes")}
    check_settings(args.output, read_json(args.output / "run.json"), same)
    log = args.output / "log.csv"
    # One validation may have been cut off before its checkpoint.
    if not checkpoints(args.output) and log.exists() and len(read_rows(log)) > 1:
        raise UsageError(
            f"{args.output}: its checkpoints are gone, and to begin again would replace its weights; go on "
            f"from these in another folder, by --init {_weights_file(args)}."
        )
    return trainer.resume()


def _weights_file(args: argparse.Namespace) -> Path:
    return args.output / f"{args.variant}_x{args.scale}.safetensors"


def train(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    started = time.monotonic()
    torch.backends.cudnn.benchmark = not args.deterministic  # the shapes of a training do not change
    if not args.resume:
        _check_output(args)
    training, config = training_of(args), _config(args)
    first, *others = training.plan(1, args.scale).stages
    accelerator = Accelerator(cpu=args.cpu)
    largest = max(stage.patch_size for stage in (first, *others))
    to_train, to_validate = _load_images(args, largest, is_main_process=accelerator.is_main_process)
    # What decides the numbers of a run; a checkpoint of other settings, but for its length, is refused.
    settings = {
        **config,
        **training.settings(len(to_train), args.scale),
        "seed": args.seed,
        "images": len(to_train),
        "held_out": len(to_validate),
        "files": _fingerprint(to_train + to_validate),
        "processes": accelerator.num_processes,
        "degrade": args.degrade,
    }
    torch.manual_seed(args.seed)
    net = MREN(**config)
    net.init_weights()
    untouched = [] if args.init is None else warm_start(net, args.init)
    sampler = PatchSampler(
        to_train,
        args.scale,
        patch_size=first.patch_size,
        batch_size=first.batch_size,
        seed=args.seed,
        device=accelerator.device,
        degrade=args.degrade is not None,
        textured=args.textured,
    )
    del to_train  # the sampler has a copy
    validated = _without_flat(to_validate, is_main_process=accelerator.is_main_process)
    held_out = {"psnr": validated}
    if args.degrade:
        held_out = {"psnr_clean": validated, "psnr_degraded": _degraded(validated)}
    file = _weights_file(args)
    trainer = Trainer(
        net,
        training,
        sampler,
        args.output,
        label=f"{args.variant} x{args.scale}",
        accelerator=accelerator,
        untouched=untouched,
        held_out=held_out,
        keep=lambda net: save_weights(net, file, config, degrade=args.degrade),
    )
    _announce(args, trainer, first, images=settings["images"], validated=len(validated))
    if args.dry_run:
        low, high = sampler.batch(0)
        accelerator.print(f"first batch: low resolution {tuple(low.shape)}, high resolution {tuple(high.shape)}")
        return 0
    with _locked(args.output) if accelerator.is_main_process else nullcontext():
        if args.resume:
            accelerator.print(f"resumed at step {_resume(args, trainer, settings)}")
        elif accelerator.is_main_process:
            _check_output(args)  # again: another training may have ended since
        if accelerator.is_main_process:
            about = {"recipe": args.recipe, "torch": torch.__version__, OPTIONS: options_of(args)}
            write_json(args.output / "run.json", settings | about)
        if args.init is not None and trainer.progress.step == 0:
            accelerator.print(f"before the first step, held-out images have {trainer.validate_start():.2f} dB")
        validate_every = args.validate_every
        if validate_every is None and args.minutes is None:
            validate_every = VALIDATE_EVERY  # by steps, not by the clock: the choice of the best must be reproducible
        with _stopping_in_good_order(trainer) as received:
            stop_at = started + 60 * args.max_minutes
            progress = trainer.run(validate_every=validate_every, stop_at=stop_at, started=started)
    if received or progress.fraction < 1:
        accelerator.print(f"stopped at step {progress.step}; --resume -o {args.output} goes on from there.")
    if received:
        return 128 + received[0]
    if progress.history:  # weights are written by validations alone
        accelerator.print(
            f"step {progress.step} of {trainer.steps or 'some'}, {progress.seconds / 60:.1f} minutes, best validation "
            f"{progress.best_psnr:.2f} dB; weights in {args.output}"
        )
    accelerator.print(trainer.timing.describe(first.batch_size))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(train, parse, argv)


if __name__ == "__main__":
    sys.exit(main())
