"""What low-resolution images go through for ``--degrade photo``."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.ndimage import gaussian_filter

from examples.mren import evaluate, model, train, upscale
from examples.mren.data import ImagePair, imresize, read_rgb
from examples.mren.degradation import (
    MCU,
    Degradation,
    compress,
    degrade,
    degrade_patch,
    draw_patch_degradation,
    make_generator,
)
from examples.mren.metrics import score
from examples.mren.model import MREN, VARIANTS, load_mren, save_weights
from examples.mren.training.patches import PatchSampler
from tests.images import write_photos
from tests.test_train import history, images, run

__all__ = ["images"]  # a fixture


def ramps(height: int, width: int) -> torch.Tensor:
    """Smooth colours, in which the blocks of a JPEG show."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    planes = [128 + 100 * torch.sin(rows / 9 + columns / (7 + channel)) for channel in range(3)]
    return torch.stack(planes).to(torch.uint8)


def test_half_of_the_patches_are_clean_and_the_others_in_range() -> None:
    drawn = [draw_patch_degradation(make_generator(0, number)) for number in range(2000)]
    degraded = [each for each in drawn if each is not None]
    assert len(degraded) == pytest.approx(1000, abs=100)  # 4.5 standard deviations
    assert {each.quality for each in degraded} == set(range(30, 96))
    assert {each.subsampling for each in degraded} == {"4:2:0", "4:4:4"}
    assert {each.offset[axis] for each in degraded for axis in (0, 1)} == set(range(16))
    for values, most in (([each.noise for each in degraded], 10), ([each.blur for each in degraded], 0.8)):
        assert min(values) == 0
        assert 0.95 * most < max(values) <= most
    noises, blurs = ([e.noise for e in degraded if e.noise], [e.blur for e in degraded if e.blur])
    # How many, and uniform in what varies: each to within four standard deviations.
    assert len(noises) / len(degraded) == pytest.approx(1 / 2, abs=0.065)
    assert len(blurs) / len(degraded) == pytest.approx(1 / 4, abs=0.055)
    assert sum(each.subsampling == "4:2:0" for each in degraded) / len(degraded) == pytest.approx(3 / 4, abs=0.055)
    assert np.mean([each.quality for each in degraded]) == pytest.approx((30 + 95) / 2, abs=2.5)
    assert np.mean(noises) == pytest.approx(5, abs=0.55)
    assert np.mean(blurs) == pytest.approx(0.4, abs=0.06)
    # One says nothing of another: the coefficient of two that do not is 0, to within 1 / sqrt(1000).
    drawn_numbers = [(each.quality, each.noise, each.blur, *each.offset) for each in degraded]
    np.testing.assert_allclose(np.corrcoef(drawn_numbers, rowvar=False), np.eye(5), rtol=0, atol=0.13)


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 100), st.floats(0, 10), st.floats(0, 2), st.integers(0, 99)
)
def test_shape_type_and_seed(height: int, width: int, quality: int, noise: float, blur: float, seed: int) -> None:
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    before = image.clone()
    degradation = Degradation(quality=quality, noise=noise, blur=blur)
    first, second = (degrade(image, degradation, make_generator(seed)) for _ in range(2))
    assert (first.shape, first.dtype) == (image.shape, torch.uint8)
    assert torch.equal(first, second)
    assert torch.equal(image, before)


def test_each_step_does_what_it_is_called() -> None:
    gray = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    noisy = degrade(gray, Degradation(noise=8.0), make_generator(0)).float() - 128
    assert noisy.mean().item() == pytest.approx(0, abs=0.5)
    assert noisy.std().item() == pytest.approx(8, rel=0.05)
    np.testing.assert_allclose(np.corrcoef(noisy.flatten(1)), np.eye(3), rtol=0, atol=0.07)  # one colour, another noise
    both = degrade(gray, Degradation(noise=10.0, blur=0.8), make_generator(0)).float()
    assert both.std().item() == pytest.approx(10, abs=0.5), "noise comes after the blur"
    for extreme in (0, 255):  # where there is no more black or white, it stays so
        flat = torch.full((3, 64, 64), extreme, dtype=torch.uint8)
        off = (degrade(flat, Degradation(noise=8.0), make_generator(0)).float() - extreme).abs()
        assert (off.median().item(), off.max().item() < 50) == (0, True)
        assert torch.equal(degrade(flat, Degradation(blur=0.8), make_generator(0)), flat), "dark or light borders"
    dot = torch.zeros(3, 21, 21, dtype=torch.uint8)
    dot[:, 10, 10] = 255
    blurred = degrade(dot, Degradation(blur=0.8), make_generator(0)).double()
    assert blurred.sum().item() == pytest.approx(3 * 255, rel=0.05)
    places = torch.arange(21.0, dtype=torch.float64) - 10
    variance = (blurred[0].sum(0) * places**2).sum() / blurred[0].sum()
    assert variance.sqrt().item() == pytest.approx(0.8, rel=0.1)
    assert torch.equal(degrade(dot, Degradation(), make_generator(0)), dot)
    errors = [(compress(ramps(64, 64), quality).float() - ramps(64, 64)).abs().mean() for quality in (95, 60, 30)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_blur_is_scipys() -> None:
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    blurred = degrade(image, Degradation(blur=0.8), make_generator(0))
    # Three pixels to each side; rounded once, at the end.
    expected = [gaussian_filter(plane, 0.8, truncate=3.75, mode="nearest") for plane in image.double().numpy()]
    np.testing.assert_allclose(blurred.numpy(), np.stack(expected), rtol=0, atol=0.51)


@pytest.mark.parametrize("offset", [(0, 0), (3, 14), (15, 8)])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_a_patch_is_one_of_an_image_whose_grid_lies_elsewhere(offset: tuple[int, int], subsampling: str) -> None:
    patch = ramps(72, 64)
    degradation = Degradation(quality=30, subsampling=subsampling, offset=offset)
    cut = degrade_patch(patch, degradation, make_generator(0))
    assert cut.shape == (3, 40, 32)
    # The same place of a larger image, cut so that its JPEG begins where the grid is to lie.
    top, left = offset
    whole = compress(patch[:, top:, left:], 30, subsampling)
    assert torch.equal(cut, whole[:, MCU - top : MCU - top + 40, MCU - left : MCU - left + 32])
    # Where the grid is, differences between neighbours are larger than elsewhere.
    steps = (cut[0].float().diff(n=2, dim=1)).abs().mean(0)
    border = (left - 1) % 8  # the last column of a block
    at_border = torch.tensor([column % 8 in (border, (border - 1) % 8) for column in range(len(steps))])
    assert steps[at_border].mean() > 1.5 * steps[~at_border].mean()


def test_a_clean_patch_is_only_cut() -> None:
    patch = ramps(40, 44)
    assert torch.equal(degrade_patch(patch, None, make_generator(0)), patch[:, 16:24, 16:28])


def test_what_is_out_of_range_is_refused() -> None:
    image = ramps(40, 40)
    for degradation, message in (
        (Degradation(quality=0), "quality must be from 1 to 100, got 0"),
        (Degradation(quality=101), "quality must be from 1 to 100, got 101"),
        (Degradation(noise=-1.0), "noise and blur must be 0 or more, got -1 and 0"),
        (Degradation(blur=-1.0), "noise and blur must be 0 or more, got 0 and -1"),
        (Degradation(offset=(16, 0)), r"offset must be two numbers from 0 to 15, got \(16, 0\)"),
        (Degradation(offset=(0, -1)), r"offset must be two numbers from 0 to 15, got \(0, -1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            degrade_patch(image, degradation, make_generator(0))


def test_patches_of_training_are_those_of_clean_images_or_degraded() -> None:
    pairs = [
        ImagePair(Path(f"{height}"), lr.repeat_interleave(4, 1).repeat_interleave(4, 2), lr)
        for height, lr in ((height, ramps(height, 24)) for height in (10, 30))
    ]
    samplers = [
        PatchSampler(pairs, 4, patch_size=32, batch_size=8, seed=1, degrade=degraded) for degraded in (False, True)
    ]
    equal = 0
    for step in range(20):
        (clean, target), (low, high) = (sampler.batch(step) for sampler in samplers)
        assert torch.equal(high, target)
        assert (low.shape, low.dtype) == (clean.shape, torch.float32)
        same = (low == clean).flatten(1).all(1)
        equal += int(same.sum())
        assert ((low - clean).abs().flatten(1).mean(1) < 0.1).all()  # the same places
        for rank in (0, 1):  # two processes share the batch
            assert torch.equal(samplers[1].batch(step, rank=rank, world_size=2)[0], low[rank::2])
    assert 50 < equal < 110  # of 160


def test_each_patch_is_degraded_in_its_own_way() -> None:
    gray = torch.full((3, 8, 8), 128, dtype=torch.uint8)  # wherever it is cut, it is the same
    pairs = [ImagePair(Path("gray"), gray, gray)]
    noisy = []
    for seed, step in itertools.product(range(3), range(3)):
        sampler = PatchSampler(pairs, 1, patch_size=8, batch_size=32, seed=seed, degrade=True)
        noisy += [patch for patch in sampler.batch(step)[0] if patch.std() > 0]
    assert len(noisy) > 40  # about a quarter of 288
    assert len({tuple(patch.flatten().tolist()) for patch in noisy}) == len(noisy)


def test_the_border_of_an_image_is_degraded_as_if_it_went_on() -> None:
    # From black on one side to white on the other: what is compressed beyond a side must not be that of the other.
    across = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(3, 32, 32)
    pairs = [ImagePair(Path("ramp"), ramp, ramp) for ramp in (across, across.transpose(1, 2))]
    low, high = PatchSampler(pairs, 1, patch_size=32, batch_size=64, seed=0, degrade=True).batch(0)
    off = (low - high).abs().mean((0, 1))
    border = torch.cat([off[0], off[-1], off[:, 0], off[:, -1]]).mean()
    assert 0 < border < 1.5 * off[4:-4, 4:-4].mean()


def test_a_run_on_photographs_is_recorded_and_chosen_by_both(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = ["--steps", "2", "--validate-every", "1"]
    assert run(images, output, *arguments, "--degrade", "photo") == 0
    assert json.loads((output / "run.json").read_text())["degrade"] == "photo"
    with safe_open(output / "mren_x4.safetensors", "pt") as file:
        assert file.metadata()["degrade"] == "photo"
    names, *rows = history(output)
    for row in rows:
        values = dict(zip(names, map(float, row), strict=True))
        assert values["psnr"] == pytest.approx((values["psnr_clean"] + values["psnr_degraded"]) / 2)
        assert values["psnr_degraded"] < values["psnr_clean"]
    assert run(images, output, *arguments, "--resume") == 0
    assert json.loads((output / "run.json").read_text())["degrade"] == "photo"


def test_each_image_to_validate_on_is_degraded_in_its_own_way_the_same_in_all_runs(
    images: Path, tmp_path: Path, monkeypatch
) -> None:
    drawn: list[Degradation] = []
    monkeypatch.setattr(train, "degrade", lambda image, degradation, _: drawn.append(degradation) or image)
    for seed in ("0", "1"):
        arguments = ["--degrade", "photo", "--held-out", "2", "--seed", seed, "--dry-run"]
        assert run(images, tmp_path / "run", *arguments) == 0
    assert drawn[:2] == drawn[2:]
    assert len(set(drawn)) == 2


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch) -> Path:
    """A folder of weights in the place of the shipped one."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name in ("mren_s_x2", "mren_s_x2_photo", "mren_s_x4_photo", "mren_s_x4_free"):
        config = {"scale": int(name[8]), "num_blocks": 1, **VARIANTS["mren_s"]}
        save_weights(MREN(**config), folder / f"{name}.safetensors", config)
    monkeypatch.setattr(model, "WEIGHTS", folder)
    return folder


def test_shipped_weights_of_other_kinds_have_short_names(shipped: Path) -> None:
    names = [(2, "photo", "x2_photo"), (None, Path("photo"), "x4_photo"), (4, "free", "x4_free"), (2, None, "x2")]
    for scale, path, name in names:
        net, file = load_mren(scale, "mren_s", path=path), shipped / f"mren_s_{name}.safetensors"
        assert torch.equal(net.head.weight, load_mren(path=file).head.weight)
    with pytest.raises(FileNotFoundError, match=r"mren_x4_photo.* for photo mren_s x2 or mren_s x4\. Train"):
        load_mren(4, path="photo")
    with pytest.raises(FileNotFoundError, match=r"Train your own .* --scale 3 --variant mren_l --degrade photo, then"):
        load_mren(3, "mren_l", path="photo")
    with pytest.raises(FileNotFoundError, match=r"Shipped: .*mren_s_x4_free.* --scale 2 --variant mren_s, then"):
        load_mren(2, "mren_s", path="free")
    with pytest.raises(FileNotFoundError, match=r"x5\.safetensors; .* did you mean .*mren_s_x"):
        load_mren(path=shipped / "mren_s_x5.safetensors")
    with pytest.raises(ValueError, match="is a folder, but a file is needed"):
        load_mren(path=shipped)
    (shipped / "mren_s_x2_photo.safetensors").rename(shipped / "mren_x2_photo.safetensors")
    with pytest.raises(ValueError, match="not the arguments of mren"):
        load_mren(2, path="photo")


def test_photographs_are_upscaled_and_scored_by_the_short_name(shipped: Path, tmp_path: Path, capsys) -> None:
    write_photos(tmp_path / "photos", [(32, 36)])
    (photo,) = (tmp_path / "photos").iterdir()
    target = tmp_path / "large.png"
    arguments = ["--scale", "2", "--variant", "mren_s", "--device", "cpu"]
    assert upscale.main([str(photo), "-o", str(target), "--weights", "photo", *arguments]) == 0
    expected = tmp_path / "expected.png"
    file = shipped / "mren_s_x2_photo.safetensors"
    assert upscale.main([str(photo), "-o", str(expected), "--weights", str(file), *arguments]) == 0
    assert target.read_bytes() == expected.read_bytes()

    scores: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for options in ((), ("--jpeg", "75"), ("--jpeg", "30"), ("--noise", "10"), ("--jpeg", "30", "--noise", "10")):
        table = tmp_path / "scores.csv"
        command = ["--data", str(tmp_path / "photos"), "--weights", "photo", "--csv", str(table), "--overwrite"]
        assert evaluate.main([*command, *arguments, *options]) == 0
        with table.open(newline="") as opened:
            scores[options] = {row["method"]: row for row in csv.DictReader(opened)}
    datasets = [rows["bicubic"]["dataset"] for rows in scores.values()]
    assert datasets == ["photos", "photos, JPEG 75", "photos, JPEG 30", "photos, noise 10", "photos, JPEG 30, noise 10"]
    bicubic = [float(rows["bicubic"]["psnr"]) for rows in scores.values()]
    assert bicubic[0] > bicubic[1] > bicubic[2]
    assert bicubic[0] > bicubic[3]
    # By hand: shrunk, degraded, enlarged, compared.
    hr = read_rgb(photo)
    lr = degrade(imresize(hr, 1 / 2), Degradation(quality=30, noise=10), make_generator(0))
    assert bicubic[4] == pytest.approx(score(imresize(lr, 2), hr, 2).psnr, abs=1e-4)
    assert set(scores[()]) == {"bicubic", "mren_s_x2_photo"}
