"""The picture of details: the right square of the right image, and errors that say what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.mren.compare import OVERVIEW, PANEL, Detail, find_detail, main, write_sample
from examples.mren.model import MREN, WEIGHTS, save_weights, weights_path
from tests.images import photo, write_photos


def test_the_worst_square_is_found() -> None:
    hr = photo(40, 60)
    broken = hr.clone()
    broken[:, 20:28, 33:41] = 255 - broken[:, 20:28, 33:41]
    assert find_detail(broken, hr, 8) == (33, 20)


def test_what_is_drawn_is_what_was_asked_for(tmp_path: Path, capsys) -> None:
    (image,) = write_photos(tmp_path / "images", [(64, 80)])
    target = tmp_path / "details.png"
    assert main(["--data", str(image.parent), "--crop", "0:16,8,32", "-o", str(target), "--device", "cpu"]) == 0
    assert "1 details at x4" in capsys.readouterr().out
    drawn = np.array(Image.open(target))
    gap = 12
    networks = len(list(WEIGHTS.glob("*_x4.safetensors")))
    assert drawn.shape[1] == OVERVIEW + (2 + networks) * PANEL + (4 + networks) * gap  # and original, bicubic
    original = drawn[gap : gap + PANEL, OVERVIEW + 2 * gap :][:, :PANEL]
    assert np.array_equal(original[4::9, 4::9], np.array(Image.open(image))[8:40, 16:48])  # 288 / 32 = 9 each pixel


def test_a_place_that_is_not_given_is_found(tmp_path: Path) -> None:
    (image,) = write_photos(tmp_path / "images", [(128, 128)])
    assert main(["--data", str(image.parent), "--crop", "0", "-o", str(tmp_path / "details.png")]) == 0
    assert (tmp_path / "details.png").exists()


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("1", "no image '1'; there are 0."),
        ("0:60,8,32", "the square of 32 at 60,8 is not within 80 x 64 pixels"),
        ("0:0,0,65", "a square of 65 does not fit into 80 x 64 pixels"),
        ("0", "a square of 96 does not fit into 80 x 64 pixels"),
    ],
)
def test_details_that_are_not_there_are_named(tmp_path: Path, capsys, crop: str, message: str) -> None:
    (image,) = write_photos(tmp_path / "images", [(64, 80)])
    assert main(["--data", str(image.parent), "--crop", crop, "-o", str(tmp_path / "details.png")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "details.png").exists()


def test_a_detail_that_cannot_be_read_is_a_usage_error(capsys) -> None:
    for detail in ("0:1,2", "0:1,2,0", "0:-1,2,8"):
        with pytest.raises(SystemExit, match="2"):
            main(["--data", ".", "--crop", detail])
        assert f"'{detail}' is not a detail; give IMAGE:LEFT,TOP,SIDE" in capsys.readouterr().err
    assert Detail.parse("a") == Detail("a", None)
    assert Detail.parse("12:30") == Detail("12:30", None)
    assert Detail.parse("12:30:1,2,8") == Detail("12:30", (1, 2), 8)


def test_a_file_is_not_overwritten(tmp_path: Path, capsys) -> None:
    (image,) = write_photos(tmp_path / "images", [(64, 80)])
    target = tmp_path / "details.png"
    target.write_text("mine")
    command = ["--data", str(image.parent), "--crop", "0:0,0,32", "-o", str(target)]
    assert main(command) == 2
    assert "would be overwritten; pass --overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*command[:-1], str(tmp_path / "details.txt")]) == 2
    assert "the name must end in one of" in capsys.readouterr().err
    before = image.read_bytes()
    assert main([*command[:-1], str(image), "--overwrite"]) == 2
    assert "0.png: is an input, which is never overwritten" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_weights_of_your_own_are_columns(tmp_path: Path, capsys) -> None:
    (image,) = write_photos(tmp_path / "images", [(64, 80)])
    target = tmp_path / "details.png"
    command = ["--data", str(image.parent), "--crop", "0:0,0,32", "-o", str(target), "--device", "cpu", "--weights"]
    assert main([*command, str(tmp_path / "none.safetensors")]) == 1
    assert "no weights at" in capsys.readouterr().err
    shipped = str(weights_path(4))
    save_weights(MREN(4, num_blocks=1), tmp_path / "own.safetensors", {"scale": 4, "num_blocks": 1})
    assert main([*command, shipped, str(tmp_path / "own.safetensors")]) == 0
    assert Image.open(target).width == OVERVIEW + 4 * PANEL + 6 * 12


def test_images_and_weights_of_one_name_are_told_apart(tmp_path: Path, capsys) -> None:
    (image,) = write_photos(tmp_path / "images", [(64, 80)])
    Image.open(image).transpose(Image.Transpose.ROTATE_180).save(image.with_suffix(".bmp"))
    for folder in "ab":
        config = {"scale": 4, "channels": 12, "num_blocks": 1}
        save_weights(MREN(**config), tmp_path / folder / "net.safetensors", config)
    command = ["--data", str(image.parent), "-o", str(tmp_path / "details.png"), "--device", "cpu", "--weights"]
    command += [str(tmp_path / folder / "net.safetensors") for folder in "ab"]
    assert main([*command, "--crop", "0:0,0,32"]) == 1
    assert "no image '0'; there are 0.bmp, 0.png." in capsys.readouterr().err
    assert main([*command, "--crop", "0.png:0,0,32", "0.bmp:0,0,32"]) == 0
    assert Image.open(tmp_path / "details.png").width == OVERVIEW + 4 * PANEL + 6 * 12


def test_a_sample_is_drawn_beside_its_original(tmp_path: Path, capsys) -> None:
    write_sample(torch.nn.Upsample(scale_factor=4), 4, tmp_path / "sample.png", label="repeated")
    with Image.open(tmp_path / "sample.png") as drawn:
        assert drawn.width > 4 * 240
    scores = dict(re.findall(r"(\w+): ([\d.]+) dB", capsys.readouterr().out))
    assert float(scores["Bicubic"]) > float(scores["repeated"]) > 20
    with pytest.raises(FileExistsError):
        write_sample(torch.nn.Upsample(scale_factor=4), 4, tmp_path / "sample.png", overwrite=False)
