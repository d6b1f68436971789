"""The manners that all commands share: exit codes, errors of one line, signals, files written whole or not at all."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import precision
from benchmarks import run as benchmarks_run
from examples.drop_in import compare as drop_in_compare
from examples.mren import ablate, attention, compare, evaluate, export, files, onnxfile, train, upscale
from examples.mren.cli import check_target, run_command
from examples.mren.files import atomic_folder, atomic_write, check_regular, missing_path_hint, unique_names
from examples.mren.messages import UsageError, one_line
from tests.images import write_photos

ROOT = Path(__file__).parents[1]
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can handle")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("-o is needed."), 2, "-o is needed."),
        (ValueError("a.png: damaged\nin two\x1b[2Jlines"), 1, "a.png: damaged in two\\x1b[2Jlines"),
        (OSError(28, "No space left on device", "a.png"), 1, "a.png: No space left on device; make space"),
        (ImportError("no skimage"), 1, "no skimage"),
        (MemoryError(), 1, "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            1,
            "not enough memory",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_line_and_a_code(error: BaseException, code: int, words: str, capsys) -> None:
    def run(_: argparse.Namespace) -> None:
        raise error

    assert run_command(run, argparse.ArgumentParser().parse_args, []) == code
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize(
    "main",
    [
        ablate.main,
        attention.main,
        compare.main,
        drop_in_compare.main,
        evaluate.main,
        export.main,
        onnxfile.main,
        train.main,
        upscale.main,
        benchmarks_run.main,
        precision.main,
    ],
    ids=lambda main: main.__module__,
)
def test_an_empty_name_is_not_the_current_folder(main: Callable[[list[str]], int], capsys) -> None:
    places = {onnxfile.main: [""], attention.main: [""], export.main: ["-o", ""], upscale.main: ["-o", ""]}
    places |= {benchmarks_run.main: ["--against", ""], precision.main: ["--calibrate", ""]}
    with pytest.raises(SystemExit, match="2"):
        main(places.get(main, ["--data", ""]))
    assert "a name is empty" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def run(_: argparse.Namespace) -> None:
        raise RuntimeError("an error in the program")

    with pytest.raises(RuntimeError, match="in the program"):
        run_command(run, argparse.ArgumentParser().parse_args, [])


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert run_command(lambda _: sys.stdout.write("a line"), argparse.ArgumentParser().parse_args, []) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there, a shell cannot close a stream")
def test_streams_that_are_closed_are_no_error(tmp_path: Path) -> None:
    write_photos(tmp_path, [(8, 9)])
    Image.open(tmp_path / "0.png").save(tmp_path / "0.tif")
    code = "import sys; from examples.mren.upscale import main; sys.exit(main(sys.argv[1:]))"
    for number, (source, closed, expected) in enumerate(
        [("0.png", ">&-", 0), ("0.tif", "2>&-", 0), ("0.tif", "<&- >&- 2>&-", 0), ("-", "<&- 2>&-", 1)]
    ):
        target = tmp_path / f"out{number}.png"
        call = [sys.executable, "-c", code, str(tmp_path / source) if source != "-" else source, "-o", str(target)]
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *call, "--scale", "2", "--variant", "mren_s"]
        assert subprocess.run(shell, check=False).returncode == expected
        assert target.exists() == (expected == 0)


def test_a_command_can_be_run_in_a_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_command, lambda _: 0, argparse.ArgumentParser().parse_args, []).result() == 0


@needs_signals
def test_a_signal_runs_what_cleans_up(capsys) -> None:
    done: list[str] = []

    def run(_: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            done.append("cleaned up")

    assert run_command(run, argparse.ArgumentParser().parse_args, []) == 143
    assert done == ["cleaned up"]
    assert capsys.readouterr().err == "error: interrupted; no file is half written.\n"


def test_handlers_of_signals_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(lambda _: 0, argparse.ArgumentParser().parse_args, []) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_not_there_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "file").touch()
    for path, words in {
        "photo": "has no photo; did you mean photos?",
        "photos/x/y.png": "photos has no x.",
        "other": f"{tmp_path} has no other.",
        "link": "it is a link to gone, which does not exist.",
        "file/y.png": "file: Not a directory.",
    }.items():
        monkeypatch.chdir(tmp_path)
        assert words in missing_path_hint(path)


def test_a_drive_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os.path, "lexists", lambda _: False)  # as Windows says of a drive that is unplugged
    assert missing_path_hint(tmp_path / "x.png") == f"{tmp_path.anchor} does not exist."
    with pytest.raises(UsageError, match="does not exist; choose another output"):
        check_target(tmp_path / "x.png", overwrite=True)


def test_a_message_has_an_end() -> None:
    assert len(one_line("x" * 10_000_000)) < 3000


PROGRAM = """
import argparse, sys, time
from pathlib import Path
from examples.mren.cli import run_command
from examples.mren.files import atomic_write

def run(args):
    with atomic_write(args.file) as scratch:
        scratch.write_text("half")
        print("writing", flush=True)
        for _ in range(600):  # not one sleep: a signal just before it would be noticed after it
            time.sleep(0.1)

parser = argparse.ArgumentParser()
parser.add_argument("file", type=Path)
sys.exit(run_command(run, parser.parse_args))
"""


@needs_signals
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", 1), 129)]
)
def test_a_signal_leaves_no_scratch_file(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out.txt")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert said == "error: interrupted; no file is half written.\n"
    assert not list(tmp_path.iterdir())


def test_a_name_that_the_terminal_cannot_show_is_printed_as_an_escape() -> None:
    program = (
        "import argparse, sys; from examples.mren.cli import run_command; "
        "sys.exit(run_command(lambda _: print('日本.png: 4 x 4'), argparse.ArgumentParser().parse_args))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("cp1252").strip() == r"\u65e5\u672c.png: 4 x 4"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("overwrite", [True, False])
def test_permissions_follow_the_umask(overwrite: bool, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with atomic_write(tmp_path / "out", overwrite=overwrite) as scratch:
            scratch.write_text("mine")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("refusal", [None, errno.EPERM, errno.EINVAL], ids=["links", "no links", "FAT on Windows"])
def test_a_file_that_came_meanwhile_stays(refusal: int | None, tmp_path: Path, monkeypatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(refusal, "no links here")

    if refusal is not None:
        monkeypatch.setattr(files.os, "link", no_links)
    with atomic_write(tmp_path / "first", overwrite=False) as scratch:
        scratch.write_text("ours")
    assert (tmp_path / "first").read_text() == "ours"

    def write() -> None:
        with atomic_write(tmp_path / "second", overwrite=False) as scratch:
            scratch.write_text("ours")
            (tmp_path / "second").write_text("theirs")

    with pytest.raises(FileExistsError):
        write()
    assert (tmp_path / "second").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_a_file_that_came_into_a_folder_meanwhile_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files.write_text(folder / "weights", "old")

    def write() -> None:
        with atomic_folder(folder, ["weights"]) as scratch:
            (scratch / "weights").write_text("new")
            (folder / "thesis.txt").write_text("the only copy")

    with pytest.raises(FileExistsError, match=r"out: also holds thesis\.txt"):
        write()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "weights": "old",
        "thesis.txt": "the only copy",
    }
    assert list(tmp_path.iterdir()) == [folder]


def test_a_target_that_cannot_be_written_is_found_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("gone")
    for name, words in {
        "file": "would be overwritten; pass --overwrite",
        "folder/link/x.png": "is a link to gone, which is not a folder",
        "folder": "is a folder",
        "file/x.png": "is a file, not a folder",
        "n" * 300 + ".png": "cannot be written",
    }.items():
        with pytest.raises(UsageError, match=words):
            check_target(tmp_path / name, overwrite=False)
    check_target(tmp_path / "new" / "and newer" / "x.png", overwrite=False)
    check_target(tmp_path / "file", overwrite=True)
    check_target(tmp_path / ("n" * 251 + ".png"), overwrite=False)
    with atomic_write(tmp_path / ("n" * 251 + ".png")) as scratch:
        scratch.write_text("the scratch file's name must not be longer")
    assert {path.name[:4] for path in tmp_path.iterdir()} == {"file", "fold", "nnnn"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    for target, words in {
        tmp_path / "pipe": "is a named pipe, which is never replaced by a file",
        tmp_path / "link": "is a named pipe",
        Path(os.devnull): "is a device",
        tmp_path / "circle": "cannot be written",
    }.items():
        with pytest.raises(UsageError, match=words):
            check_target(target, overwrite=True)


@pytest.mark.skipif(os.name == "nt", reason="on Windows not everybody may make links")
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    for name, before in {"there": "old", "not yet": None}.items():
        link, target = tmp_path / f"link to {name}", tmp_path / "elsewhere" / name
        link.symlink_to(target)
        if before is not None:
            files.write_text(target, before)
        with pytest.raises(UsageError, match="would be overwritten"):
            check_target(link, overwrite=False)
        with pytest.raises(FileExistsError):
            files.write_text(link, "new", overwrite=False)
        check_target(link, overwrite=True)
        files.write_text(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["not yet", "there"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="is a named pipe, but a file is needed"):
        check_regular(tmp_path / "x.png")
    with pytest.raises(ValueError, match="is a folder, but a file is needed"):
        check_regular(tmp_path)


def test_files_of_one_name_are_told_apart() -> None:
    given = [Path("a/net.onnx"), Path("b/net.onnx"), Path("c/x.png"), Path("c/x.jpg"), Path("other.onnx")]
    names = unique_names(given)
    assert list(names.values()) == given
    assert list(names) == ["a/net.onnx", "b/net.onnx", "x.png", "x.jpg", "other"]
    with pytest.raises(ValueError, match="given twice"):
        unique_names([Path("a.png"), Path("./a.png")])
