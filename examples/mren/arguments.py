"""Parsers of command lines, and the types of their arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m MODULE``; the module's docstring becomes the description and epilog of its help."""
    description, _, details = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        f"python -m {module}",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
