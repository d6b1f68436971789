"""Tables in Markdown, the numbers in them, and the parts of a page that a command writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tabulate import DataRow, TableFormat, tabulate

END = "<!-- until here -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: Collection[str] = ("",)) -> str:
    """A table; empty if it has no rows. Columns without a single cell that says something are left out.

    Cells are not padded: a number that changes is one line in a diff.

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
    kept = [number for number, _ in enumerate(head) if any(row[number] for row in rows)]
    if not kept:
        return ""
    head = [head[number] for number in kept]
    cells = DataRow("| ", " | ", " |")
    rule = "| " + " | ".join("---" if title in text else "---:" for title in head) + " |"
    layout = TableFormat(None, lambda widths, alignments: rule, None, None, cells, cells, 0, None)
    shown = [[row[number] for number in kept] for row in rows]
    return tabulate(shown, head, layout, disable_numparse=True, stralign=None).rstrip() + "\n"


def signed(value: float, decimals: int) -> str:
    """A difference, with a minus sign as wide as the plus sign; zero has no sign.

    Example:
        >>> signed(0.126, 2), signed(-0.126, 2), signed(-0.001, 2)
        ('+0.13', '−0.13', '0.00')
    """
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def digits(value: float) -> str:
    """Three digits where there are decimals; whole numbers in full.

    Example:
        >>> digits(0.03512), digits(1.5), digits(1234.5)
        ('0.035', '1.50', '1,234')
    """
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):.{2 if value >= 1 else 3}f}" if value < 10 else f"{float(text):.1f}"


def mib(size: float | None) -> str:
    """Bytes in MiB; nothing where there are none."""
    return "" if size is None else digits(size / 2**20)


def spread(summary: Mapping[str, float], unit: float = 1) -> str:
    """Median and quartiles, such as ``1.23 (1.20–1.31)``."""
    median, low, high = (digits(summary[name] * unit) for name in ("median", "q1", "q3"))
    return f"{median} ({low}–{high})"


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
