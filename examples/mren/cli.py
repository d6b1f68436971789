"""What the commands have in common: exit codes, errors of one line, signals, and terminals of any encoding.

======  ==================================================================================
code    meaning
======  ==================================================================================
0       all was done
1       a file or a value was at fault; the rest was done
2       nothing was done, because of how the command was called
130     interrupted from the keyboard; 143 and 129 by SIGTERM and SIGHUP
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
    """The call cannot be carried out; nothing was done."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than that of the keyboard."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m MODULE``; its help begins and ends with the docstring of the module."""
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
        run: What the command does. If it returns an ``int``, that is the exit code. It raises :class:`UsageError` if
            nothing was done because of how it was called, and ValueError, OSError or ImportError with a message for
            users otherwise. Where memory runs out, that is said, too.
        parse: Makes the arguments of a list of them, as :meth:`argparse.ArgumentParser.parse_args` does.
        argv: The arguments; ``None`` for those of the process.

    Returns:
        The exit code, see above.

    Raises:
        SystemExit: With code 2 if the arguments are malformed, with 0 after ``--help``.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> def run(args):
        ...     raise ValueError("x.png: is no image.")
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
    r"""A text, such as the name of a file, in which nothing can break the line or move the terminal's cursor.

    Example:
        >>> printable("a\nb  c\x1b[2J")
        'a\\nb  c\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def one_line(message: object) -> str:
    r"""A message as one :func:`printable` line, whatever a file or its name held.

    Example:
        >>> one_line("a\nb\x1b[2J")
        'a b\\x1b[2J'
    """
    shown = printable(" ".join(str(message).split()))
    return shown if len(shown) <= _MAX_LENGTH else f"{shown[:_MAX_LENGTH]}…"


def describe(error: BaseException, file: object = None) -> str:
    """An error in words, with the file that it is about if the error does not name it.

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
    """Whether an error comes from too little memory, and not from a file."""
    # torch on a CPU raises a plain RuntimeError, oneDNN in it says less, and safetensors wraps the system's.
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def check_target(file: Path, *, overwrite: bool, check_folder: bool = True) -> None:
    """Find out before hours of work whether a file could be written at the end.

    Args:
        file: Path of the result, or of a link to it.
        overwrite: Whether a file that is there may be replaced. A pipe or a device never is.
        check_folder: Whether to try if its folder, or the nearest that exists, takes files.

    Raises:
        UsageError: If something is in the way, or the folder takes no files; the message names it.
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
            raise UsageError(f"{file}: {file.anchor} is not there; choose another output.")
        if not folder.is_dir():
            what = f"a link to {os.readlink(folder)}, which is" if folder.is_symlink() else "a file,"
            raise UsageError(f"{file}: {folder} is {what} not a folder; choose another output.")
        os.path.lexists(folder / target.name)  # a name that is too long for the filesystem raises here
        if check_folder:
            with tempfile.TemporaryFile(dir=folder):  # more than permissions: a filesystem may be read-only or full
                pass
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror or error}); choose another output.") from error


def check_no_input(targets: Iterable[Path], sources: Iterable[Path]) -> None:
    """Find out before any work whether a result would take the place of an input, under whatever name.

    Raises:
        UsageError: If so; the message names the result.
    """

    def identity(file: Path) -> tuple[int, int]:
        status = file.stat()
        return status.st_dev, status.st_ino

    inputs = {identity(source) for source in sources if source.exists()}
    for target in targets:
        if target.exists() and identity(target) in inputs:
            raise UsageError(f"{target}: is an input, which is never overwritten; choose another output.")


def open_closed_streams() -> None:
    """Connect standard streams that are closed, as those of services can be, to nothing."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the rest of the process)


def print_any_character() -> None:
    """Let stdout and stderr print what their encoding lacks as an escape: a name must not make a result a failure."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence_decoders() -> None:
    """Keep Pillow and tifffile from printing lines of their own about damaged metadata; errors are still raised."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", message="tqdm:disabling monitor")  # where there is no memory for its thread
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM and SIGHUP, so that every ``finally`` is run, as on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # handlers can be set only there
        yield
        return

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in (*_SIGNALS, signal.SIGINT):  # a second one must not stop the cleaning up
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


def number(fits: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """A parser's type: a number that fits; NaN never should."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text[:40]}")
        return value

    return parse


positive_number = number(lambda value: 0 < value < math.inf, "a number above 0")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """A parser's type: a whole number in a range."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= (most or int(text)):
            limit = "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}{limit}, got {text[:40]}")
        return int(text)

    return parse


def given_name(text: str) -> str:
    """A parser's type: text that is not empty, such as a path that may end in ``/``."""
    if not text:
        raise argparse.ArgumentTypeError("a name is empty, as of a shell variable that is not set")
    return text


def path_name(text: str) -> Path:
    """A parser's type: a path. ``Path("")`` is the current folder, which nobody means who writes an empty name."""
    return Path(given_name(text))
