"""Draw the pictures of the comparison on the page of results, and the sample of the page "Try it in the browser".

Run as ``python -m docs.figures.pair``. A photograph is downscaled by 4 and upscaled again, bicubically and by the
shipped weights. It is the cat of scikit-image (``skimage.data.chelsea``, by Stefan van der Walt, CC0), which is not in
the training data.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from examples.mren.data import imresize, photograph
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import load_mren

ROOT = Path(__file__).parents[2]
SCALE = 4


def main() -> None:
    original = photograph("chelsea")[:, :, :448]
    small = imresize(original, 1 / SCALE)
    with torch.inference_mode():
        enlarged = load_mren(SCALE)(small[None].float() / 255)[0]
    images = {"bicubic": imresize(small, SCALE), "mren": to_uint8(enlarged)}
    save(small, ROOT / "docs" / "_static" / "try" / "sample.png")
    for name, image in images.items():
        save(image, ROOT / "docs" / "images" / f"chelsea_{name}.webp")
        print(f"{name}: {psnr(image, original, SCALE):.2f} dB")


def save(image: Tensor, file: Path) -> None:
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels.save(file, **({"quality": 92} if file.suffix == ".webp" else {"optimize": True}))


if __name__ == "__main__":
    main()
