"""A picture of a topology: SVG drawn here, or text for Graphviz and Mermaid."""

from __future__ import annotations

import collections
import html
from collections.abc import Sequence

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.solve import Topology

_LETTER, _LINE, _GAP, _RISE = 7.2, 17, 28, 46
_HIGH = 2 * _LINE + 10
_FILL = {"input": "#dff0d8", "layer": "#d9e8fb", "op": "#f2f2f2", "output": "#fbe7c6"}


@frozen
class Box:
    """One node of the picture: two lines of text, a kind, and the names of the boxes it reads."""

    name: str
    title: str
    detail: str
    kind: str
    reads: tuple[str, ...]

    @property
    def width(self) -> float:
        """In pixels."""
        return max(len(self.title), len(self.detail)) * _LETTER + 18


def boxes(topology: Topology) -> list[Box]:
    """What is drawn: inputs, layers, outputs; ranges that netgrow made itself are drawn too."""
    graph = topology.graph
    made = [Box(given.name, given.name, f"[{', '.join(map(str, given.shape))}]", "input", ()) for given in graph.inputs]
    for node in graph.nodes:
        value = topology.values[node.name][0]
        units = topology.text(value.axes[value.unit_axis]) if value.axes else ""
        title = node.name if node.op in node.name else f"{node.name} ({node.op})"
        kind = "layer" if node.params else "op"
        made.append(Box(node.name, title, units, kind, tuple(dict.fromkeys(ref.node for ref in node.inputs))))
    made += [Box(f"output {n}", f"output {n}", "", "output", (ref.node,)) for n, ref in enumerate(graph.outputs)]
    return made


def as_mermaid(topology: Topology) -> str:
    """Mermaid text, which many Markdown viewers draw."""
    made = boxes(topology)
    ids = {box.name: f"n{number}" for number, box in enumerate(made)}
    lines = ["graph TD"]
    for box in made:
        label = "<br/>".join(part.replace('"', "'") for part in (box.title, box.detail) if part)
        lines.append(f'  {ids[box.name]}["{label}"]')
        lines += [f"  {ids[source]} --> {ids[box.name]}" for source in box.reads]
    return "\n".join(lines) + "\n"


def as_dot(topology: Topology) -> str:
    """Text for Graphviz."""
    lines = ["digraph topology {", "  node [shape=box, style=filled];"]
    for box in boxes(topology):
        label = "\\n".join(part for part in (_quoted(box.title), _quoted(box.detail)) if part)
        lines.append(f'  "{_quoted(box.name)}" [label="{label}", fillcolor="{_FILL[box.kind]}"];')
        lines += [f'  "{_quoted(source)}" -> "{_quoted(box.name)}";' for source in box.reads]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


# -- SVG ----------------------------------------------------------------------------------------------


def as_svg(topology: Topology) -> str:
    """A picture: a row for each step from the inputs, boxes ordered so that lines cross little."""
    made = {box.name: box for box in boxes(topology)}
    rows = _rows(list(made.values()))
    places = _places(rows, made)
    width = max(x + made[name].width for name, (x, _) in places.items()) + _GAP
    height = len(rows) * (_HIGH + _RISE) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="monospace" font-size="12">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
    ]
    for box in made.values():
        parts += [_line(places, made, source, box.name) for source in box.reads]
    parts += [_box(box, *places[box.name]) for box in made.values()]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rows(made: Sequence[Box]) -> list[list[str]]:
    depth: dict[str, int] = {}
    rows: dict[int, list[str]] = collections.defaultdict(list)
    for box in made:
        depth[box.name] = max((depth[source] + 1 for source in box.reads), default=0)
        rows[depth[box.name]].append(box.name)
    return [rows[number] for number in range(len(rows))]


def _places(rows: list[list[str]], made: dict[str, Box]) -> dict[str, tuple[float, float]]:
    """The upper left corner of each box; a row is ordered and placed under what it reads."""
    centre: dict[str, float] = {}
    places: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        wanted = {name: _mean([centre[source] for source in made[name].reads]) for name in row}
        free = float(_GAP)
        for name in sorted(row, key=lambda name: wanted[name]):
            left = max(free, wanted[name] - made[name].width / 2)
            places[name] = (left, _GAP + number * (_HIGH + _RISE))
            centre[name] = left + made[name].width / 2
            free = left + made[name].width + _GAP
    return places


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _box(box: Box, x: float, y: float) -> str:
    middle = x + box.width / 2
    text = f'<text x="{middle:.1f}" y="{y + _LINE + 2:.1f}" text-anchor="middle"'
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{_HIGH}" rx="5" fill="{_FILL[box.kind]}" '
        f'stroke="#555"/>{text} font-weight="bold">{html.escape(box.title)}</text>'
        f'<text x="{middle:.1f}" y="{y + 2 * _LINE:.1f}" text-anchor="middle" fill="#444">'
        f"{html.escape(box.detail)}</text>"
    )


def _line(places: dict[str, tuple[float, float]], made: dict[str, Box], source: str, target: str) -> str:
    """From the lower edge of one box to the upper edge of another, around the boxes in between."""
    x1, y1 = places[source][0] + made[source].width / 2, places[source][1] + _HIGH
    x2, y2 = places[target][0] + made[target].width / 2, places[target][1]
    between = [name for name, (_, y) in places.items() if y1 < y < y2]
    step = _RISE / 2
    if between:
        x = _corridor([(places[name][0], places[name][0] + made[name].width) for name in between], x1, x2)
        top, low = y1 + 2 * step, y2 - 2 * step
        way = f"{_curve(x1, y1, x, top)} L{x:.1f},{low:.1f} {_curve(x, low, x2, y2)}"
    else:
        way = _curve(x1, y1, x2, y2)
    return f'<path d="M{x1:.1f},{y1:.1f} {way}" fill="none" stroke="#888"/>'


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (y2 - y1) / 2
    return f"C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}"


def _corridor(walls: Sequence[tuple[float, float]], x1: float, x2: float) -> float:
    """The place nearest to both ends at which a vertical line meets none of the boxes."""
    margin = _GAP / 2
    tries = [x1, x2, *(left - margin for left, _ in walls), *(right + margin for _, right in walls)]
    free = [x for x in tries if x > 4 and not any(left - 4 < x < right + 4 for left, right in walls)]
    return min(free, key=lambda x: abs(x - x1) + abs(x - x2), default=x1)
