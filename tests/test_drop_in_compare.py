"""What the blocks bring to a host: rows of equal cost, tasks that repeat themselves, runs that are not made twice."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from examples.drop_in import compare as comparison
from examples.drop_in.compare import Run, main, tabulate
from examples.drop_in.plain import ContrastAttention, Distillation, ShallowResidual
from examples.drop_in.tasks import Denoising, SuperResolution
from examples.drop_in.training import train
from examples.drop_in.variants import (
    HOSTS,
    Row,
    build,
    count_macs,
    count_parameters,
    nearest_width,
    parts_of,
    plan_rows,
)
from examples.mren.comparison import Line, describe_spread, read_csv, tabulate_lines, to_csv
from examples.mren.data import ImagePair, PatchSampler, imresize
from examples.mren.metrics import psnr_rgb
from examples.mren.recipes import RECIPES
from sc_blocks import SCACB, WSILBV, DRACBChain
from tests.images import photo, write_photos

# Widths


@pytest.mark.parametrize(
    ("target", "width"), [(100, 10), (120, 11), (110, 10), (111, 11), (1, 6), (36, 6), (43, 7), (10**6, 1000)]
)
def test_the_nearest_width_of_a_square(target: int, width: int) -> None:
    assert nearest_width(lambda width: width**2, target) == width


def test_of_two_widths_as_close_the_narrower() -> None:
    assert nearest_width(lambda width: 10 * width, 95) == 9


@pytest.mark.parametrize(("host", "row"), [("rfdn", "scacb+chain"), ("unet", "wsilbv+chain"), ("edsr", "scacb")])
def test_the_nearest_width_is_the_nearest_of_all(host: str, row: str) -> None:
    counts = {width: count_parameters(host, row, width, 1) for width in range(6, 33)}
    found = nearest_width(lambda width: count_parameters(host, row, width, 1), 40_000)
    assert abs(counts[found] - 40_000) == min(abs(count - 40_000) for count in counts.values())


EQUAL = {
    "rfdn": (["plain", "scacb", "scacb+chain", "scacb+chain+wsilbv"], 4),
    "edsr": (["plain", "cca", "wsilbv", "scacb"], 4),
    "unet": (["plain", "sca", "wsilbv", "wsilbv+dracb", "wsilbv+chain"], 1),
}


@pytest.mark.parametrize(
    ("host", "match"),
    [(host, "parameters") for host in EQUAL] + [pytest.param(h, "macs", marks=pytest.mark.slow) for h in EQUAL],
)
def test_rows_cost_the_same(host: str, match: str) -> None:
    blocks, scale = EQUAL[host]
    rows = plan_rows(host, blocks, scale=scale, channels=None, match=match, tolerance=6)
    assert [row.blocks for row in rows] == blocks
    assert rows[0].channels == HOSTS[host].channels
    for row in rows:
        # Counted again, from a network that is really built.
        net = build(host, row.blocks, row.channels, scale)
        assert row.parameters == sum(parameter.numel() for parameter in net.parameters())
        assert abs(getattr(row, match) / getattr(rows[0], match) - 1) < 0.06


def test_macs_are_counted_for_one_size_of_result() -> None:
    # A convolution of 3 x 3 from 3 to c channels at 320 x 180, and so on: by hand for EDSR's plain branch.
    per_position = 9 * 3 * 8 + 6 * 2 * 9 * 8 * 8 + 9 * 8 * 8 + 9 * 8 * 48
    assert count_macs("edsr", "plain", 8, 4) == per_position * 320 * 180


def test_the_plain_hosts_hold_no_block_of_ours() -> None:
    for host in HOSTS:
        ours = {SCACB, WSILBV, DRACBChain}
        assert not ours & {type(module) for module in build(host, "plain", 12, 1).modules()}
        for part in HOSTS[host].parts:
            expected = {"scacb": SCACB, "wsilbv": WSILBV}.get(part, DRACBChain if part not in ("cca", "sca") else None)
            assert expected is None or expected in {type(m) for m in build(host, part, 12, 1).modules()}


@pytest.mark.parametrize(
    ("host", "row", "words"),
    [
        ("rfdn", "scab", r"--blocks scab: rfdn has no part 'scab'; a row is 'plain' or parts .*scacb, dracb, chain"),
        ("unet", "plain+chain", r"unet has no part 'plain'"),
        ("unet", "chain+dracb", r"chain and dracb go to one place of unet; take one"),
        ("edsr", "", r"edsr has no part ''"),
    ],
)
def test_words_about_rows(host: str, row: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parts_of(host, row)


def test_words_about_widths_that_do_not_come_close() -> None:
    with pytest.raises(ValueError, match=r"scacb: comes no closer to the .* parameters of plain than .* \(.*%\), at"):
        plan_rows("rfdn", ["plain", "scacb"], scale=4, channels=20, match="parameters", tolerance=1)
    with pytest.raises(ValueError, match=r"--blocks: every row once"):
        plan_rows("rfdn", ["plain", "plain"], scale=4, channels=20, match="parameters", tolerance=1)


# What is plain


def test_contrast_attention_weighs_by_mean_and_deviation() -> None:
    attention, x = ContrastAttention(8), torch.rand(1, 8, 5, 6)
    looked_at: list[Tensor] = []
    attention.weigh.register_forward_pre_hook(lambda module, args: looked_at.append(args[0]))
    attention(x)
    torch.testing.assert_close(looked_at[0].flatten(), x.mean((0, 2, 3)) + x.std((0, 2, 3), unbiased=False))
    flat = torch.ones(1, 8, 4, 4, requires_grad=True)
    attention(flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_a_shallow_residual_block_and_a_plain_distillation() -> None:
    x = torch.rand(1, 8, 5, 6)
    block = ShallowResidual(8)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(x + block.conv(x), 0.05))
    distill = Distillation(8, 4, 2)
    first, other = distill([x, x]), distill([torch.rand(1, 8, 5, 6), x])
    assert torch.equal(first[1], other[1])


# Tasks


def sampler(scale: int, seed: int = 0) -> PatchSampler:
    hr = photo(40, 48)
    pair = ImagePair(Path("photo.png"), hr, imresize(hr, 1 / scale))
    return PatchSampler([pair], scale, patch_size=16, batch_size=2, seed=seed)


def test_noise_is_gaussian_of_the_asked_strength_and_repeats() -> None:
    task = Denoising(sigma=25)
    noisy, clean = task.batch(sampler(1), 3)
    again, _ = task.batch(sampler(1), 3)
    other, _ = task.batch(sampler(1), 4)
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    noise = (noisy - clean) * 255
    assert noise.numel() == 2 * 3 * 16 * 16
    assert abs(noise.std().item() - 25) < 2
    assert abs(noise.mean().item()) < 2
    levels = noisy * 255
    assert not torch.equal(levels, levels.round())


def test_the_score_of_doing_nothing_is_that_of_the_noise(tmp_path: Path) -> None:
    (file,) = write_photos(tmp_path, [(64, 80)])
    score = Denoising(sigma=25).score(nn.Identity(), file, torch.device("cpu"))
    assert score == Denoising(sigma=25).score(nn.Identity(), file, torch.device("cpu"))
    # 20 log10(255 / 25) = 20.17 dB; what is clipped to the range of an image makes it a little better.
    assert 20.0 < score < 20.8


def test_the_noise_of_an_image_goes_by_its_name_alone(tmp_path: Path) -> None:
    files = write_photos(tmp_path / "a", [(32, 32)]) + write_photos(tmp_path / "b", [(32, 32)])
    scores = [Denoising().score(nn.Identity(), file, torch.device("cpu")) for file in files]
    assert scores[0] == scores[1]
    renamed = files[0].rename(tmp_path / "other.png")
    assert Denoising().score(nn.Identity(), renamed, torch.device("cpu")) != scores[0]


def test_psnr_of_rgb_by_hand() -> None:
    first, second = photo(20, 24, seed=1), photo(20, 24, seed=2)
    error = np.mean((first.numpy().astype(float) - second.numpy()) ** 2)
    assert psnr_rgb(first, second) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))
    with pytest.raises(TypeError, match="sr must be uint8"):
        psnr_rgb(first.float(), second)
    with pytest.raises(ValueError, match="sr and hr must have one shape"):
        psnr_rgb(first[:, 1:], second)


def test_every_host_does_both_tasks() -> None:
    for host in HOSTS:
        for scale in (1, 2):
            assert build(host, "plain", 8, scale)(torch.rand(1, 3, 8, 12)).shape == (1, 3, 8 * scale, 12 * scale)


def test_a_host_starts_from_the_bicubic_image() -> None:
    net, x = build("edsr", "plain", 8, 2), torch.rand(1, 3, 8, 12)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    bicubic = nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(net(x), bicubic)


# Tables


def test_a_table_of_lines_says_what_scipy_says() -> None:
    rows = {"a": [30.0, 30.2, 30.1], "b": [30.6, 30.9, 30.8], "c": [30.1, 30.15, 30.2]}
    text = tabulate_lines([""], [Line((name,), {"Set5": scores}) for name, scores in rows.items()])
    pooled = math.sqrt(sum(np.var(scores, ddof=1) for scores in rows.values()) / 3)
    assert f"spread by {pooled:.3f} dB (standard deviation, 6 degrees of freedom)" in text
    smallest = stats.t.ppf(0.975, 6) * pooled * math.sqrt(2 / 3)
    assert f"from {smallest:.2f} dB on; 1 of the 2 differences" in text
    assert "| b | 30.77 | 30.60, 30.90, 30.80 | +0.667 |" in text


def test_rows_with_more_seeds_than_others() -> None:
    scores = [[30.0, 30.2], [30.5, 30.7, 30.6], [31.0]]
    pooled = math.sqrt((np.var(scores[0], ddof=1) + 2 * np.var(scores[1], ddof=1)) / 3)
    three, one = (stats.t.ppf(0.975, 3) * pooled * math.sqrt(1 / 2 + 1 / count) for count in (3, 1))
    text = describe_spread("Set5", scores)
    assert f"With 1 or 2 or 3 seeds a row, a difference is told from chance from {three:.2f} or {one:.2f} dB on" in text
    assert "2 of the 2 differences" in text


def test_one_seed_a_row_says_nothing() -> None:
    assert "says nothing" in describe_spread("Set5", [[30.0], [31.0]])


def runs_of(scores: dict[str, list[float]], **changes) -> list[Run]:
    common = {
        "host": "rfdn", "task": "sr", "matched": "parameters", "channels": 22, "parameters": 62169, "macs": 3510000000,
        "steps": 600, "batch_size": 8, "patch_size": 96, "minutes": 1.5, "dataset": "Set5",
    }  # fmt: skip
    return [
        Run(blocks=name, seed=seed, psnr=psnr, **{**common, **changes})
        for name, values in scores.items()
        for seed, psnr in enumerate(values)
    ]


def test_the_table_has_costs_scores_and_what_was_matched() -> None:
    found = runs_of({"plain": [29.0, 29.2]}) + runs_of({"scacb": [29.3, 29.5]}, parameters=61485, channels=32)
    text = tabulate(found)
    assert "|  | channels | parameters | MACs | CPU minutes | Set5, dB | seeds | difference |" in text
    assert "| plain | 22 | 62,169 | 3.51 G | 1.5 | 29.10 | 29.00, 29.20 |  |" in text
    assert "| scacb | 32 | 61,485 | 3.51 G | 1.5 | 29.40 | 29.30, 29.50 | +0.300 |" in text
    assert "Equal in parameters, to within 1.1 %" in text


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = runs_of({"plain": [29.0, 29.2], "scacb+chain": [29.3]})
    (tmp_path / "runs.csv").write_text(to_csv(written, Run))
    assert read_csv(tmp_path / "runs.csv", Run) == written


# The command


def command(tmp_path: Path, *more: str) -> list[str]:
    if not (tmp_path / "train").exists():
        write_photos(tmp_path / "train", [(40, 48), (48, 40)])
        write_photos(tmp_path / "Test", [(32, 40)])
    given = {"--host": "edsr", "--blocks": "plain", "--task": "sr", "--scale": "2", "--channels": "8"}
    given |= {"--data": str(tmp_path / "train"), "--test": str(tmp_path / "Test"), "-o": str(tmp_path / "out")}
    given |= {"--steps": "2", "--batch-size": "1", "--patch-size": "16", "--seeds": "1", "--device": "cpu"}
    given |= {"--tolerance": "20"}
    return [word for pair in given.items() for word in pair] + list(more)


def test_runs_are_trained_scored_and_not_made_twice(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command(tmp_path, "--blocks", "plain", "wsilbv", "--seeds", "2")
    assert main(arguments) == 0
    found = read_csv(tmp_path / "out" / "edsr_sr.csv", Run)
    assert [(run.blocks, run.seed, run.steps, run.dataset) for run in found] == [
        ("plain", 0, 2, "Test"),
        ("wsilbv", 0, 2, "Test"),
        ("plain", 1, 2, "Test"),
        ("wsilbv", 1, 2, "Test"),
    ]
    assert len({run.psnr for run in found}) == 4
    text = (tmp_path / "out" / "edsr_sr.md").read_text()
    assert text == tabulate(found)
    assert text in capsys.readouterr().out

    def refuse(*_: object) -> None:
        raise AssertionError("what is trained is not trained again")

    monkeypatch.setattr(comparison, "train", refuse)
    assert main(arguments) == 0
    # Another test set is scored without training.
    write_photos(tmp_path / "More", [(32, 32)])
    assert main([*arguments, "--test", str(tmp_path / "Test"), str(tmp_path / "More")]) == 0
    assert {run.dataset for run in read_csv(tmp_path / "out" / "edsr_sr.csv", Run)} == {"Test", "More"}
    assert main([*arguments, "--steps", "3"]) == 1
    assert "holds a run of other settings (steps was 2, is 3); take another --output" in capsys.readouterr().err


def test_a_run_that_was_cut_off_is_made_again(tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path)) == 0
    folder = tmp_path / "out" / "edsr_sr" / "plain" / "seed_0"
    before = (folder / "scores.csv").read_text()
    (folder / "run.json").unlink()  # written last
    (folder / "scores.csv").write_text(before.replace(",0,2,1,16,", ",7,2,1,16,"))  # of other weights
    assert main(command(tmp_path)) == 0
    again = (folder / "scores.csv").read_text()
    columns = [[{**row, "minutes": ""} for row in csv.DictReader(text.splitlines())] for text in (before, again)]
    assert columns[0] == columns[1]


def test_denoising_from_the_command_line(tmp_path: Path) -> None:
    arguments = command(tmp_path, "--task", "denoise", "--host", "unet", "--blocks", "plain", "chain", "--sigma", "15")
    assert main(arguments) == 0
    settings = json.loads((tmp_path / "out" / "unet_denoise" / "chain" / "seed_0" / "run.json").read_text())
    assert settings["task"] == {"sigma": 15.0, "scale": 1}


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path, "--dry-run", "--blocks", "plain", "scacb", "--seeds", "3")) == 0
    shown = capsys.readouterr().out
    assert "plain: 8 channels" in shown
    assert "6 of 6 runs to train, 2 steps each" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seeds", "0"], "--seeds: must be positive, got 0"),
        (["--sigma", "-1"], "--sigma: must be positive, got -1.0"),
        (["--lr", "nan"], "--lr: must be positive, got nan"),
        (["--channels", "4"], "--channels: must be at least 6, got 4"),
        (["--patch-size", "17"], "--patch-size: must be a multiple of the scale, 2, got 17; try 16"),
        (["--host", "vdsr"], "invalid choice: 'vdsr'"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, capsys, more: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command(tmp_path, *more))
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--blocks", "plain", "scab"], "edsr has no part 'scab'"),
        (["--test", "nowhere"], "no folder at"),
        (["--patch-size", "64"], "less than the patch of 64 x 64"),
        (["--blocks", "plain", "scacb", "--tolerance", "0.001"], "comes no closer to the"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, capsys, more: list[str], words: str) -> None:
    assert main(command(tmp_path, *more)) == 1
    assert words in capsys.readouterr().err


def test_test_folders_of_one_name_are_refused(tmp_path: Path, capsys) -> None:
    write_photos(tmp_path / "other" / "Test", [(32, 40)])
    assert main(command(tmp_path, "--test", str(tmp_path / "Test"), str(tmp_path / "other" / "Test"))) == 1
    assert "folders must differ in name" in capsys.readouterr().err


def test_training_that_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(
        SuperResolution, "batch", lambda *_: (torch.full((1, 3, 8, 8), math.nan), torch.zeros(1, 3, 16, 16))
    )
    assert main(command(tmp_path)) == 1
    assert "plain, seed 0: the loss is nan at step 0; try a lower --lr" in capsys.readouterr().err


def test_a_network_that_broke_in_the_last_update_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    class Breaking(torch.optim.Adam):
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                group["params"][0].data.fill_(math.nan)

    monkeypatch.setattr("examples.mren.recipes.Adam", Breaking)
    assert main(command(tmp_path, "--steps", "1")) == 1
    assert "plain, seed 0: the network is not finite after step 1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "edsr_sr" / "plain").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("host", "row"), [(host, part) for host in HOSTS for part in ["plain", *HOSTS[host].parts]])
def test_every_part_learns(host: str, row: str) -> None:
    row_of = Row(row, 12, 0, 0)
    recipe = RECIPES["short"]
    task = Denoising() if host == "unet" else SuperResolution(2)
    nets = [
        train(row_of, 0, sampler(task.scale), task, dataclasses.replace(recipe, steps=steps), host) for steps in (1, 60)
    ]
    losses = []
    for net in nets:
        damaged, clean = task.batch(sampler(task.scale), 0)
        losses.append(nn.functional.l1_loss(net(damaged), clean).item())
    assert losses[1] < losses[0]
