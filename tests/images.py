"""Pictures and weights for tests: made up ones, and where the field's test sets are if they are there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from examples.mren.model import MREN, save_weights

DATA = Path(os.environ.get("SC_BLOCKS_DATA", Path(__file__).parents[2] / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (DATA / "test" / "Set5").is_dir(),
    reason=f"no test sets at {DATA}: they are not ours to ship; SC_BLOCKS_DATA says where yours are",
)


def photo(height: int, width: int, *, seed: int = 0) -> Tensor:
    """A smooth colourful picture with an edge in it, uint8 (3, height, width)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [
        np.sin(2 * np.pi * (random.uniform(1, 4) * rows + random.uniform(1, 4) * columns + random.uniform()))
        for _ in range(3)
    ]
    edge = (columns + random.uniform(-0.3, 0.3) * rows > random.uniform(0.3, 0.7)) * 60.0
    image = np.stack([110 + 60 * wave + edge for wave in waves]) + random.normal(0, 4, (3, height, width))
    return torch.from_numpy(image.clip(0, 255).round().astype(np.uint8))


def pil_photo(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """The same, as an image of Pillow."""
    return Image.fromarray(photo(height, width, seed=seed).permute(1, 2, 0).numpy())


def rename_to_bytes(path: Path) -> Path:
    """Give a file or folder a name that is not UTF-8, as those out of old archives are; returns its path."""
    renamed = path.with_name(f"\udce9{path.name}")
    try:
        return path.rename(renamed)
    except OSError:
        pytest.skip("this filesystem has no such names")


def write_photos(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Write a picture of each size (height, width) as ``0.png``, ``1.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, (height, width) in enumerate(sizes):
        files.append(folder / f"{i}.png")
        pil_photo(height, width, seed=i).save(files[-1])
    return files


def write_weights(folder: Path, *, bicubic: bool = False, **config: object) -> Path:
    """Write the first weights of an MREN with these arguments, for seed 0.

    With ``bicubic`` its last convolution is zero: it enlarges as torch's bicubic does, so results are known.
    """
    torch.manual_seed(0)
    net = MREN(**config)
    for parameter in net.tail.parameters() if bicubic else ():
        nn.init.zeros_(parameter)
    save_weights(net, folder / "small.safetensors", config)
    return folder / "small.safetensors"
