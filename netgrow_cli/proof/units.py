"""A piece by the units that changed alone.

Where a piece reads a width unit by unit and its readers add up what units give, each unit has a share in the result
that no other has a part in. Units whose numbers folding back found to be the same bytes give the same in both networks;
so it is enough to run the units that are fresh, copied or copied from: what these give must be the same sum. That is
said of how the piece is built, so one piece of each form is run with all of its units as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from netgrow_cli.checkpoint.numbers import stored_dtype
from netgrow_cli.checkpoint.source import ArraySource, Source
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.pieces import Cut, Edited, Piece, Units, settings
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.topology.graph import Node, Ref
from netgrow_cli.topology.layout import IndexMap, Width, leaves
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import elementwise
from netgrow_cli.topology.rows import as_tensor, stored_blocks
from netgrow_cli.topology.solve import Topology

_ADDING = ("linear", "linear_io", "conv1d", "conv2d", "conv3d")
"""Operations that add up what units give, each times its own weights."""

_UNIT_BY_UNIT = {op.name for op in elementwise.OPS if op.name != "root_scale"} | {"batch_norm"}

_READ = 1 << 17
"""Elements that are read at once, where few of each row are wanted."""


def changed_units(change: WidthChange) -> Units | None:
    """The units of a width in which the networks may differ; None where some are gone that nothing stands in for."""
    if change.kind == "permute":
        return None
    taken = {entry[0] for entry in change.absorbed} | {entry[1] for entry in change.absorbed}
    if set(change.dropped) - taken:
        return None
    old = np.array(sorted(taken | set(change.copies)), dtype=np.int64)
    return Units(old, np.flatnonzero((change.index < 0) | np.isin(change.index, old)))


@frozen
class Narrowed:
    """A piece of which only some units of one width need be run.

    axes: by tensor, the axis that the width is on. form: the same for pieces that are built alike and change alike.
    """

    piece: Piece
    units: Units
    axes: dict[str, int]
    form: Hashable

    def networks(self, old: Network, new: Network) -> tuple[Network, Network] | None:
        """The two networks with those units alone; None where they cannot be read so."""
        if old.sources is None or new.sources is None:
            return None
        return self._one(old, self.units.old), self._one(new, self.units.new)

    def _one(self, network: Network, units: IndexMap) -> Network:
        whole = network.sources
        assert whole is not None

        def source(name: str) -> Source:
            found = whole(name)
            return ArraySource(_taken(found, self.axes[name], units), found.dtype) if name in self.axes else found

        def read(name: str) -> Any:
            return as_tensor(found := source(name), found.whole()) if name in self.axes else network.read(name)

        return dataclasses.replace(network, read=read, sources=source)


def narrowed(found: Cut, new: Topology, piece: Piece, edited: Edited) -> Narrowed | None:
    """The piece by its changed units; None where units have a part in each other, or their bytes are not known."""
    old = found.topology
    ids = {identity: info.name for identity, info in old.widths.items() if info.name in edited.widths}
    values = [old.value(ref) for node in piece.nodes for ref in (*node.inputs, Ref(node.name))]
    held = {leaf.id for value in values for axis in value.axes for leaf in leaves(axis)} & set(ids)
    if len(held) != 1:
        return None
    width = old.widths[held.pop()].width
    units = edited.units.get(ids[width.id])
    if units is None or not all(_is_separate(found, new, piece, node, width) for node in piece.nodes):
        return None
    names = dict.fromkeys(name for node in piece.nodes for name in node.params.values())
    axes: dict[str, int] = {}
    for name in names:
        layouts = old.tensors[name]
        on = [axis for axis, layout in enumerate(layouts) if width in set(leaves(layout))]
        if old.aliases[name] in edited.tensors and old.aliases[name] not in edited.confirmed:
            return None
        if not on:
            continue
        if len(on) > 1 or on[0] > 1 or layouts[on[0]] != width:
            return None
        axes[name] = on[0]
    return Narrowed(piece, units, axes, _form(old, new, piece, axes, units))


def _is_separate(found: Cut, new: Topology, piece: Piece, node: Node, width: Width) -> bool:
    """Whether the node treats each unit of a width alone, or makes it, or adds up what its units give."""
    old = found.topology
    other = new.graph.node(found.names[node.name])
    if settings(node, old.graph) != settings(other, new.graph) or len(old.values[node.name]) != 1:
        return False
    reads = [_holds(old, ref, width) for ref in node.inputs]
    makes = _holds(old, Ref(node.name), width)
    if None in reads or makes is None:
        return False
    if node.op in _UNIT_BY_UNIT:
        return bool(makes)
    if node.op not in _ADDING or node.attrs.get("groups", 1) != 1 or any(reads) == makes:
        return False
    return bool(makes) or not any(Ref(node.name) in reader.inputs for reader in piece.nodes)


def _holds(topology: Topology, ref: Ref, width: Width) -> bool | None:
    """Whether an axis of a value is the width; None where it is a part of one, or two are."""
    axes = [axis for axis in topology.value(ref).axes if width in set(leaves(axis))]
    if not axes:
        return False
    return True if axes == [width] else None


def _form(old: Topology, new: Topology, piece: Piece, axes: dict[str, int], units: Units) -> Hashable:
    places = {Ref(node.name): place for place, node in enumerate(piece.nodes)}
    border: dict[Ref, int] = {}
    lines = []
    for node in piece.nodes:
        read = tuple(
            (True, places[ref]) if ref in places else (False, border.setdefault(ref, len(border)))
            for ref in node.inputs
        )
        tensors = tuple(
            (role, _shape(old, name), _shape(new, name), axes.get(name)) for role, name in sorted(node.params.items())
        )
        lines.append((node.op, repr(settings(node, old.graph)), read, tensors))
    shapes = tuple(old.value(ref).shape for ref in border)
    return tuple(lines), shapes, units.old.tobytes(), units.new.tobytes()


def _shape(topology: Topology, name: str) -> tuple[int, ...]:
    return tuple(axis.size for axis in topology.tensors[name])


def _taken(source: Source, axis: int, units: IndexMap) -> Any:
    """Some entries along the first or second axis of a tensor, as they are stored."""
    shape = source.shape
    if not len(units):
        return np.empty((*shape[:axis], 0, *shape[axis + 1 :]), stored_dtype(source.dtype))
    if axis == 0:
        runs = np.split(units, np.flatnonzero(np.diff(units) != 1) + 1)
        return np.concatenate([source.rows(int(run[0]), int(run[-1]) + 1) for run in runs])
    found = np.empty((shape[0], len(units), *shape[2:]), stored_dtype(source.dtype))
    run = slice(int(units[0]), int(units[-1]) + 1)
    wanted = run if run.stop - run.start == len(units) else units
    for start, block in stored_blocks(source, max(1, min(shape[0], _READ // math.prod(shape[1:])))):
        found[start : start + len(block)] = block[:, wanted]
    return found
