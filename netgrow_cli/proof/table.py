"""Tables of numbers as text: rows of a CSV file, with or without a line of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netgrow_cli.errors import UsageError

_DELIMITERS = ("\t", ";", ",")


def read_table(path: Path) -> Any:
    """The rows as an array of two axes. Raises UsageError with the line and the column of what is no number."""
    import numpy as np

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: cannot be read as probes: it is no text in UTF-8") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    delimiter = next((mark for mark in _DELIMITERS if lines and mark in lines[0][1]), ",")
    rows = [(number, [cell.strip().strip('"') for cell in line.split(delimiter)]) for number, line in lines]
    names = rows.pop(0)[1] if rows and not any(map(_is_number, rows[0][1])) else None
    if not rows:
        raise UsageError(f"{path}: it has no rows")
    count = len(names or rows[0][1])
    for number, cells in rows:
        if len(cells) != count:
            raise UsageError(
                f"{path}: cannot be read as probes: line {number} has {len(cells)} columns, those before have {count}"
            )
    try:
        return np.array([cells for _, cells in rows], dtype=np.float64)
    except ValueError:
        raise UsageError(_fault(path, rows, names)) from None


def _fault(path: Path, rows: list[tuple[int, list[str]]], names: list[str] | None) -> str:
    """Where the first cell is that holds no number."""
    number, place, cell = next(
        (number, place, cell) for number, cells in rows for place, cell in enumerate(cells) if not _is_number(cell)
    )
    column = f"column {place + 1}" + (f" ({names[place]})" if names else "")
    found = "empty" if not cell else repr(cell)
    return f"{path}: cannot be read as probes: line {number}, {column} is {found}, where a number is needed"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
