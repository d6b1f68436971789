"""The tasks on which networks are compared: super-resolution and Gaussian denoising.

A task makes patches to train on and scores a network on an image, both as pure functions of a seed, so that every row
of a comparison sees the same.
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from examples.mren.data import imresize, mod_crop, read_rgb
from examples.mren.ensemble import network_upscaler
from examples.mren.metrics import Score, psnr_rgb, score, to_uint8
from examples.mren.training.patches import PatchSampler


class Task(Protocol):
    """A restoration task."""

    scale: int
    """Upscaling factor; 1 if the output has the size of the input."""

    def batch(self, sampler: PatchSampler, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Degraded and clean patches of a step, between 0 and 1; see :meth:`PatchSampler.batch`."""
        ...

    def score(self, net: nn.Module, file: Path, device: torch.device | str) -> Score:
        """PSNR, and SSIM where it is defined, of a network's output for the degraded image."""
        ...


@dataclass(frozen=True)
class SuperResolution:
    """Bicubic super-resolution; scored on the cropped luma, see :mod:`examples.mren.metrics`."""

    scale: int = 4

    def batch(self, sampler: PatchSampler, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        return sampler.batch(step, rank=rank, world_size=world_size)

    def score(self, net: nn.Module, file: Path, device: torch.device | str) -> Score:
        hr = mod_crop(read_rgb(file), self.scale)
        return score(network_upscaler(net, device)(imresize(hr, 1 / self.scale)), hr, self.scale)


@dataclass(frozen=True)
class Denoising:
    """Denoising of colour images with white Gaussian noise of a known strength.

    Noise is added in floating point and neither rounded nor clipped. PSNR is computed in RGB over all pixels of the
    output rounded to eight bits. The noise of a test image depends only on its file name.
    """

    sigma: float = 25.0
    """Standard deviation, on the scale of 0 to 255."""
    scale: int = 1

    def batch(self, sampler: PatchSampler, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        _, clean = sampler.batch(step)
        # A stream of its own: the patches are drawn from (seed, step).
        noisy = self._noisy(clean, np.random.default_rng((sampler.seed, step, 1)))
        return noisy[rank::world_size], clean[rank::world_size]

    def score(self, net: nn.Module, file: Path, device: torch.device | str) -> Score:
        clean = read_rgb(file)
        noisy = self._noisy(clean.float() / 255, np.random.default_rng(zlib.crc32(os.fsencode(file.stem))))
        with torch.inference_mode():
            restored = net(noisy.to(device).unsqueeze(0)).squeeze(0)
        return Score(psnr_rgb(to_uint8(restored.cpu()), clean), math.nan)

    def _noisy(self, clean: Tensor, random: np.random.Generator) -> Tensor:
        noise = torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))
        return clean + (self.sigma / 255) * noise.to(clean.device)
