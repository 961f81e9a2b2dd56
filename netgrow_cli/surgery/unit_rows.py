"""What units of a width are made of: their numbers in all tensors that make them, a few units at a time.

Each unit is one vector of all that it grows with (rows, biases) and one of all that must be the same for its multiples
(gains, slopes). Where a tensor reads units that are merged themselves, their columns are added up first, as a merge
will do it: copies have columns of their own noise, which is none in the sum.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.checkpoint.dtypes import is_float
from netgrow_cli.checkpoint.numbers import widen
from netgrow_cli.checkpoint.source import ArraySource, Source, tensor_source
from netgrow_cli.errors import Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery import change
from netgrow_cli.surgery.carriers import find_carriers
from netgrow_cli.surgery.feeds import sums
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import IndexMap, leaves, occurrences
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import AxisUse, Topology

Wide = NDArray[np.float64]

_ELEMENTS = 1 << 20
"""About as many numbers are held as float64 at once."""


@frozen
class Folds:
    """Units of one width that others take over: gone[n] adds factor[n] times itself to kept[n]."""

    gone: IndexMap
    kept: IndexMap
    factor: Wide


@frozen
class _Reading:
    """An axis of a tensor that reads units of a width: the unit at each index."""

    axis: int
    width: int
    labels: IndexMap


class _Stored:
    """A tensor whose axis of units is looked at index by index; one that has another axis first is read once."""

    def __init__(self, source: Source, axis: int) -> None:
        self._source = source
        self._axis = axis
        self._whole: Any = None

    @property
    def dtype(self) -> str:
        return self._source.dtype

    @property
    def inner(self) -> int:
        """How many numbers stand at one index."""
        return int(math.prod(self._source.shape) // max(1, self._source.shape[self._axis]))

    def at(self, places: IndexMap) -> Wide:
        """What stands at some indices, the axis of units first."""
        if self._axis == 0:
            runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
            stored = np.concatenate([self._source.rows(int(run[0]), int(run[-1]) + 1) for run in runs])
        else:
            if self._whole is None:
                self._whole = self._source.whole()
            stored = np.moveaxis(np.take(self._whole, places, self._axis), self._axis, 0)
        return widen(stored, self._source.dtype)


@frozen
class _Part:
    """One axis of one tensor that makes units.

    places: for each unit the indices at which it stands. grows: see `ops.base.Param`. scale: what each index is
    multiplied by on the way to the unit.
    """

    stored: _Stored
    axis: int
    places: IndexMap
    grows: bool
    reads: tuple[_Reading, ...]
    scale: Wide | None = None


class UnitRows:
    """The parts of all units of a width."""

    def __init__(self, network: Network, width: int) -> None:
        self.size = network.solved().widths[width].size
        self._parts = tuple(_parts(network, width))

    @property
    def dtypes(self) -> set[str]:
        """In which the units' numbers are stored."""
        return {part.stored.dtype for part in self._parts}

    def read(self) -> set[int]:
        """The widths whose units these units' rows read."""
        return {reading.width for part in self._parts for reading in part.reads}

    def chunk(self) -> int:
        """How many units are looked at at once."""
        numbers = sum(int(part.places.shape[1]) * part.stored.inner for part in self._parts)
        return max(1, _ELEMENTS // max(1, numbers))

    def vectors(
        self, units: IndexMap, folds: Mapping[int, Folds], blank: Collection[int] = ()
    ) -> tuple[list[Wide], list[Wide]]:
        """What units grow with, and what must be the same: by part, one row a unit. blank: widths that are not read."""
        grown: list[Wide] = []
        same: list[Wide] = []
        for part in self._parts:
            places = part.places[units].reshape(-1)
            values = part.stored.at(places)
            for reading in part.reads:
                axis = reading.axis + (reading.axis < part.axis)  # (the axis of units was put first)
                if reading.width in blank:
                    values = values.copy()
                    _across(values, axis)[reading.labels >= 0] = 0.0
                elif reading.width in folds:
                    values = _folded(values, axis, reading.labels, folds[reading.width])
            if part.scale is not None:
                values = values * part.scale[places].reshape(-1, *[1] * (values.ndim - 1))
            (grown if part.grows else same).append(values.reshape(len(units), -1))
        return grown, same

    def chunks(self) -> Iterator[IndexMap]:
        """All units, as many at a time as are looked at at once."""
        step = self.chunk()
        for start in range(0, self.size, step):
            yield np.arange(start, min(start + step, self.size), dtype=np.int64)


def _across(values: Wide, axis: int) -> Wide:
    return np.moveaxis(values, axis, 0)


def _folded(values: Wide, axis: int, labels: IndexMap, folds: Folds) -> Wide:
    """Columns of units that are merged, added up where the kept one stands."""
    values = values.copy()
    columns, places = _across(values, axis), places_of(labels, int(labels.max()) + 1)
    gone, kept = places[folds.gone], places[folds.kept]
    taken = columns[gone] * folds.factor.reshape(-1, *[1] * columns.ndim)
    columns[gone.reshape(-1)] = 0.0
    np.add.at(columns, kept, taken)
    return values


def places_of(labels: IndexMap, size: int) -> IndexMap:
    """For each unit the indices at which it stands, in order. labels: one of the width's `occurrences`."""
    there = np.flatnonzero(labels >= 0)
    return there[np.argsort(labels[there], kind="stable")].reshape(size, -1)


# -- which tensors they are --------------------------------------------------------------------------------


def _parts(network: Network, width: int) -> Iterator[_Part]:
    topology = network.solved()
    carried = _carried(network, topology, width)
    size = topology.widths[width].size
    affine = _Affine(network, width)
    done: set[tuple[str, int]] = set()
    for use in topology.uses:
        role = _role(use, width)
        if role is None or (use.tensor, use.axis) in done:
            continue
        done.add((use.tensor, use.axis))
        layout = topology.tensors[use.tensor][use.axis]
        param = OPS[topology.graph.node(use.node).op].param(use.param)
        grows = role is Role.PRODUCES or (param is not None and param.grows)
        for labels in occurrences(layout, width):
            kept = np.where(carried.get((use.tensor, use.axis), False), -1, labels)
            if not (kept >= 0).any():
                continue
            reads = tuple(_reads(topology, use))
            for source, scale in affine.parts(use):
                yield _Part(_Stored(source, use.axis), use.axis, places_of(kept, size), grows, reads, scale)


def _role(use: AxisUse, width: int) -> Role | None:
    """What an axis does with units that it makes."""
    found = [role for part, role in use.parts if occurrences(part, width)]
    return next((role for role in found if role in (Role.PRODUCES, Role.PER_UNIT)), None)


def _reads(topology: Topology, use: AxisUse) -> Iterator[_Reading]:
    """What the other axes of a tensor read."""
    for other in topology.uses:
        if other.tensor != use.tensor or other.axis == use.axis or other.node != use.node:
            continue
        layout = topology.tensors[other.tensor][other.axis]
        read = [part for part, role in other.parts if role is Role.CONSUMES]
        for width in dict.fromkeys(leaf.id for part in read for leaf in leaves(part)):
            for labels in occurrences(layout, width):
                yield _Reading(other.axis, width, labels)


def _carried(network: Network, topology: Topology, width: int) -> Mapping[tuple[str, int], Any]:
    """The rows that play the part of readers, where products of activations sum over the width."""
    size = topology.widths[width].size
    if size < 2 or not any(sums(effect) for effect in topology.widths[width].effects):
        return {}
    try:
        found = find_carriers(topology, [change.merge(width, size, [(1, 0, 1.0)])], {width: size - 1})
    except Refused:  # which the plan of a merge says
        return {}
    return {(tensor, axis): flags for (tensor, axis, which), flags in found.rows.items() if which == width}


@frozen
class _Norm:
    """A batch_norm alone behind a layer: what it multiplies each index by, and what it adds to the layer's bias."""

    factor: Wide
    shift: Wide
    layer: Node


class _Affine:
    """Layers with a batch_norm behind them, which is in evaluation one factor and one number for each unit.

    Their rows count as multiplied by it, and their biases as what comes out of it: two filters are the same where
    they are so behind the norm.
    """

    def __init__(self, network: Network, width: int) -> None:
        self._network = network
        self._topology = topology = network.solved()
        self._norms: dict[str, _Norm] = {}  # by the name of the layer, and of the norm
        used = collections.Counter(tensor for node in topology.graph.nodes for tensor in node.params.values())
        readers = collections.Counter(ref.node for node in topology.graph.nodes for ref in node.inputs)
        readers.update(ref.node for ref in topology.graph.outputs)
        for norm in topology.graph.nodes:
            makers = topology.makers.get(width, frozenset())
            if norm.op != "batch_norm" or norm.inputs[0].node not in makers or readers[norm.inputs[0].node] != 1:
                continue
            layer = topology.graph.node(norm.inputs[0].node)
            params = [*norm.params.values(), *layer.params.values()]
            alike = topology.tensors[norm.params["running_mean"]][0]
            made = [use.axis for use in topology.uses if use.node == layer.name and use.param == "weight"
                    and topology.tensors[use.tensor][use.axis] == alike]  # fmt: skip
            plain = set(layer.params) <= {"weight", "bias"} and not OPS[layer.op].derives
            if plain and made and all(used[name] == 1 for name in params):
                self._norms[layer.name] = self._norms[norm.name] = self._norm(norm, layer)

    def parts(self, use: AxisUse) -> list[tuple[Source, Wide | None]]:
        """Where the numbers of a tensor are, and what they are multiplied by; of a norm, and what it shifts, one."""
        norm = self._norms.get(use.node)
        if norm is None:
            return [(self._source(use.tensor), None)]
        mine = norm.layer.name == use.node
        if mine and use.param == "weight":
            return [(self._source(use.tensor), norm.factor)]
        takes_shift = use.param == "bias" if mine else use.param == "running_mean" and "bias" not in norm.layer.params
        return [(ArraySource(norm.shift, "F64"), None)] if takes_shift else []

    def _norm(self, norm: Node, layer: Node) -> _Norm:
        values = {role: self._numbers(name) for role, name in norm.params.items()}
        mean = values["running_mean"]
        factor = values.get("weight", 1.0) / np.sqrt(values["running_var"] + OPS[norm.op].attr(norm, "eps"))
        bias = self._numbers(layer.params["bias"]) if "bias" in layer.params else 0.0
        return _Norm(factor, (bias - mean) * factor + values.get("bias", 0.0), layer)

    def _numbers(self, name: str) -> Wide:
        source = self._source(name)
        return widen(source.whole(), source.dtype)

    def _source(self, name: str) -> Source:
        if self._network.sources is None or not is_float(self._network.infos[name].dtype):
            return tensor_source(self._network.read_real(name))
        return self._network.sources(name)
