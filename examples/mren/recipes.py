"""How networks are trained: the paper's way, one that gets further in the same time on a GPU, and one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, apart from its data."""

    batch_size: int
    """Patches per step, over all processes."""

    patch_size: int
    """Side of the high-resolution patches, rounded down to a multiple of the scale."""

    lr: float
    """Initial learning rate of ``"halving"``, highest one of ``"one-cycle"``."""

    schedule: Literal["halving", "one-cycle"]
    """Halved after each fifth of the steps; or up for a tenth of them and down to nothing by a cosine."""

    steps: int | None = None
    """Length; given this or ``epochs``."""

    epochs: int | None = None
    """Length in passes over the images, each giving one patch a pass."""

    clip_grad_norm: float | None = None
    """Largest norm of the gradient."""

    ema_decay: float | None = None
    """What is validated and saved is a running average of the weights that keeps this much of itself at each step; 0 is
    none."""


RECIPES = {
    # Section 4.2, its "192 x 192 patch" read as high resolution. 3000 epochs of DIV2K's 800 images are 150,000 steps.
    "paper": Recipe(batch_size=16, patch_size=192, lr=5e-4, schedule="halving", epochs=3000),
    # Half an hour and more on a GPU; ×3 and ×4 best begin from ×2 (--init).
    "modern": Recipe(
        batch_size=32,
        patch_size=256,
        lr=1e-3,
        schedule="one-cycle",
        steps=50000,
        clip_grad_norm=1.0,
        ema_decay=0.999,
    ),
    # An hour or two on a CPU, in bf16 and compiled.
    "short": Recipe(
        batch_size=8,
        patch_size=128,
        lr=1e-3,
        schedule="one-cycle",
        steps=10000,
        clip_grad_norm=1.0,
        ema_decay=0.999,
    ),
}


def ema_decay_at(recipe: Recipe, step: int) -> float:
    """What the average of the weights keeps at a step: less in the beginning, so that it soon forgets the start."""
    return min(recipe.ema_decay or 0.0, (1 + step) / (10 + step))


def make_optimizer(net: nn.Module, lr: float) -> Adam:
    """Adam over all parameters of a network, in one kernel where torch has one.

    A network like MREN has hundreds of small parameters: one by one, they cost more than their arithmetic.
    """
    parameters = list(net.parameters())
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return Adam(parameters, lr=lr, fused=fused)


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """The learning rate of a recipe over a number of steps."""
    if recipe.schedule == "halving":
        return LambdaLR(optimizer, lambda step: 0.5 ** (5 * step // steps))
    # One step more than is taken: OneCycleLR counts the first before it is asked to.
    return OneCycleLR(
        optimizer, max_lr=recipe.lr, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False, final_div_factor=100
    )
