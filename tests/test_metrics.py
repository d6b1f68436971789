"""PSNR and SSIM, against independent implementations and against published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from examples.mren.data import imresize
from examples.mren.metrics import Score, luma, psnr, score, to_uint8
from tests.images import photo


def noisy(image: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + torch.from_numpy(noise)).round().clamp(0, 255).to(torch.uint8)


def test_luma_is_matlabs() -> None:
    image = photo(20, 30)
    expected = rgb2ycbcr(image.permute(1, 2, 0).numpy())[..., 0]
    np.testing.assert_allclose(luma(image).numpy(), expected, atol=1e-9)
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2).expand(3, 1, 2)
    assert luma(extremes).tolist() == [[16.0, pytest.approx(235.0)]]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("sigma", [1.0, 12.0])
def test_score_agrees_with_scikit_image(scale: int, sigma: float) -> None:
    hr = photo(41, 57, seed=scale)
    sr = noisy(hr, sigma)
    first, second = (rgb2ycbcr(image.permute(1, 2, 0).numpy())[scale:-scale, scale:-scale, 0] for image in (sr, hr))
    result = score(sr, hr, scale)
    assert result.psnr == pytest.approx(peak_signal_noise_ratio(second, first, data_range=255), abs=1e-9)
    assert result.ssim == pytest.approx(
        structural_similarity(
            first, second, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        ),
        abs=1e-9,
    )
    assert psnr(sr, hr, scale) == result.psnr
    inner = [luma(image)[scale:-scale, scale:-scale] for image in (sr, hr)]
    assert result.psnr == pytest.approx(torchmetrics_psnr(*inner, data_range=255.0).item(), abs=1e-4)


def test_equal_images_are_perfect() -> None:
    assert score(photo(30, 30), photo(30, 30), 4) == Score(math.inf, pytest.approx(1.0))


def test_the_border_does_not_count() -> None:
    hr = photo(32, 32)
    sr = hr.clone()
    sr[:, :4] = 255 - sr[:, :4]
    assert score(sr, hr, 4).psnr == math.inf
    assert score(sr, hr, 3).psnr < 40


def test_to_uint8_clamps_then_rounds() -> None:
    assert to_uint8(torch.tensor([-0.3, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.7])).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("sr", "hr", "error", "message"),
    [
        (torch.zeros(3, 32, 32), photo(32, 32), TypeError, "sr must be uint8, got torch.float32; convert it with"),
        (photo(32, 32)[:1], photo(32, 32), ValueError, r"sr must have shape \(3, height, width\), got \(1, 32, 32\)"),
        (photo(32, 32), photo(33, 32), ValueError, "same shape.*mod_crop"),
        (photo(18, 40), photo(18, 40), ValueError, "19 x 19"),
        (photo(40, 18), photo(40, 18), ValueError, "19 x 19"),
    ],
)
def test_what_cannot_be_compared_is_refused(sr, hr, error, message) -> None:
    for function in (score, psnr):
        with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
            function(sr, hr, 4)


def test_bicubic_loses_what_it_should() -> None:
    hr = photo(48, 48)
    near, far = (score(imresize(imresize(hr, 1 / s), s), hr, 4).psnr for s in (2, 4))
    assert near > far
