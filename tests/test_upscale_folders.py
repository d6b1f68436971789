"""Upscaling many files: folders, what is there already, streams, formats, faults in the middle, and signals."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from examples.mren import upscale as command
from examples.mren.images.picture import Picture
from examples.mren.images.read import read_picture
from examples.mren.images.write import write_picture
from tests.images import pil_photo, write_photos
from tests.test_upscale import run, weights

__all__ = ["run", "weights"]  # fixtures

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_scale_is_that_of_the_weights(tmp_path: Path, run, capsys) -> None:
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    assert run(source, "-o", tmp_path / "out.png") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.png'}: 18 x 16\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_cannot_break_the_line(tmp_path: Path, run, capsys) -> None:
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    source.rename(tmp_path / "in" / "a\nb\x1b[2J.png")
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}{os.sep}a\\nb\\x1b[2J.png: 18 x 16\n"
    assert names(tmp_path / "out") == ["a\nb\x1b[2J.png"]


def test_a_folder_is_gone_on_with(tmp_path: Path, run, capsys) -> None:
    write_photos(tmp_path / "in", [(8, 9), (7, 8), (6, 7)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").write_text("of an earlier run")
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 2
    assert names(tmp_path / "out") == ["1.png"]
    assert "--skip-existing" in capsys.readouterr().err
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    output = capsys.readouterr()
    assert [line.split(": ")[0] for line in output.out.splitlines()] == [
        str(tmp_path / "out" / f"{i}.png") for i in (0, 2)
    ]
    skipped, _ = output.err.splitlines()  # and how many came out a second
    assert skipped == f"skipped: {tmp_path / 'in' / '1.png'}: {tmp_path / 'out' / '1.png'} exists already"
    assert (tmp_path / "out" / "1.png").read_text() == "of an earlier run"
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0, "all are there"


def test_folders_in_folders_keep_their_structure(tmp_path: Path, run, capsys) -> None:
    for folder in ("", "a", "a/b", ".hidden"):
        write_photos(tmp_path / "in" / folder, [(8, 9)])
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "around").symlink_to(tmp_path / "in")
    output = tmp_path / "in" / "large"  # within what is read: its results must not be read in turn
    for _ in range(2):
        assert run("--recursive", "--skip-existing", tmp_path / "in", "-o", output) == 0
    assert names(output) == ["0.png", "a/0.png", "a/b/0.png"]
    said = capsys.readouterr().err
    assert f"skipped: {tmp_path / 'in' / 'a' / 'notes.txt'}: not an image by its name" in said
    assert f"skipped: {output}: is the output folder" in said


def test_a_folder_that_must_not_be_read_costs_nothing_else(tmp_path: Path, run, capsys, monkeypatch) -> None:
    for folder in ("", "a", "lost+found"):
        write_photos(tmp_path / "in" / folder, [(8, 9)])
    iterdir = Path.iterdir

    def forbidden(self: Path):
        if self.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert run("--recursive", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["0.png", "a/0.png"]
    assert f"skipped: {tmp_path / 'in' / 'lost+found'}: permission denied" in capsys.readouterr().err
    assert run(tmp_path / "in" / "lost+found", "-o", tmp_path / "other") == 2


def test_names_that_differ_in_case_are_one_where_the_filesystem_says_so(
    tmp_path: Path, run, capsys, monkeypatch
) -> None:
    for folder, name in (("a", "IMG.png"), ("b", "img.png")):
        (source,) = write_photos(tmp_path / folder, [(8, 9)])
        source.rename(tmp_path / folder / name)
    arguments = (tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert run(*arguments) == 0
    assert names(tmp_path / "out") == ["IMG.png", "img.png"]
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: exists(self) or exists(self.with_name(self.name.swapcase())))
    assert run(*arguments, "--overwrite") == 2
    assert f"would both become {tmp_path / 'out' / 'img.png'}" in capsys.readouterr().err


def test_hidden_files_and_pipes_in_a_folder_are_left_alone(tmp_path: Path, run, capsys) -> None:
    write_photos(tmp_path / "in", [(8, 9)])
    (tmp_path / "in" / "._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "in" / ".0123456789ab.png").write_bytes(b"half of a result")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["0.png"]
    assert capsys.readouterr().err == f"skipped: {tmp_path / 'in' / 'pipe.png'}: is not a regular file\n"
    assert run(tmp_path / "in" / "pipe.png", "-o", tmp_path / "x.png") == 2
    assert "is a named pipe" in capsys.readouterr().err


def test_a_format_for_all(tmp_path: Path, run, capsys) -> None:
    write_photos(tmp_path / "in", [(40, 50)])
    pil_photo(40, 50).save(tmp_path / "in" / "photo.tif")
    for form, kind in {"jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "avif": "AVIF"}.items():
        assert run(tmp_path / "in", "-o", tmp_path / form, "--format", form) == 0
        assert names(tmp_path / form) == [f"0.{form}", f"photo.{form}"]
        with Image.open(tmp_path / form / f"0.{form}") as result:
            assert (result.format, result.size) == (kind, (100, 80))
    assert run(tmp_path / "in" / "0.png", "-o", tmp_path / "x.png", "--format", "jpg") == 2
    assert "is not the name of a jpg file" in capsys.readouterr().err
    sizes = []
    for quality in (20, 90):
        assert run(tmp_path / "in" / "0.png", "-o", tmp_path / f"{quality}.jpg", "--quality", quality) == 0
        sizes.append((tmp_path / f"{quality}.jpg").stat().st_size)
    assert sizes[0] < sizes[1] / 2


def test_transparency_into_jpeg_needs_a_background(tmp_path: Path, run, capsys) -> None:
    Image.new("RGBA", (8, 9), (0, 0, 0, 0)).save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.jpg") == 1
    assert "choose a --background" in capsys.readouterr().err
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.jpg", "--background", "#00ff00") == 0
    with Image.open(tmp_path / "out.jpg") as result:
        assert np.abs(np.array(result).astype(int) - (0, 255, 0)).max() < 10
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.png", "--background", "white") == 0
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "RGBA", "where there is transparency it is kept"
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "in.png", "-o", tmp_path / "x.jpg", "--background", "nocolour")


def test_metadata_is_kept_or_stripped(tmp_path: Path, run) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.new("RGB", (8, 9)).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300))
    assert run(tmp_path / "in.jpg", "-o", tmp_path / "kept.png") == 0
    assert run(tmp_path / "in.jpg", "-o", tmp_path / "bare.png", "--strip-metadata") == 0
    with Image.open(tmp_path / "kept.png") as kept, Image.open(tmp_path / "bare.png") as bare:
        assert (kept.getexif()[0x010F], round(kept.info["dpi"][0])) == ("Maker", 300)
        assert len(bare.getexif()) == 0
        assert "dpi" not in bare.info
    # What the values mean is no metadata: without it, linear ones would look too dark.
    info = PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4, "big"))
    Image.new("RGB", (8, 9)).save(tmp_path / "in.png", pnginfo=info)
    assert run(tmp_path / "in.png", "-o", tmp_path / "linear.png", "--strip-metadata") == 0
    with Image.open(tmp_path / "linear.png") as linear:
        assert linear.info["gamma"] == 1


def test_sixteen_bit_colour_goes_through(tmp_path: Path, run, capsys) -> None:
    ramp = torch.linspace(0.30, 0.31, 40 * 50).view(1, 40, 50).expand(3, -1, -1)
    write_picture(tmp_path / "in.png", Picture(ramp.contiguous(), bits=16))
    for name in ("out.png", "out.tif"):
        assert run(tmp_path / "in.png", "-o", tmp_path / name) == 0
        result = read_picture(tmp_path / name)
        assert (result.bits, result.color.shape) == (16, (3, 80, 100))
        assert result.color.unique().numel() > 500, "8 bits would have 4 levels"
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.jpg") == 1
    assert "JPEG has no 16-bit colour" in capsys.readouterr().err


def test_what_was_done_to_a_file_is_said(tmp_path: Path, run, capsys) -> None:
    first, second = Image.new("RGB", (8, 9), "red"), Image.new("RGB", (8, 9), "blue")
    first.save(tmp_path / "in.gif", save_all=True, append_images=[second])
    assert run(tmp_path / "in.gif", "-o", tmp_path / "out.png") == 0
    assert capsys.readouterr().err == f"{tmp_path / 'in.gif'}: only the first of its 2 frames is read\n"
    text = PngInfo()
    text.add_text("Author", "Someone")
    first.save(tmp_path / "in.png", pnginfo=text)
    assert run(tmp_path / "in.png", "-o", tmp_path / "out.jpg") == 0
    assert capsys.readouterr().err == f"{tmp_path / 'out.jpg'}: cannot hold its PNG text; left out\n"


def test_threads(tmp_path: Path, run) -> None:
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    before = torch.get_num_threads()
    try:
        assert run(source, "-o", tmp_path / "out.png", "--threads", 1) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-megapixels", "nan"],
        ["--max-megapixels", "inf"],
        ["--max-megapixels", "-1"],
        ["--max-megapixels", "many"],
        ["--quality", "101"],
        ["--threads", "0"],
        ["--local", "1000000"],
        ["--format", "bmp"],
        ["--overwrite", "--skip-existing"],
    ],
)
def test_options_out_of_range(arguments: list[str], run, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m examples.mren.upscale: error: argument")


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path: Path, run, capsys, monkeypatch) -> None:
    (source,) = write_photos(tmp_path / "in", [(50, 100)])
    monkeypatch.setattr(command, "read_picture", None)
    assert run(source, "-o", tmp_path / "out.png", "--max-megapixels", 0.01) == 1
    assert "200 x 100 pixels, 0.02 megapixels; --max-megapixels allows 0.01" in capsys.readouterr().err
    (tmp_path / "large.pgm").write_bytes(b"P5\n8000 8001\n255\n")
    assert run(tmp_path / "large.pgm", "-o", tmp_path / "out.png") == 1
    assert "16000 x 16002 pixels, 256.03 megapixels; --max-megapixels allows 256" in capsys.readouterr().err


def test_memory_that_does_not_suffice_costs_one_file(tmp_path: Path, run, capsys, monkeypatch) -> None:
    write_photos(tmp_path / "in", [(8, 9), (7, 8), (6, 7), (5, 6)])
    errors = {
        "1.png": MemoryError(),
        "2.png": RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
    }

    def read(source: Path) -> Picture:
        if source.name in errors:
            raise errors[source.name]
        return read_picture(source)

    monkeypatch.setattr(command, "read_picture", read)
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["0.png", "3.png"]
    *lines, rate = capsys.readouterr().err.splitlines()
    assert rate.startswith("2 images in ")
    assert f"{len(errors)} failed" in rate
    assert [line.split(": ")[1] for line in lines] == [str(tmp_path / "in" / name) for name in errors]
    assert all("not enough memory" in line for line in lines)


def test_a_result_of_another_process_stays(tmp_path: Path, run, capsys, monkeypatch) -> None:
    write_photos(tmp_path / "in", [(8, 9), (7, 8)])
    plain = command.upscale

    def upscale(*arguments: object, **options: object) -> Picture:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "0.png").write_text("theirs")
        return plain(*arguments, **options)

    monkeypatch.setattr(command, "upscale", upscale)
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert (tmp_path / "out" / "0.png").read_text() == "theirs"
    assert names(tmp_path / "out") == ["0.png", "1.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'out' / '0.png'}: was created in the meantime")


def test_targets_that_cannot_be_written_are_found_first(tmp_path: Path, run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command, "upscale_file", None)
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "out" / "0.png").mkdir(parents=True)
    for arguments, words in (
        ((source, "-o", tmp_path / ("n" * 252 + ".png")), "name too long"),
        ((source, "-o", tmp_path / "file" / "x.png"), "is a file, not a folder"),
        ((tmp_path / "in", "-o", tmp_path / "out"), "is a folder"),
        ((tmp_path / "in", "-o", "/proc/nowhere"), "cannot be written"),
    ):
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


class Stream:
    """A standard stream of bytes."""

    def __init__(self, content: bytes = b"") -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def write(self, text: str) -> int:
        return self.buffer.write(text.encode())


def test_streams(tmp_path: Path, run, capsys, monkeypatch) -> None:
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    monkeypatch.setattr(sys, "stdin", Stream(source.read_bytes()))
    assert run("-", "-o", tmp_path / "out.png") == 0
    assert run(source, "-o", tmp_path / "same.png") == 0
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "same.png").read_bytes()

    monkeypatch.setattr(sys, "stdin", Stream(source.read_bytes()))
    monkeypatch.setattr(sys, "stdout", Stream())
    assert run("-", "-o", "-", "--format", "webp") == 0
    with Image.open(io.BytesIO(sys.stdout.buffer.getvalue())) as result:
        assert (result.format, result.size) == ("WEBP", (18, 16))
    assert capsys.readouterr().err.splitlines()[-1] == "standard output.webp: 18 x 16"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(source, "-o", "-") == 2
    assert "is a terminal" in capsys.readouterr().err

    monkeypatch.setattr(sys, "stdin", Stream(b"no image"))
    assert run("-", "-o", tmp_path / "x.png") == 1
    assert "standard input: not a readable image" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Stream(source.read_bytes()))
    monkeypatch.setattr("examples.mren.upscale.MAX_STREAM_BYTES", 10)
    assert run("-", "-o", tmp_path / "x.png") == 1
    assert "more than 10 bytes; pass the name of a file" in capsys.readouterr().err
    assert run(tmp_path / "in", "-o", "-") == 2
    assert run("-", "-", "-o", tmp_path) == 2


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, run, capsys, monkeypatch) -> None:
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert run(source, "-o", "-") == 1
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_signal_leaves_whole_results_only(tmp_path: Path, weights: Path) -> None:
    write_photos(tmp_path / "in", [(300, 300)] * 30)
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", str(weights), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.mren.upscale", *arguments, "--threads", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()  # of the first result
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "error: interrupted; no file is half written.\n"
    done = names(tmp_path / "out")
    assert 0 < len(done) < 30
    assert not any(name.startswith(".") for name in done)
    for name in done:
        assert read_picture(tmp_path / "out" / name).color.shape == (3, 600, 600)
