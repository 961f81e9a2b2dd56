"""The difference of two checkpoints for people: only what changed, side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from netgrow_cli.checkpoint.compare import Changed, DiffReport, Side
from netgrow_cli.checkpoint.staging import size_text
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.checkpoint.values import ValueChange
from netgrow_cli.frozen import frozen

_COLOURS = {"+": "32", "-": "31", "~": "33", "new": "1;33", "dim": "2", "bold": "1"}
# From so many equal changes on, repeated blocks take one line.
_COLLAPSE_FROM = 3

Paint = Callable[[str, str], str]


@frozen
class _Row:
    """One line: a tensor, or `count` tensors of repeated blocks that changed in the same way."""

    mark: str
    parts: tuple[str, ...]
    a: TensorInfo | None
    b: TensorInfo | None
    values: ValueChange | None = None
    count: int = 1

    @property
    def kind(self) -> tuple[object, ...]:
        """Rows of the same kind may share a line."""
        sides = [None if info is None else (info.shape, info.dtype) for info in (self.a, self.b)]
        return (self.mark, *sides, self.values is None)


def render(report: DiffReport, *, colour: bool) -> str:
    """The whole table, without a newline at the end."""
    paint = _painter(colour)
    head = _sides(report.a, report.b, paint)
    if report.same:
        what = "shapes, dtypes and values" if report.values_compared else "shapes and dtypes"
        hint = "" if report.values_compared else " (values not compared: --values)"
        return "\n".join([*head, "", f"same: {what} of all {_number(report.a.tensors)} tensors{hint}"])
    rows = _collapse(_rows(report))
    return "\n".join([*head, "", *_table(rows, paint), "", _summary(report)])


def _painter(colour: bool) -> Paint:
    if not colour:
        return lambda text, style: text
    return lambda text, style: f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if text else text


def _sides(a: Side, b: Side, paint: Paint) -> list[str]:
    cells = [_side_cells("A", a), _side_cells("B", b), ["", "", "", *_differences(a, b)]]
    lines = _aligned(cells, right={3, 4, 5})
    return [*lines[:2], *([paint(lines[2], "dim")] if lines[2].strip() else [])]


def _side_cells(letter: str, side: Side) -> list[str]:
    where = side.format if side.key is None else f"{side.format}: {side.key}"
    counts = [f"{_number(side.tensors)} tensors", f"{_number(side.parameters)} parameters", size_text(side.bytes)]
    return [letter, side.path, where, *counts]


def _differences(a: Side, b: Side) -> list[str]:
    def signed(count: int, unit: str) -> str:
        return f"{'+' if count > 0 else '-'}{_number(abs(count))} {unit}" if count else ""

    size = b.bytes - a.bytes
    return [
        signed(b.tensors - a.tensors, "tensors"),
        signed(b.parameters - a.parameters, "parameters"),
        ("+" if size > 0 else "-") + size_text(abs(size)) if size else "",
    ]


def _rows(report: DiffReport) -> list[_Row]:
    rows: dict[str, _Row] = {}
    for change in report.changed:
        rows[change.name] = _changed_row(change)
    for info in report.only_a:
        rows[info.name] = _Row("-", tuple(info.name.split(".")), info, None)
    for info in report.only_b:
        rows[info.name] = _Row("+", tuple(info.name.split(".")), None, info)
    return [rows[name] for name in report.order]


def _changed_row(change: Changed) -> _Row:
    return _Row("~", tuple(change.name.split(".")), change.a, change.b, change.values)


def _collapse(rows: Sequence[_Row]) -> list[_Row]:
    """Rows that differ in one number of their names only become one, innermost numbers first.

    `layers.0.experts.0.w` ... becomes `layers.0.experts.{0-7}.w` and then `layers.{0-31}.experts.{0-7}.w`.
    """
    found = list(rows)
    for position in reversed(range(max((len(row.parts) for row in rows), default=0))):
        groups: dict[tuple[object, ...], list[_Row]] = {}
        for row in found:
            numbered = len(row.parts) > position and _is_number(row.parts[position])
            rest = (row.parts[:position], row.parts[position + 1 :]) if numbered else (row.parts,)
            groups.setdefault((*row.kind, *rest), []).append(row)
        found = [row for group in groups.values() for row in _merge(group, position)]
    return found


def _is_number(part: str) -> bool:
    return part.isdecimal() and str(int(part)) == part  # 01 is not 1


def _merge(group: Sequence[_Row], position: int) -> Iterable[_Row]:
    if len(group) < _COLLAPSE_FROM:
        return group
    first = group[0]
    numbers = _ranges(sorted(int(row.parts[position]) for row in group))
    parts = (*first.parts[:position], "{" + numbers + "}", *first.parts[position + 1 :])
    values = [row.values for row in group if row.values is not None]
    count = sum(row.count for row in group)
    return [dataclasses.replace(first, parts=parts, values=_worst(values) if values else None, count=count)]


def _worst(values: Sequence[ValueChange]) -> ValueChange:
    known = [value.max_abs for value in values if value.max_abs is not None]
    return ValueChange(max(known, default=None), sum(value.differing for value in values))


def _ranges(numbers: Sequence[int]) -> str:
    """0-3,8,10-12 from sorted numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(start) if start == stop else f"{start}-{stop}" for start, stop in runs)


def _table(rows: Sequence[_Row], paint: Paint) -> list[str]:
    widths = [
        max((len(_name(row)) for row in rows), default=0),
        max((len(_cell(row.a, row.b)) for row in rows), default=0),
        max((len(_cell(row.b, row.a)) for row in rows), default=0),
    ]
    return [_line(row, widths, paint) for row in rows]


def _line(row: _Row, widths: Sequence[int], paint: Paint) -> str:
    name, left, right = _name(row), _cell(row.a, row.b), _cell(row.b, row.a)
    note = "" if row.values is None else _values_note(row)
    arrow = "→" if row.mark == "~" else " "
    cells = [
        paint(row.mark, row.mark),
        paint(name, row.mark) if row.mark != "~" else name,
        " " * (widths[0] - len(name) + 1) + _painted_cell(row.a, row.b, paint, row.mark),
        " " * (widths[1] - len(left)) + arrow,
        _painted_cell(row.b, row.a, paint, row.mark),
    ]
    tail = [f"×{row.count}"] if row.count > 1 else []
    tail += [note] if note else []
    line = " ".join(cells)
    return " ".join([line + " " * (widths[2] - len(right) + 1), *tail]) if tail else line.rstrip()


def _name(row: _Row) -> str:
    """The name; quoted where a terminal would take it for something else (a file may say anything)."""
    name = ".".join(row.parts)
    return name if name and name.isprintable() else repr(name)


def _cell(info: TensorInfo | None, other: TensorInfo | None) -> str:
    return _painted_cell(info, other, lambda text, style: text, "~")


def _painted_cell(info: TensorInfo | None, other: TensorInfo | None, paint: Paint, mark: str) -> str:
    """The shape, sizes that changed highlighted; the dtype where it changed or stands alone."""
    if info is None:
        return ""
    if other is None:
        return paint(f"{list(info.shape)} {info.dtype}", mark)
    comparable = len(info.shape) == len(other.shape)
    sizes = [
        str(size) if comparable and size == other.shape[axis] else paint(str(size), "new")
        for axis, size in enumerate(info.shape)
    ]
    shape = "[" + ", ".join(sizes) + "]"
    return shape if info.dtype == other.dtype else f"{shape} {paint(info.dtype, 'new')}"


def _values_note(row: _Row) -> str:
    assert row.a is not None and row.values is not None
    total = row.count * math.prod(row.a.shape)
    largest = "" if row.values.max_abs is None else f", by at most {row.values.max_abs:.4g}"
    return f"{_number(row.values.differing)} of {_number(total)} values differ{largest}"


def _summary(report: DiffReport) -> str:
    common = report.a.tensors - len(report.only_a) - len(report.changed)
    parts = [
        f"{_number(len(report.changed))} changed",
        f"{_number(len(report.only_a))} only in A",
        f"{_number(len(report.only_b))} only in B",
        f"{_number(common)} the same" + ("" if report.values_compared else " in shape and dtype"),
    ]
    return "different: " + ", ".join(part for part in parts if not part.startswith("0 "))


def _aligned(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(count: int) -> str:
    return f"{count:,}"
