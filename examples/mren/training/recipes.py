"""Training recipes: the paper's, and recipes that score higher after the same time on a GPU or a CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from examples.mren.files import sha256

Schedule = Literal["halving", "one-cycle", "cosine"]
Loss = Literal["l1", "l1+fft", "mse"]

FFT_WEIGHT = 0.05  # as in SAFMN (Sun et al., 2023)
WARM_UP = 0.1  # of a one-cycle stage
WARM_UP_START = 1 / 25  # of its peak learning rate


def l1_fft_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the pixels plus 0.05 times that of their two-dimensional spectrum.

    ``l1(output, target) + 0.05 * l1(fft(output), fft(target))``, where the second term is the mean over the real and
    imaginary parts of the unnormalised discrete Fourier transform. That transform grows with the patch: on patches of
    128 x 128 the second term is about four times the first.

    Args:
        output: Output of a network, float32 or float64, of shape ``(B, C, H, W)``.
        target: Target, likewise.
    """
    spectra = (torch.view_as_real(torch.fft.rfft2(images)) for images in (output, target))
    return F.l1_loss(output, target) + FFT_WEIGHT * F.l1_loss(*spectra)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l1+fft": l1_fft_loss, "mse": F.mse_loss}


@dataclass(frozen=True)
class Stage:
    """A part of a training run with one batch shape, loss and learning rate schedule."""

    batch_size: int
    """Patches per step, over all processes."""

    patch_size: int
    """Side of the high-resolution patches, rounded down to a multiple of the scale."""

    lr: float
    """Initial learning rate of ``"halving"`` and ``"cosine"``, peak of ``"one-cycle"``."""

    schedule: Schedule
    """``"halving"``: halved after each fifth of the stage. ``"one-cycle"``: up for a tenth of the stage, then down to
    ``final_lr`` along a cosine. ``"cosine"``: down to ``final_lr`` along a cosine from the start."""

    share: float = 1.0
    """Fraction of the run; the fractions of all stages sum to 1."""

    final_lr: float = 0.0
    """Last learning rate of ``"one-cycle"`` and ``"cosine"``."""

    loss: Loss = "l1"
    """Mean absolute error, that plus the one of the spectrum (:func:`l1_fft_loss`), or mean squared error."""

    def learning_rate(self, fraction: float) -> float:
        """The learning rate after a fraction of the stage, between 0 and 1."""
        if self.schedule == "halving":
            return self.lr * 0.5 ** int(5 * fraction)
        start, warm_up = (WARM_UP_START * self.lr, WARM_UP) if self.schedule == "one-cycle" else (self.lr, 0.0)
        if fraction < warm_up:
            return _cosine(start, self.lr, fraction / warm_up)
        return _cosine(self.lr, self.final_lr, (fraction - warm_up) / (1 - warm_up))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, apart from its data. Its length is given by ``steps``, by ``epochs``, or by the caller.

    Raises:
        ValueError: If the shares of the stages do not sum to 1.
    """

    stages: tuple[Stage, ...]
    """One after the other."""

    steps: int | None = None
    """Length in steps."""

    epochs: int | None = None
    """Length in passes over the images, each of which gives one patch per pass."""

    clip_grad_norm: float | None = None
    """Maximum norm of the gradient."""

    ema_decay: float | None = None
    """Decay of the exponential moving average (EMA) of the weights; the EMA is validated and saved. 0 or ``None`` for
    none."""

    def __post_init__(self) -> None:
        total = sum(stage.share for stage in self.stages)
        if not math.isclose(total, 1):
            raise ValueError(f"Recipe: the shares of the stages must sum to 1, got {total:g}.")

    def locate(self, fraction: float) -> tuple[int, float]:
        """Index of the stage at a fraction of the run, and the fraction within that stage."""
        number, before = 0, 0.0
        for stage in self.stages[:-1]:
            if fraction < before + stage.share:
                break
            number, before = number + 1, before + stage.share
        return number, min(1.0, (fraction - before) / self.stages[number].share)


RECIPES = {
    # Section 4.2, its "192 x 192 patch" read as high resolution. 3000 epochs of DIV2K's 800 images are 150,000 steps.
    "paper": Recipe((Stage(16, 192, 5e-4, "halving"),), epochs=3000),
    # Hours on a GPU; ×3 and ×4 are best started from ×2 (--init).
    "modern": Recipe(
        (Stage(32, 256, 1e-3, "one-cycle", loss="l1+fft"),), steps=50000, clip_grad_norm=1.0, ema_decay=0.999
    ),
    # Ten minutes on a GPU, from the weights of another scale or tail (--init, --minutes 9): one batch shape, so that
    # nothing is compiled twice. At twice the learning rate, a run from trained weights once collapsed for good: an
    # activation that is zero everywhere passes no gradient.
    "ten-minutes": Recipe(
        (
            Stage(64, 192, 5e-4, "one-cycle", share=0.88, final_lr=1e-5, loss="l1+fft"),
            Stage(64, 192, 2e-5, "cosine", share=0.12, final_lr=1e-6, loss="mse"),
        ),
        steps=30000,
        clip_grad_norm=1.0,
        ema_decay=0.999,
    ),
    # An hour or two on a CPU, in bf16 and compiled. With L1, as in the published comparisons.
    "short": Recipe((Stage(8, 128, 1e-3, "one-cycle"),), steps=10000, clip_grad_norm=1.0, ema_decay=0.999),
}


PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Settings besides those of the recipe that determine the results of a run.
_OWN_SETTINGS = ("minutes", "warm_up_new", "precision", "compile", "channels_last", "accumulate")


@dataclass(frozen=True)
class Training:
    """A training recipe and its overrides; ``None`` keeps the value of the recipe."""

    recipe: str = "short"
    """Name in :data:`RECIPES`."""
    steps: int | None = None
    minutes: float | None = None
    """Length in minutes, instead of steps."""
    batch_size: int | None = None
    """In all stages."""
    patch_size: int | None = None
    """Likewise."""
    lr: float | None = None
    """Of the first stage."""
    loss: Loss | None = None
    """Likewise."""
    ema_decay: float | None = None
    init: Path | None = None
    """Weight file to start from; see :func:`examples.mren.training.warmstart.warm_start`."""
    warm_up_new: int = 0
    """Number of initial steps that train only the parameters that ``init`` lacks."""
    precision: str = "no"
    """``"no"``, ``"bf16"`` or ``"fp16"``: mixed precision."""
    compile: bool = False
    """Whether the blocks of the network are compiled."""
    cuda_graph: bool = False
    """Whether forward and backward are replayed as CUDA graphs."""
    channels_last: bool = True
    accumulate: int = 1
    """Number of parts of a batch whose gradients are accumulated."""
    textured: bool = False
    """Whether patches with more texture are preferred, see :class:`~examples.mren.training.patches.PatchSampler`."""

    def plan(self, images: int, scale: int) -> Recipe:
        """The recipe with these overrides, its length in steps, and patch sizes that are multiples of the scale."""
        recipe = RECIPES[self.recipe]
        stages = [
            dataclasses.replace(
                stage,
                batch_size=self.batch_size or stage.batch_size,
                patch_size=(self.patch_size or stage.patch_size) // scale * scale,
            )
            for stage in recipe.stages
        ]
        if self.lr is not None:
            stages[0] = dataclasses.replace(stages[0], lr=self.lr)
        if self.loss is not None:
            stages[0] = dataclasses.replace(stages[0], loss=self.loss)
        steps = self.steps or recipe.steps or (recipe.epochs or 0) * math.ceil(images / stages[0].batch_size)
        decay = recipe.ema_decay if self.ema_decay is None else self.ema_decay
        return dataclasses.replace(recipe, stages=tuple(stages), steps=steps, ema_decay=decay)

    def settings(self, images: int, scale: int) -> dict[str, Any]:
        """The settings that determine the results of a run, apart from network, data and seed; JSON-serialisable."""
        recipe = self.plan(images, scale)
        stages = [dataclasses.asdict(stage) for stage in recipe.stages]
        return {
            **{name: [stage[name] for stage in stages] for name in stages[0]},
            "steps": recipe.steps if self.minutes is None else None,
            "clip_grad_norm": recipe.clip_grad_norm,
            "ema_decay": recipe.ema_decay,
            **{name: getattr(self, name) for name in _OWN_SETTINGS},
            "init": None if self.init is None else sha256(self.init),
            "textured": self.textured or None,  # None matches runs of earlier versions, which lack it
        }


def ema_decay_at(recipe: Recipe, step: int) -> float:
    """The EMA decay at a step. It grows with the steps, so that the EMA soon forgets the initial weights."""
    return min(recipe.ema_decay or 0.0, (1 + step) / (10 + step))


def make_optimizer(net: nn.Module, lr: float) -> Adam:
    """Adam over all parameters of a network, fused where torch supports it.

    MREN has hundreds of small parameters. Updating them one by one costs more than their arithmetic.
    """
    parameters = list(net.parameters())
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return Adam(parameters, lr=lr, fused=fused)


class Mixed(nn.Module):
    """A network in mixed precision: float32 weights, convolutions in a lower precision, float32 output."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        # Without a cache: a CUDA graph must not hold on to casts of weights from before it was recorded.
        lower = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype, enabled=lower, cache_enabled=False):
            return self.net(x).float()


def blocks_of(net: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network, which compile one by one in a fraction of the time of the whole network."""
    for child in net.children():
        # Subclasses of these containers, such as ChainedMREBs, have their own forward.
        parts = child.children() if type(child) in (nn.Sequential, nn.ModuleList) else [child]
        yield from (part for part in parts if next(part.children(), None) is not None)
