"""Lists of captions in the forms that they are published in; what could be read in two ways is refused.

A .csv, .tsv, .jsonl or a .json list of objects has one of the columns COLUMNS. A .json list of texts and a .txt, a
caption a line, have captions alone. All are UTF-8, with or without a byte-order mark.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from splam.data.images import DataError

COLUMNS = ("caption", "text", "prompt")
FORMS = (
    "a .csv or .tsv with a header, a .jsonl or a .json list of objects, any of them with one of the columns "
    f"{', '.join(COLUMNS)}; a .json list of texts; or a .txt with a caption a line; in UTF-8"
)
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a list, by column; those of a list without columns have `caption`.

    Raises DataError for a file that cannot be read, is of another form, or holds no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _parse(path.suffix.lower(), file.read())
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a list of captions ({error}); it must be {FORMS}") from None
    if not rows:
        raise DataError(f"{path} holds no captions; it must be {FORMS}")
    return rows


def _parse(suffix: str, text: str) -> list[Row]:
    lines = text.removesuffix("\n").split("\n") if text else []  # no other character ends a line
    if suffix in (".csv", ".tsv"):
        return list(_table(text, "," if suffix == ".csv" else "\t"))
    if suffix not in (".json", ".jsonl", ".txt"):
        raise ValueError(f"its name ends in {suffix!r}")
    if suffix == ".txt":
        return [{"caption": line} for line in lines]
    content = json.loads(text) if suffix == ".json" else [json.loads(line) for line in lines]
    rows = [{"caption": row} if isinstance(row, str) else row for row in content] if isinstance(content, list) else [0]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its JSON is no list of texts or objects")
    return rows


def _table(text: str, delimiter: str) -> Iterator[Row]:
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = [name.strip().lower() for name in next(table, [])]
    if len(set(names)) < len(names):
        raise ValueError(f"its header names a column twice: {', '.join(names)}")
    for fields in table:
        if len(fields) != len(names):
            counts = f"line {table.line_num} has {len(fields)} fields, the header {len(names)}"
            raise ValueError(f"{counts}: quote what contains {delimiter!r}")
        if delimiter == "\t" and "\n" in "".join(fields):  # two rows, where quotes are letters
            raise ValueError(f"line {table.line_num} ends a quoted field of several lines: write it as a .csv")
        yield dict(zip(names, fields, strict=True))


def column(rows: Sequence[Row], names: Sequence[str], path: Path) -> list[Any] | None:
    """The values of the one column that has one of the names, None where a row lacks it; None if there is none.

    Raises DataError if there are several.
    """
    found = [name for name in names if any(name in row for row in rows)]
    if len(found) > 1:
        raise DataError(f"{path} has the columns {' and '.join(found)}: keep the one that is meant")
    return [row.get(found[0]) for row in rows] if found else None


def captions(rows: Sequence[Row], path: Path, empty: bool = False) -> list[str]:
    """The captions of a list, each on one line. Raises DataError for an empty one unless those may be, by number."""
    values = column(rows, COLUMNS, path)
    if values is None:
        raise DataError(f"{path} is not a list of captions (its columns are {', '.join(rows[0])}); it must be {FORMS}")
    texts = [" ".join(value.split()) if isinstance(value, str) else "" for value in values]
    if "" in texts and not empty:
        number = texts.index("")
        raise DataError(f"{path} has empty captions, the first is number {number + 1} ({values[number]!r}): fill it in")
    return texts
