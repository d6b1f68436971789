"""Atomic writing of files and folders, and checks of paths before they are opened."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

# Errors of os.link on a filesystem without hard links: FAT (on Windows EINVAL), some network drives, some containers.
_NO_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
}
_MAX_NAMES = 2000  # of a folder that are searched for one similar to a missing one


@contextmanager
def atomic_write(file: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a scratch path beside ``file`` that replaces it if the block succeeds and is deleted otherwise.

    The scratch file has a hidden name, which no command takes for an input, and the permissions that the umask gives.
    A link is kept: its target is replaced.

    Args:
        file: Where the result goes; missing folders are created.
        overwrite: Whether a file that exists at the end may be replaced. If not, one that another process created in
            the meantime is kept.

    Raises:
        FileExistsError: If the file exists and ``overwrite`` is false.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "note.txt")) as scratch:
        ...         _ = scratch.write_text("whole")
        ...     Path(folder, "note.txt").read_text()
        'whole'
    """
    target = followed(file) if overwrite else file  # without it, a link is in the way
    target.parent.mkdir(parents=True, exist_ok=True)
    # Choose the name before creating the file, so that a signal in between leaves nothing behind.
    scratch = target.with_name(f".{secrets.token_hex(6)}{file.suffix[:16]}")
    try:
        scratch.touch(exist_ok=False)
        yield scratch
        if overwrite:
            scratch.replace(target)
        else:
            _rename_to_new(scratch, file)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(scratch)):
            raise
        # Users do not know the scratch file, and errors while writing name no file at all.
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, names: Collection[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a scratch folder that replaces ``folder`` if the block succeeds and is deleted otherwise.

    Args:
        folder: Where the result goes; missing parents are created.
        names: Names of the files that are written, see :func:`check_replaceable`.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        FileExistsError: If something exists there that must not be replaced.
        OSError: If the folder cannot be written.
    """
    folder = followed(folder)
    if overwrite and folder.exists():
        check_replaceable(folder, names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, replaced = (folder.with_name(f".{secrets.token_hex(6)}{folder.suffix[:16]}") for _ in range(2))
    try:
        scratch.mkdir()
        yield scratch
        if overwrite and folder.exists():
            check_replaceable(folder, names)  # again: something may have been put there during the conversion
            folder.rename(replaced)
        elif folder.exists():
            raise FileExistsError(f"{folder}: was created in the meantime.")
        scratch.rename(folder)
    except OSError as error:
        if error.errno is None or error.filename not in map(str, (scratch, replaced)):
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error  # users do not know the scratch folder
    finally:
        if replaced.exists() and not folder.exists():  # interrupted between the two renames
            replaced.rename(folder)
        for each in (scratch, replaced):
            shutil.rmtree(each, ignore_errors=True)


def check_replaceable(folder: Path, names: Collection[str]) -> None:
    """Check that a folder holds no files other than those named, so that none of a user's is deleted.

    Raises:
        FileExistsError: If it does, or is a file.
    """
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, but the output is a folder.")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if others := {file.relative_to(folder).as_posix() for file in files} - set(names):
        raise FileExistsError(f"{folder}: also holds {min(others)}, so it is not replaced; choose another output.")


def write_text(file: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file in UTF-8 atomically; see :func:`atomic_write`.

    What UTF-8 cannot encode, which file names can hold, is written as an escape, which JSON reads back.
    """
    with atomic_write(file, overwrite=overwrite) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def followed(file: Path) -> Path:
    """The target of a link, whether it exists or not; any other path unchanged."""
    return Path(os.path.realpath(file)) if file.is_symlink() else file


def kind_of(file: str | Path) -> str:
    """The kind of a path, following links, in words such as ``"a file"`` or ``"a folder"``.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    kinds = {
        stat.S_ISREG: "a file",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
    }
    mode = os.stat(file).st_mode
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


def check_regular(file: str | Path) -> None:
    """Check that a path is a regular file: reading a named pipe would block for ever.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is a folder, a pipe, a socket or a device.
    """
    kind = kind_of(file)
    if kind != "a file":
        remedy = "name one in it" if kind == "a folder" else "save its contents to one"
        raise ValueError(f"{file}: is {kind}, but a file is needed; {remedy}.")


def nearest_folder(file: Path) -> Path | None:
    """The nearest of the folders above a path that exists; ``None`` if its drive does not.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nearest_folder(Path(folder, "photos", "a.png")) == Path(folder)
        True
    """
    return next((folder for folder in file.parents if os.path.lexists(folder)), None)


def missing_path_hint(path: str | Path) -> str:
    """A hint for an error about a missing path: the folder that lacks it, and a similar name in that folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "photos").mkdir()
        ...     missing_path_hint(Path(folder, "photo", "a.png")).replace(folder, "/data")
        '/data has no photo; did you mean /data/photos?'
    """
    path = Path(path)
    folder = nearest_folder(path)
    if folder is None:
        return f"{path.anchor} does not exist."
    missing = folder / path.relative_to(folder).parts[0]
    try:
        if os.path.lexists(missing):  # a dangling link
            return f"it is a link to {os.readlink(missing)}, which does not exist."
        names = [entry.name for entry in islice(os.scandir(folder), _MAX_NAMES)]
    except OSError as error:
        return f"{folder}: {error.strerror}."
    similar = get_close_matches(missing.name, names, 1)
    hint = f"; did you mean {folder / similar[0]}?" if similar else "."
    return f"{folder.resolve() if folder == Path() else folder} has no {missing.name}{hint}"


def unique_names(files: Sequence[Path], *, suffixes: bool = False) -> dict[str, Path]:
    """Short unique names for files, with suffix and folders added where needed.

    Args:
        files: The files, without duplicates.
        suffixes: Whether all names keep their suffix.

    Raises:
        ValueError: If a file is given twice.

    Example:
        >>> list(unique_names([Path("a/net.onnx"), Path("b/net.onnx"), Path("b/other.onnx")]))
        ['a/net.onnx', 'b/net.onnx', 'other']
    """
    paths = [file.resolve() for file in files]
    for file, count in Counter(paths).items():
        if count > 1:
            raise ValueError(f"{file}: is given twice.")
    forms: list[Callable[[Path], str]] = [] if suffixes else [lambda path: path.stem]
    longest = max((len(path.parts) for path in paths), default=0)
    forms += [lambda path, count=count: "/".join(path.parts[-count:]) for count in range(1, longest + 1)]
    counts = [Counter(map(form, paths)) for form in forms]

    def shortest(path: Path) -> str:
        return next(form(path) for form, count in zip(forms, counts, strict=True) if count[form(path)] == 1)

    return {shortest(path): file for path, file in zip(paths, files, strict=True)}


def _rename_to_new(scratch: Path, file: Path) -> None:
    """Give a file its final name, unless that exists."""
    try:
        os.link(scratch, file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Claim the name with an empty file, then replace that: without hard links, nothing better is possible.
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        scratch.replace(file)
