"""Training patches, cropped from pairs of images."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from examples.mren.data import ImagePair
from examples.mren.degradation import MCU, degrade_patch, draw_patch_degradation, make_generator


class PatchSampler:
    """Random aligned patches, flipped and rotated, as a pure function of the seed and the step.

    A resumed run therefore draws the same patches as an uninterrupted one, and several processes that share a batch
    draw disjoint parts of the batch of a single process.

    All images are kept in one buffer on ``device``, and a batch is one gather from it: on a GPU, the network does not
    wait for decoding, cropping or transfers.

    Args:
        pairs: The images.
        scale: High-resolution pixels per low-resolution pixel.
        patch_size: Side of the high-resolution patch, a multiple of ``scale``.
        batch_size: Patches per step, over all processes.
        seed: Random seed.
        device: Where the images are kept and the patches are cropped.
        degrade: Whether half of the low-resolution patches are degraded like photographs, see
            :mod:`examples.mren.degradation`. The low-resolution images are then kept on the CPU, where JPEGs are made,
            and their patches are copied to a GPU asynchronously.
        textured: Whether to draw two patches of each image and use the one with more texture: with larger differences
            between neighbouring pixels of the low-resolution green channel.
    """

    def __init__(
        self,
        pairs: list[ImagePair],
        scale: int,
        *,
        patch_size: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        degrade: bool = False,
        textured: bool = False,
    ) -> None:
        self.paths = [pair.path for pair in pairs]
        self.scale = scale
        self.seed = seed
        self.device = torch.device(device)
        self.degrade = degrade
        self._sizes = np.array([pair.lr.shape[1:] for pair in pairs]).reshape(-1, 2)
        self._lr = _Images([pair.lr for pair in pairs], "cpu" if degrade else device)
        self._hr = _Images([pair.hr for pair in pairs], device)
        self._textures = [_Texture(pair.lr) for pair in pairs] if textured else []
        self._set_patches(patch_size, batch_size)

    def with_patches(self, *, patch_size: int, batch_size: int) -> PatchSampler:
        """A sampler with other patch and batch sizes, which shares the images in memory."""
        other = copy.copy(self)
        other._set_patches(patch_size, batch_size)
        return other

    def _set_patches(self, patch_size: int, batch_size: int) -> None:
        if patch_size % self.scale or patch_size < self.scale:
            raise ValueError(f"patch_size must be a multiple of the scale, {self.scale}, got {patch_size}.")
        self.side = patch_size // self.scale  # in low-resolution pixels
        self.batch_size = batch_size
        margin = MCU if self.degrade else 0
        self._lr_indices = _PatchIndices(self.side, self._lr.pixels.device, margin=margin)
        self._hr_indices = _PatchIndices(patch_size, self.device)

    def draw(self, step: int) -> list[tuple[int, int, int, int]]:
        """The patches of a step: for each the image, the low-resolution top and left, and the orientation."""
        random = np.random.default_rng((self.seed, step))
        images = random.integers(len(self.paths), size=self.batch_size)
        corners = random.integers(self._sizes[images] - self.side + 1)
        orientations = random.integers(8, size=(self.batch_size, 1))
        if self._textures:
            others = random.integers(self._sizes[images] - self.side + 1)
            for image, corner, other in zip(images, corners, others, strict=True):
                in_square = self._textures[image].in_square
                if in_square(other, self.side) > in_square(corner, self.side):
                    corner[:] = other
        return [tuple(row) for row in np.concatenate([images[:, None], corners, orientations], axis=1).tolist()]

    def files(self, step: int) -> list[Path]:
        """The image files of the patches of a step."""
        return [self.paths[index] for index, *_ in self.draw(step)]

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Low- and high-resolution patches of a step, between 0 and 1; the share of process ``rank``."""
        drawn = torch.tensor(self.draw(step)[rank::world_size])
        corners = drawn * torch.tensor([1, self.scale, self.scale, 1])
        low, high = self._lr.cut(drawn, self._lr_indices), self._hr.cut(corners, self._hr_indices)
        if self.degrade:
            numbers = range(rank, self.batch_size, world_size)
            low = self._degraded(low, [make_generator(self.seed, step, number) for number in numbers])
        return low.float() / 255, high.float() / 255

    def _degraded(self, patches: Tensor, generators: list[torch.Generator]) -> Tensor:
        degraded = torch.stack(
            [
                degrade_patch(patch, draw_patch_degradation(generator), generator)
                for patch, generator in zip(patches, generators, strict=True)
            ]
        )
        if self.device.type == "cuda":
            degraded = degraded.pin_memory()  # otherwise the copy would wait for all steps before it
        return degraded.to(self.device, non_blocking=True)


class _Texture:
    """How much neighbouring pixels differ within any square of an image, by summed-area tables."""

    def __init__(self, image: Tensor) -> None:
        total = np.int32 if 255 * image[1].numel() < 2**31 else np.int64
        green = image[1].numpy().astype(total)
        self._sums = [np.abs(np.diff(green, axis=axis)).cumsum(0, total).cumsum(1, total) for axis in (0, 1)]
        self._sums = [np.pad(sums, ((1, 0), (1, 0))) for sums in self._sums]

    def in_square(self, corner: np.ndarray, side: int) -> int:
        """The sum of the differences between neighbours within a square."""
        top, left = corner
        found = 0
        for sums, height, width in zip(self._sums, (side - 1, side), (side, side - 1), strict=True):
            bottom, right = top + height, left + width
            found += int(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])
        return found


class _Images:
    """Images stored end to end in one buffer, plane after plane."""

    def __init__(self, images: list[Tensor], device: torch.device | str) -> None:
        # Copied one by one: flatten and cat would make two copies of cropped images at once.
        pixels = torch.empty(sum(image.numel() for image in images), dtype=torch.uint8)
        for part, image in zip(pixels.split([image.numel() for image in images]), images, strict=True):
            part.view(image.shape).copy_(image)
        self.pixels = pixels.to(device)
        sizes = torch.tensor([image.shape for image in images], device=device).view(-1, 3)
        self.heights, self.widths = sizes[:, 1], sizes[:, 2]
        self.planes = sizes[:, 1] * sizes[:, 2]
        self.starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
        self.channels = torch.arange(3, device=device).view(1, 3, 1, 1)

    def cut(self, drawn: Tensor, indices: _PatchIndices) -> Tensor:
        """The uint8 patches for rows of image, top, left and orientation; pixels outside repeat the border."""
        if self.pixels.is_cuda:
            drawn = drawn.pin_memory()  # otherwise the copy would wait for all steps before it
        drawn = drawn.to(self.pixels.device, non_blocking=self.pixels.is_cuda)
        image, top, left, orientation = rearrange(drawn, "patch field -> field patch 1 1 1")
        rows = top + indices.rows[orientation.flatten(), None]
        columns = left + indices.columns[orientation.flatten(), None]
        planes = self.channels * self.planes[image]
        heights, widths = self.heights[image], self.widths[image]
        rows = rows.clamp(min=0).minimum(heights - 1)
        columns = columns.clamp(min=0).minimum(widths - 1)
        return self.pixels[self.starts[image] + planes + rows * widths + columns]


class _PatchIndices:
    """The source of each pixel of a square patch and its margin, for the eight flips and rotations."""

    def __init__(self, side: int, device: torch.device | str, *, margin: int = 0) -> None:
        side += 2 * margin
        square = torch.arange(side * side, device=device).view(side, side)
        rotated = [square.rot90(turns) for turns in range(4)]
        oriented = torch.stack(rotated + [each.flip(1) for each in rotated])
        self.rows, self.columns = oriented // side - margin, oriented % side - margin
