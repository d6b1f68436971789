"""The upscale command: every kind of file comes out as it was, nothing is lost, and messages say what to do."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn

from examples.mren import upscale as command
from examples.mren.images.picture import Picture, bleed
from examples.mren.images.read import read_picture
from examples.mren.images.write import write_picture
from tests.images import pil_photo, write_photos, write_weights

HEIGHT, WIDTH, SCALE = 9, 14, 2
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY16 = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round().astype(np.uint16)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), bicubic=True, scale=SCALE, channels=12, num_blocks=1)


@pytest.fixture
def run(weights: Path):
    def call(*arguments: object) -> int:
        return command.main([*map(str, arguments), "--weights", str(weights), "--device", "cpu"])

    return call


def rgb() -> Image.Image:
    return pil_photo(HEIGHT, WIDTH)


def with_alpha(mode: str) -> Image.Image:
    image = rgb().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    return image


def palette(*, transparent: bool) -> Image.Image:
    image = rgb().quantize(16)
    if transparent:
        image.info["transparency"] = 3
    return image


KINDS = {
    "gray": (lambda: rgb().convert("L"), "L"),
    "one bit": (lambda: rgb().convert("1"), "L"),
    "gray alpha": (lambda: with_alpha("L"), "LA"),
    "rgb": (rgb, "RGB"),
    "rgba": (lambda: with_alpha("RGB"), "RGBA"),
    "palette": (lambda: palette(transparent=False), "RGB"),
    "transparent palette": (lambda: palette(transparent=True), "RGBA"),
    "16-bit gray": (lambda: Image.fromarray(GRAY16), "I;16"),
}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    # TIFF palettes have no transparency.
    [
        (kind, suffix)
        for kind in KINDS
        for suffix in (".png", ".tif")
        if (kind, suffix) != ("transparent palette", ".tif")
    ],
)
def test_kind_size_and_profile_are_kept(kind: str, suffix: str, tmp_path: Path, run) -> None:
    make, mode = KINDS[kind]
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    make().save(source, icc_profile=PROFILE)
    assert run(source, "-o", target) == 0
    with Image.open(target) as result:
        assert result.mode == mode
        assert result.size == (WIDTH * SCALE, HEIGHT * SCALE)
        assert result.info["icc_profile"] == PROFILE
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name]), "no scratch file"


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_network(kind: str, tmp_path: Path, run) -> None:
    make, mode = KINDS[kind]
    make().save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "in.png") as source, Image.open(tmp_path / "out.png") as result:
        deep = mode == "I;16"
        before, after = (
            torch.from_numpy(np.array(image if deep else image.convert(mode)).astype(np.float32))
            .view(image.height, image.width, -1)
            .permute(2, 0, 1)
            for image in (source, result)
        )
    if mode.endswith("A"):
        before = torch.cat([bleed(before[:-1], before[-1:]), before[-1:]])
    enlarged = nn.functional.interpolate(before[None], scale_factor=SCALE, mode="bicubic")[0]
    colors = slice(0, 3 if mode.startswith("RGB") else 1)
    torch.testing.assert_close(after[colors], enlarged[colors].clamp(0, 65535 if deep else 255), atol=0.51, rtol=0)
    if mode.endswith("A"):
        # Held to the values around each pixel, it may overshoot less than bicubic does.
        assert (after[-1] - enlarged[-1].clamp(0, 255)).abs().mean() < 2


@pytest.mark.parametrize(("suffix", "mode"), [(".jpg", "RGB"), (".webp", "RGB"), (".tiff", "RGB")])
def test_format_follows_the_name(suffix: str, mode: str, tmp_path: Path, run) -> None:
    rgb().save(tmp_path / "in.png", icc_profile=PROFILE)
    assert run(tmp_path / "in.png", "-o", tmp_path / f"out{suffix}") == 0
    with Image.open(tmp_path / f"out{suffix}") as result:
        assert (result.mode, result.size) == (mode, (WIDTH * SCALE, HEIGHT * SCALE))
        assert result.info["icc_profile"] == PROFILE


def test_sixteen_bits_are_really_kept(tmp_path: Path, run) -> None:
    ramp = np.linspace(20_000, 21_000, 40 * 50).reshape(40, 50).astype(np.uint16)  # 4 levels of 8 bits
    for order, name in (("<u2", "in.png"), (">u2", "big.tif")):
        Image.fromarray(ramp.astype(order)).save(tmp_path / name)
        assert run(tmp_path / name, "-o", tmp_path / "out.png", "--overwrite") == 0
        with Image.open(tmp_path / "out.png") as result:
            levels = np.array(result)
        assert levels.dtype == np.uint16
        assert len(np.unique(levels)) > 256
        expected = nn.functional.interpolate(torch.from_numpy(ramp.astype(np.float32))[None, None], scale_factor=SCALE)
        assert np.abs(levels - expected[0, 0].numpy())[4:-4, 4:-4].max() < 30


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_camera_orientation_is_applied_once(suffix: str, tmp_path: Path, run) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned clockwise
    stored = Image.new("RGB", (WIDTH, HEIGHT), "blue")
    stored.paste("red", (0, 0, WIDTH // 2, HEIGHT))
    stored.save(tmp_path / f"in{suffix}", exif=exif)
    assert run(tmp_path / f"in{suffix}", "-o", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as result:
        assert result.size == (HEIGHT * SCALE, WIDTH * SCALE)
        assert 0x0112 not in result.getexif()
        red, _, blue = result.getpixel((HEIGHT, 2))
        assert red > 200 > 50 > blue, "the left half is now the upper one"


def disc(side: int = 24, radius: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    inside = rows**2 + columns**2 < radius**2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[inside] = (220, 0, 0, 255)
    return pixels, inside


def test_no_dark_fringe_around_what_is_transparent(tmp_path: Path, run) -> None:
    pixels, _ = disc()
    Image.fromarray(pixels).save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as result:
        upscaled = np.array(result)
    visible = upscaled[upscaled[:, :, 3] > 0]
    assert (upscaled[:, :, 3] == 255).any()
    assert (upscaled[:, :, 3] == 0).any()
    assert np.abs(visible[:, :3].astype(int) - (220, 0, 0)).max() <= 1, "the edge is as red as the disc"


@pytest.mark.parametrize(("error", "edge"), [(-0.1, slice(20, 24)), (0.1, slice(16, 20))])
def test_opaque_and_transparent_stay_exactly_so(error: float, edge: slice) -> None:
    class Wrong(nn.Module):
        """Enlarges, and errs by 0.1 as a trained network might."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(x, scale_factor=SCALE) + error

    alpha = torch.zeros(1, 20, 20)
    alpha[:, :, 10:] = 1
    result = command.upscale(Wrong(), Picture(torch.rand(3, 20, 20), alpha), SCALE)
    assert torch.equal(result.color, result.color.clamp(0, 1))  # a background is laid behind what is in range
    assert result.alpha is not None
    assert (result.alpha[:, :, 24:] == 1).all()
    assert (result.alpha[:, :, :16] == 0).all()
    near = result.alpha[:, :, edge]
    assert ((near > 0) & (near < 1)).all(), "up to two pixels from the edge, it is what the network makes"


def test_gray_is_the_mean_of_the_three_colours_that_the_network_makes() -> None:
    class Tinting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(x, scale_factor=SCALE) + torch.tensor([0.3, 0.0, 0.0]).view(3, 1, 1)

    gray = torch.rand(1, 20, 20) / 2
    result = command.upscale(Tinting(), Picture(gray), SCALE)
    torch.testing.assert_close(result.color[:, ::SCALE, ::SCALE], gray + 0.1)


def test_bleed_takes_the_nearest_colour_and_leaves_what_shows() -> None:
    pixels, inside = disc()
    values = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    values[:3, inside] = torch.rand(3, int(inside.sum()))
    bled = bleed(values[:3], values[3:])
    assert torch.equal(bled[:, inside], values[:3, inside])
    assert torch.equal(bled[:, 0, 12], values[:3, np.argmax(inside[:, 12]), 12])
    invisible = torch.zeros(1, 24, 24)
    assert torch.equal(bleed(values[:3], invisible), values[:3]), "nothing shows: nothing to take"


def test_tiles_make_no_difference_beyond_rounding(tmp_path: Path, run) -> None:
    [source] = write_photos(tmp_path / "in", [(70, 150)])
    assert run(source, "-o", tmp_path / "tiled.png", "--tile", 64) == 0
    assert run(source, "-o", tmp_path / "whole.png") == 0
    tiled, whole = (read_picture(tmp_path / name).color for name in ("tiled.png", "whole.png"))
    assert (tiled - whole).abs().max() <= 1.01 / 255


def test_progress_covers_colour_and_transparency() -> None:
    calls: list[tuple[int, int]] = []
    picture = Picture(torch.rand(3, 20, 100), torch.rand(1, 20, 100))
    command.upscale(nn.Upsample(scale_factor=2), picture, 2, tile=64, on_tile=lambda *call: calls.append(call))
    assert calls == [(done, 6) for done in range(1, 7)]


def test_folder_in_folder_out(tmp_path: Path, run, capsys) -> None:
    folder = tmp_path / "in"
    write_photos(folder, [(8, 9), (7, 12)])
    rgb().save(folder / "c.JPG", format="JPEG")
    rgb().save(folder / "d.bmp")
    (folder / "notes.txt").write_text("no image")
    (folder / "sub").mkdir()
    (folder / ".hidden").touch()
    assert run(folder, "-o", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "c.JPG", "d.png"]
    output = capsys.readouterr()
    assert [line.split(": ")[1] for line in output.out.splitlines()] == ["18 x 16", "24 x 14", "28 x 18", "28 x 18"]
    *skipped, rate = output.err.splitlines()
    assert rate.startswith("4 images in ")
    assert skipped == [
        f"skipped: {folder / 'notes.txt'}: not an image by its name",
        f"skipped: {folder / 'sub'}: is a folder; --recursive includes it",
    ]


def test_one_file_into_a_folder(tmp_path: Path, run) -> None:
    [source] = write_photos(tmp_path / "in", [(8, 9)])
    (tmp_path / "there").mkdir()
    assert run(source, "-o", tmp_path / "there") == 0
    assert run(source, "-o", f"{tmp_path}/new/") == 0
    assert (tmp_path / "there" / "0.png").is_file()
    assert (tmp_path / "new" / "0.png").is_file()


def test_an_unreadable_file_does_not_stop_the_others(tmp_path: Path, run, capsys) -> None:
    folder = tmp_path / "in"
    good, damaged = write_photos(folder, [(8, 9), (30, 30)])
    damaged.write_bytes(damaged.read_bytes()[:400])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    assert run(folder, "-o", tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [good.name]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert errors[0].startswith(f"error: {damaged}: not a readable image (")
    assert errors[1].startswith(f"error: {folder / 'empty.png'}: is empty;")
    assert errors[2].startswith(f"error: {folder / 'text.png'}: not a readable image (")


def negative_tiff(path: Path) -> None:
    """A 16-bit gray TIFF where 0 is white: Pillow writes such files only of other depths, so one tag is changed."""
    Image.fromarray(GRAY16).save(path)
    tag = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    content = path.read_bytes()
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))


def animation(path: Path) -> None:
    rgb().save(path, save_all=True, append_images=[rgb().rotate(180)])


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: rgb().convert("CMYK").save(path), "in.jpg", "CMYK without a profile, .* convert it to RGB"),
        (lambda path: rgb().convert("F").save(path), "in.tif", "floating-point; save it with 8 bits"),
        (lambda path: rgb().convert("I").save(path), "in.tif", "32 bits per pixel"),
        (negative_tiff, "in.tif", "16-bit gray where 0 is white"),
        (animation, "in.tif", "holds 2 pictures"),
    ],
)
def test_what_would_be_degraded_is_refused(make, name: str, message: str, tmp_path: Path, run, capsys) -> None:
    make(tmp_path / name)
    assert run(tmp_path / name, "-o", tmp_path / "out.png") == 1
    assert not (tmp_path / "out.png").exists()
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}: ")
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("picture", "name", "message"),
    [
        (Picture(torch.rand(3, 4, 4), torch.rand(1, 4, 4)), "out.jpg", "JPEG has no transparency, .* write .png"),
        (Picture(torch.rand(1, 4, 4), bits=16), "out.jpg", "JPEG has no 16-bit gray, .* write .png or .tif"),
        (Picture(torch.rand(1, 4, 4), bits=16), "out.webp", "WebP has no 16-bit gray"),
        (Picture(torch.rand(1, 1, 16_384)), "out.webp", "WebP allows at most 16383 pixels a side, got 16384"),
        (Picture(torch.rand(1, 4, 4)), "out.xyz", "must end in one of .png, .jpg"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(picture: Picture, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_picture(tmp_path / name, picture)
    assert not list(tmp_path.iterdir())


def test_format_is_refused_before_the_network_runs(tmp_path: Path, run, capsys, monkeypatch) -> None:
    with_alpha("RGB").save(tmp_path / "in.png")
    monkeypatch.setattr(command, "upscale", None)
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.jpg") == 1
    assert "JPEG has no transparency" in capsys.readouterr().err
    Image.new("L", (9000, 8)).save(tmp_path / "long.png")  # 18,000 wide, when it is enlarged
    assert run(tmp_path / "long.png", "-o", tmp_path / "out.webp") == 1
    assert "WebP allows at most 16383 pixels a side, got 18000" in capsys.readouterr().err


def test_a_previous_result_survives_a_failed_write(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "out.png"
    target.write_text("earlier")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_picture(target, Picture(torch.rand(3, 4, 4)))
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert target.read_text() == "earlier"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, a result of an earlier run, an empty folder."""
    write_photos(tmp_path, [(8, 9), (7, 12)])
    rgb().save(tmp_path / "0.bmp")
    (tmp_path / "done.png").write_text("earlier")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    rgb().save(tmp_path / "other" / "0.png")
    (tmp_path / "lost.png").symlink_to("deleted.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0.png", "-o", "done.png"], "done.png: would be overwritten; pass --overwrite"),
        (["0.png", "1.png", "-o", "other"], "0.png: would be overwritten; pass --overwrite"),
        (["0.png", "-o", "0.png", "--overwrite"], "0.png: is an input, which is never overwritten"),
        (["0.png", "1.png", "-o", ".", "--overwrite"], "0.png: is an input, which is never overwritten"),
        (["0.png", "other/0.png", "-o", "new"], "would both become"),
        (["0.png", "0.bmp", "-o", "new"], "0.png; rename them, or upscale them into different folders"),
        (["0.png", "0.bmp", "other/0.png", "-o", "new"], "0.png (1 more like these); rename them"),
        (["0.png", "1.png", "-o", "new.png"], "new.png: a folder is needed for several images"),
        (["0.png", "1.png", "-o", "done.png"], "done.png: a folder is needed for several images"),
        (["0.png", "-o", "new"], "new: must end in one of .png, .jpg"),
        (["0.png", "0.png", "-o", "new"], "0.png: is given twice"),
        (["", "-o", "new"], "a name is empty"),
        (["0.png"], "-o is required"),
        (["gone.png", "-o", "new.png"], "gone.png: no such file or folder"),
        (["lost.png", "-o", "new.png"], "lost.png: no such file or folder; it is a link to deleted.png, which does"),
        (["empty", "-o", "new"], "empty: no images; looked for *.png, *.jpg"),
        (["0.png", "-o", "new.png", "--scale", "3"], "was saved with scale=2, asked for scale=3"),
    ],
)
def test_calls_that_would_lose_something_are_refused_before_any_work(
    arguments: list[str], message: str, folder: Path, weights: Path, monkeypatch, capsys
) -> None:
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    assert command.main(["--scale", str(SCALE), "--weights", str(weights), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert sorted(folder.rglob("*")) == before
    assert (folder / "done.png").read_text() == "earlier"


def test_overwrite_replaces_a_result(folder: Path, run) -> None:
    assert run(folder / "0.png", "-o", folder / "done.png", "--overwrite") == 0
    with Image.open(folder / "done.png") as result:
        assert result.size == (18, 16)


@pytest.mark.parametrize(
    "arguments", [["--tile", "63"], ["--tile", "x"], ["--local", "0"], ["--scale", "5"], ["--unknown"]]
)
def test_malformed_options_exit_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "error: " in capsys.readouterr().err


def test_absent_device_is_named(folder: Path, run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([str(folder / "0.png"), "-o", str(folder / "new.png"), "--device", "cuda"]) == 2
    assert "--device cuda: " in capsys.readouterr().err


def test_local_gives_windowed_attention(tmp_path: Path, run, monkeypatch) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(command, "upscale_file", lambda net, *_, **__: seen.append(net))
    write_photos(tmp_path, [(8, 9)])
    assert run(tmp_path / "0.png", "-o", tmp_path / "new.png", "--local", 48) == 0
    assert {module.local for module in seen[0].modules() if hasattr(module, "local")} == {(72, 72), (144, 144)}


def test_interruption_leaves_no_result(tmp_path: Path, run, monkeypatch, capsys) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upscale", interrupt)
    [source] = write_photos(tmp_path / "in", [(8, 9)])
    assert run(source, "-o", tmp_path / "out.png") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_sample(tmp_path: Path, run, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["Bicubic", "small", "mren_sample.png"]
    with Image.open("mren_sample.png") as result:
        assert result.size == (4 * 240 + 5 * 12, 240 + 12 + 36)
    assert run() == 2
    error = capsys.readouterr().err
    assert "mren_sample.png: would be overwritten; pass --overwrite" in error
    assert "--skip-existing" not in error  # which is for folders
    (tmp_path / "folder").mkdir()
    assert run("-o", "folder", "--overwrite") == 0
    assert (tmp_path / "folder" / "mren_sample.png").is_file()
    # One that comes to be while it is drawn stays.
    monkeypatch.setattr(command, "fold_mren", lambda net: Path("late.png").write_text("theirs") and net)
    assert run("-o", "late.png") == 1
    assert Path("late.png").read_text() == "theirs"


def test_sample_that_cannot_be_written_is_an_error_line(tmp_path: Path, run, capsys) -> None:
    (tmp_path / "file").touch()
    assert run("-o", tmp_path / "file" / "sample.png") == 2
    assert capsys.readouterr().err.startswith("error: ")
