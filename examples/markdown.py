"""Tables in Markdown, and the parts of a page that a command writes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tabulate import DataRow, TableFormat, tabulate

END = "<!-- until here -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: Collection[str] = ("",)) -> str:
    """A table. Cells are not padded: a number that changes is one line in a diff.

    Args:
        head: Titles of the columns.
        rows: Their cells.
        text: Titles of the columns that are aligned to the left; those of numbers are aligned to the right.

    Example:
        >>> print(table(["", "dB"], [["bicubic", "28.43"]]))
        |  | dB |
        | --- | ---: |
        | bicubic | 28.43 |
        <BLANKLINE>
    """
    cells = DataRow("| ", " | ", " |")
    rule = "| " + " | ".join("---" if title in text else "---:" for title in head) + " |"
    layout = TableFormat(None, lambda widths, alignments: rule, None, None, cells, cells, 0, None)
    return tabulate(rows, head, layout, disable_numparse=True, stralign=None).rstrip() + "\n"


def begin(command: str) -> str:
    """The comment that begins the part of a page that a command writes; :data:`END` ends it."""
    return f"<!-- written by python -m {command} -->"


def with_part(page: str, command: str, part: str) -> str:
    """The text of a page with the part that a command writes made anew.

    Raises:
        ValueError: If the two comments between which the part stands are not both there.
    """
    before, first, rest = page.partition(begin(command))
    _, last, after = rest.partition(END)
    if not (first and last):
        raise ValueError(f"the generated part stands between {begin(command)} and {END}, and they are not both there.")
    return f"{before}{first}\n{part}{last}{after}"
