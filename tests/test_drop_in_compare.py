"""What the blocks bring to a host: rows of equal cost, tasks that repeat themselves, hosts with either tail."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from examples.compare.cost import cost_of, count_parameters, nearest_width
from examples.compare.tables import comparison_table, read_runs
from examples.compare.tasks import Denoising, SuperResolution
from examples.drop_in.compare import main
from examples.drop_in.plain import ContrastAttention, Distillation, ShallowResidual
from examples.drop_in.report import overview
from examples.drop_in.variants import HOSTS, build, parts_of, plan_rows
from examples.mren.data import ImagePair, imresize
from examples.mren.metrics import psnr_rgb
from examples.mren.model import weights_path
from examples.mren.training.patches import PatchSampler
from examples.mren.training.recipes import Training
from examples.mren.training.trainer import Trainer
from examples.records import read_json
from sc_blocks import DRACB, RBWA, SCACB, WSILB, WSILBV, DRACBChain, to_local
from tests.images import photo, write_photos

# Widths


@pytest.mark.parametrize(
    ("host", "row"),
    [
        pytest.param("rfdn", "scacb+chain", marks=pytest.mark.slow),
        ("unet", "wsilbv+chain"),
        ("edsr", "scacb"),
    ],
)
def test_the_nearest_width_is_the_nearest_of_all(host: str, row: str) -> None:
    counts = {width: count_parameters(partial(build, host, row, 2, width)) for width in range(6, 33)}
    found = nearest_width(lambda width: count_parameters(partial(build, host, row, 2, width)), 40_000, lowest=6)
    assert abs(counts[found] - 40_000) == min(abs(count - 40_000) for count in counts.values())


EQUAL = {
    "rfdn": (["plain", "scacb", "scacb+chain", "scacb+chain+wsilbv"], 4),
    "edsr": (["plain", "cca", "wsilbv", "scacb"], 4),
    "unet": (["plain", "sca", "wsilb", "wsilbv", "wsilbv+dracb", "wsilbv+chain"], 1),
    "imdn": (["plain", "rbwa"], 4),
}


@pytest.mark.parametrize(
    ("host", "match"),
    [(host, "parameters") for host in EQUAL] + [pytest.param(h, "macs", marks=pytest.mark.slow) for h in EQUAL],
)
def test_rows_cost_the_same(host: str, match: str) -> None:
    blocks, scale = EQUAL[host]
    rows = plan_rows(host, blocks, scale=scale, channels=None, match=match, tolerance=6)
    assert [row.name for row in rows] == blocks
    assert rows[0].channels == HOSTS[host].channels
    # Counted again, from networks that are really built.
    costs = [sum(parameter.numel() for parameter in row.make().parameters()) for row in rows]
    if match == "macs":
        costs = [cost_of(row.make, scale).macs for row in rows]
    assert all(abs(cost / costs[0] - 1) < 0.06 for cost in costs)


def test_rows_of_one_width() -> None:
    rows = plan_rows("rfdn", ["plain", "rbwa"], scale=4, channels=20, match="channels", tolerance=1)
    assert [row.channels for row in rows] == [20, 20]


def test_macs_are_counted_for_one_size_of_result() -> None:
    # A convolution of 3 x 3 from 3 to c channels at 320 x 180, and so on: by hand for EDSR's plain branch.
    per_position = 9 * 3 * 8 + 6 * 2 * 9 * 8 * 8 + 9 * 8 * 8 + 9 * 8 * 48
    assert cost_of(partial(build, "edsr", "plain", 4, 8), 4).macs == per_position * 320 * 180


def test_the_plain_hosts_hold_no_block_of_ours() -> None:
    for host in HOSTS:
        ours = {SCACB, WSILB, WSILBV, DRACBChain, RBWA}
        assert not ours & {type(module) for module in build(host, "plain", 2, 16).modules()}
        for part in HOSTS[host].parts:
            named = {"scacb": SCACB, "wsilb": WSILB, "wsilbv": WSILBV, "rbwa": RBWA, "cca": None, "sca": None}
            expected = named.get(part, DRACBChain)
            assert expected is None or expected in {type(m) for m in build(host, part, 2, 16).modules()}


@pytest.mark.parametrize(("host", "row"), [("rfdn", "scacb+chain"), ("unet", "wsilbv+chain"), ("edsr", "scacb")])
def test_the_blocks_of_a_host_begin_as_for_a_training_from_scratch(host: str, row: str) -> None:
    modules = list(build(host, row, 2, 16).modules())
    biases = [module.fuse.bias for module in modules if isinstance(module, SCACB)]
    biases += [module.distill.bias for module in modules if isinstance(module, DRACB)]
    assert biases
    assert not any(bias.any() for bias in biases)  # those of a fresh convolution of torch are not zero


@pytest.mark.parametrize("host", [host for host in HOSTS if "rbwa" in HOSTS[host].parts])
@pytest.mark.parametrize("skip", [True, False])
def test_a_narrow_rbwa_takes_the_place_of_the_pixel_shuffle(host: str, skip: bool) -> None:
    for scale in (2, 3, 4):
        plain, narrow = (build(host, row, scale, 16, skip=skip) for row in ("plain", "rbwa"))
        x = torch.rand(1, 3, 5, 6)
        assert plain(x).shape == narrow(x).shape == (1, 3, 5 * scale, 6 * scale)
        kinds = [{type(module) for module in net.modules()} for net in (plain, narrow)]
        assert [nn.PixelShuffle in kind for kind in kinds] == [True, False]
        for parameter in narrow.parameters():
            nn.init.zeros_(parameter)
        assert (narrow(x) != 0).any() == skip  # the bicubic image


@pytest.mark.parametrize(
    ("host", "row", "words"),
    [
        ("rfdn", "scab", r"--blocks scab: rfdn has no part 'scab'; a row is 'plain' or parts .*scacb, dracb, chain"),
        ("unet", "plain+chain", r"unet has no part 'plain'"),
        ("unet", "chain+dracb", r"chain and dracb need the same slot of unet; choose one"),
        ("edsr", "", r"edsr has no part ''"),
    ],
)
def test_words_about_rows(host: str, row: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parts_of(host, row)


def test_words_about_widths_that_do_not_come_close() -> None:
    with pytest.raises(ValueError, match=r"scacb: the closest to the .* parameters of plain is .* \(.*%\), at"):
        plan_rows("rfdn", ["plain", "scacb"], scale=4, channels=20, match="parameters", tolerance=1)
    with pytest.raises(ValueError, match=r"--channels 8: imdn needs at least \d+\."):
        plan_rows("imdn", ["plain", "rbwa"], scale=4, channels=8, match="parameters", tolerance=1)
    with pytest.raises(ValueError, match=r"--blocks: give each row only once"):
        plan_rows("rfdn", ["plain", "plain"], scale=4, channels=20, match="parameters", tolerance=1)
    with pytest.raises(
        ValueError, match=r"--blocks scacb\+local: local is for rows with WSILB or WSILB-V; leave it out"
    ):
        plan_rows("rfdn", ["plain", "scacb+local"], scale=4, channels=20, match="parameters", tolerance=99)


# What is plain


def test_contrast_attention_has_a_gradient_where_a_map_is_flat() -> None:
    attention = ContrastAttention(8)
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


def test_noise_of_training_is_new_in_each_step_and_seed_and_shared_among_processes() -> None:
    task, found = Denoising(sigma=25), []
    for seed, step in ((0, 3), (0, 4), (1, 3), (1, 4)):
        noisy, clean = task.batch(sampler(1, seed), step)
        found.append(noisy - clean)
        for rank in (0, 1):
            part = task.batch(sampler(1, seed), step, rank=rank, world_size=2)
            assert torch.equal(part[0], noisy[rank::2])
            assert torch.equal(part[1], clean[rank::2])
    # Of numbers that have nothing to do with each other, the coefficient is 0, to within 1 / sqrt(1536).
    np.testing.assert_allclose(np.corrcoef(torch.stack(found).flatten(1)), np.eye(4), rtol=0, atol=0.11)


def test_the_score_of_doing_nothing_is_that_of_the_noise(tmp_path: Path) -> None:
    (file,) = write_photos(tmp_path, [(64, 80)])
    score = Denoising(sigma=25).score(nn.Identity(), file, "cpu").psnr
    assert score == Denoising(sigma=25).score(nn.Identity(), file, "cpu").psnr
    # 20 log10(255 / 25) = 20.17 dB; what is clipped to the range of an image makes it a little better.
    assert 20.0 < score < 20.8


def test_the_noise_of_an_image_goes_by_its_name_alone(tmp_path: Path) -> None:
    files = write_photos(tmp_path / "a", [(32, 32)]) + write_photos(tmp_path / "b", [(32, 32)])
    scores = [Denoising().score(nn.Identity(), file, "cpu").psnr for file in files]
    assert scores[0] == scores[1]
    renamed = files[0].rename(tmp_path / "other.png")
    assert Denoising().score(nn.Identity(), renamed, "cpu").psnr != scores[0]


def test_psnr_of_rgb_by_hand() -> None:
    first, second = photo(20, 24, seed=1), photo(20, 24, seed=2)
    error = np.mean((first.numpy().astype(float) - second.numpy()) ** 2)
    assert psnr_rgb(first, second) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))
    with pytest.raises(TypeError, match=r"^psnr_rgb: sr must be uint8"):
        psnr_rgb(first.float(), second)
    with pytest.raises(ValueError, match=r"^psnr_rgb: sr and hr must have the same shape"):
        psnr_rgb(first[:, 1:], second)


def test_every_host_does_both_tasks() -> None:
    for host in HOSTS:
        for scale in (1, 2):
            assert build(host, "plain", scale, 16)(torch.rand(1, 3, 8, 12)).shape == (1, 3, 8 * scale, 12 * scale)


def test_a_host_starts_from_the_bicubic_image() -> None:
    net, x = build("edsr", "plain", 2, 8), torch.rand(1, 3, 8, 12)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    bicubic = nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(net(x), bicubic)


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


def test_rows_are_trained_scored_and_tabulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path, "--blocks", "plain", "wsilbv")
    assert main(arguments) == 0
    found = read_runs(tmp_path / "out" / "edsr_sr_x2.csv")
    assert [(run.name, run.seed, run.steps, run.matched) for run in found] == [
        ("plain", 0, 2, "parameters"), ("wsilbv", 0, 2, "parameters"),
    ]  # fmt: skip
    text = (tmp_path / "out" / "edsr_sr_x2.md").read_text()
    assert text == comparison_table(found, titles={"plain": "plain", "wsilbv": "WSILB-V"})
    assert text in capsys.readouterr().out
    assert main([*arguments, "--steps", "3"]) == 1
    assert "holds a run with other settings (steps was 2, is 3); choose another --output" in capsys.readouterr().err
    # Without the bicubic image it is another comparison.
    assert main([*arguments, "--no-skip"]) == 0
    others = read_runs(tmp_path / "out" / "edsr_sr_no_skip_x2.csv")
    assert others[0].psnr != found[0].psnr
    assert "| Residual network, ×2, without bicubic |" in overview({"edsr_sr_x2": found, "edsr_sr_no_skip_x2": others})


def test_a_row_is_scored_with_local_statistics_without_being_trained_again(tmp_path: Path) -> None:
    arguments = command(tmp_path, "--blocks", "plain", "wsilbv", "wsilbv+local", "--seeds", "2")
    assert main(arguments) == 0
    found = [run for run in read_runs(tmp_path / "out" / "edsr_sr_x2.csv") if run.name != "plain"]
    folder = tmp_path / "out" / "edsr_sr_x2"
    assert sorted(path.name for path in folder.iterdir()) == ["plain", "wsilbv"]
    (image,) = (tmp_path / "Test").iterdir()
    for seed in range(2):
        whole, windows = (run for run in found if run.seed == seed)
        assert (whole.name, windows.name) == ("wsilbv", "wsilbv+local")
        net = build("edsr", "wsilbv+local", 2, whole.channels)
        net.load_state_dict(load_file(folder / "wsilbv" / f"seed_{seed}" / "weights.safetensors"))
        for run in (whole, windows):
            expected = SuperResolution(2).score(net.eval(), image, "cpu").psnr
            assert run.psnr == pytest.approx(expected, abs=1e-4)
            to_local(net, torch.zeros(1, 3, 8, 8))  # patches of 16 x 16 at a scale of 2
        assert abs(whole.psnr - windows.psnr) > 2e-4
    tables = (tmp_path / "out" / "edsr_sr_x2.md").read_text()
    first, second = (tables.index(f"| {title} |") for title in ("WSILB-V", "WSILB-V, local statistics"))
    assert tables.index("| plain |") < first < tables.rindex("| plain |", 0, second) < second
    # A test set with other images is scored anew in both ways.
    write_photos(tmp_path / "other" / "Test", [(40, 32)])
    assert main([*arguments, "--test", str(tmp_path / "other" / "Test")]) == 0
    again = [run for run in read_runs(tmp_path / "out" / "edsr_sr_x2.csv") if run.name != "plain"]
    assert not {run.psnr for run in again} & {run.psnr for run in found}


def test_denoising_from_the_command_line(tmp_path: Path) -> None:
    arguments = command(tmp_path, "--task", "denoise", "--host", "unet", "--blocks", "plain", "chain", "--sigma", "15")
    assert main(arguments) == 0
    record = read_json(tmp_path / "out" / "unet_denoise_sigma15" / "chain" / "seed_0" / "run.json")
    assert record["settings"]["task"] == {"sigma": 15.0, "scale": 1}


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path, "--dry-run", "--blocks", "plain", "scacb", "--seeds", "3")) == 0
    shown = capsys.readouterr().out
    assert "plain: 8,692 parameters, 1.97 G MACs" in shown
    assert "6 of 6 runs to train, 2 steps each" in shown
    assert not (tmp_path / "out").exists()


def test_the_number_of_threads_is_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    assert main(command(tmp_path, "--blocks", "plain", "--dry-run", "--threads", "3")) == 0
    assert found == [3]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number of at least 1, got 0"),
        (["--sigma", "-1"], "--sigma: must be a number above 0, got -1"),
        (["--lr", "nan"], "--lr: must be a number above 0, got nan"),
        (["--channels", "4"], "--channels: must be a whole number of at least 6, got 4"),
        (["--host", "vdsr"], "invalid choice: 'vdsr'"),
        (["--init", str(weights_path(2))], "--init: is for weights of MREN, which no host can load"),
        (["--warm-up-new", "5"], "--warm-up-new: needs --init, which no host supports"),
        (["--task", "sr", "--patch-size", "1"], "--patch-size: must be at least --scale"),
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
        (["--blocks", "plain", "scacb", "--tolerance", "0.001"], "the closest to the"),
        (["--host", "unet", "--no-skip"], "--no-skip: unet does not upscale by itself"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, capsys, more: list[str], words: str) -> None:
    assert main(command(tmp_path, *more)) == 1
    assert words in capsys.readouterr().err


def test_an_output_that_takes_no_files_is_named_first(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(command(tmp_path, "-o", str(tmp_path / "file"))) == 2
    output = capsys.readouterr()
    assert "is a file, not a folder; choose another output" in output.err
    assert output.out == ""
    for suffix in ("csv", "md"):
        (tmp_path / suffix / f"edsr_sr_x2.{suffix}").mkdir(parents=True)
        assert main(command(tmp_path, "-o", str(tmp_path / suffix))) == 2
        assert f"edsr_sr_x2.{suffix}: is a folder; name a file in it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("host", "row"), [(host, part) for host in HOSTS for part in ["plain", *HOSTS[host].parts]])
def test_every_part_learns(tmp_path: Path, host: str, row: str) -> None:
    task = Denoising() if host == "unet" else SuperResolution(2)
    losses = []
    for steps in (1, 60):
        torch.manual_seed(0)
        net = build(host, row, task.scale, 16)
        training = Training(steps=steps, batch_size=2, patch_size=16)
        trainer = Trainer(net, training, sampler(task.scale), tmp_path, label=row, draw=task.batch)
        trainer.run()
        damaged, clean = task.batch(sampler(task.scale), 0)
        losses.append(nn.functional.l1_loss(trainer.learner.average(damaged), clean).item())
    assert losses[1] < losses[0]
