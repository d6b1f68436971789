"""Images to train on: a folder of high-resolution images in, pairs of patches out.

The low-resolution images are made here, by the bicubic of MATLAB's ``imresize`` that the field's test sets were made
with.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from examples.mren.cli import describe, is_out_of_memory
from examples.mren.degradation import MCU, degrade_patch, draw_patch_degradation, make_generator
from examples.mren.files import missing_path_hint
from examples.mren.imageread import IMAGE_SUFFIXES, MAX_PIXELS, is_image, read_pixels
from examples.mren.metrics import smallest_scored

T = TypeVar("T")


def imresize(image: Tensor, scale: float) -> Tensor:
    """Resize as MATLAB's bicubic ``imresize`` does: Keys' kernel (a = -0.5), scaled to shrink, mirrored borders.

    Eight-bit images are rounded after each axis, rows first, as MATLAB does; so the low-resolution test images that the
    field distributes come out equal in every value.

    Args:
        image: Shape (C, H, W), uint8, or floating-point in any range.
        scale: Above 1 a whole number that the image is enlarged by, below 1 the reciprocal of one.

    Returns:
        The resized image, in the type of ``image``.

    Raises:
        ValueError: If the image has other dimensions, the factor is not whole, or a side is not a multiple of it (see
            :func:`mod_crop`).

    Example:
        >>> imresize(torch.full((3, 8, 12), 7, dtype=torch.uint8), 1 / 4).shape
        torch.Size([3, 2, 3])
    """
    _check_dimensions("imresize", image)
    ratio = max(scale, 1 / scale) if 0 < scale < math.inf else 0
    factor = round(ratio)
    if factor < 1 or abs(ratio - factor) > 1e-9:
        raise ValueError(
            f"imresize: scale must be a whole number or the reciprocal of one, got {scale}; for example 1 / 4."
        )
    _, height, width = image.shape
    if scale < 1 and (height % factor or width % factor):
        raise ValueError(
            f"imresize: height and width must be multiples of {factor}, got {height} x {width}; "
            f"mod_crop(image, {factor}) makes them {height - height % factor} x {width - width % factor}."
        )
    resized = image.double()
    for _ in ("height", "width"):
        resized = _resize_last_axis(resized.transpose(1, 2).contiguous(), factor, shrink=scale < 1)
        if image.dtype == torch.uint8:
            resized = (resized + 0.5).floor().clamp(0, 255)
    return resized.to(image.dtype)


def _resize_last_axis(image: Tensor, factor: int, *, shrink: bool) -> Tensor:
    # torch drops what lies outside the image and renormalises; MATLAB mirrors. A mirrored margin as wide as the kernel,
    # cut off afterwards, makes the two equal.
    margin = 4 * factor if shrink else 4
    across, side = image.shape[1:]
    mirrored = np.pad(np.arange(side), margin, mode="symmetric")
    padded = image[:, :, torch.from_numpy(mirrored).to(image.device)].unsqueeze(0)
    size = (across, padded.shape[3] // factor if shrink else padded.shape[3] * factor)
    # antialias=True even when enlarging: torch's kernel has a = -0.5 only then. Only along the last axis: torch 2.15
    # gets the other one wrong where the image is a single pixel wide.
    resized = F.interpolate(padded, size, mode="bicubic", align_corners=False, antialias=True).squeeze(0)
    kept = side // factor if shrink else side * factor
    return resized[:, :, margin // factor if shrink else margin * factor :][:, :, :kept]


def mod_crop(image: Tensor, factor: int) -> Tensor:
    """Cut height and width of a (C, H, W) image down to multiples of ``factor``, keeping the top left.

    Raises:
        ValueError: If the image has other dimensions, or nothing would be left.
    """
    _check_dimensions("mod_crop", image)
    height, width = image.shape[1:]
    if min(height, width) < factor:
        raise ValueError(f"images must be at least {factor} x {factor}, got {height} x {width}; take larger ones.")
    return image[:, : height - height % factor, : width - width % factor]


def _check_dimensions(function: str, image: Tensor) -> None:
    if image.ndim != 3:
        wanted = f"3 dimensions (channels, height, width), got shape {tuple(image.shape)}"
        raise ValueError(f"{function}: image must have {wanted}; pass the images of a batch one by one.")


def list_images(*folders: str | Path) -> list[Path]:
    """The image files of folders, each sorted by name; without hidden files, such as the ``._x.jpg`` of a Mac.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If no image is in one, or one is given twice: its images would be trained on and validated on.
    """
    files: list[Path] = []
    known: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            there = f"that is a file in {folder.parent}." if folder.exists() else missing_path_hint(folder)
            raise FileNotFoundError(f"no folder at {folder}; {there} Give one that holds images, such as PNG files.")
        if folder.resolve() in known:
            raise ValueError(f"{folder}: is given twice; give each folder once.")
        known.add(folder.resolve())
        inside = sorted(folder.iterdir())
        found = [path for path in inside if is_image(path)]
        if not found:
            wanted = ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
            nested = next((path for path in inside if any(map(is_image, path.glob("*")))), None)
            remedy = "" if nested is None else f"; give a folder in it, such as {nested}"
            raise ValueError(f"{folder}: no images; looked for {wanted}{remedy}.")
        files += found
    return files


def read_rgb(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file as uint8 RGB, shape (3, H, W); gray is repeated, opacity left out.

    Args:
        path: The file.
        max_pixels: How many it may have; a larger one is refused before it is decoded.

    Raises:
        ValueError: If the file is not an image, is damaged or too large, or has more than 8 bits per value; the message
            names it.
    """
    pixels = read_pixels(path, max_pixels=max_pixels)
    if pixels.values.dtype != np.uint8:
        raise ValueError(f"{path}: not a readable image (more than 8 bits per value; convert it to 8 first).")
    values = torch.from_numpy(pixels.values).permute(2, 0, 1)
    colors = values[:1].expand(3, -1, -1) if values.shape[0] < 3 else values[:3]
    return colors.contiguous()


@dataclass(frozen=True)
class ImagePair:
    """A high-resolution image, cut to whole low-resolution pixels, and its twin; both uint8 (3, H, W)."""

    path: Path
    hr: Tensor
    lr: Tensor


def load_pairs(
    files: list[Path],
    scale: int,
    *,
    min_size: int = 1,
    on_bad: Callable[[str], object] | None = None,
) -> list[ImagePair]:
    """Read images and make their low-resolution twins, once, to be kept in memory.

    Args:
        files: The high-resolution images.
        scale: How much smaller the low-resolution images are.
        min_size: Smallest height and width allowed, in high-resolution pixels: the patch.
        on_bad: Called with what is wrong, for each file that is left out because it is unreadable or too small.

    Raises:
        ValueError: If a file is unreadable or an image is smaller than ``min_size``, and there is no ``on_bad``.
    """

    def load(path: Path) -> ImagePair | None:
        try:
            image = read_rgb(path)
            side = min(image.shape[1:]) // scale * scale
            if side < min_size:
                size = f"{path}: {image.shape[2]} x {image.shape[1]} pixels"
                if side < (least := smallest_scored(scale)):
                    raise ValueError(f"{size}, less than the {least} x {least} that scoring needs; take it out.")
                raise ValueError(
                    f"{size}, less than the patch of {min_size} x {min_size}; take it out, or train with --patch-size "
                    f"{side} or less."
                )
        except (ValueError, OSError) as error:
            if on_bad is None or is_out_of_memory(error):
                raise
            on_bad(describe(error, path))
            return None
        hr = mod_crop(image, scale)
        return ImagePair(path, hr, imresize(hr, 1 / scale))

    # Threads suffice: decoding and resizing release the GIL.
    with ThreadPoolExecutor(usable_cores()) as pool:
        loaded = tqdm(pool.map(load, files), total=len(files), desc="images", unit="image", leave=False, disable=None)
        return [pair for pair in loaded if pair is not None]


def usable_cores() -> int:
    """How many cores this process may use; a machine that is shared may have far more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_held_out(files: list[T], held_out: int) -> tuple[list[T], list[T]]:
    """Divide files or images into those to train on and ``held_out`` evenly spaced ones to validate on."""
    if not 0 < held_out < len(files):
        choose = f"choose 1 to {len(files) - 1}" if len(files) > 1 else "at least two images are needed"
        raise ValueError(f"--held-out {held_out} of {len(files)} images: {choose}, so that some remain to train on.")
    chosen = {int((i + 0.5) * len(files) / held_out) for i in range(held_out)}
    return (
        [path for i, path in enumerate(files) if i not in chosen],
        [path for i, path in enumerate(files) if i in chosen],
    )


class PatchSampler:
    """Random aligned patches, flipped and rotated, as a pure function of the seed and the step.

    So a run that is resumed at a step draws what the run that was never stopped would have drawn, and several processes
    that share a batch draw disjoint parts of the one that a single process would have.

    All images lie in one buffer on ``device``, and a batch is one gather from it: on a GPU nothing is decoded, cut out
    or sent while the network waits.

    Args:
        pairs: The images.
        scale: High-resolution pixels per low-resolution pixel.
        patch_size: Side of the high-resolution patch, a multiple of ``scale``.
        batch_size: Patches per step, over all processes.
        seed: Of everything that is drawn.
        device: Where the images are kept and the patches are made.
        degrade: Whether every second low-resolution patch is degraded as a photograph may be, see
            :mod:`examples.mren.degradation`. The low-resolution images are then kept where JPEGs are made, on the CPU,
            and a GPU is only sent patches, without being waited for.
        textured: Whether each patch is drawn twice from its image, and the one with more texture taken: the one whose
            neighbouring pixels, in the low-resolution green, differ more.
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
        """A sampler of other patches from the same images, which stay where they are in memory."""
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
        """What step ``step`` trains on: for each patch the image, the low-resolution top and left, the orientation."""
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
        """The images that step ``step`` trains on."""
        return [self.paths[index] for index, *_ in self.draw(step)]

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Low- and high-resolution patches of a step, between 0 and 1, the part that process ``rank`` works on."""
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
    """Images that lie end to end in one buffer, plane after plane."""

    def __init__(self, images: list[Tensor], device: torch.device | str) -> None:
        # Copied one by one: of images that were cropped, flatten and cat would make two copies at once.
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
        """Patches, uint8, for rows of image, top, left and orientation; pixels outside repeat the border."""
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
    """Where each pixel of a square patch and its margin comes from, for its eight flips and rotations."""

    def __init__(self, side: int, device: torch.device | str, *, margin: int = 0) -> None:
        side += 2 * margin
        square = torch.arange(side * side, device=device).view(side, side)
        rotated = [square.rot90(turns) for turns in range(4)]
        oriented = torch.stack(rotated + [each.flip(1) for each in rotated])
        self.rows, self.columns = oriented // side - margin, oriented % side - margin
