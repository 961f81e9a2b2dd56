"""From what a user names (layers, widths, units) to widths and units of the topology."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.layout import Layout, leaves, new_size, occurrences
from netgrow_cli.topology.solve import Tie, Topology, WidthInfo, axis_form

_RUNAWAY = 8
"""How many times as large as what was asked for, relative to the widths, sizes that follow may become."""


@frozen
class Target:
    """What was named: the layout of a layer's output (or a width), and its widths that are no literal sizes."""

    name: str
    layout: Layout
    widths: tuple[WidthInfo, ...]


def targets(topology: Topology, layers: Sequence[str], widths: Sequence[str]) -> tuple[Target, ...]:
    """The targets of `--layer` (names or globs) and `--width`. Raises UsageError with close matches."""
    if not layers and not widths:
        raise UsageError("say what to change: --layer NAME (a glob works), or --width NAME as `inspect` lists them")
    found: dict[str, Target] = {}
    for pattern in layers:
        matching = [_target(topology, name) for name in _layer_names(topology, pattern)]
        # A glob means the layers that can change; a layer that was named is answered for.
        free = [target for target in matching if any(info.frozen is None for info in target.widths)]
        found.update({target.name: target for target in free or matching})
    for name in widths:
        info = topology.by_name(name)
        if info is None:
            known = [info.name for info in topology.widths.values()]
            raise UsageError(f"no width is called {name!r}{_close(name, known)}; `netgrow inspect` lists them")
        found[name] = Target(name, info.width, (info,))
    return tuple(found.values())


def _target(topology: Topology, name: str) -> Target:
    value = topology.values[name][0]
    layout = value.axes[value.unit_axis]
    return Target(name, layout, _infos(topology, [layout]))


def _layer_names(topology: Topology, pattern: str) -> list[str]:
    names = [node.name for node in topology.graph.nodes if not node.hidden]
    if pattern in names:
        return [pattern]
    matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    with_params = [name for name in matching if topology.graph.node(name).params]
    if not matching:
        users = [use.node for use in topology.uses if use.tensor == topology.aliases.get(pattern)]
        if users:
            raise UsageError(f"{pattern!r} is a tensor, not a layer; it belongs to --layer {users[0]}")
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise UsageError(f"no layer is called {pattern!r}{_close(pattern, names)}; there are {shown}")
    return with_params or matching


def _close(name: str, known: Sequence[str]) -> str:
    lower = {item.lower(): item for item in known}
    close = [lower[item] for item in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def _infos(topology: Topology, layouts: Iterable[Layout]) -> tuple[WidthInfo, ...]:
    ids = dict.fromkeys(leaf.id for layout in layouts for leaf in leaves(layout))
    return tuple(topology.widths[identity] for identity in ids)


def single_widths(topology: Topology, chosen: Sequence[Target]) -> tuple[WidthInfo, ...]:
    """The one width of each target, for changes that count units; the first of several that are all tied in size.

    Raises UsageError, Refused.
    """
    result: dict[int, WidthInfo] = {}
    for target in chosen:
        free = [info for info in target.widths if info.frozen is None]
        if not free:
            _refuse_frozen(target)
        if not {info.width.id for info in target.widths} <= set(size_class(topology, free[0].width.id)):
            listed = ", ".join(f"--width '{info.name}' ({info.size})" for info in free)
            raise UsageError(
                f"the output of {target.name!r} is {topology.text(target.layout)}: several widths; choose one: {listed}"
            )
        result[free[0].width.id] = free[0]
    return tuple(result.values())


def free_widths(chosen: Sequence[Target]) -> tuple[WidthInfo, ...]:
    """All widths of the targets that may change. Raises Refused where a target has none."""
    result: dict[int, WidthInfo] = {}
    for target in chosen:
        free = [info for info in target.widths if info.frozen is None]
        if not free:
            _refuse_frozen(target)
        result.update({info.width.id: info for info in free})
    return tuple(result.values())


def independent_widths(topology: Topology, target: Target) -> tuple[WidthInfo, ...]:
    """The widths of a target that may change, without those whose sizes follow an earlier one's."""
    found: list[WidthInfo] = []
    follow: set[int] = set()
    for info in free_widths([target]):
        if info.width.id not in follow:
            found.append(info)
            follow.update(size_class(topology, info.width.id))
    return tuple(found)


def with_tied(topology: Topology, infos: Sequence[WidthInfo]) -> tuple[WidthInfo, ...]:
    """These widths, and those that may change of the ones whose sizes are tied to theirs."""
    ids = dict.fromkeys(width for info in infos for width in size_class(topology, info.width.id))
    return tuple(topology.widths[width] for width in ids if topology.widths[width].frozen is None)


def _refuse_frozen(target: Target) -> None:
    if not target.widths:
        raise Refused(f"the output of {target.name!r} has no width: its size is fixed")
    info = target.widths[0]
    raise Refused(
        f"{target.name!r} makes {info.name} ({info.size} units), which may not change: {info.frozen}; "
        "`netgrow inspect` lists the widths that may"
    )


def units_of(topology: Topology, chosen: Sequence[Target], indices: Sequence[int]) -> dict[int, list[int]]:
    """By width, the units at these indices of each target's output. Raises UsageError."""
    picked: dict[int, set[int]] = {}
    for target in chosen:
        size = target.layout.size
        wrong = [index for index in indices if not 0 <= index < size]
        if wrong:
            raise UsageError(f"--units {wrong[0]}: {target.name!r} has units 0 to {size - 1}")
        for index in indices:
            holders = [
                (info, int(labels[index]))
                for info in target.widths
                for labels in occurrences(target.layout, info.width.id)
                if labels[index] >= 0
            ]
            if len({info.width.id for info, _ in holders}) > 1:
                listed = ", ".join(f"--width '{info.name}' ({info.size})" for info, _ in holders)
                raise UsageError(
                    f"index {index} of {target.name!r}, {topology.text(target.layout)}, lies in several widths; "
                    f"choose one: {listed}"
                )
            if not holders:
                raise Refused(f"index {index} of {target.name!r} belongs to no width: its place is fixed")
            info, unit = holders[0]
            if info.frozen is not None:
                raise Refused(
                    f"{info.name} ({info.size} units) may not change: {info.frozen}; `netgrow inspect` lists the "
                    "widths that may"
                )
            picked.setdefault(info.width.id, set()).add(unit)
    return {width: sorted(units) for width, units in picked.items()}


def size_class(topology: Topology, width: int, strict: bool = True) -> list[int]:
    """The widths whose sizes code ties to this one's, unit for unit, itself first.

    strict: by what operations need only; else also by numbers that a module keeps for several, as far as they may
    change.
    """
    found = [width]
    for current in found:
        for tie in topology.ties:
            if (strict and not tie.strict) or len({axis_form(piece) for piece in tie.pieces}) > 1:
                continue  # (sums of several widths that must be equal: see `keeping_ties`)
            rows = [[leaf.id for leaf in leaves(piece)] for piece in tie.pieces]
            for column in zip(*rows, strict=True):
                if current in column:
                    more = [other for other in dict.fromkeys(column) if other not in found]
                    found.extend(other for other in more if topology.widths[other].frozen is None)
    return found


def keeping_ties(
    topology: Topology, counts: Mapping[int, int], sign: int = 1, *, strict: bool = True
) -> dict[int, int]:
    """By width, how many units come (sign 1) or go (-1) so that all sizes that code ties stay equal.

    counts: what is wanted. Others follow: those of the same class by the same count, and where parts of unlike
    make must be equal (the halves of a concatenation that is cut in two; heads times their size, and the stream)
    a free width of a part that lags behind: one that nothing sees as a whole if possible, the largest of them.
    Where no whole number does, the plan refuses; or, for ties that are not strict, says so.
    """
    ties = [tie for tie in topology.ties if tie.strict or not strict]
    found: dict[int, int] = {}
    for width, count in counts.items():
        found.update(dict.fromkeys(size_class(topology, width, strict), count))
    found.update(counts)
    asked = max((1 + count / topology.widths[width].size for width, count in counts.items()), default=1.0)
    for _ in range(2 * len(ties) + 1):
        lagging = next((gap for tie in ties if (gap := _lagging(topology, tie, found, sign))), None)
        if lagging is None:
            return found
        width, more = lagging
        if sign > 0 and found.get(width, 0) + more > _RUNAWAY * asked * topology.widths[width].size:
            break
        for other in size_class(topology, width, strict):
            found[other] = found.get(other, 0) + more
    # Ties drive each other up or down: no sizes of this kind satisfy all of them.
    return found if strict else keeping_ties(topology, counts, sign)


def _lagging(topology: Topology, tie: Tie, counts: Mapping[int, int], sign: int) -> tuple[int, int] | None:
    """A width of a part that falls behind the others of a tie, and how many units it lacks."""
    sizes = {width: topology.widths[width].size + sign * count for width, count in counts.items()}
    after = [new_size(piece, sizes) for piece in tie.pieces]
    furthest = max(after) if sign > 0 else min(after)
    for piece, size in zip(tie.pieces, after, strict=True):
        free = [leaf for leaf in leaves(piece) if topology.widths[leaf.id].frozen is None]
        ranked = sorted(set(free), key=lambda leaf: (bool(topology.widths[leaf.id].effects), -leaf.size))
        for leaf in sorted(ranked, key=lambda leaf: leaf.id in counts):
            now = sizes.get(leaf.id, leaf.size)
            step = new_size(piece, {**sizes, leaf.id: now + 1}) - size
            lacking = abs(furthest - size)
            if lacking and lacking % step == 0 and now + sign * (lacking // step) > 0:
                return leaf.id, lacking // step
    return None
