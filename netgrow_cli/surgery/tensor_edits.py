"""What becomes of each tensor: for every axis, where each index comes from and what is done to it.

Roles decide: an axis that *produces* units gathers, and its fresh entries start as the parameter does; one
value *per unit* likewise; an axis that *consumes* shares what copies pass on, and fresh units start at zero.
Rows that carry a sum over products of activations (`carriers`) are treated as columns that read it would be.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.carriers import Carriers, Factors
from netgrow_cli.surgery.change import WidthChange, shares
from netgrow_cli.surgery.feeds import Flags
from netgrow_cli.surgery.fresh import Fill, Place, states_at_inputs
from netgrow_cli.topology.layout import IndexMap, Layout, index_map, leaves, new_size, occurrences
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.ops.base import Start
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Topology

EDITABLE = ("F64", "F32", "F16", "BF16")


@frozen
class Sharing:
    """One level of sharing along an axis: what stands at `first` is shared between `first` and `second`."""

    first: IndexMap
    second: IndexMap
    noise: float


@frozen
class Absorbing:
    """What stands at old indices `gone`, times `factor`, is added to what stands at old indices `kept`."""

    gone: IndexMap
    kept: IndexMap
    factor: IndexMap


@frozen
class Averaging:
    """What comes to stand at new indices `places` is the mean over the rows of `sources`, old indices."""

    places: IndexMap
    sources: IndexMap


@frozen
class AxisEdit:
    """What happens along one axis of one tensor; all positions but those of `Absorbing` are new ones.

    index: for each new index the old one, or -1.
    start, blank, mean: fresh indices that makers of units start as the parameter does, at zero, or at the mean.
    mirror: (from, to) fresh indices that are equal, one width after the other. zero, random: fresh indices that
        readers start at zero or at random. opposed: (from, to) indices that readers start with opposite values.
    absorb: what readers take over of merged units. pooled: whose gradients makers add up for them.
    carried: those of `zero` that are rows. gain: for each new index what rows are multiplied by.
    scale: for each new index what a copy's own gradient is scaled by (optimizer state).
    """

    axis: int
    index: IndexMap
    start: IndexMap
    blank: IndexMap
    mean: tuple[Averaging, ...]
    mirror: tuple[tuple[IndexMap, IndexMap], ...]
    zero: IndexMap
    random: IndexMap
    opposed: tuple[IndexMap, IndexMap]
    sharing: tuple[Sharing, ...]
    absorb: tuple[Absorbing, ...]
    pooled: tuple[Absorbing, ...]
    scale: Factors
    carried: IndexMap
    gain: Factors

    @functools.cached_property
    def fresh(self) -> IndexMap:
        """New indices that come from no old one."""
        return np.flatnonzero(self.index < 0)

    @functools.cached_property
    def unsummed(self) -> IndexMap:
        """New indices whose numbers are not shares that folding back adds to others'."""
        alone = np.ones(len(self.index), dtype=bool)
        for sharing in self.sharing:
            alone[sharing.second] = False
        return np.flatnonzero(alone)

    @functools.cached_property
    def kept(self) -> IndexMap:
        """New indices that hold an old one's numbers; of those that share them, the one that they are summed in."""
        return self.unsummed[self.index[self.unsummed] >= 0]

    @functools.cached_property
    def lone(self) -> IndexMap:
        """Of `zero`, those that have no opposite."""
        return self.zero[~np.isin(self.zero, np.concatenate(self.opposed))]


@frozen
class TensorEdit:
    """A tensor's whole edit.

    start: what fresh entries start as. gain: w becomes gain (w + offset) - offset, before copies share it.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    axes: tuple[AxisEdit, ...]
    start: Start
    init: str
    gain: float = 1.0
    offset: float = 0.0

    @property
    def rescales(self) -> bool:
        """Whether values that are kept are multiplied by something."""
        return self.gain != 1.0 or any(bool((axis.gain != 1.0).any()) for axis in self.axes)


@frozen
class Decisions:
    """What was decided on the changes: by width, how producers make fresh units; by tensor, the (factor, offset) of a
    norm's gain; which rows carry."""

    changes: Mapping[int, WidthChange]
    sizes: Mapping[int, int]
    fills: Mapping[int, Fill]
    gains: Mapping[str, tuple[float, float]]
    carriers: Carriers


@frozen
class _Network:
    """What is known of the tensors' axes: their roles, and by reader what it finds at fresh units."""

    topology: Topology
    roles: Mapping[tuple[str, int, int], set[Role]]
    states: Mapping[int, Mapping[Place, str]]
    consumers: Mapping[tuple[str, int, int], Sequence[Place]]


def tensor_edits(topology: Topology, tensors: Mapping[str, TensorInfo], decisions: Decisions) -> dict[str, TensorEdit]:
    """By canonical name, the edits of all tensors that change. Raises Refused."""
    changes, sizes, gains = decisions.changes, decisions.sizes, decisions.gains
    starts = _starts(topology)
    states = {width: states_at_inputs(topology, width, fill) for width, fill in decisions.fills.items()}
    network = _Network(topology, _roles(topology), states, _consumers(topology))
    edits: dict[str, TensorEdit] = {}
    for name, layouts in topology.tensors.items():
        if topology.aliases[name] != name:
            continue
        axes = tuple(
            _axis_edit(network, decisions, name, axis, layout)
            for axis, layout in enumerate(layouts)
            if any(leaf.id in changes for leaf in leaves(layout)) or (name, axis) in decisions.carriers.factors
        )
        if not axes and name not in gains:
            continue
        if tensors[name].dtype not in EDITABLE:
            raise Refused(
                f"{name} holds {tensors[name].dtype} values, which cannot be widened or shared; "
                f"convert the checkpoint to one of {', '.join(EDITABLE)} first"
            )
        gain, offset = gains.get(name, (1.0, 0.0))
        touched = [changes[leaf.id] for layout in layouts for leaf in leaves(layout) if leaf.id in changes]
        init = next((change.init for change in touched if change.fresh), "match")
        edits[name] = TensorEdit(
            name=name,
            before=tensors[name].shape,
            after=tuple(new_size(layout, sizes) for layout in layouts),
            axes=axes,
            start=starts.get(name, "random"),
            init=init,
            gain=gain,
            offset=offset,
        )
    return edits


def _roles(topology: Topology) -> dict[tuple[str, int, int], set[Role]]:
    """By tensor, axis and width: what the axis does with it."""
    roles: dict[tuple[str, int, int], set[Role]] = collections.defaultdict(set)
    for use in topology.uses:
        for part, role in use.parts:
            for leaf in leaves(part):
                roles[use.tensor, use.axis, leaf.id].add(role)
    return roles


def _starts(topology: Topology) -> dict[str, Start]:
    starts: dict[str, Start] = {}
    for node in topology.graph.nodes:
        for name, tensor in node.params.items():
            param = OPS[node.op].param(name)
            if param is not None:
                starts.setdefault(topology.aliases[tensor], param.start)
    return starts


def _consumers(topology: Topology) -> dict[tuple[str, int, int], list[Place]]:
    """By tensor, axis and width: where the units are that are read with it."""
    consumers: dict[tuple[str, int, int], list[Place]] = collections.defaultdict(list)
    for use in topology.uses:
        for part, role in use.parts:
            if role is Role.CONSUMES:
                for leaf in leaves(part):
                    consumers[use.tensor, use.axis, leaf.id].append((use.node, topology.reads_inside(use)))
    return consumers


def _axis_edit(network: _Network, decisions: Decisions, tensor: str, axis: int, layout: Layout) -> AxisEdit:
    changes, sizes = decisions.changes, decisions.sizes
    sources = {leaf.id: changes[leaf.id].index for leaf in leaves(layout) if leaf.id in changes}
    index = index_map(layout, sources)
    length = len(index)
    alike = index_map(layout, {width: np.maximum(units, 0) for width, units in sources.items()})
    factor = decisions.carriers.factors.get((tensor, axis))
    start, blank, zero, random, carried = (np.zeros(length, dtype=bool) for _ in range(5))
    mean: list[Averaging] = []
    mirror: list[tuple[IndexMap, IndexMap]] = []
    opposed: list[tuple[IndexMap, IndexMap]] = []
    sharing: list[Sharing] = []
    absorb: list[Absorbing] = []
    pooled: list[Absorbing] = []
    scale, times = _ones(length), np.zeros(length, dtype=np.int64)
    for width in dict.fromkeys(leaf.id for leaf in leaves(layout) if leaf.id in changes):
        change, fill = changes[width], decisions.fills[width]
        found = network.roles.get((tensor, axis, width), {Role.DATA})
        consumes = Role.CONSUMES in found
        makes = bool(found & {Role.PRODUCES, Role.PER_UNIT})
        readers = network.consumers[tensor, axis, width] if consumes else ()
        safe = consumes and all(network.states[width].get(place) == "zero" for place in readers)
        if consumes and makes:
            _check_tied(network.topology, change, tensor, fill, safe)
        reads = np.full(layout.size, consumes) | decisions.carriers.rows.get((tensor, axis, width), False)
        passes = reads[alike]
        for labels in occurrences(layout, width, sizes):
            fresh = np.isin(labels, np.asarray(change.fresh, dtype=np.int64))
            reading, making = np.where(passes, labels, -1), np.where(passes, -1, labels)
            sharing.extend(_sharing(reading, change))
            times += fresh
            mirror.append(_joined(_pairs(making, change.mirrors)))
            scale = scale * _copy_scale(making, change) if change.copies else scale
            if consumes and safe and not makes:
                random |= fresh
                continue
            if not safe:
                zero |= fresh & passes
                carried |= fresh & passes & (not consumes)
                opposed.extend([] if consumes and makes else _pairs(reading, change.mirrors))
            made = fresh & ~(passes & (not safe))
            if Role.PRODUCES not in found or fill == "random":
                start |= made
            elif fill == "zero":
                blank |= made
            else:
                mean.extend(_averaging(layout, sources, change, np.flatnonzero(made)))
        if change.absorbed:
            absorb.extend(_absorbing(layout, width, change, reads))
            pooled.extend(_absorbing(layout, width, change, ~reads))
    return AxisEdit(
        axis=axis,
        index=index,
        start=np.flatnonzero(start & ~zero),
        blank=np.flatnonzero(blank),
        mean=tuple(mean),
        mirror=tuple((a[~carried[a]], b[~carried[a]]) for a, b in mirror),
        zero=np.flatnonzero(zero),
        random=np.flatnonzero(random),
        # (Where two widths are fresh, none of the two cancels alone.)
        opposed=_joined([(a[times[a] < 2], b[times[a] < 2]) for a, b in opposed]),
        sharing=tuple(sharing),
        absorb=tuple(absorb),
        pooled=tuple(pooled),
        scale=scale,
        carried=np.flatnonzero(carried),
        gain=_ones(length) if factor is None else factor[alike],
    )


def _ones(length: int) -> Factors:
    """So many ones, in the memory of a single one: a large network has thousands of axes that nothing scales."""
    return np.broadcast_to(np.float64(1.0), length)


def _check_tied(topology: Topology, change: WidthChange, tensor: str, fill: Fill, safe: bool) -> None:
    """One tensor that makes units and reads them cannot do something else in either place."""
    name = topology.widths[change.width].name
    if change.copies or change.absorbed:
        raise Refused(
            f"{change.kind} of {name}: {tensor} makes these units and reads them with "
            "the same numbers (tied), so it cannot copy and share them; what works: expand, or untie them"
        )
    if change.fresh and fill == "mean" and not safe:
        raise Refused(
            f"{change.kind} of {name}: a layer_norm needs its new units to be the mean of the others, and {tensor}, "
            "which makes them, also reads them (tied); what works: untie them"
        )


def _places(labels: IndexMap) -> dict[int, IndexMap]:
    """By unit (-1 for none), the indices at which it stands, in order."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    groups = np.split(order, cuts)
    return {int(labels[group[0]]): group for group in groups if len(group)}


def _pairs(labels: IndexMap, pairs: Sequence[tuple[int, int]]) -> list[tuple[IndexMap, IndexMap]]:
    places = _places(labels) if pairs else {}
    return [(places[first], places[second]) for first, second in pairs if first in places]


def _joined(pairs: Sequence[tuple[IndexMap, IndexMap]]) -> tuple[IndexMap, IndexMap]:
    if not pairs:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def _sharing(labels: IndexMap, change: WidthChange) -> list[Sharing]:
    """Levels of halving: of k copies the first keeps 1/2, the second 1/4, ..., the last two alike."""
    places = _places(labels) if change.copies else {}
    levels: dict[int, list[tuple[IndexMap, IndexMap]]] = collections.defaultdict(list)
    for group in change.copies.values():
        for level, (first, second) in enumerate(itertools.pairwise(group)):
            if first in places:
                levels[level].append((places[first], places[second]))
    return [Sharing(*_joined(levels[level]), change.noise) for level in sorted(levels)]


def _copy_scale(labels: IndexMap, change: WidthChange) -> Factors:
    """Each copy's share at the indices where it stands, 1 elsewhere."""
    share = np.ones(change.after + 1)
    for group in change.copies.values():
        share[group] = shares(len(group))
    return share[labels]


def _absorbing(layout: Layout, width: int, change: WidthChange, there: Flags) -> list[Absorbing]:
    """What becomes of merged units, by old indices; only at those that are `there`."""
    found = []
    for labels in occurrences(layout, width):
        places = _places(np.where(there, labels, -1))
        if change.absorbed[0][0] not in places:
            continue
        gone = [places[entry[0]] for entry in change.absorbed]
        kept = [places[entry[1]] for entry in change.absorbed]
        factor = [np.full(len(places[entry[0]]), entry[2]) for entry in change.absorbed]
        found.append(Absorbing(np.concatenate(gone), np.concatenate(kept), np.concatenate(factor)))
    return found


def _averaging(
    layout: Layout, sources: Mapping[int, IndexMap], change: WidthChange, places: IndexMap
) -> list[Averaging]:
    """For each old unit, where the fresh places would come from if fresh units copied that one."""
    rows = []
    for unit in range(change.before):
        filled = np.where(change.index < 0, unit, change.index)
        rows.append(index_map(layout, {**sources, change.width: filled})[places])
    found = np.stack(rows)
    whole = (found >= 0).all(0)  # (elsewhere another factor of the axis is fresh too)
    return [Averaging(places[whole], found[:, whole])] if whole.any() else []
