"""One training run: the network, its data, and where it has got to.

:mod:`examples.mren.train` runs one from the command line, :mod:`examples.mren.ablate` many.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from examples.mren.data import ImagePair, PatchSampler
from examples.mren.files import write_text
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import MREN, save_weights, warm_start
from examples.mren.recipes import Recipe, ema_decay_at, make_optimizer, make_schedule

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


@dataclass
class Timing:
    """Where the time of a step goes, in seconds, summed over the steps that were timed."""

    input: float = 0.0
    """Drawing the patches."""
    network: float = 0.0
    """Forward, loss and backward."""
    update: float = 0.0
    """Clipping, optimizer, schedule and average of the weights."""
    steps: int = 0

    def describe(self, batch_size: int) -> str:
        """One line on the speed, and on what share of it is which part's."""
        total = self.input + self.network + self.update
        if not self.steps:
            return "no step was timed"
        parts = {"input": self.input, "network": self.network, "update": self.update}
        shares = ", ".join(f"{name} {seconds / total:.1%}".replace("%", " %") for name, seconds in parts.items())
        speed = self.steps / total
        return f"{speed:.4g} steps/s, {speed * batch_size:.4g} images/s; of a step: {shares}"


class Trainer:
    """One run: the network, its data, and where it has got to.

    Args:
        config: Arguments of the :class:`~examples.mren.model.MREN`.
        recipe: How it is trained; its ``steps`` or ``epochs`` say for how long.
        train: Images to train on.
        held_out: Images to validate on.
        output: Folder for everything that is written.
        accelerator: Device, precision, compilation, processes and gradient accumulation.
        variant: Name of the weight file, before the scale.
        seed: Of the initial weights and of everything that is drawn.
        channels_last: Memory format of the network.
        init: A weight file to begin from, see :func:`~examples.mren.model.warm_start`.

    Raises:
        TrainingError: If a batch does not divide among processes and accumulated parts.
    """

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
        init: Path | None = None,
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
            device=accelerator.device,
        )
        self.parts = accelerator.gradient_accumulation_steps
        if recipe.batch_size % (accelerator.num_processes * self.parts):
            raise TrainingError(
                f"a batch of {recipe.batch_size} does not divide among {accelerator.num_processes} processes with "
                f"{self.parts} parts each; use a --batch-size that does."
            )

        torch.manual_seed(seed)
        net = MREN(**config)
        self.untouched = warm_start(net, init) if init is not None else None
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        net = net.to(accelerator.device)
        optimizer = make_optimizer(net, recipe.lr)
        self.scheduler = make_schedule(optimizer, recipe, self.steps)
        self.parameters_of = net  # what is saved: never wrapped for mixed precision, compilation or several processes
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(net, multi_avg_fn=self._average)
        self.timing = Timing()
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
                "accumulate": self.parts,
                "init": None if init is None else hashlib.sha256(init.read_bytes()).hexdigest(),
            }
        )
        accelerator.register_for_checkpointing(self.scheduler, self.progress)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)

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
        found = checkpoints(self.output)
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
        timed = step % CHECK_EVERY == CHECK_EVERY - 1  # the step after which the loss is looked at
        clock = [self._clock()] if timed else []
        lr_patches, hr_patches = self.sampler.batch(
            step, rank=self.accelerator.process_index, world_size=self.accelerator.num_processes
        )
        if timed:
            clock.append(self._clock())
        losses: list[Tensor] = []
        for lr_part, hr_part in zip(lr_patches.chunk(self.parts), hr_patches.chunk(self.parts), strict=True):
            with self.accelerator.accumulate(self.net):
                loss = F.l1_loss(self.net(lr_part).float(), hr_part)
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        if timed:
            clock.append(self._clock())
        if self.recipe.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.parameters_of)
        if timed:
            clock.append(self._clock())
            for name, begun, ended in zip(("input", "network", "update"), clock, clock[1:], strict=False):
                setattr(self.timing, name, getattr(self.timing, name) + ended - begun)
            self.timing.steps += 1
        return torch.stack(losses).mean()

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        """Move the average towards the weights."""
        get_ema_multi_avg_fn(ema_decay_at(self.recipe, self.progress.step))(averaged, current, count)

    def _clock(self) -> float:
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.monotonic()

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
        kept = checkpoints(self.output)
        return f"Last good checkpoint: {kept[-1] if kept else 'none yet'}."

    def _any_process(self, flag: bool) -> bool:
        """Whether a flag is up anywhere: processes must stop at the same step, and their clocks differ."""
        raised = torch.tensor(float(flag), device=self.accelerator.device)
        return self.accelerator.reduce(raised, reduction="sum").item() > 0

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean PSNR over the held-out images, in float32."""
        # A network of its own: the one that trains computes in mixed precision and is compiled for one size.
        trained = self.parameters_of if self.average is None else self.average.module
        self.validated.load_state_dict(trained.state_dict())
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
            for old in checkpoints(self.output)[:-KEEP_CHECKPOINTS]:
                shutil.rmtree(old)


def checkpoints(output: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(path for path in (output / "checkpoints").glob("step_*") if path.suffix != ".part")
