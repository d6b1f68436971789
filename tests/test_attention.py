"""The attention command: it draws what the blocks computed, and refuses what would lose a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from examples.mren import attention as command
from examples.mren.model import MREN, save_weights
from sc_blocks import FixedCommunication, NoCommunication
from tests.blocks import perturb
from tests.images import write_photos

SMALL = {"scale": 2, "channels": 12, "num_blocks": 3}


def net(**options) -> MREN:
    return perturb(MREN(**SMALL | options)).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 9, 14)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "in", [(9, 14)])[0]


@pytest.fixture
def run(tmp_path: Path):
    def call(*arguments: object, **options: object) -> int:
        config = SMALL | options
        save_weights(net(**options), tmp_path / "small.safetensors", config)
        weights = ["--weights", str(tmp_path / "small.safetensors"), "--device", "cpu"]
        return command.main([*(str(argument) for argument in arguments), *weights])

    return call


def test_collects_by_block(image: Tensor) -> None:
    model = net()
    attention = command.collect_attention(model, image, [2, 0])
    features = model.head(image[None])
    blocks = [features, model.body[0](features)]
    blocks.append(model.body[1](blocks[1]))
    for row, block in enumerate([2, 0]):
        first = model.body[block].refine.links[0]
        refined, map_ = first(blocks[block])
        torch.testing.assert_close(attention.maps[row][0], map_[0])
        torch.testing.assert_close(attention.fused[row][0] * attention.masks[row][0], refined[0])
        for link in range(1, 4):
            expected = attention.maps[row][link] + 0.2 * attention.maps[row][link - 1]
            torch.testing.assert_close(attention.fused[row][link], expected)
            torch.testing.assert_close(attention.masks[row][link], expected.sigmoid())


def test_without_communication_is_a_weight_of_zero(image: Tensor) -> None:
    model = net()
    closed = command.without_communication(model)
    zero = net(communication=0.0)
    zero.load_state_dict(model.state_dict())
    assert torch.equal(closed(image[None]), zero(image[None]))
    assert not torch.equal(closed(image[None]), model(image[None]))
    # The network that was asked for keeps its own.
    links = model.body[0].refine.links
    assert [type(link.communication) for link in links] == [NoCommunication, *[FixedCommunication] * 3]


@pytest.mark.parametrize("communication", ["learnable", "gated"])
def test_without_communication_of_another_kind(communication: str, image: Tensor) -> None:
    attention = command.collect_attention(
        command.without_communication(net(communication=communication)), image, [0, 1]
    )
    for maps, fused in zip(attention.maps, attention.fused, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(maps, fused, strict=True))


def test_correlation_is_numpys() -> None:
    a, b = torch.rand(2, 5, 6, 7)
    expected = np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert command.correlation(a, b) == pytest.approx(expected, abs=1e-6)
    assert command.correlation(a, 3 - 2 * a) == pytest.approx(-1)
    assert command.correlation(a, torch.ones_like(a)) == 0


def test_table(image: Tensor) -> None:
    attention = command.collect_attention(net(), image, [0, 2])
    header, *lines = command.correlation_table(attention, [0, 2]).splitlines()
    assert header == "MREB  own 1-2  own 2-3  own 3-4  fused 1-2  fused 2-3  fused 3-4"
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == ["1", "3"]
    assert rows[1][2] == f"{command.correlation(attention.maps[1][1], attention.maps[1][2]):+.2f}"
    assert rows[1][6] == f"{command.correlation(attention.fused[1][2], attention.fused[1][3]):+.2f}"


def test_figure_shows_masks_and_their_change(image: Tensor) -> None:
    model = net()
    full = command.collect_attention(model, image, [1, 2])
    ablated = command.collect_attention(command.without_communication(model), image, [1, 2])
    figure = command.draw(image, full, ablated, [1, 2], title="Title", channel="Channel")
    picture, *rest = [axes for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(picture.images[0].get_array(), image.permute(1, 2, 0))
    left, right = rest[:8], rest[8:]
    assert len(right) == 8
    for number in range(8):
        row, column = divmod(number, 4)
        mask, before = (attention.masks[row][column].mean(0) for attention in (full, ablated))
        np.testing.assert_allclose(left[number].images[0].get_array(), mask, rtol=1e-6)
        np.testing.assert_allclose(right[number].images[0].get_array(), mask - before, atol=1e-6)
    for grid in (left, right):
        assert len({axes.images[0].get_clim() for axes in grid}) == 1, "one scale for all"
    low, high = right[0].images[0].get_clim()
    assert low == -high < 0
    assert [axes.get_ylabel() for axes in (left[0], left[4])] == ["MREB 2", "MREB 3"]


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_writes_a_picture(suffix: str, photo: Path, tmp_path: Path, run, capsys) -> None:
    target = tmp_path / "out" / f"attention{suffix}"
    assert run(photo, "-o", target) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["MREB", "1", "2", "3"]
    assert str(target) in out
    assert [path.name for path in target.parent.iterdir()] == [target.name], "no scratch file"
    assert target.read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")


def test_blocks_are_picked(photo: Path, tmp_path: Path, run, capsys) -> None:
    assert run(photo, "-o", tmp_path / "a.png", "--blocks", 3, 1) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]] == ["MREB", "3", "1"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_any_picture_is_read_as_rgb(mode: str, photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as opened:
        opened.convert(mode).save(tmp_path / "in.png")
        expected = torch.from_numpy(np.array(opened.convert(mode).convert("RGB"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(command.read_image(tmp_path / "in.png", 97), expected)


def test_what_transparency_hides_is_not_looked_at(photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as opened:
        image = opened.convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 7, 9))
    image.save(tmp_path / "in.png")
    seen = command.read_image(tmp_path / "in.png", 97)
    assert torch.equal(seen[:, :, :7], seen[:, :, 7:8].expand(-1, -1, 7))


def test_nothing_changes_without_communication(image: Tensor) -> None:
    attention = command.collect_attention(net(communication=None), image, [0])
    figure = command.draw(image, attention, attention, [0], title="Title", channel="Channel")
    change = figure.axes[-2].images[0]  # before its colour bar
    assert (change.get_array() == 0).all()
    low, high = change.get_clim()
    assert low < 0 < high, "or nothing would be drawn as the lowest there is"


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    (file,) = write_photos(tmp_path, [(65, 97)])
    assert command.read_image(file, 97).shape == (3, 65, 97)
    shrunk = command.read_image(file, 40)
    assert shrunk.shape == (3, 21, 32)
    assert 0 <= shrunk.min() < shrunk.max() <= 1
    torch.testing.assert_close(shrunk.mean(), command.read_image(file, 97).mean(), atol=0.02, rtol=0)


def test_the_sample(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--max-side", 50) == 0
    assert Path(command.OUTPUT).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["IN", "-o", "there.png"], "there.png: would be overwritten; pass --overwrite, or choose another output"),
        (["IN", "-o", "IN", "--overwrite"], "is an input, which is never overwritten"),
        (["IN", "-o", "out.jpg"], "out.jpg: must end in one of .png, .pdf, .svg"),
        (["IN", "-o", "out"], "out: must end in one of"),
        (["missing.png", "-o", "out.png"], "missing.png: No such file"),
        (["there.png", "-o", "out.png"], "there.png: not a readable image"),
        (["IN", "-o", "out.png", "--blocks", "1", "4"], "--blocks: must be numbers from 1 to 3, got 1 4"),
        (["IN", "-o", "out.png", "--blocks", "0"], "--blocks: must be numbers from 1 to 3, got 0"),
        (["narrow.png", "-o", "out.png", "--max-side", "10"], "narrow.png: too narrow to downscale it by 5"),
        (["IN", "-o", "out.png", "--weights", "none.safetensors"], "no weights at none.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words(arguments: list[str], words: str, photo: Path, tmp_path: Path, run, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.png").write_text("kept")
    Image.new("RGB", (50, 2)).save("narrow.png")
    before = photo.read_bytes()
    own = ["--weights", "none.safetensors"] if "--weights" in arguments else []
    arguments = [str(photo) if argument == "IN" else argument for argument in arguments]
    code = command.main([*arguments, "--scale", "2"]) if own else run(*arguments)
    captured = capsys.readouterr()
    assert code == (1 if own or "narrow" in words or "No such file" in words or "readable" in words else 2)
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.out == ""
    assert Path("there.png").read_text() == "kept"
    assert photo.read_bytes() == before
    assert not Path("out.png").exists()


def test_a_side_without_pixels(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--max-side", "0"])
    assert "--max-side: must be a whole number of at least 1, got 0" in capsys.readouterr().err


def test_words_about_a_network_without_masks(photo: Path, tmp_path: Path, run, capsys) -> None:
    assert run(photo, "-o", tmp_path / "out.png", gate=False) == 1
    assert "net must have masks, got DRACBs that were built with gate=False" in capsys.readouterr().err


def test_overwrites_when_told(photo: Path, tmp_path: Path, run) -> None:
    (tmp_path / "out.png").write_text("old")
    assert run(photo, "-o", tmp_path / "out.png", "--overwrite") == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 500


def test_the_weights_for_photographs_are_named_as_everywhere(photo: Path, tmp_path: Path, monkeypatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(command, "draw", lambda *_, title, channel: titles.append(title) or Figure())
    arguments = ["--variant", "mren_s", "--weights", "photo", "--device", "cpu"]
    assert command.main([str(photo), "-o", str(tmp_path / "out.png"), *arguments]) == 0
    assert titles == ["mren_s_x4_photo ×4, 0.png, 14 × 9"]


def test_draws_without_a_display_and_without_pyplot() -> None:
    code = "import sys, examples.mren.attention; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "False", done.stderr
