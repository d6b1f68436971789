"""Shared behaviour of the commands: exit codes, signals, terminals of any encoding, and checks before any work.

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
import logging
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

from examples.mren.files import followed, kind_of, nearest_folder
from examples.mren.messages import UsageError, describe, fail, is_out_of_memory

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """The process received a signal to terminate other than SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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
