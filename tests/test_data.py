"""The images: MATLAB's bicubic, folders, splits, patches."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples.mren.data import ImagePair, imresize, list_images, load_pairs, mod_crop, read_rgb, split_held_out
from examples.mren.training.patches import PatchSampler
from tests.images import DATA, needs_data, photo, write_photos


def keys(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def matlab_axis(signal: np.ndarray, scale: float) -> np.ndarray:
    """One axis of MATLAB's imresize, an output sample at a time, from its documented rule."""
    size_out = round(len(signal) * scale)
    stretch = min(scale, 1.0)
    out = np.zeros(size_out)
    for i in range(size_out):
        centre = (i + 0.5) / scale - 0.5
        reach = 2 / stretch
        taps = np.arange(int(np.floor(centre - reach)) - 1, int(np.ceil(centre + reach)) + 2)
        weights = stretch * keys(stretch * (centre - taps))
        period = np.concatenate([np.arange(len(signal)), np.arange(len(signal))[::-1]])  # edges repeat
        out[i] = (weights * signal[period[taps % len(period)]]).sum() / weights.sum()
    return out


@given(
    size=st.integers(1, 12),
    factor=st.integers(1, 5),
    enlarge=st.booleans(),
    seed=st.integers(0, 2**16),
    axis=st.booleans(),
)
def test_imresize_is_matlabs_kernel(size: int, factor: int, enlarge: bool, seed: int, axis: bool) -> None:
    signal = np.random.default_rng(seed).random(size if enlarge else size * factor)
    scale = float(factor) if enlarge else 1 / factor
    across = 1 if enlarge else factor  # the other axis, constant
    image = torch.from_numpy(signal).view(1, -1, 1).expand(1, -1, across).contiguous()
    if axis:
        image = image.transpose(1, 2)
    resized = imresize(image, scale)
    resized = resized.transpose(1, 2) if axis else resized
    np.testing.assert_allclose(resized[0, :, 0].numpy(), matlab_axis(signal, scale), atol=1e-12)


# Of noise, some results lie exactly between two values, and others out of range.
NOISE = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 64, 96), dtype=np.uint8))


@pytest.mark.parametrize(("image", "scale"), [(photo(16, 24, seed=3), 1 / 4), (NOISE, 1 / 2)], ids=["photo", "noise"])
def test_imresize_rounds_eight_bit_images_after_each_axis_rows_first(image: torch.Tensor, scale: float) -> None:
    rows = np.apply_along_axis(matlab_axis, 1, image.numpy().astype(float), scale)
    rows = np.clip(np.floor(rows + 0.5), 0, 255)
    both = np.clip(np.floor(np.apply_along_axis(matlab_axis, 2, rows, scale) + 0.5), 0, 255)
    assert torch.equal(imresize(image, scale), torch.from_numpy(both).to(torch.uint8))


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_low_resolution_set5_equals_matlabs_in_every_value(scale: int) -> None:
    for path in list_images(DATA / "test" / "Set5"):
        (reference,) = (DATA / "reference" / "Set5_LR_matlab" / f"x{scale}").glob(f"{path.stem}*")
        made = imresize(mod_crop(read_rgb(path), scale), 1 / scale)
        assert torch.equal(made, read_rgb(reference)), path.stem


@pytest.mark.parametrize(
    ("scale", "message"),
    [(1.5, "whole number"), (1 // 4, "whole number"), (1 / 4, r"multiples of 4, got 10 x 13; mod_crop")],
)
def test_imresize_refuses_what_has_no_whole_size(scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imresize(torch.zeros(3, 10, 13), scale)


@pytest.mark.parametrize("function", [imresize, mod_crop])
@pytest.mark.parametrize("shape", [(8, 12), (1, 3, 8, 12)])
def test_a_batch_is_named(function, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^{function.__name__}: image must have 3 dimensions .* got shape .*by one"):
        function(torch.zeros(shape), 4)


def test_mod_crop_keeps_the_top_left() -> None:
    image = photo(11, 14)
    assert torch.equal(mod_crop(image, 4), image[:, :8, :12])
    with pytest.raises(ValueError, match="at least 4 x 4 pixels, got 14 x 3"):
        mod_crop(image[:, :3], 4)


def test_reading_repeats_gray_and_names_a_broken_file(tmp_path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "gray.png")
    read = read_rgb(tmp_path / "gray.png")
    assert read.shape == (3, 8, 8)
    assert torch.equal(read[0], read[2])
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.png: not a readable image"):
        read_rgb(tmp_path / "broken.png")
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: .*more than 8 bits"):
        read_rgb(tmp_path / "deep.png")


def test_folders_without_images_say_where_and_what_was_looked_for(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: no images; looked for \*\.png"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder at .*missing; .* has no missing\. Give one"):
        list_images(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=rf"notes\.txt; that is a file in {tmp_path}"):
        list_images(tmp_path / "notes.txt")
    write_photos(tmp_path / "set", [(8, 8)])
    (tmp_path / "HR").mkdir()  # empty: the folder to give is the other one
    with pytest.raises(ValueError, match="set: is given twice; give each folder once"):
        list_images(tmp_path / "set", tmp_path / "HR" / ".." / "set")
    with pytest.raises(ValueError, match=rf"no images; .* such as {tmp_path / 'set'}\."):
        list_images(tmp_path)


def test_images_come_by_name_one_folder_after_the_other(tmp_path) -> None:
    # The order decides which images are held out; that of the disk differs between machines.
    expected = []
    for folder in ("second", "first"):
        (tmp_path / folder).mkdir()
        files = [tmp_path / folder / f"{number:02d}.png" for number in range(20)]
        for number in np.random.default_rng(0).permutation(20):
            files[number].touch()
        expected += files
    assert list_images(tmp_path / "second", tmp_path / "first") == expected


def test_images_smaller_than_the_patch_are_named(tmp_path) -> None:
    files = write_photos(tmp_path, [(40, 40), (30, 50)])
    with pytest.raises(ValueError, match=r"1\.png: 50 x 30 pixels, less than the patch of 32 x 32.*--patch-size 28"):
        load_pairs(files, 4, min_size=32)
    tiny = write_photos(tmp_path / "tiny", [(18, 18)])
    with pytest.raises(ValueError, match=r"18 x 18 pixels, less than the 19 x 19 that scoring needs; remove it\.$"):
        load_pairs(tiny, 4, min_size=32)  # no size of patches would do


def test_too_little_memory_is_not_the_images_fault(tmp_path, monkeypatch) -> None:
    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("examples.mren.data.read_rgb", no_memory)
    problems: list[str] = []
    with pytest.raises(OSError, match="Cannot allocate memory"):
        load_pairs(write_photos(tmp_path, [(20, 20)]), 2, on_bad=problems.append)
    assert problems == []


def test_pairs_fit_pixel_on_pixel_and_come_in_the_order_of_their_files(tmp_path) -> None:
    files = write_photos(tmp_path, [(43, 50), (41, 42), (60, 45)])
    pairs = load_pairs(files, 4)
    assert [pair.path for pair in pairs] == files
    for pair, (height, width) in zip(pairs, [(40, 48), (40, 40), (60, 44)], strict=True):
        assert torch.equal(pair.hr, read_rgb(pair.path)[:, :height, :width])
        assert torch.equal(pair.lr, imresize(pair.hr, 1 / 4))


@given(count=st.integers(2, 200), data=st.data())
def test_the_split_is_disjoint_complete_and_even(count: int, data: st.DataObject) -> None:
    held_out = data.draw(st.integers(1, count - 1))
    files = [f"{i:03d}" for i in range(count)]
    train, held = split_held_out(files, held_out)
    assert len(held) == held_out
    assert sorted(train + held) == files
    # Of frames that resemble their neighbours, as of a film, every part is validated on.
    gaps = np.diff([files.index(file) for file in held])
    assert all(gap in (count // held_out, -(-count // held_out)) for gap in gaps)


@pytest.mark.parametrize("held_out", [0, 5, 6])
def test_the_split_needs_images_on_both_sides(held_out: int) -> None:
    with pytest.raises(ValueError, match=f"--held-out {held_out} of 5 images.* 1 to 4"):
        split_held_out([f"{i}" for i in range(5)], held_out)
    with pytest.raises(ValueError, match=f"{held_out} of 1 images.* at least two"):
        split_held_out(["0"], held_out)


def test_patches_are_aligned_and_turned_together() -> None:
    # An image that is a low-resolution image with every pixel repeated: whatever is drawn, the pair must match.
    pairs = []
    for seed in range(3):
        lr = photo(20, 23, seed=seed)
        pairs.append(ImagePair("", lr.repeat_interleave(4, 1).repeat_interleave(4, 2), lr))
    sampler = PatchSampler(pairs, 4, patch_size=32, batch_size=16, seed=0)
    orientations = set()
    for step in range(8):
        low, high = sampler.batch(step)
        assert low.shape == (16, 3, 8, 8)
        assert torch.equal(low.repeat_interleave(4, 2).repeat_interleave(4, 3), high)
        orientations |= {drawn[3] for drawn in sampler.draw(step)}
    assert orientations == set(range(8))


def test_patches_reach_every_position_and_all_eight_orientations_differ() -> None:
    lr = torch.arange(3 * 5 * 5, dtype=torch.uint8).view(3, 5, 5)
    sampler = PatchSampler([ImagePair("", lr, lr)], 1, patch_size=4, batch_size=64, seed=1)
    drawn = sampler.draw(0)
    assert {(top, left) for _, top, left, _ in drawn} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    patches = {tuple(patch.flatten().tolist()) for patch in sampler.batch(0)[0]}
    assert len(patches) == len({entry[1:] for entry in drawn})


def test_what_a_step_draws_depends_on_seed_and_step_alone() -> None:
    pairs = [ImagePair("", photo(16, 16, seed=s), photo(16, 16, seed=s)) for s in range(4)]

    def draw(seed: int, step: int) -> list[tuple[int, int, int, int]]:
        return PatchSampler(pairs, 1, patch_size=8, batch_size=8, seed=seed).draw(step)

    assert draw(0, 5) == draw(0, 5)
    assert draw(0, 5) != draw(0, 6)
    assert draw(0, 5) != draw(1, 5)
    assert draw(0, 6) != draw(1, 5)  # another seed is no later start of the same run


def test_of_two_places_the_one_with_more_texture_is_taken() -> None:
    pairs = [ImagePair("", photo(40, 33, seed=s), photo(40, 33, seed=s)) for s in range(3)]

    def draw(step: int, *, textured: bool) -> list[tuple[int, int, int, int]]:
        return PatchSampler(pairs, 1, patch_size=9, batch_size=16, seed=2, textured=textured).draw(step)

    def texture(image: int, top: int, left: int) -> int:
        green = pairs[image].lr[1, top : top + 9, left : left + 9].int()
        return int(green.diff(dim=0).abs().sum() + green.diff(dim=1).abs().sum())

    moved = 0
    for step in range(10):
        for one, other in zip(draw(step, textured=False), draw(step, textured=True), strict=True):
            assert (one[0], one[3]) == (other[0], other[3])
            assert other == one or texture(*other[:3]) > texture(*one[:3])
            moved += other != one
    assert 40 < moved < 120  # about half of 160


def test_processes_share_the_batch_of_one() -> None:
    pairs = [ImagePair("", photo(16, 16, seed=s), photo(16, 16, seed=s)) for s in range(4)]
    sampler = PatchSampler(pairs, 1, patch_size=8, batch_size=6, seed=0)
    whole = sampler.batch(3)[0]
    parts = [sampler.batch(3, rank=rank, world_size=2)[0] for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_a_patch_size_that_does_not_divide_is_refused() -> None:
    for size in (30, 0):
        with pytest.raises(ValueError, match=f"multiple of the scale, 4, got {size}"):
            PatchSampler([], 4, patch_size=size, batch_size=1, seed=0)
