"""CSV files of dataclass records, and JSON files. All files are written atomically."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from examples.mren.files import write_text
from examples.mren.messages import one_line

Record = TypeVar("Record")


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as dictionaries of strings, keyed by the header."""
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def write_rows(
    file: Path, rows: Iterable[Mapping[str, object]], names: Sequence[str], *, overwrite: bool = True
) -> None:
    """Write a CSV file with these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue(), overwrite=overwrite)


def read_records(file: Path, kind: type[Record], *, renamed: Mapping[str, str] | None = None) -> list[Record]:
    """The rows of a CSV file as dataclasses whose fields are strings or numbers.

    Args:
        file: The file. Columns that are not fields are ignored; a field with a default needs no column.
        kind: The dataclass.
        renamed: Field names of columns that are named differently in the file.

    Raises:
        ValueError: If the file is not such a table, or is damaged; the message names it.
    """
    types = typing.get_type_hints(kind)
    try:
        rows = [{(renamed or {}).get(name, name): value for name, value in row.items()} for row in read_rows(file)]
        return [kind(**{name: types[name](value) for name, value in row.items() if name in types}) for row in rows]
    except (TypeError, ValueError, csv.Error) as error:  # a column or value is missing, or is not a number
        reason = one_line(error)[:200]
        raise ValueError(
            f"{file}: is not a table written by this program, or is damaged ({reason}); repair it, or move it away."
        ) from error


def write_records(file: Path, records: Sequence[Any], kind: type[Any]) -> None:
    """Write dataclasses of one type to a CSV file for :func:`read_records`."""
    names = [field.name for field in dataclasses.fields(kind)]
    write_rows(file, (dataclasses.asdict(record) for record in records), names)


def read_json(file: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        ValueError: If it is not JSON; the message names the file.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error}).") from error


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
