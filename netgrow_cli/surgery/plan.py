"""The plan, from shapes alone: for every tensor, where each index comes from and what is done to it.

Roles decide: an axis that *produces* units gathers, and its fresh entries start as the parameter does; one
value *per unit* likewise; an axis that *consumes* shares what copies pass on, and fresh units start at zero.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import Refused
from netgrow_cli.surgery.change import WidthChange, shares
from netgrow_cli.surgery.effects import Verdict, judge
from netgrow_cli.surgery.fresh import Fill, Place, states_at_inputs
from netgrow_cli.topology.layout import IndexMap, Layout, index_map, leaves, new_size, occurrences
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.ops.base import Start
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Effect, Site, Topology

EDITABLE = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Sharing:
    """One level of sharing along an axis: what stands at `first` is shared between `first` and `second`."""

    first: IndexMap
    second: IndexMap
    noise: float


@dataclasses.dataclass(frozen=True)
class Absorbing:
    """What stands at old indices `gone`, times `factor`, is added to what stands at old indices `kept`."""

    gone: IndexMap
    kept: IndexMap
    factor: IndexMap


@dataclasses.dataclass(frozen=True)
class Averaging:
    """What comes to stand at new indices `places` is the mean over the rows of `sources`, old indices."""

    places: IndexMap
    sources: IndexMap


@dataclasses.dataclass(frozen=True)
class AxisEdit:
    """What happens along one axis of one tensor; all positions but those of `Absorbing` are new ones.

    index: for each new index the old one, or -1.
    start, blank, mean: fresh indices that makers of units start as the parameter does, at zero, or at the mean.
    mirror: (from, to) fresh indices that are equal. zero, random: fresh indices that readers start at zero or
        at random. opposed: (from, to) indices that readers start with opposite random values.
    absorb: what readers take over of merged units. pooled: whose gradients makers add up for them.
    scale: for each new index what a copy's own gradient is scaled by (optimizer state).
    """

    axis: int
    index: IndexMap
    start: IndexMap
    blank: IndexMap
    mean: tuple[Averaging, ...]
    mirror: tuple[IndexMap, IndexMap]
    zero: IndexMap
    random: IndexMap
    opposed: tuple[IndexMap, IndexMap]
    sharing: tuple[Sharing, ...]
    absorb: tuple[Absorbing, ...]
    pooled: tuple[Absorbing, ...]
    scale: np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class TensorEdit:
    """A tensor's whole edit.

    start: what fresh entries start as. gain: afterwards, w becomes gain (w + offset) - offset.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    axes: tuple[AxisEdit, ...]
    start: Start
    init: str
    gain: float = 1.0
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class CodeChange:
    """A number in model code (or its configuration) that must follow the new widths.

    source: file and line; attribute: the module's attribute that holds it, which `fit` sets.
    """

    layer: str
    what: str
    before: float | int | str
    after: float | int | str
    source: str | None
    attribute: str | None = None


@dataclasses.dataclass(frozen=True)
class SpecChange:
    """A number in the spec that follows: a site's new text, or a setting's new value."""

    node: str
    what: str
    value: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a set of changes does.

    edits: by canonical tensor name. sizes: new sizes by width id. rounds: some value is rounded in the
    checkpoint's dtype (gains, means), so that equality holds to its precision only. lossy: why not exact.
    torn: numbers of the model's code that would need several values, so that it cannot host the result.
    zero_units: what was taken for granted of dropped units (see `make_plan`).
    """

    changes: tuple[WidthChange, ...]
    edits: Mapping[str, TensorEdit]
    sizes: Mapping[int, int]
    code: tuple[CodeChange, ...]
    spec: tuple[SpecChange, ...]
    rounds: bool
    lossy: tuple[str, ...]
    zero_units: bool = False
    torn: tuple[str, ...] = ()

    def shape(self, topology: Topology, info: TensorInfo) -> tuple[int, ...]:
        """A tensor's shape afterwards."""
        edit = self.edits.get(topology.aliases[info.name])
        return edit.after if edit else info.shape


def make_plan(
    topology: Topology,
    tensors: Mapping[str, TensorInfo],
    changes: Sequence[WidthChange],
    *,
    zero_units: bool = False,
) -> Plan:
    """The plan of several changes of different widths. Raises Refused.

    zero_units: all dropped units are known to be zero where norms read them.
    """
    by_width = {change.width: change for change in changes}
    sizes = {change.width: change.after for change in changes}
    _check_allowed(topology, changes)
    _check_ties(topology, sizes)
    verdicts = _judge_all(topology, changes, zero_units)
    fills = {change.width: _choose_fill(topology, change, verdicts[change.width]) for change in changes}
    gains, eps = _compensations(topology, verdicts, sizes)
    edits = _tensor_edits(topology, tensors, by_width, sizes, fills, gains)
    code, spec = _following_numbers(topology, sizes, eps)
    lossy = tuple(verdict.why for pairs in verdicts.values() for _, verdict in pairs if verdict.answer == "lossy")
    rounds = bool(gains) or any(fill == "mean" for fill in fills.values()) or any(c.absorbed for c in changes)
    return Plan(tuple(changes), edits, sizes, code, spec, rounds, lossy, zero_units, _torn(topology, sizes))


# -- may it be done --------------------------------------------------------------------------------


def _check_allowed(topology: Topology, changes: Sequence[WidthChange]) -> None:
    for change in changes:
        info = topology.widths[change.width]
        if info.frozen is not None and change.kind != "permute":
            raise Refused(f"{info.name} ({info.size} units) may not change: {info.frozen}")
        if change.after == 0:
            raise Refused(f"{info.name}: that would leave no unit; keep at least one")


def _check_ties(topology: Topology, sizes: Mapping[int, int]) -> None:
    for tie in topology.ties:
        if not tie.strict:
            continue
        after = {new_size(piece, sizes) for piece in tie.pieces}
        if len(after) > 1:
            names = ", ".join(
                f"{topology.text(piece)} ({piece.size} -> {new_size(piece, sizes)})" for piece in tie.pieces
            )
            raise Refused(f"sizes must stay equal, because {tie.why}: {names}; change them by the same count")


def _torn(topology: Topology, sizes: Mapping[int, int]) -> tuple[str, ...]:
    """Numbers that a module keeps for several widths which do not change alike."""
    found = []
    for tie in topology.ties:
        after = dict.fromkeys(new_size(piece, sizes) for piece in tie.pieces)
        if not tie.strict and len(after) > 1:
            found.append(f"{tie.why} in the model's code, and would have to be {' and '.join(map(str, after))}")
    return tuple(found)


def _judge_all(
    topology: Topology, changes: Sequence[WidthChange], zero_units: bool
) -> dict[int, list[tuple[Effect, Verdict]]]:
    verdicts: dict[int, list[tuple[Effect, Verdict]]] = {}
    for change in changes:
        pairs = [
            (effect, judge(topology, effect, change, zero_units)) for effect in topology.widths[change.width].effects
        ]
        for _, verdict in pairs:
            if verdict.answer == "refused":
                name = topology.widths[change.width].name
                raise Refused(f"{change.kind} of {name}: {verdict.why}; what works: {verdict.instead}")
        verdicts[change.width] = pairs
    return verdicts


def _choose_fill(topology: Topology, change: WidthChange, verdicts: Iterable[tuple[Effect, Verdict]]) -> Fill:
    """How producers make fresh units, checked against what every norm over the width needs."""
    wanted: dict[Fill, str] = {v.fill: e.node for e, v in verdicts if v.fill is not None}
    if not change.fresh or not wanted:
        return "random"
    name = topology.widths[change.width].name
    if len(wanted) > 1:
        raise Refused(
            f"expand of {name}: {wanted['zero']!r} needs fresh units to be zero, {wanted['mean']!r} needs them "
            "to be the mean of the others; what works: `split` with all units"
        )
    if change.mirrors:
        raise Refused(
            f"expand of {name}: antisymmetric pairs are not zero where {next(iter(wanted.values()))!r} reads "
            "them; what works: the default --init"
        )
    fill = next(iter(wanted))
    states = states_at_inputs(topology, change.width, fill)
    for effect, verdict in verdicts:
        if verdict.fill is not None and states.get((effect.node, False)) != verdict.fill:
            raise Refused(
                f"expand of {name}: what lies between its producers and {effect.node!r} does not keep fresh "
                f"units at {'zero' if fill == 'zero' else 'the mean of the others'}; "
                "what works: `split` with all units"
            )
    return fill


def _compensations(
    topology: Topology,
    verdicts: Mapping[int, Sequence[tuple[Effect, Verdict]]],
    sizes: Mapping[int, int],
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """By tensor, the (factor, offset) of a gain; by node, its eps before and after."""
    gains: dict[str, tuple[float, float]] = {}
    eps: dict[str, tuple[float, float]] = {}
    for pairs in verdicts.values():
        for effect, verdict in pairs:
            if verdict.answer != "compensate":
                continue
            node = topology.graph.node(effect.node)
            before, after = effect.layout.size, new_size(effect.layout, sizes)
            offset = node.attrs.get("offset", 0.0)
            tensor = topology.aliases[node.params["weight"]]
            if tensor in gains and gains[tensor] != (math.sqrt(before / after), offset):
                raise Refused(f"{tensor} is the gain of several norms that would need different factors")
            gains[tensor] = (math.sqrt(before / after), offset)
            old = OPS[node.op].attr(node, "eps")
            eps[node.name] = (old, old * before / after)
    return gains, eps


# -- what happens to each tensor ---------------------------------------------------------------------


def _tensor_edits(
    topology: Topology,
    tensors: Mapping[str, TensorInfo],
    changes: Mapping[int, WidthChange],
    sizes: Mapping[int, int],
    fills: Mapping[int, Fill],
    gains: Mapping[str, tuple[float, float]],
) -> dict[str, TensorEdit]:
    roles = _roles(topology)
    starts = _starts(topology)
    states = {width: states_at_inputs(topology, width, fill) for width, fill in fills.items()}
    consumers = _consumers(topology)
    edits: dict[str, TensorEdit] = {}
    for name, layouts in topology.tensors.items():
        if topology.aliases[name] != name:
            continue
        axes = tuple(
            _axis_edit(topology, name, axis, layout, changes, sizes, fills, roles, states, consumers)
            for axis, layout in enumerate(layouts)
            if any(leaf.id in changes for leaf in leaves(layout))
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


def _axis_edit(
    topology: Topology,
    tensor: str,
    axis: int,
    layout: Layout,
    changes: Mapping[int, WidthChange],
    sizes: Mapping[int, int],
    fills: Mapping[int, Fill],
    roles: Mapping[tuple[str, int, int], set[Role]],
    states: Mapping[int, Mapping[Place, str]],
    consumers: Mapping[tuple[str, int, int], Sequence[Place]],
) -> AxisEdit:
    sources = {width: change.sources for width, change in changes.items()}
    index = index_map(layout, sources)
    length = len(index)
    start, blank, zero, random = (np.zeros(length, dtype=bool) for _ in range(4))
    mean: list[Averaging] = []
    mirror: list[tuple[IndexMap, IndexMap]] = []
    opposed: list[tuple[IndexMap, IndexMap]] = []
    sharing: list[Sharing] = []
    absorb: list[Absorbing] = []
    pooled: list[Absorbing] = []
    scale = np.ones(length)
    for width in dict.fromkeys(leaf.id for leaf in leaves(layout) if leaf.id in changes):
        change, fill = changes[width], fills[width]
        found = roles.get((tensor, axis, width), {Role.DATA})
        consumes = Role.CONSUMES in found
        makes = bool(found & {Role.PRODUCES, Role.PER_UNIT})
        safe = consumes and all(states[width].get(place) == "zero" for place in consumers[tensor, axis, width])
        if consumes and makes:
            _check_tied(topology, change, tensor, fill, safe)
        for labels in occurrences(layout, width, sizes):
            fresh = np.isin(labels, np.asarray(change.fresh, dtype=np.int64))
            if consumes:
                sharing.extend(_sharing(labels, change))
            else:
                mirror.extend(_pairs(labels, change.mirrors))
                scale *= _copy_scale(labels, change)
            if consumes and not safe:
                zero |= fresh
                if not makes:
                    opposed.extend(_pairs(labels, change.mirrors))
            elif consumes and not makes:
                random |= fresh
            elif Role.PRODUCES not in found or fill == "random":
                start |= fresh
            elif fill == "zero":
                blank |= fresh
            else:
                mean.extend(_averaging(layout, sources, change, np.flatnonzero(fresh)))
        if change.absorbed:
            (absorb if consumes else pooled).extend(_absorbing(layout, width, change))
    return AxisEdit(
        axis=axis,
        index=index,
        start=np.flatnonzero(start & ~zero),
        blank=np.flatnonzero(blank),
        mean=tuple(mean),
        mirror=_joined(mirror),
        zero=np.flatnonzero(zero),
        random=np.flatnonzero(random),
        opposed=_joined(opposed),
        sharing=tuple(sharing),
        absorb=tuple(absorb),
        pooled=tuple(pooled),
        scale=scale,
    )


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
    """By unit, the indices at which it stands, in order."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    groups = np.split(order, cuts)
    return {int(labels[group[0]]): group for group in groups if len(group)}


def _pairs(labels: IndexMap, pairs: Sequence[tuple[int, int]]) -> list[tuple[IndexMap, IndexMap]]:
    if not pairs:
        return []
    places = _places(labels)
    return [(places[first], places[second]) for first, second in pairs]


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
            levels[level].append((places[first], places[second]))
    return [Sharing(*_joined(levels[level]), change.noise) for level in sorted(levels)]


def _copy_scale(labels: IndexMap, change: WidthChange) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Each copy's share at the indices where it stands, 1 elsewhere."""
    share = np.ones(change.after + 1)
    for group in change.copies.values():
        share[group] = shares(len(group))
    return share[labels]


def _absorbing(layout: Layout, width: int, change: WidthChange) -> list[Absorbing]:
    found = []
    for labels in occurrences(layout, width):
        places = _places(labels)
        gone = [places[entry[0]] for entry in change.absorbed]
        kept = [places[entry[1]] for entry in change.absorbed]
        factor = [np.full(len(places[entry[0]]), entry[2]) for entry in change.absorbed]
        found.append(Absorbing(np.concatenate(gone), np.concatenate(kept), np.concatenate(factor)))
    return found


def _averaging(
    layout: Layout, sources: Mapping[int, Sequence[int]], change: WidthChange, places: IndexMap
) -> list[Averaging]:
    """For each old unit, where the fresh places would come from if fresh units copied that one."""
    rows = []
    for unit in range(change.before):
        filled = tuple(unit if source < 0 else source for source in change.sources)
        rows.append(index_map(layout, {**sources, change.width: filled})[places])
    found = np.stack(rows)
    whole = (found >= 0).all(0)  # (elsewhere another factor of the axis is fresh too)
    return [Averaging(places[whole], found[:, whole])] if whole.any() else []


# -- numbers that follow -----------------------------------------------------------------------------


def _following_numbers(
    topology: Topology, sizes: Mapping[int, int], eps: Mapping[str, tuple[float, float]]
) -> tuple[tuple[CodeChange, ...], tuple[SpecChange, ...]]:
    code: list[CodeChange] = []
    spec: list[SpecChange] = []
    for site in topology.sites:
        before, after = _site_value(site, {}), _site_value(site, sizes)
        if before == after:
            continue
        if site.mark is not None:
            spec.append(SpecChange(site.node, site.what, str(after)))
        if site.in_code:
            held = topology.graph.node(site.node).code.get(site.what)
            code.append(CodeChange(_shown(topology, site.node), site.what, before, after, site.source, held))
    for node, (old, new) in eps.items():
        spec.append(SpecChange(node, "eps", _yaml_float(new)))
        named = topology.graph.node(node)
        code.append(CodeChange(node, "eps", old, new, named.source, named.code.get("eps")))
    return tuple(code), tuple(spec)


def _yaml_float(value: float) -> str:
    """A number that YAML 1.1 reads as one: `5e-06` would be a word there."""
    mantissa, exponent, power = repr(value).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{exponent}{power}"


def _shown(topology: Topology, name: str) -> str:
    """Hidden nodes are shown as what they slice."""
    node = topology.graph.node(name)
    return node.inputs[0].node if node.hidden else name


def _site_value(site: Site, sizes: Mapping[int, int]) -> int | str:
    size = new_size(site.span, sizes)
    if not site.ranged:
        return size
    start = sum(new_size(layout, sizes) for layout in site.lead)
    return f"{start}:{start + size}"
