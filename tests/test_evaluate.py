"""Scoring: the field's protocol gives the field's figures, and our weights are better than bicubic."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from examples.mren.data import imresize, list_images, mod_crop, read_rgb
from examples.mren.ensemble import network_upscaler
from examples.mren.evaluate import Row, evaluate, main, mean_score
from examples.mren.imagepairs import match_lr
from examples.mren.metrics import Score, score, to_uint8
from examples.mren.model import MREN, WEIGHTS, load_mren, save_weights, weights_path
from examples.mren.weightfile import write_network
from sc_blocks import to_local
from sc_blocks.tiling import tiled
from tests.images import DATA, needs_data, photo, rename_to_bytes, write_photos, write_weights

# Bicubic by the protocol of the papers, PSNR and SSIM: an independent implementation's figures, which reproduce the
# published ones of a released network.
BICUBIC = {
    (2, "Set5"): (33.67, 0.9303),
    (2, "Set14"): (30.32, 0.8699),
    (3, "Set5"): (30.40, 0.8689),
    (3, "Set14"): (27.63, 0.7759),
    (4, "Set5"): (28.43, 0.8111),
    (4, "Set14"): (26.09, 0.7048),
}
BICUBIC_LARGE = {
    (2, "B100"): (29.56, 0.8434),
    (3, "B100"): (27.21, 0.7391),
    (4, "B100"): (25.96, 0.6681),
    (2, "Urban100"): (26.88, 0.8405),
    (3, "Urban100"): (24.46, 0.7352),
    (4, "Urban100"): (23.14, 0.6581),
}


def check_bicubic(scale: int, dataset: str, expected: tuple[float, float]) -> None:
    files = list_images(DATA / "test" / dataset)
    mean = mean_score(list(evaluate(files, scale, {"bicubic": lambda lr: imresize(lr, scale)})))
    assert mean.psnr == pytest.approx(expected[0], abs=0.01)
    assert mean.ssim == pytest.approx(expected[1], abs=0.0005)


@needs_data
@pytest.mark.parametrize(("case", "expected"), BICUBIC.items(), ids=str)
def test_bicubic_scores_are_the_fields(case: tuple[int, str], expected: tuple[float, float]) -> None:
    check_bicubic(*case, expected)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("case", "expected"), BICUBIC_LARGE.items(), ids=str)
def test_bicubic_scores_of_the_large_sets_are_the_fields(case: tuple[int, str], expected: tuple[float, float]) -> None:
    check_bicubic(*case, expected)


def gain_over_bicubic(dataset: str) -> float:
    methods = {
        "bicubic": lambda lr: imresize(lr, 4),
        "mren": network_upscaler(load_mren(4), "cpu"),
    }
    rows = list(evaluate(list_images(DATA / "test" / dataset), 4, methods))
    means = {name: mean_score([row for row in rows if row.method == name]).psnr for name in methods}
    return means["mren"] - means["bicubic"]


@needs_data
def test_shipped_weights_beat_bicubic_on_set5() -> None:
    assert gain_over_bicubic("Set5") >= 2.5


@needs_data
@pytest.mark.slow
def test_shipped_weights_beat_bicubic_on_b100() -> None:
    assert gain_over_bicubic("B100") >= 1.05


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path, scale=2, channels=12, num_blocks=1)


def test_the_command_prints_a_table_and_writes_every_score(tmp_path: Path, weights: Path, capsys) -> None:
    write_photos(tmp_path / "one", [(48, 51), (64, 48)])
    write_photos(tmp_path / "two", [(48, 48)])
    scores = tmp_path / "scores.csv"
    arguments = ["--data", str(tmp_path / "one"), str(tmp_path / "two"), "--weights", str(weights)]  # of ×2
    assert main([*arguments, "--csv", str(scores), "--local", "8", "--tile", "64", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["one", "two"]
    networks = ["small", "small, tiles of 64", "small, local statistics", "small, local statistics, tiles of 64"]
    assert [line.split("  ")[0] for line in printed[1:]] == ["bicubic", *networks]
    with scores.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["dataset"], row["image"]) for row in rows[::5]] == [("one", "0"), ("one", "1"), ("two", "0")]
    # Windows of 12 pixels on maps of 24 and more: the statistics differ, and so must the scores.
    network, local = ([r["psnr"] for r in rows if r["method"] == m] for m in ("small", "small, local statistics"))
    assert network != local


def test_tiles_and_windows_are_of_the_size_that_is_asked_for(tmp_path: Path, weights: Path) -> None:
    net = load_mren(2, path=weights)
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    save_weights(net, weights, {"scale": 2, "channels": 12, "num_blocks": 1})
    (file,) = write_photos(tmp_path / "set", [(200, 180)])
    command = ["--data", str(tmp_path / "set"), "--weights", str(weights), "--device", "cpu", "--csv"]
    assert main([*command, str(tmp_path / "scores.csv"), "--tile", "64", "--local", "12"]) == 0
    with (tmp_path / "scores.csv").open() as opened:
        found = {row["method"]: float(row["psnr"]) for row in csv.DictReader(opened)}
    hr = read_rgb(file)
    x = imresize(hr, 1 / 2)[None] / 255

    def scored(sr: torch.Tensor) -> float:
        return score(to_uint8(sr[0]), hr, 2).psnr

    with torch.no_grad():
        expected = {"small": scored(net(x)), "small, tiles of 64": scored(tiled(net, x, scale=2, tile=64))}
        to_local(net, torch.zeros(1, 3, 12, 12))
        expected["small, local statistics"] = scored(net(x))
    assert len({round(psnr, 2) for psnr in expected.values()}) == 3
    for method, psnr in expected.items():
        assert found[method] == pytest.approx(psnr, abs=2e-4), method


def test_a_suffix_is_left_out_of_a_name_only_where_it_must_be() -> None:
    lr = [Path("LR/a.png"), Path("LR/ax2.png"), Path("LR/b_x2.png")]
    assert match_lr([Path("HR/a.png")], lr[:2], 2)[0] == {Path("HR/a.png"): lr[0]}
    assert match_lr([Path("HR/ax2.png")], lr[:2], 2)[0] == {Path("HR/ax2.png"): lr[1]}
    assert match_lr([Path("HR/b.png")], lr, 2)[0] == {Path("HR/b.png"): lr[2]}


def test_names_that_are_not_utf_8_cost_no_scores(tmp_path: Path, weights: Path) -> None:
    (file,) = write_photos(tmp_path / "set", [(48, 48)])
    rename_to_bytes(file)
    scores = tmp_path / "scores.csv"
    assert main(["--data", str(tmp_path / "set"), "--weights", str(weights), "--csv", str(scores)]) == 0
    assert "\nset,\\udce90,small," in scores.read_text(encoding="utf-8")


def test_the_command_says_what_is_wrong(tmp_path: Path, weights: Path, capsys) -> None:
    assert main(["--data", str(tmp_path / "none"), "--scale", "2", "--weights", str(weights)]) == 1
    assert "error: no folder at" in capsys.readouterr().err
    assert main(["--data", str(tmp_path), "--scale", "3", "--weights", str(weights)]) == 1
    assert "saved with scale=2, asked for scale=3" in capsys.readouterr().err


def test_a_scale_without_networks_is_told_those_that_have_some(capsys) -> None:
    for scale in ("5", "2.0", "four"):
        with pytest.raises(SystemExit, match="2"):
            main(["--data", ".", "--scale", scale])
        assert f"argument --scale: must be one of 2, 3, 4, got {scale}" in capsys.readouterr().err


def test_folders_of_one_name_are_not_averaged(tmp_path: Path, weights: Path, capsys) -> None:
    folders = [str(tmp_path / name / "set") for name in ("a", "b")]
    for folder in folders:
        write_photos(Path(folder), [(48, 48)])
    assert main(["--data", *folders, "--scale", "2", "--weights", str(weights)]) == 2
    assert "names must differ" in capsys.readouterr().err


def test_sets_that_lie_as_in_basicsr_are_told_apart(tmp_path: Path, weights: Path, capsys) -> None:
    high, low = ([tmp_path / name / folder for name in ("Set5", "Set14")] for folder in ("GTmod12", "LRbicx2"))
    for folder in high:
        write_photos(folder, [(48, 48)])
    for folder in low:
        write_photos(folder, [(24, 24)])
    folders = ["--data", *map(str, high), "--lr", *map(str, low)]
    assert main([*folders, "--scale", "2", "--weights", str(weights), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["Set5", "Set14"]


def test_an_image_that_cannot_be_scored_costs_only_itself(tmp_path: Path, weights: Path, capsys) -> None:
    good, damaged, tiny, small = write_photos(tmp_path / "set", [(48, 51), (48, 48), (1, 3), (12, 12)])
    damaged.write_bytes(damaged.read_bytes()[:300])
    arguments = ["--data", str(tmp_path / "set"), "--scale", "2", "--weights", str(weights), "--device", "cpu"]
    assert main([*arguments, "--csv", str(tmp_path / "scores.csv")]) == 1
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert [str(path) in line for path, line in zip((damaged, tiny, small), errors, strict=True)] == [True] * 3
    assert ["take larger ones" in line for line in errors] == [False, True, True]
    assert "1 of 4 images are scored" in output.err
    assert len(output.out.splitlines()) == 3
    with (tmp_path / "scores.csv").open() as opened:
        assert {row["image"] for row in csv.DictReader(opened)} == {good.stem}


def write_pair(hr: Path, lr: Path, *, scale: int, size: tuple[int, int] = (50, 49)) -> None:
    """A picture, and it shrunk; the sides need not be multiples of the scale."""
    image = photo(*size, seed=len(hr.name))
    for file, values in ((hr, image), (lr, imresize(mod_crop(image, scale), 1 / scale))):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(file)


def test_given_pairs_are_scored_as_shrunk_images_are(tmp_path: Path, weights: Path, capsys) -> None:
    one, two = tmp_path / "one" / "HR", tmp_path / "two"
    for hr, lr in (("baby.png", "babyx2.png"), ("img_001_SRF_2_HR.png", "img_001_SRF_2_LR.png"), ("x2.png", "x2.png")):
        write_pair(one / hr, tmp_path / "LR" / lr, scale=2)
    write_pair(two / "a.png", tmp_path / "X2" / "a.png", scale=2)
    write_pair(tmp_path / "other.png", tmp_path / "LR" / "babyx4.png", scale=4)  # of another scale, beside the others
    arguments = ["--data", str(one), str(two), "--scale", "2", "--weights", str(weights), "--device", "cpu", "--csv"]
    assert main([*arguments, str(tmp_path / "shrunk.csv")]) == 0
    shrunk = capsys.readouterr().out
    assert shrunk.splitlines()[0].split() == ["one", "two"]
    assert [line.split()[0] for line in shrunk.splitlines()[1:]] == ["bicubic", "small"]
    assert main([*arguments, str(tmp_path / "given.csv"), "--lr", str(tmp_path / "LR"), str(tmp_path / "X2")]) == 0
    assert capsys.readouterr().out == shrunk
    assert (tmp_path / "given.csv").read_bytes() == (tmp_path / "shrunk.csv").read_bytes()


def test_what_is_no_pair_is_named(tmp_path: Path, weights: Path, capsys) -> None:
    hr, lr = tmp_path / "set", tmp_path / "LR"
    write_pair(hr / "good.png", lr / "goodx2.png", scale=2)
    write_pair(hr / "lost.png", tmp_path / "elsewhere.png", scale=2)
    write_pair(hr / "scale.png", lr / "scalex4.png", scale=4)
    write_pair(hr / "size.png", lr / "size.png", scale=3)
    write_pair(hr / "twice.png", lr / "twice.png", scale=2)
    (lr / "twice.bmp").write_bytes((lr / "twice.png").read_bytes())
    write_pair(tmp_path / "elsewhere.png", lr / "alone.png", scale=2)
    write_pair(hr / "shared.png", lr / "sharedx2.png", scale=2)
    (hr / "shared_HR.png").write_bytes((hr / "shared.png").read_bytes())
    arguments = ["--data", str(hr), "--scale", "2", "--weights", str(weights), "--device", "cpu", "--lr"]
    assert main([*arguments, str(lr)]) == 1
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    for words in (
        f"{hr / 'lost.png'}: has no partner in {lr}; lost.png or lostx2.png would be one.",
        f"{hr / 'scale.png'}: has no partner of x2; {lr / 'scalex4.png'} is x4 by its name.",
        f"{lr / 'size.png'}: has 16 x 16 pixels; for --scale 2 its high-resolution partner requires 24 x 25; it fits",
        f"{hr / 'twice.png'}: has several partners, {lr / 'twice.bmp'} and {lr / 'twice.png'}",
        f"{lr / 'alone.png'}: has no high-resolution partner",
        f"{lr / 'sharedx2.png'}: is the partner of ",
    ):
        assert sum(words in line for line in errors) == 1, words
    assert len(errors) == 6
    assert "1 of 7 images are scored" in output.err
    assert len(output.out.splitlines()) == 3
    assert main([*arguments, str(lr), str(lr)]) == 2
    assert "--lr: must be as many folders as --data, 1; got 2" in capsys.readouterr().err
    assert main([*arguments, str(hr)]) == 2
    assert "is the folder of the high-resolution images" in capsys.readouterr().err


def test_an_image_that_is_too_large_is_not_decoded(tmp_path: Path, weights: Path, capsys) -> None:
    write_photos(tmp_path / "set", [(48, 48), (1200, 1000)])
    arguments = ["--scale", "2", "--weights", str(weights), "--data", str(tmp_path / "set")]
    assert main([*arguments, "--max-megapixels", "1"]) == 1
    assert "1.png: has 1000 x 1200 pixels, 1.2 megapixels; 1 are allowed" in capsys.readouterr().err
    (tmp_path / "set" / "1.png").write_bytes(b"P5\n9000 8000\n255\n")
    assert main(arguments) == 1
    assert "1.png: has 9000 x 8000 pixels, 72 megapixels; 64 are allowed" in capsys.readouterr().err


def test_scores_are_not_replaced_unasked(tmp_path: Path, weights: Path, capsys) -> None:
    write_photos(tmp_path / "set", [(48, 48)])
    scores = tmp_path / "scores.csv"
    scores.write_text("earlier")
    arguments = ["--data", str(tmp_path / "set"), "--scale", "2", "--weights", str(weights), "--csv"]
    assert main([*arguments, str(scores)]) == 2
    assert "would be overwritten; pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "set" / "0.png" / "scores.csv")]) == 2
    assert scores.read_text() == "earlier"
    assert main([*arguments, str(scores), "--overwrite"]) == 0
    assert scores.read_text().startswith("dataset,")
    (low,) = write_photos(tmp_path / "low", [(24, 24)])
    for given in (tmp_path / "set" / "0.png", low, weights):
        before = given.read_bytes()
        assert main([*arguments, str(given), "--overwrite", "--lr", str(low.parent)]) == 2
        assert f"{given}: is an input, which is never overwritten" in capsys.readouterr().err
        assert given.read_bytes() == before


@pytest.mark.parametrize(
    "option", [["--local", "1000000"], ["--local", "0"], ["--tile", "8"], ["--max-megapixels", "179"]]
)
def test_options_out_of_range_are_named(option: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--data", "x", *option])
    assert f"argument {option[0]}: must be a whole number of at least" in capsys.readouterr().err


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    write_network(MREN(2, channels=12, num_blocks=1), file, {"scale": 2, "channels": 12, "num_blocks": 2})
    with pytest.raises(ValueError, match=r"odd\.safetensors: its weights do not fit"):
        load_mren(2, path=file)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"channels": 12}, "must hold the arguments of net, .* missing 1 required .* argument: 'scale'"),
        ({"scale": 4, "channels": 12, "num_blocks": 1}, "must have the scale of net, 3, got 4"),  # the same tensors
        ({"scale": 3, "channels": 24, "num_blocks": 1}, r"would be of \(24,\), but in net it is of \(12,\)"),
        ({"scale": 3, "channels": 12, "num_blocks": 2}, r"body\.1\..* would be of \(.*, but in net it is missing"),
    ],
)
def test_weights_are_not_saved_with_the_arguments_of_another_network(tmp_path: Path, config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_weights(MREN(3, channels=12, num_blocks=1), tmp_path / "net.safetensors", config)
    assert not list(tmp_path.iterdir())


def test_weights_of_a_compiled_or_wrapped_network_are_its_own(tmp_path: Path) -> None:
    config = {"scale": 2, "channels": 12, "num_blocks": 1}
    net, x = MREN(**config).eval(), torch.rand(1, 3, 6, 5)
    expected = net(x)
    wrapped = {
        "compiled": torch.compile(net),
        "distributed": nn.DataParallel(net),
        "both": torch.compile(nn.DataParallel(net)),
        "and back": nn.DataParallel(torch.compile(net)),
    }
    for name, other in wrapped.items():
        save_weights(other, tmp_path / "saved.safetensors", config)
        assert torch.equal(load_mren(2, path=tmp_path / "saved.safetensors")(x), expected), name
        # As somebody else's program would have written them.
        metadata = {"mren": json.dumps(config)}
        save_file(other.state_dict(), tmp_path / "raw.safetensors", metadata=metadata)
        assert torch.equal(load_mren(2, path=tmp_path / "raw.safetensors")(x), expected), name
    net.body, net.head = torch.compile(net.body), nn.DataParallel(net.head)
    save_weights(net, tmp_path / "inside.safetensors", config)
    assert torch.equal(load_mren(2, path=tmp_path / "inside.safetensors")(x), expected)


def test_a_set_that_is_not_whole_is_said(tmp_path: Path, weights: Path, capsys) -> None:
    folders = [str(tmp_path / "Set5"), str(tmp_path / "mine")]
    for folder in folders:
        write_photos(Path(folder), [(48, 48)])
    assert main(["--data", *folders, "--scale", "2", "--weights", str(weights)]) == 0
    said = capsys.readouterr().err
    assert "Set5: 1 image, but published scores are of 5" in said
    assert "mine:" not in said


def test_weights_do_not_take_the_place_of_another_method(tmp_path: Path, weights: Path, capsys) -> None:
    write_photos(tmp_path / "mine", [(48, 48)])
    own = weights.rename(weights.with_name("bicubic.safetensors"))
    assert main(["--data", str(tmp_path / "mine"), "--scale", "2", "--weights", str(own)]) == 2
    assert "bicubic: scores are filed by name, but two methods have this one" in capsys.readouterr().err


def test_a_network_without_weights_says_which_there_are() -> None:
    assert not weights_path(3, "mren_l").exists()
    with pytest.raises(
        FileNotFoundError, match=r"Shipped: .*mren_x2, mren_x3, mren_x4.*examples\.mren\.train.*--scale 3"
    ):
        load_mren(3, "mren_l")
    with pytest.raises(ValueError, match=r"variant must be one of 'mren', .*; got 'mren_xl'"):
        load_mren(3, "mren_xl")


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("page", [WEIGHTS / "README.md", WEIGHTS.parents[2] / "README.md"], ids=["card", "readme"])
def test_the_printed_scores_are_the_means_of_the_committed_ones(page: Path, scale: int) -> None:
    with (WEIGHTS / f"mren_x{scale}.scores.csv").open() as opened:
        rows = [
            Row(r["dataset"], r["image"], r["method"], Score(float(r["psnr"]), float(r["ssim"])))
            for r in csv.DictReader(opened)
        ]
    for method, title in (("bicubic", f"bicubic ×{scale}"), ("mren", f"**MREN ×{scale}, these weights**")):
        of_method = [row for row in rows if row.method == method]
        means = [
            mean_score([row for row in of_method if row.dataset == dataset])
            for dataset in ("Set5", "Set14", "B100", "Urban100")
        ]
        text = page.read_text()
        assert f"| {title} | {' | '.join(f'{mean.psnr:.2f}' for mean in means)} |" in text
        if page.parent == WEIGHTS:
            assert f"| {title} | {' | '.join(f'{mean.ssim:.4f}' for mean in means)} |" in text


def test_the_cards_checksums_are_the_files() -> None:
    card = (WEIGHTS / "README.md").read_text()
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert files
    for file in files:
        assert f"| `{file.name}` |" in card
        assert hashlib.sha256(file.read_bytes()).hexdigest() in card
