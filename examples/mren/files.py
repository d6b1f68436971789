"""Files and folders written whole or not at all, and checks of paths before they are opened."""

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
_MAX_NAMES = 2000  # of a folder that are looked through for one that may have been meant


@contextmanager
def atomic_write(file: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a scratch path beside ``file`` that takes its place if the block succeeds, and vanishes if not.

    The scratch file has a hidden name, which no command takes for an input, and the permissions that the umask gives.
    A link stays: what it leads to is replaced.

    Args:
        file: Where the result goes; missing folders are made.
        overwrite: Whether a file that is there at the end may be replaced. Without it, one that another process made
            in the meantime stays.

    Raises:
        FileExistsError: If there is a file and ``overwrite`` is false.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "note.txt")) as scratch:
        ...         _ = scratch.write_text("whole")
        ...     Path(folder, "note.txt").read_text()
        'whole'
    """
    target = followed(file) if overwrite else file  # without it, a link is something that is in the way
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name first, then the file: a signal between the two leaves nothing behind.
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
        # A user knows nothing of the scratch file, and errors while writing name no file at all.
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, names: Collection[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a scratch folder that takes the place of ``folder`` if the block succeeds, and vanishes if not.

    Args:
        folder: Where the result goes; missing folders above it are made.
        names: Of the files that are written, see :func:`check_replaceable`.
        overwrite: Whether a folder that is there may be replaced.

    Raises:
        FileExistsError: If something is there that is not to be replaced.
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
            check_replaceable(folder, names)  # again: a conversion takes long enough to put something there
            folder.rename(replaced)
        elif folder.exists():
            raise FileExistsError(f"{folder}: came to be in the meantime.")
        scratch.rename(folder)
    except OSError as error:
        if error.errno is None or error.filename not in map(str, (scratch, replaced)):
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error  # a user knows nothing of the scratch folder
    finally:
        if replaced.exists() and not folder.exists():  # interrupted between the two renames
            replaced.rename(folder)
        for each in (scratch, replaced):
            shutil.rmtree(each, ignore_errors=True)


def check_replaceable(folder: Path, names: Collection[str]) -> None:
    """Raise if a folder holds other files than those of these names, which may be there by mistake.

    Raises:
        FileExistsError: If so, or if it is a file.
    """
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; a folder is written.")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if others := {file.relative_to(folder).as_posix() for file in files} - set(names):
        raise FileExistsError(f"{folder}: also holds {min(others)}, so it is not replaced; choose another output.")


def write_text(file: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all; see :func:`atomic_write`.

    What UTF-8 lacks, as names of files can hold it, is written as an escape, which JSON reads back.
    """
    with atomic_write(file, overwrite=overwrite) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256(file: Path) -> str:
    """The checksum of the contents of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def followed(file: Path) -> Path:
    """The path that a link leads to, whether something is there or not; that of anything else is returned as it is."""
    return Path(os.path.realpath(file)) if file.is_symlink() else file


def kind_of(file: str | Path) -> str:
    """What is at a path, or at the end of a link: ``"a file"``, ``"a folder"``, or something else in such words.

    Raises:
        FileNotFoundError: If nothing is there.
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
    """Raise unless a path is that of a file with contents: reading a named pipe would wait for ever.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is a folder, a pipe, a socket or a device.
    """
    kind = kind_of(file)
    if kind != "a file":
        remedy = "name one in it" if kind == "a folder" else "save what it gives as one"
        raise ValueError(f"{file}: is {kind}, a file is needed; {remedy}.")


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
    """The end of a message about a path that does not exist: the folder that lacks it, and a similar name in there.

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
        return f"{path.anchor} is not there."
    missing = folder / path.relative_to(folder).parts[0]
    try:
        if os.path.lexists(missing):  # what it leads to is gone
            return f"it is a link to {os.readlink(missing)}, which is not there."
        names = [entry.name for entry in islice(os.scandir(folder), _MAX_NAMES)]
    except OSError as error:
        return f"{folder}: {error.strerror}."
    similar = get_close_matches(missing.name, names, 1)
    hint = f"; did you mean {folder / similar[0]}?" if similar else "."
    return f"{folder.resolve() if folder == Path() else folder} has no {missing.name}{hint}"


def unique_names(files: Sequence[Path], *, suffixes: bool = False) -> dict[str, Path]:
    """Short names for files, by which they can be told apart: the suffix and folders are added where needed.

    Args:
        files: The files, each once.
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
    """Give a file its final name, unless that is taken."""
    try:
        os.link(scratch, file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Claim the name, then put the file there. Only here, where it must be, is the name empty for a moment.
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        scratch.replace(file)
