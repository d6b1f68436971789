"""Shared behaviour of the commands: exit codes, one-line errors, signals, and terminals of any encoding.

======  ==================================================================================
code    meaning
======  ==================================================================================
0       success
1       a file or a value caused an error; everything else was done
2       usage error; nothing was done
130     interrupted from the keyboard; 143 and 129: by SIGTERM and SIGHUP
======  ==================================================================================

Results are printed to stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from examples.mren.files import followed, kind_of, missing_path_hint, nearest_folder

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory", "could not create a primitive")
_NO_SPACE = "; make space there, or choose another output."
_REMEDIES = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "; allow larger files there, or choose another output.",
    errno.EROFS: "; choose another place.",
    errno.EACCES: "; change its permissions, or choose another.",
    errno.ENOTDIR: "; a folder in that path is a file; choose another output.",
    errno.ENAMETOOLONG: "; choose a shorter name.",
    errno.EISDIR: "; choose another name.",
}
_MAX_LENGTH = 2000  # of a message; messages may quote the contents of a file


class UsageError(ValueError):
    """The command cannot be run as it was called; nothing was done."""


class Terminated(KeyboardInterrupt):
    """The process received a signal to terminate other than SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m MODULE``; the module's docstring becomes the description and epilog of its help."""
    description, _, details = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        f"python -m {module}",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(
    run: Callable[[argparse.Namespace], object],
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments of a command, run it, and turn errors into one line and an exit code.

    Args:
        run: The command. If it returns an ``int``, that is the exit code. It raises :class:`UsageError` if it cannot be
            run as it was called, and otherwise ValueError, OSError or ImportError with a message for users. Running out
            of memory is reported as an error, too.
        parse: Parses a list of arguments, as :meth:`argparse.ArgumentParser.parse_args` does.
        argv: The arguments; ``None`` for those of the process.

    Returns:
        The exit code, see the module's docstring.

    Raises:
        SystemExit: With code 2 if the arguments are malformed, with 0 after ``--help``.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> def run(args):
        ...     raise ValueError("x.png: is not an image.")
        >>> run_command(run, parser.parse_args, [])  # prints the error to stderr
        1
    """
    open_closed_streams()
    print_any_character()
    silence_decoders()
    with signals_as_exceptions():
        try:
            result = run(parse(argv))
            sys.stdout.flush()
        except UsageError as error:
            return fail(error, code=2)
        except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (ValueError, OSError, ImportError) as error:
            return fail(describe(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):  # a bug in our code: keep its traceback
                raise
            return fail(describe(error))
        except KeyboardInterrupt as stopped:
            number = stopped.number if isinstance(stopped, Terminated) else signal.SIGINT
            return fail("interrupted; no file is half written.", code=128 + number)
    return result if isinstance(result, int) else 0


def fail(message: object, *, code: int = 1) -> int:
    """Print an error as one line to stderr; returns the exit code."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def note(message: object) -> None:
    """Print a note as one line to stderr."""
    print(one_line(message), file=sys.stderr)


def printable(text: object) -> str:
    r"""A text, such as a file name, with everything escaped that could break the line or move the terminal's cursor.

    Example:
        >>> printable("a\nb  c\x1b[2J")
        'a\\nb  c\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def one_line(message: object) -> str:
    r"""A message as one :func:`printable` line, whatever it quotes from a file or its name.

    Example:
        >>> one_line("a\nb\x1b[2J")
        'a b\\x1b[2J'
    """
    shown = printable(" ".join(str(message).split()))
    return shown if len(shown) <= _MAX_LENGTH else f"{shown[:_MAX_LENGTH]}…"


def describe(error: BaseException, file: object = None) -> str:
    """The message of an error, preceded by the file that it concerns unless it names that file.

    Example:
        >>> describe(MemoryError(), "a.png")
        'a.png: there is not enough memory; close other programs, or work in smaller parts (--tile, --batch-size).'
    """
    text = str(error)
    if is_out_of_memory(error):
        text = "there is not enough memory; close other programs, or work in smaller parts (--tile, --batch-size)."
    elif isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        missing = error.errno == errno.ENOENT and error.filename is not None
        remedy = f"; {missing_path_hint(error.filename)}" if missing else _REMEDIES.get(error.errno or 0, ".")
        text = f"{name}{error.strerror}{remedy}"
    return text if file is None or str(file) in text else f"{file}: {text or type(error).__name__}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error was caused by lack of memory, not by a file."""
    # torch raises a plain RuntimeError on a CPU, that of oneDNN does not mention memory, and safetensors wraps the
    # error of the system.
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def check_target(file: Path, *, overwrite: bool, check_folder: bool = True) -> None:
    """Check before hours of work that a file can be written at the end.

    Args:
        file: Path of the result, or of a link to it.
        overwrite: Whether an existing file may be replaced. A pipe or a device never is.
        check_folder: Whether to check that its folder, or the nearest one that exists, is writable.

    Raises:
        UsageError: If something is in the way, or the folder is not writable; the message names it.
    """
    try:
        if file.is_dir():
            raise UsageError(f"{file}: is a folder; name a file in it.")
        if os.path.lexists(file) and not overwrite:
            raise UsageError(f"{file}: would be overwritten; pass --overwrite, or choose another output.")
        target = followed(file)
        if os.path.lexists(target) and (kind := kind_of(target)) != "a file":
            raise UsageError(f"{file}: is {kind}, which is never replaced by a file; choose another output.")
        folder = nearest_folder(target)
        if folder is None:
            raise UsageError(f"{file}: {file.anchor} does not exist; choose another output.")
        if not folder.is_dir():
            what = f"a link to {os.readlink(folder)}, which is" if folder.is_symlink() else "a file,"
            raise UsageError(f"{file}: {folder} is {what} not a folder; choose another output.")
        os.path.lexists(folder / target.name)  # raises if the name is too long for the filesystem
        if check_folder:
            with tempfile.TemporaryFile(dir=folder):  # more than permissions: a filesystem may be read-only or full
                pass
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror or error}); choose another output.") from error


def check_no_input(targets: Iterable[Path], sources: Iterable[Path]) -> None:
    """Check before any work that no result would replace an input, under whatever name.

    Raises:
        UsageError: If one would; the message names it.
    """

    def identity(file: Path) -> tuple[int, int]:
        status = file.stat()
        return status.st_dev, status.st_ino

    inputs = {identity(source) for source in sources if source.exists()}
    for target in targets:
        if target.exists() and identity(target) in inputs:
            raise UsageError(f"{target}: is an input, which is never overwritten; choose another output.")


def open_closed_streams() -> None:
    """Open closed standard streams, such as those of services, on the null device."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():  # in the order of their file descriptors
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the rest of the process)


def print_any_character() -> None:
    """Escape characters that the encoding of stdout or stderr lacks, so that printing a file name cannot fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence_decoders() -> None:
    """Silence the warnings of Pillow and tifffile about damaged metadata; errors are still raised."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", message="tqdm:disabling monitor")  # if there is no memory for its thread
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM and SIGHUP, so that every ``finally`` runs, as on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # handlers can be set only there
        yield
        return

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in (*_SIGNALS, signal.SIGINT):  # a second signal must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    # A signal that is ignored, as under nohup, stays so.
    before = {each: signal.getsignal(each) or signal.SIG_DFL for each in (*_SIGNALS, signal.SIGINT)}
    for each in _SIGNALS:
        if before[each] == signal.SIG_DFL:
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def number(is_valid: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """An argparse type: a number for which ``is_valid`` holds, which must be false for NaN."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text[:40]}")
        return value

    return parse


positive_number = number(lambda value: 0 < value < math.inf, "a number above 0")


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not minimum <= int(text) <= (maximum or int(text)):
            limit = "" if maximum is None else f" and at most {maximum}"
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}{limit}, got {text[:40]}")
        return int(text)

    return parse


def given_name(text: str) -> str:
    """An argparse type: a non-empty string, such as a path that may end in ``/``."""
    if not text:
        raise argparse.ArgumentTypeError("a name is empty; is a shell variable unset?")
    return text


def path_name(text: str) -> Path:
    """An argparse type: a path. An empty one is refused, as ``Path("")`` would be the current folder."""
    return Path(given_name(text))
