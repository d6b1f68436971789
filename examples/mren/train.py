"""Train MREN on a folder of high-resolution images.

    python -m examples.mren.train --data FOLDER --scale 4 --recipe short -o runs/x4

writes into the output folder: ``mren_x4.safetensors``, the weights of the best validation; ``log.csv``, a row for each
validation; ``run.json``, the settings; and ``checkpoints/``, from which ``--resume`` goes on as if the run had never
stopped. Under ``accelerate launch`` several processes share each batch.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import math
import shutil
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from examples.mren.data import ImagePair, PatchSampler, list_images, load_pairs, split_held_out
from examples.mren.files import write_text
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import CHANNELS, MREN, STAGES, save_weights
from examples.mren.recipes import RECIPES, Recipe, make_schedule

CHECK_EVERY = 10  # steps between looks at the loss and the clock: each look waits for the device
KEEP_CHECKPOINTS = 2


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint."""

    settings: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    best_psnr: float = -math.inf
    interval_loss: float = 0.0
    """Sum of the losses since the last validation."""
    interval_steps: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, state[field.name])


class Trainer:
    """One run: the network, its data, and where it has got to."""

    def __init__(
        self,
        config: dict[str, Any],
        recipe: Recipe,
        train: list[ImagePair],
        held_out: list[ImagePair],
        output: Path,
        *,
        accelerator: Accelerator,
        variant: str = "mren",
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        scale: int = config["scale"]
        self.recipe = recipe
        self.steps = recipe.steps or (recipe.epochs or 0) * math.ceil(len(train) / recipe.batch_size)
        self.held_out = held_out
        self.output = output
        self.accelerator = accelerator
        self.variant = variant
        self.config = config
        self.sampler = PatchSampler(
            train,
            scale,
            patch_size=recipe.patch_size // scale * scale,
            batch_size=recipe.batch_size,
            seed=seed,
        )
        if recipe.batch_size % accelerator.num_processes:
            raise TrainingError(
                f"a batch of {recipe.batch_size} does not divide among {accelerator.num_processes} processes; use a "
                "--batch-size that does."
            )

        torch.manual_seed(seed)
        net = MREN(**config)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
        self.scheduler = make_schedule(optimizer, recipe, self.steps)
        self.parameters_of = net  # what is saved: never wrapped for mixed precision, compilation or several processes
        self.net: nn.Module
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.validated = MREN(**config, device=accelerator.device).eval()
        # What decides the numbers of a run; a checkpoint of other settings is refused.
        self.progress = Progress(
            settings={
                **config,
                **dataclasses.asdict(recipe),
                "steps": self.steps,
                "seed": seed,
                "images": len(train),
                "held_out": len(held_out),
                "files": zlib.crc32("/".join(pair.path.name for pair in train + held_out).encode()),
                "precision": accelerator.mixed_precision,
                "compile": accelerator.state.dynamo_plugin.backend.value.lower() != "no",
                "channels_last": channels_last,
                "processes": accelerator.num_processes,
            }
        )
        accelerator.register_for_checkpointing(self.scheduler, self.progress)

    def run(self, *, validate_every: int, max_minutes: float | None = None) -> Progress:
        """Train to the end of the recipe, or for ``max_minutes``."""
        progress = self.progress
        self.net.train()
        started, before = time.monotonic(), progress.seconds
        losses: list[Tensor] = []
        bar = tqdm(
            initial=progress.step,
            total=self.steps,
            desc=f"{self.variant} x{self.config['scale']}",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        shown = {"loss": "-", "PSNR": f"{progress.history[-1]['psnr']:.2f}" if progress.history else "-"}
        with bar:
            while progress.step < self.steps:
                losses.append(self._step(progress.step))
                progress.step += 1
                bar.update()
                checking = progress.step % CHECK_EVERY == 0
                late = max_minutes is not None and time.monotonic() - started > max_minutes * 60
                out_of_time = checking and self._any_process(late)
                validating = progress.step % validate_every == 0 or progress.step == self.steps
                if checking or validating:
                    values = self._finite(losses)
                    progress.interval_loss += sum(values)
                    progress.interval_steps += len(values)
                    shown["loss"] = f"{values[-1]:.4f}"
                    losses.clear()
                progress.seconds = before + time.monotonic() - started
                if validating:
                    validated = self._validate()
                    shown["PSNR"] = f"{validated:.2f}"
                    progress.history.append(
                        {
                            "step": progress.step,
                            "loss": progress.interval_loss / progress.interval_steps,
                            "psnr": validated,
                            "lr": self.scheduler.get_last_lr()[0],
                            "seconds": round(progress.seconds, 1),
                        }
                    )
                    progress.interval_loss, progress.interval_steps = 0.0, 0
                    self._save(best=validated > progress.best_psnr)
                elif out_of_time:
                    # Not validated: that a run was stopped must not show in what comes out of it.
                    self._save(best=False)
                bar.set_postfix(shown, refresh=False)
                if out_of_time:
                    break
        return progress

    def resume(self) -> int:
        """Go back to the newest checkpoint and return its step."""
        found = _checkpoints(self.output)
        if not found:
            raise TrainingError(
                f"{self.output / 'checkpoints'}: no checkpoint to resume from; leave out --resume to start."
            )
        # Before anything is loaded: other settings can mean other shapes.
        saved = json.loads((self.output / "run.json").read_text())
        differing = [
            f"{name} was {saved.get(name)!r}, is {value!r}"
            for name, value in self.progress.settings.items()
            if saved.get(name) != value
        ]
        if differing:
            raise TrainingError(
                f"{self.output} was begun with other settings ({'; '.join(differing)}); resume with the same ones, or "
                "start afresh in another folder."
            )
        self.accelerator.load_state(str(found[-1]))
        return self.progress.step

    def _step(self, step: int) -> Tensor:
        lr_patches, hr_patches = self.sampler.batch(
            step, rank=self.accelerator.process_index, world_size=self.accelerator.num_processes
        )
        sr = self.net(lr_patches.to(self.accelerator.device))
        loss = F.l1_loss(sr.float(), hr_patches.to(self.accelerator.device))
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.recipe.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def _finite(self, losses: list[Tensor]) -> list[float]:
        """The losses since the last look as numbers, the mean over processes; raise at the first that is none."""
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        for value, step in zip(values, range(self.progress.step - len(values), self.progress.step), strict=True):
            if not math.isfinite(value):
                files = ", ".join(sorted({path.name for path in self.sampler.files(step)}))
                raise TrainingError(
                    f"the loss is {value} at step {step} (learning rate {self.scheduler.get_last_lr()[0]:.2e}, "
                    f"batch of {files}). {self._last_good()} Try a lower --lr or --precision no."
                )
        return values

    def _last_good(self) -> str:
        kept = _checkpoints(self.output)
        return f"Last good checkpoint: {kept[-1] if kept else 'none yet'}."

    def _any_process(self, flag: bool) -> bool:
        """Whether a flag is up anywhere: processes must stop at the same step, and their clocks differ."""
        raised = torch.tensor(float(flag), device=self.accelerator.device)
        return self.accelerator.reduce(raised, reduction="sum").item() > 0

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean PSNR over the held-out images, in float32."""
        # A network of its own: the one that trains computes in mixed precision and is compiled for one size.
        self.validated.load_state_dict(self.parameters_of.state_dict())
        mine = self.held_out[self.accelerator.process_index :: self.accelerator.num_processes]
        total = torch.zeros((), device=self.accelerator.device)
        for pair in mine:
            sr = self.validated(pair.lr.to(self.accelerator.device).unsqueeze(0).float() / 255).squeeze(0)
            if not sr.isfinite().all():
                raise TrainingError(
                    f"the network's result for {pair.path.name} is not finite after step {self.progress.step}. "
                    f"{self._last_good()} Try a lower --lr or --precision no."
                )
            total += psnr(to_uint8(sr.cpu()), pair.hr.cpu(), self.config["scale"])
        return self.accelerator.reduce(total, reduction="sum").item() / len(self.held_out)

    def _save(self, *, best: bool) -> None:
        """Write the weights if they are the best so far, the log, and a checkpoint; each whole or not at all."""
        progress = self.progress
        # A finite loss says nothing of the update after it.
        if not all(parameter.isfinite().all() for parameter in self.parameters_of.parameters()):
            raise TrainingError(
                f"the network is not finite after step {progress.step}. {self._last_good()} Try a lower --lr or "
                "--precision no."
            )
        if best:
            progress.best_psnr = progress.history[-1]["psnr"]
        if self.accelerator.is_main_process:
            # Before the checkpoint: a run that is cut off here resumes from the one before and writes them again.
            if best:
                file = self.output / f"{self.variant}_x{self.config['scale']}.safetensors"
                save_weights(self.validated, file, self.config)
            if progress.history:
                table = io.StringIO()
                writer = csv.DictWriter(table, fieldnames=list(progress.history[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(progress.history)
                write_text(self.output / "log.csv", table.getvalue())
        scratch = self.output / "checkpoints" / f"step_{progress.step:07d}.part"
        if self.accelerator.is_main_process:
            shutil.rmtree(scratch, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(scratch))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            scratch.rename(scratch.with_suffix(""))
            for old in _checkpoints(self.output)[:-KEEP_CHECKPOINTS]:
                shutil.rmtree(old)


def _checkpoints(output: Path) -> list[Path]:
    return sorted(path for path in (output / "checkpoints").glob("step_*") if path.suffix != ".part")


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
    parser.add_argument("--variant", choices=sorted(CHANNELS), default="mren")
    parser.add_argument("--num-blocks", type=int, default=6, help="MREBs")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="paper")
    for field in ("steps", "batch-size", "patch-size"):
        parser.add_argument(f"--{field}", type=int, help="instead of the recipe's")
    parser.add_argument("--lr", type=float, help="instead of the recipe's")
    parser.add_argument("--held-out", type=int, default=10, help="training images kept for validation")
    parser.add_argument("--validate-every", type=int, default=500, help="steps between validations and checkpoints")
    parser.add_argument("--max-minutes", type=float, help="stop after this long, to be resumed")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step's network")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--deterministic", action="store_true", help="refuse operations that are not")
    parser.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    parser.add_argument(
        "--dry-run", action="store_true", help="read the images, draw one batch, say what there is, stop"
    )
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "patch_size", "lr", "held_out", "validate_every", "num_blocks", "max_minutes"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"argument --{name.replace('_', '-')}: must be positive, got {value}")
    return args


def _recipe(args: argparse.Namespace) -> Recipe:
    given = {name: getattr(args, name) for name in ("steps", "batch_size", "patch_size", "lr")}
    return dataclasses.replace(RECIPES[args.recipe], **{name: v for name, v in given.items() if v is not None})


def train(args: argparse.Namespace) -> Progress:
    """Run the command."""
    if not args.resume and _checkpoints(args.output):
        raise TrainingError(
            f"{args.output} holds a run already; add --resume to go on with it, or choose another folder."
        )
    recipe = _recipe(args)
    torch.use_deterministic_algorithms(args.deterministic)
    accelerator = Accelerator(
        cpu=args.cpu, mixed_precision=args.precision, dynamo_backend="inductor" if args.compile else "no"
    )
    files = [path for folder in args.data for path in list_images(folder)]
    to_train, to_validate = split_held_out(files, args.held_out)
    patch_size = recipe.patch_size // args.scale * args.scale
    # Of held-out images as well: what can be trained on can be scored, which takes 11 pixels and the border.
    min_size = max(patch_size, 11 + 2 * args.scale)
    train_pairs = load_pairs(to_train, args.scale, min_size=min_size)
    trainer = Trainer(
        {"scale": args.scale, "channels": CHANNELS[args.variant], "num_blocks": args.num_blocks},
        recipe,
        train_pairs,
        load_pairs(to_validate, args.scale, min_size=min_size),
        args.output,
        accelerator=accelerator,
        variant=args.variant,
        seed=args.seed,
        channels_last=args.channels_last,
    )
    accelerator.print(
        f"{len(to_train)} images to train on, {len(to_validate)} to validate on; {trainer.steps} steps of "
        f"{recipe.batch_size} patches, {patch_size} x {patch_size} from {patch_size // args.scale} x "
        f"{patch_size // args.scale}; device {accelerator.device}, mixed precision {args.precision}"
    )
    if args.dry_run:
        low, high = trainer.sampler.batch(0)
        accelerator.print(f"first batch: low resolution {tuple(low.shape)}, high resolution {tuple(high.shape)}")
        return trainer.progress
    args.output.mkdir(parents=True, exist_ok=True)
    if args.resume:
        accelerator.print(f"resumed at step {trainer.resume()}")
    if accelerator.is_main_process:
        settings = trainer.progress.settings | {"recipe": args.recipe, "torch": torch.__version__}
        write_text(args.output / "run.json", json.dumps(settings, indent=2) + "\n")
    progress = trainer.run(validate_every=args.validate_every, max_minutes=args.max_minutes)
    accelerator.print(
        f"step {progress.step} of {trainer.steps}, {progress.seconds / 60:.1f} minutes, best validation "
        f"{progress.best_psnr:.2f} dB; weights in {args.output}"
    )
    return progress


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parse(argv)
    try:
        train(args)
    except (TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
