"""Train MREN on a folder of high-resolution images.

    python -m examples.mren.train --data FOLDER --scale 4 --recipe short -o runs/x4
    python -m examples.mren.train --resume -o runs/x4
    python -m examples.mren.train --resume --steps 20000 -o runs/x4

The first writes into the output folder: ``mren_x4.safetensors``, the weights of the best validation; ``log.csv``, a row
for each validation; ``run.json``, the options and settings; and ``checkpoints/``. The second resumes from the newest
checkpoint as if the run had never stopped. The third changes the length of the run, finished or not: the schedule is
stretched over all 20,000 steps, and the learning rate continues from its value in a run of that length.
Under ``accelerate launch``, several processes share each batch.
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

from examples.mren.cli import check_target, run_command
from examples.mren.data import ImagePair, list_images, load_pairs, split_held_out
from examples.mren.degradation import degrade, draw_degradation, make_generator
from examples.mren.messages import UsageError, fail, note
from examples.mren.metrics import smallest_scored
from examples.mren.model import MREN, VARIANTS, save_weights
from examples.mren.training.checkpoint import checkpoints
from examples.mren.training.options import (
    HELD_OUT,
    OPTIONS,
    VALIDATE_EVERY,
    configure_torch,
    options_of,
    parse,
    training_of,
)
from examples.mren.training.patches import PatchSampler
from examples.mren.training.recipes import Stage
from examples.mren.training.trainer import Trainer, check_settings
from examples.mren.training.warmstart import warm_start
from examples.mren.weightfile import check_arguments
from examples.records import read_json, read_rows, write_json

FEW_IMAGES = 20  # fewer cause a warning; networks are usually trained on hundreds


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the network.

    Raises:
        UsageError: If no network can be built from them, or a weight file could not hold them.
    """
    if "scale" in args.config:
        raise UsageError("--config: the scale is set by --scale; leave it out.")
    config = {"scale": args.scale, **VARIANTS[args.variant], "num_blocks": args.num_blocks, **args.config}
    try:
        check_arguments(config)
        MREN(**config, device="meta")
    except (ValueError, TypeError) as error:
        raise UsageError(f"--config: {error}") from error
    return config


@contextmanager
def _checkpoint_on_signal(trainer: Trainer) -> Iterator[list[int]]:
    """Make signals stop a run with a checkpoint; yields the list of those received. A second signal ends it at once.

    Preemptible machines and job schedulers send SIGTERM before they stop a job.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # handlers can be set only there
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
    """Check that the output folder is writable and holds nothing that this run would replace."""
    check_target(args.output / "run.json", overwrite=True)
    files = [_weights_file(args), args.output / "log.csv", args.output / "run.json"]
    for path in [*checkpoints(args.output), *(file for file in files if file.exists())]:
        raise UsageError(
            f"{args.output} already holds a run ({path.name}); add --resume to continue it, or choose another folder."
        )


def _load_images(
    args: argparse.Namespace, patch_size: int, *, is_main_process: bool
) -> tuple[list[ImagePair], list[ImagePair]]:
    """Load the images to train on and to validate on. All bad images are reported first."""
    val_folders = args.val_data or []
    files = list_images(*args.data, *val_folders)  # all at once, so that a folder given twice is refused
    val_files = files[len(files) - len(list_images(*val_folders)) :]
    problems: list[str] = []
    scored = smallest_scored(args.scale)
    to_validate = load_pairs(val_files, args.scale, min_size=scored, on_bad=problems.append)
    # Any image may be held out and scored, which needs more pixels than a small patch.
    min_size = patch_size if val_folders else max(patch_size, scored)
    pairs = load_pairs(files[: len(files) - len(val_files)], args.scale, min_size=min_size, on_bad=problems.append)
    for problem in sorted(problems) if is_main_process else []:
        if args.skip_bad:
            note(f"skipped: {problem}")
        else:
            fail(problem)
    if problems and not args.skip_bad:
        raise ValueError(
            f"{len(problems)} of {len(files)} images cannot be used; repair or remove them, or pass --skip-bad."
        )
    to_train, available, remedy = pairs, "images are available to train on", ""
    if not val_folders:
        held_out = args.held_out or HELD_OUT
        to_train, to_validate = split_held_out(pairs, held_out)
        available = f"of {len(pairs)} images remain to train on after --held-out {held_out}"
        remedy = "; a smaller --held-out leaves more" * (len(to_validate) > len(to_train))
    elif not pairs or not to_validate:
        raise ValueError(f"--{'data' if not pairs else 'val-data'}: no images remain; choose another folder.")
    if len(to_train) < FEW_IMAGES and is_main_process:
        note(f"{len(to_train)} {available}, too few for good results{remedy}.")
    return to_train, to_validate


def _without_flat(pairs: list[ImagePair], *, is_main_process: bool) -> list[ImagePair]:
    """Images to validate on, without those of a single colour, whose PSNR can be infinite."""
    kept = [pair for pair in pairs if (pair.hr != pair.hr[:, :1, :1]).any()]
    if not kept:
        raise ValueError(
            f"all {len(pairs)} images to validate on are of a single colour; choose another --held-out or --val-data."
        )
    if len(kept) < len(pairs) and is_main_process:
        note(f"{len(pairs) - len(kept)} of {len(pairs)} images to validate on are of a single colour, and left out.")
    return kept


def _degraded(pairs: list[ImagePair]) -> list[ImagePair]:
    """Images to validate on, each with its own degradation, the same in all runs."""
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
    """Print what will be trained, from which weights, and for how long."""
    echo, untouched = trainer.accelerator.print, trainer.untouched
    if args.init is not None:
        listed = ", ".join(untouched[:3]) + f" and {len(untouched) - 3} more" * (len(untouched) > 3)
        echo(f"started from {args.init}" + f"; newly initialised: {listed}" * bool(untouched))
        if args.warm_up_new and not untouched:
            echo("--warm-up-new has no effect: --init has every parameter")
    side = first.patch_size // args.scale
    if args.patch_size not in (None, first.patch_size):
        echo(f"--patch-size {args.patch_size}: is not a multiple of the scale; using {first.patch_size}")
    length = f"{trainer.steps} steps" if args.minutes is None else f"{args.minutes:g} minutes"
    echo(
        f"{images} images to train on, {validated} to validate on; {length} of {first.batch_size} patches, "
        f"{first.patch_size} x {first.patch_size} from {side} x {side}; device {trainer.device}, mixed precision "
        f"{args.precision}"
    )


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Lock the output folder against a second training run."""
    folder = output / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{output}: another run is writing to it; wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()


def _resume(args: argparse.Namespace, trainer: Trainer, settings: Mapping[str, Any]) -> int:
    """Resume from the newest checkpoint, if the run has these settings; returns its step."""
    same = {name: value for name, value in settings.items() if name not in ("steps", "minutes")}
    check_settings(args.output, read_json(args.output / "run.json"), same)
    log = args.output / "log.csv"
    # The run may have been interrupted between its first validation and checkpoint.
    if not checkpoints(args.output) and log.exists() and len(read_rows(log)) > 1:
        raise UsageError(
            f"{args.output}: its checkpoints are gone, and starting again would replace its weights; start from these "
            f"in another folder with --init {_weights_file(args)}."
        )
    return trainer.resume()


def _weights_file(args: argparse.Namespace) -> Path:
    return args.output / f"{args.variant}_x{args.scale}.safetensors"


def train(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    started = time.monotonic()
    configure_torch(args, same_shapes=True)
    if not args.resume:
        _check_output(args)
    training, config = training_of(args), _config(args)
    first, *others = training.plan(1, args.scale).stages
    accelerator = Accelerator(cpu=args.cpu)
    largest = max(stage.patch_size for stage in (first, *others))
    to_train, to_validate = _load_images(args, largest, is_main_process=accelerator.is_main_process)
    # What determines the results of a run; checkpoints with other settings, except the length, are refused.
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
            _check_output(args)  # again: another run may have finished since
        if accelerator.is_main_process:
            about = {"recipe": args.recipe, "torch": torch.__version__, OPTIONS: options_of(args)}
            write_json(args.output / "run.json", settings | about)
        if args.init is not None and trainer.progress.step == 0:
            accelerator.print(f"PSNR of the held-out images before the first step: {trainer.validate_start():.2f} dB")
        validate_every = args.validate_every
        if validate_every is None and args.minutes is None:
            validate_every = VALIDATE_EVERY  # by steps, not by the clock: the choice of the best must be reproducible
        with _checkpoint_on_signal(trainer) as received:
            stop_at = started + 60 * args.max_minutes
            progress = trainer.run(validate_every=validate_every, stop_at=stop_at, started=started)
    if received or progress.fraction < 1:
        accelerator.print(f"stopped at step {progress.step}; continue with --resume -o {args.output}")
    if received:
        return 128 + received[0]
    if progress.history:  # weights are written only by validations
        total = f" of {trainer.steps}" if trainer.steps else ""
        accelerator.print(
            f"step {progress.step}{total}, {progress.seconds / 60:.1f} minutes, best validation "
            f"{progress.best_psnr:.2f} dB; weights in {args.output}"
        )
    accelerator.print(trainer.timing.describe(first.batch_size))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(train, parse, argv)


if __name__ == "__main__":
    sys.exit(main())
