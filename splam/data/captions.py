"""Lists of captions: a .csv with a header, or a .jsonl. What could be read in two ways is refused."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from splam.data.images import DataError

COLUMNS = ("caption", "text", "prompt")
FORM = f"a .csv with a header or a .jsonl, in UTF-8, with one of the columns {', '.join(COLUMNS)}"
Row = dict[str, Any]


def read_captions(path: Path, beside: Sequence[str], empty: bool = False) -> list[tuple[Any, str]]:
    """Every caption, on one line, after what its row has in the column that is named by one of `beside`.

    Raises DataError for a file that cannot be read or lacks a column, for two columns of one meaning, and for an empty
    caption unless there may be some.
    """
    rows = _rows(path)
    values, others = _column(rows, COLUMNS, path), _column(rows, beside, path)
    texts = [" ".join(value.split()) if isinstance(value, str) else "" for value in values]
    if "" in texts and not empty:
        number = texts.index("")
        raise DataError(f"{path} has empty captions, the first is number {number + 1} ({values[number]!r}): fill it in")
    return list(zip(others, texts, strict=True))


def _rows(path: Path) -> list[Row]:
    """The rows of a list, by column; what is no .jsonl is read as a .csv."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(map(json.loads, file) if path.suffix.lower() == ".jsonl" else _table(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a list of captions ({error}); it must be {FORM}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds no rows with columns; it must be {FORM}")
    return rows


def _table(file: TextIO) -> Iterator[Row]:
    table = csv.DictReader(file, strict=True)
    names = table.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError(f"its header names a column twice: {', '.join(names)}")
    for row in table:
        if None in row or None in row.values():
            raise ValueError(f"line {table.line_num} has more or fewer fields than the header: quote what contains ','")
        yield row


def _column(rows: Sequence[Row], names: Sequence[str], path: Path) -> list[Any]:
    """The values of the one column that has one of the names, None where a row lacks it."""
    columns = dict.fromkeys(name for row in rows for name in row)
    found = [name for name in names if name in columns]
    if len(found) != 1:
        raise DataError(f"{path} has the columns {', '.join(columns)}: there must be exactly one of {', '.join(names)}")
    return [row.get(found[0]) for row in rows]
