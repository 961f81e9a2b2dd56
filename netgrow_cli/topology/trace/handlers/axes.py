"""Operations that cut, join, move and regroup axes."""

from __future__ import annotations

import math
from typing import Any

from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.reading import argument, as_list, operation, shape, shape_of

_BIG = 2**62
"""Where a slice says "to the end"."""


def _cat(made: Converter, node: Any) -> bool:
    parts = [part for part in node.args[0] if part not in made.empty]
    if len(parts) == 1:
        made.alias(node, parts[0])
        return True
    made.put(node, "cat", parts, attrs={"axis": argument(node, 1, "dim", 0)})
    return True


def _stack(made: Converter, node: Any) -> bool:
    made.put(node, "stack", list(node.args[0]), attrs={"axis": argument(node, 1, "dim", 0)})
    return True


def _unbind(made: Converter, node: Any) -> bool:
    axis = argument(node, 1, "dim", 0)
    count = shape(node.args[0])[axis]
    made.put(node, "unbind", [node.args[0]], attrs={"axis": axis}, outputs=count)
    return True


def _split(made: Converter, node: Any) -> bool:
    sizes = node.args[1]
    axis = argument(node, 2, "dim", 0)
    count = len(as_list(node.meta["val"]))
    value = list(sizes) if isinstance(sizes, (list, tuple)) else sizes
    made.put(node, "split", [node.args[0]], attrs={"sizes": value, "axis": axis}, outputs=count)
    return True


def _chunk(made: Converter, node: Any) -> bool:
    axis = argument(node, 2, "dim", 0)
    count = len(as_list(node.meta["val"]))
    if shape(node.args[0])[axis] % node.args[1]:
        each = -(-shape(node.args[0])[axis] // node.args[1])
        made.put(node, "split", [node.args[0]], attrs={"sizes": each, "axis": axis}, outputs=count)
        return True
    made.put(node, "chunk", [node.args[0]], attrs={"chunks": node.args[1], "axis": axis}, outputs=count)
    return True


def _tensor_split(made: Converter, node: Any) -> bool:
    """Cut at indices, or into so many parts of which the first may be longer by one."""
    axis = argument(node, 2, "dim", 0)
    parts = [shape_of(part)[axis] for part in as_list(node.meta["val"])]
    if isinstance(node.args[1], int) and len(set(parts)) == 1:
        made.put(node, "chunk", [node.args[0]], attrs={"chunks": len(parts), "axis": axis}, outputs=len(parts))
    else:
        made.put(node, "split", [node.args[0]], attrs={"sizes": parts, "axis": axis}, outputs=len(parts))
    return True


def _slice(made: Converter, node: Any) -> bool:
    source = node.args[0]
    axis = argument(node, 1, "dim", 0)
    start, stop, step = (argument(node, n, name) for n, name in ((2, "start"), (3, "end"), (4, "step")))
    size = shape(source)[axis]
    first = 0 if start is None else start + size if start < 0 else min(start, size)
    last = size if stop is None or stop >= _BIG else stop + size if stop < 0 else min(stop, size)
    if first >= last:
        made.empty.add(node)
        return True
    if step not in (None, 1):
        if last != size:
            return False
        made.put(node, "strided", [source], attrs={"axis": axis, "start": first, "step": step})
        return True
    if (first, last) == (0, size):
        made.alias(node, source)
        return True
    attrs = {"axis": axis, **({"start": first} if first else {}), **({"stop": last} if last != size else {})}
    made.put(node, "slice", [source], attrs=attrs)
    return True


def _all_of_it(made: Converter, node: Any) -> bool:
    """`x[:, : self.width]` where that is all of x: exported as another name for x, though the code states a size."""
    source, sizes = node.args[0], shape(node)
    held = [axis for axis, size in enumerate(sizes) if made.names(node, size)]
    if len(held) != 1:
        made.alias(node, source)
    else:
        made.put(node, "slice", [source], attrs={"axis": held[0], "stop": sizes[held[0]]})
    return True


def _slice_scatter(made: Converter, node: Any) -> bool:
    """A range of an axis replaced: what is before it, the new values, what is behind it."""
    source, values = node.args[:2]
    if values in made.empty:
        made.alias(node, source)
        return True
    axis = argument(node, 2, "dim", 0)
    start, stop, step = (argument(node, n, name) for n, name in ((3, "start"), (4, "end"), (5, "step")))
    size = shape(source)[axis]
    first, last = start or 0, size if stop is None or stop >= _BIG else stop
    first, last = (n + size if n < 0 else min(n, size) for n in (first, last))
    if first >= last:
        made.alias(node, source)
        return True
    if step not in (None, 1) or first < 0:
        return False
    if last - first == size:
        made.alias(node, values)
        return True
    held = made.pieces.get(source)
    if held is None or held[0] != axis:
        held = axis, [(made.ref(source), size)]
    pieces = [
        *_pieces(made, node, held[1], axis, 0, first),
        (made.ref(values), last - first),
        *_pieces(made, node, held[1], axis, last, size),
    ]
    made.pieces[node] = axis, pieces
    made.put_refs(node, "cat", [ref for ref, _ in pieces], {"axis": axis})
    return True


def _pieces(
    made: Converter, node: Any, held: list[tuple[str, int]], axis: int, start: int, stop: int
) -> list[tuple[str, int]]:
    """What stands in a range of an axis that was put together of these, so that nothing overwritten is left."""
    found, at = [], 0
    for ref, size in held:
        first, last = max(start - at, 0), min(stop - at, size)
        at += size
        if first >= last:
            continue
        attrs = {"axis": axis, **({"start": first} if first else {}), **({"stop": last} if last < size else {})}
        whole = (first, last) == (0, size)
        part = ref if whole else made.extra(node, "behind" if first else "before", "slice", [ref], attrs)
        found.append((part, last - first))
    return found


def _select(made: Converter, node: Any) -> bool:
    made.put(node, "select", [node.args[0]], attrs={"axis": node.args[1], "index": node.args[2]})
    return True


def _reshape(made: Converter, node: Any) -> bool:
    """Axes that stay are 0, so that the batch is free, but where the code holds their size; another is what remains."""
    source = node.args[0]
    before, after = shape(source), shape(node)
    kept = 0
    while kept < min(len(before), len(after)) and before[kept] == after[kept]:
        kept += 1
    lead = [size if made.holds(node, f"shape[{n}]", size, len(after)) else 0 for n, size in enumerate(after[:kept])]
    if before == after and not any(lead):
        made.alias(node, source)
        return True
    if math.prod(before) == 0:
        return False
    place = _open_size(node, kept, after)
    if place is None:  # several batches in one axis: what remains
        batch = made.batch or 0
        place = next(
            (n for n in range(kept, len(after)) if batch > 1 and after[n] > batch and after[n] % batch == 0), None
        )
    stated = [-1 if n == place else made.size(size) for n, size in enumerate(after)]
    made.put(node, "reshape", [source], attrs={"shape": [*lead, *stated[kept:]]})
    return True


def _open_size(node: Any, kept: int, after: list[int]) -> int | None:
    """The size that the code leaves open; None where it states all, which then have to follow the widths."""
    name = operation(node.target)
    if kept == len(after) or name in ("reshape_as", "view_as"):
        return None
    if name in ("flatten", "squeeze"):
        return max(range(kept, len(after)), key=lambda axis: after[axis])
    lead, stated = 0, argument(node, 1, "shape", [])
    if name == "unflatten":
        lead, stated = argument(node, 1, "dim") % (len(after) - len(node.args[2]) + 1), node.args[2]
    place = lead + stated.index(-1) if -1 in stated else None
    return place if place is not None and place >= kept else None


def _permute(made: Converter, node: Any) -> bool:
    made.put(node, "permute", [node.args[0]], attrs={"axes": list(node.args[1])})
    return True


def _transpose(made: Converter, node: Any) -> bool:
    axes = list(node.args[1:3]) if len(node.args) > 2 else [0, 1]
    made.put(node, "transpose", [node.args[0]], attrs={"axes": axes})
    return True


def _unsqueeze(made: Converter, node: Any) -> bool:
    made.put(node, "unsqueeze", [node.args[0]], attrs={"axis": node.args[1]})
    return True


def _expand(made: Converter, node: Any) -> bool:
    before, after = shape(node.args[0]), shape(node)
    if before == after:
        made.alias(node, node.args[0])
        return True
    more = len(after) - len(before)
    sizes = [-1 if n >= more and before[n - more] == after[n] else made.size(after[n]) for n in range(len(after))]
    made.put(node, "expand", [node.args[0]], attrs={"sizes": sizes})
    return True


def _roll(made: Converter, node: Any) -> bool:
    axes = argument(node, 2, "dims", [])
    if not axes:
        return False
    made.put(node, "roll", [node.args[0]], attrs={"shifts": list(node.args[1]), "axes": list(axes)})
    return True


def _lookup(made: Converter, node: Any) -> bool:
    table, indices = node.args[:2]
    if len(indices) != 1 or indices[0] is None or "bool" in str(indices[0].meta["val"].dtype):
        return False
    made.put(node, "lookup", [table, indices[0]])
    return True


HANDLERS: dict[str, Handler] = {
    "flatten": _reshape,
    "unflatten": _reshape,
    "squeeze": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "reshape_as": _reshape,
    "view_as": _reshape,
    "slice_scatter": _slice_scatter,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "unbind": _unbind,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "tensor_split": _tensor_split,
    "slice": _slice,
    "alias": _all_of_it,
    "select": _select,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "swapaxes": _transpose,
    "expand_as": _expand,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "roll": _roll,
    "broadcast_to": _expand,
    "index": _lookup,
}
