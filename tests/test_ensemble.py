"""Self-ensemble is the mean over the eight orientations of an image, whatever computes the results."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from examples.mren import evaluate, upscale
from examples.mren.ensemble import SelfEnsemble
from examples.mren.model import MREN, load_mren, save_weights
from tests.images import write_photos

SIDES = st.integers(1, 9)


class Numbering(nn.Module):
    """No symmetry: each pixel of a result, twice as large, also depends on where it is."""

    def forward(self, image: Tensor) -> Tensor:
        large = F.interpolate(image, scale_factor=2, mode="nearest")
        return large * torch.arange(large[0, 0].numel(), dtype=image.dtype).view(large.shape[2:])


@given(SIDES, SIDES)
def test_of_a_convolution_is_the_convolution_with_the_mean_kernel(height: int, width: int) -> None:
    conv = nn.Conv2d(3, 4, 5, padding=2, dtype=torch.float64)
    image = torch.randn(2, 3, height, width, dtype=torch.float64)
    kernel = conv.weight.detach().numpy()
    # The orientations of a square by the order of its two axes and their directions, not by rotations.
    oriented = [
        kernel.transpose(0, 1, *axes)[:, :, ::rows, ::columns]
        for axes, rows, columns in itertools.product([(2, 3), (3, 2)], [1, -1], [1, -1])
    ]
    expected = F.conv2d(image, torch.from_numpy(np.mean(oriented, axis=0)), conv.bias, padding=2)
    torch.testing.assert_close(SelfEnsemble(conv)(image), expected)


@given(SIDES, SIDES, st.integers(0, 3), st.booleans())
def test_it_turns_with_the_image(height: int, width: int, turns: int, mirrored: bool) -> None:
    def turn(image: Tensor) -> Tensor:
        return (image.flip(2) if mirrored else image).rot90(turns, (2, 3))

    net = SelfEnsemble(Numbering())
    image = torch.randn(1, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(net(turn(image)), turn(net(image)))


def test_a_network_that_turns_with_the_image_is_left_as_it_is() -> None:
    image = torch.rand(1, 3, 7, 5, dtype=torch.float64)
    net = nn.Upsample(scale_factor=3, mode="bilinear")
    torch.testing.assert_close(SelfEnsemble(net)(image), net(image))


def test_the_image_is_not_changed_and_gradients_arrive() -> None:
    image = torch.rand(1, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    before = image.detach().clone()
    assert torch.autograd.gradcheck(SelfEnsemble(Numbering()), image)
    assert torch.equal(image, before)


def test_a_single_image_is_told_to_be_a_batch() -> None:
    with pytest.raises(ValueError, match=r"SelfEnsemble: image must have 4 dimensions .*pass image.unsqueeze\(0\)"):
        SelfEnsemble(Numbering())(torch.rand(3, 8, 8))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    config = {"scale": 2, "channels": 12, "num_blocks": 1}
    net = MREN(**config)
    nn.init.normal_(net.tail.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "small.safetensors"
    save_weights(net, file, config)
    return file


@pytest.mark.parametrize(
    "engine", ["torch", "ncnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "openvino"))]
)
def test_upscale_writes_it(tmp_path: Path, weights: Path, engine: str) -> None:
    (source,) = write_photos(tmp_path / "in", [(20, 13)])
    pixels = {}
    for more in ([], ["--self-ensemble"]):
        target = tmp_path / f"out{len(more)}.png"
        command = [str(source), "-o", str(target), "--weights", str(weights), "--engine", engine]
        command += ["--threads", "1", *more]
        assert upscale.main(command) == 0
        with Image.open(target) as opened:
            pixels[len(more)] = torch.from_numpy(np.array(opened, dtype=np.int16))
    with Image.open(source) as opened:
        image = torch.from_numpy(np.array(opened)).permute(2, 0, 1)[None] / 255
    net = load_mren(2, path=weights)
    for ensemble, each in enumerate((net, SelfEnsemble(net))):
        expected = (255 * each(image)[0].clamp(0, 1)).round().permute(1, 2, 0)
        assert (pixels[ensemble] - expected).abs().max() <= 1
    assert not torch.equal(pixels[0], pixels[1])


def test_evaluate_scores_it_too(tmp_path: Path, weights: Path, capsys) -> None:
    write_photos(tmp_path / "set", [(48, 51)])
    command = ["--data", str(tmp_path / "set"), "--weights", str(weights), "--self-ensemble", "--device", "cpu"]
    assert evaluate.main(command) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[1:]] == ["bicubic", "small", "small, self-ensemble"]
    assert rows[2][1:] != rows[3][1:]
