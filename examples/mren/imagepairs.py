"""Match low- and high-resolution images by the naming schemes of common data sets.

``baby.png`` matches ``baby.png``, ``babyx4.png`` and ``baby_LRBI_x4.png``; ``img_001_SRF_4_HR.png`` to
``img_001_SRF_4_LR.png``, ``Canon_001_HR.png`` to ``Canon_001_LR4.png``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_SUFFIX = re.compile(r"(?:[_-]?x(\d)[a-z]?|[_-](?:SRF[_-]?(\d)|LRB[ID]|LRDN|LR[_-]?(\d)?|HR|GT))$", re.IGNORECASE)
# Folder names that are not data sets, as in Set5/HR, or Set5/GTmod12 of BasicSR
_GENERIC = re.compile(r"hr|gt(mod\d+)?|original", re.IGNORECASE)


def match_lr(hr_files: Sequence[Path], lr_files: Sequence[Path], scale: int) -> tuple[dict[Path, Path], list[str]]:
    """Find the low-resolution image of each high-resolution one.

    Args:
        hr_files: The high-resolution images of one folder.
        lr_files: The low-resolution images of another; those named after another scale are ignored.
        scale: The scale.

    Returns:
        The low-resolution image of each high-resolution one, and messages about the others: without a partner, with
        several, or with one of another scale.

    Example:
        >>> hr, lr = [Path("HR/a.png"), Path("HR/b.png")], [Path("LR/ax4.png"), Path("LR/bx2.png")]
        >>> pairs, problems = match_lr(hr, lr, 4)
        >>> [(hr.name, lr.name) for hr, lr in pairs.items()]
        [('a.png', 'ax4.png')]
        >>> problems
        ['HR/b.png: has no partner of x4; LR/bx2.png is x2 by its name.']
    """
    by_name: dict[str, list[tuple[int, int, Path]]] = {}
    for file in lr_files:
        for depth, (name, named_scale) in enumerate(_stems(file.stem)):
            by_name.setdefault(name, []).append((depth, named_scale or scale, file))
    pairs: dict[Path, Path] = {}
    problems: list[str] = []
    known: set[Path] = set()  # partners of any image, at this scale or another
    for hr in hr_files:
        # Prefer the closest name: that with the fewest suffixes removed.
        found = sorted(
            (depth + lr_depth, named_scale, file)
            for depth, (name, _) in enumerate(_stems(hr.stem))
            for lr_depth, named_scale, file in by_name.get(name, [])
        )
        known |= {file for _, _, file in found}
        fitting = [(depth, file) for depth, named_scale, file in found if named_scale == scale]
        closest = sorted({file for depth, file in fitting if depth == fitting[0][0]})
        if len(closest) == 1:
            pairs[hr] = closest[0]
        elif closest:
            problems.append(f"{hr}: has several partners, {' and '.join(map(str, closest[:3]))}; keep one.")
        elif found:
            _, named_scale, file = found[0]
            problems.append(f"{hr}: has no partner of x{scale}; {file} is x{named_scale} by its name.")
        else:
            folder = lr_files[0].parent if lr_files else "an empty folder"
            wanted = f"{hr.name} or {hr.stem}x{scale}{hr.suffix}"
            problems.append(f"{hr}: has no partner in {folder}; {wanted} would be one.")
    problems += [f"{lr}: has no high-resolution partner; remove it." for lr in sorted(set(lr_files) - known)]
    for lr in [lr for lr, count in Counter(pairs.values()).items() if count > 1]:
        sharing = [hr for hr, partner in pairs.items() if partner == lr]
        problems.append(f"{lr}: is the partner of {' and of '.join(map(str, sharing[:3]))}; give each its own.")
        pairs = {hr: partner for hr, partner in pairs.items() if partner != lr}
    return pairs, problems


def dataset_name(folder: Path) -> str:
    """The name of the data set in a folder: that of the folder, or of its parent for ``HR`` and the like.

    Example:
        >>> dataset_name(Path("data/Set5")), dataset_name(Path("data/Set14/GTmod12"))
        ('Set5', 'Set14')
    """
    folder = folder.resolve()
    return folder.parent.name if _GENERIC.fullmatch(folder.name) else folder.name


def _stems(stem: str) -> list[tuple[str, int | None]]:
    """A name with its suffixes removed one after the other, each with the scale found in them."""
    stems: list[tuple[str, int | None]] = [(stem, None)]
    while (match := _SUFFIX.search(stems[-1][0])) and match.start():
        named_scale = next((int(number) for number in match.groups() if number), stems[-1][1])
        stems.append((stems[-1][0][: match.start()], named_scale))
    return stems
