"""Messages for users: one line each, whatever they quote from a file, with what would help."""

from __future__ import annotations

import errno
import sys

from examples.mren.files import missing_path_hint

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
