"""The jobs of a command for many files: the output of each input, decided before any work is done."""

from __future__ import annotations

import os
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.mren.cli import check_no_input, check_target
from examples.mren.files import check_regular, missing_path_hint, nearest_folder
from examples.mren.images.read import IMAGE_SUFFIXES, is_image
from examples.mren.images.write import FORMATS
from examples.mren.messages import UsageError, note

STREAM = "-"  # standard input or output


@dataclass(frozen=True)
class Job:
    """An input and its output; ``None`` stands for standard input or output."""

    source: Path | None
    target: Path | None
    suffix: str
    """Suffix of the output format."""

    @property
    def name(self) -> str:
        """Name of the input for messages."""
        return "standard input" if self.source is None else str(self.source)


def plan(
    inputs: Sequence[str],
    output: str,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    recursive: bool = False,
    suffix: str | None = None,
) -> list[Job]:
    """Assign an output to each input, refusing before any work whatever would lose a file.

    Args:
        inputs: Image files and folders of them, and ``-`` for standard input.
        output: A file for a single input file, or ``-`` for standard output; otherwise a folder, which need not exist.
        overwrite: Whether existing files may be replaced. An input never is.
        skip_existing: Whether to skip inputs whose output exists.
        recursive: Whether to include subfolders; results keep the folder structure.
        suffix: Suffix of the output format; ``None`` for that of each input, or PNG where that cannot be written.

    Raises:
        UsageError: If a name is empty, an input is missing or given twice, a folder holds no images, a result would
            share its name with another result or an existing file, or results could not be written.
    """
    if not all((*inputs, output)):
        raise UsageError("a name is empty; is a shell variable unset? Name a file or a folder.")
    if inputs.count(STREAM) > 1:
        raise UsageError("-: standard input holds one image; give - only once.")
    found = list(_find_sources(inputs, Path(output), recursive=recursive))
    single = len(inputs) == 1 and (inputs[0] == STREAM or Path(inputs[0]).is_file())
    if output == STREAM:
        if not single:
            raise UsageError("-o -: standard output holds one image; choose a folder.")
        if sys.stdout.isatty():
            raise UsageError("-o -: is a terminal, which cannot show an image; redirect it to a file or a program.")
        source = found[0][0]
        own = ".png" if source is None else source.suffix.lower()
        return [Job(source, None, suffix or (own if own in FORMATS else ".png"))]
    if single:
        source, relative = found[0]
        targets = [file_target(output, _target_name(relative, suffix), suffix)]
    else:
        folder = Path(output)
        if folder.is_file() or (not folder.exists() and folder.suffix.lower() in FORMATS):
            raise UsageError(f"{output}: a folder is needed for several images; it is or looks like a file.")
        targets = [folder / _target_name(relative, suffix) for _, relative in found]
    jobs = [Job(source, target, target.suffix) for (source, _), target in zip(found, targets, strict=True)]
    _refuse_collisions(jobs)
    if skip_existing:
        for job in jobs:
            if job.target is not None and job.target.exists():
                note(f"skipped: {job.name}: {job.target} exists already")
        jobs = [job for job in jobs if job.target is None or not job.target.exists()]
    _check_targets([job.target for job in jobs if job.target is not None], overwrite=overwrite)
    return jobs


def file_target(output: str, name: str | Path, suffix: str | None = None) -> Path:
    """The path of a single result: ``output``, or ``name`` in it if it is a folder.

    Raises:
        UsageError: If ``output`` has no suffix of an image format, or that of another format than ``suffix``.
    """
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)):
        return path / name
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{output}: must end in one of {', '.join(FORMATS)}, or in / for a folder.")
    if suffix is not None and FORMATS[path.suffix.lower()] is not FORMATS[suffix]:
        raise UsageError(f"{output}: is not the name of a {suffix[1:]} file, as --format requires.")
    return path


def _check_targets(targets: Sequence[Path], *, overwrite: bool) -> None:
    """Check that no file would be overwritten without ``--overwrite``, and that all can be written."""
    existing = [target for target in targets if target.is_file()]
    if existing and not overwrite:
        raise UsageError(
            f"{_listed(existing)}: would be overwritten; pass --overwrite, or choose another output, or pass "
            "--skip-existing to keep existing results."
        )
    folders: set[Path] = set()
    for target in targets:
        check_target(target, overwrite=overwrite, check_folder=target.parent not in folders)
        folders.add(target.parent)


def _find_sources(inputs: Sequence[str], output: Path, *, recursive: bool) -> Iterator[tuple[Path | None, Path]]:
    """Yield each input with the path of its result within the output folder."""
    for item in inputs:
        path = Path(item)
        if item == STREAM:
            yield None, Path("stdin.png")
        elif path.is_dir():
            images = list(_walk(path, output, recursive=recursive))
            if not images:
                wanted = ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
                nested = not recursive and any(each.is_dir() for each in path.iterdir())
                remedy = "; --recursive includes its subfolders" if nested else ""
                raise UsageError(f"{item}: no images; looked for {wanted}{remedy}.")
            for file in images:
                yield file, file.relative_to(path)
        elif not os.path.exists(path):
            raise UsageError(f"{item}: no such file or folder; {missing_path_hint(path)}")
        else:
            try:
                check_regular(path)
            except (OSError, ValueError) as error:
                raise UsageError(f"{error} Pass - to read standard input.") from error
            yield path, Path(path.name)


def _walk(folder: Path, output: Path, *, recursive: bool) -> Iterator[Path]:
    """Yield the images of a folder; prints what is skipped, except hidden files."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_image(path):
            yield path
        elif path.is_dir() and recursive and not path.is_symlink():
            if output.exists() and path.samefile(output):
                note(f"skipped: {path}: is the output folder")
            else:
                try:
                    yield from _walk(path, output, recursive=True)
                except PermissionError:
                    note(f"skipped: {path}: permission denied")
        elif path.is_dir():
            note(f"skipped: {path}: is a folder" + ("" if recursive else "; --recursive includes it"))
        elif path.is_file():
            note(f"skipped: {path}: not an image by its name")
        else:
            note(f"skipped: {path}: is not a regular file")


def _target_name(relative: Path, suffix: str | None) -> Path:
    if suffix is None:
        suffix = relative.suffix if relative.suffix.lower() in FORMATS else ".png"
    return relative.with_suffix(suffix)


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    targets = [job.target for job in jobs if job.target is not None]
    identity: Callable[[Path | None], str] = str
    if len({*map(_without_case, targets)}) < len({*targets}) and any(map(_ignores_case, {*targets})):
        identity = _without_case
    first_of: dict[str, Job] = {}
    collisions: list[str] = []
    for job in jobs:
        first = first_of.setdefault(identity(job.target), job)
        if first is not job and first.source == job.source:
            raise UsageError(f"{job.name}: is given twice; give it once.")
        if first is not job:
            collisions.append(f"{first.name} and {job.name} would both become {job.target}")
    if collisions:
        more = f" ({len(collisions) - 1} more like these)" * (len(collisions) > 1)
        raise UsageError(f"{collisions[0]}{more}; rename them, or upscale them into different folders.")
    check_no_input(targets, [job.source for job in jobs if job.source is not None])


def _without_case(path: Path | None) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _ignores_case(target: Path) -> bool:
    """Whether the filesystem ignores case in names, as on macOS, Windows and most memory cards."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".a", dir=nearest_folder(target)) as file:
            return Path(file.name).with_name(Path(file.name).name.swapcase()).exists()
    except OSError:  # reported later, with the name of the target
        return False


def _listed(paths: Sequence[Path]) -> str:
    """The first three paths, and how many more there are."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more
