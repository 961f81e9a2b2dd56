"""From a graph and the shapes of a checkpoint to its topology: every axis's layout, every width, who uses it.

One pass over the operations applies each one's layout rule; unification does the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Graph, Input, Mark, Node, Ref
from netgrow_cli.topology.layout import (
    Concat,
    Fixed,
    Layout,
    Layouts,
    Product,
    SizeMismatch,
    Width,
    leaves,
)
from netgrow_cli.topology.notation import axis_text, layout_text
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.rule import Role, Value, spec_error

PROBE_BATCH = 3
"""The batch that shapes are computed with where no run says otherwise."""

FREE_SIZE = 5
"""The size of a named input axis other than the batch (`time`) where nothing says otherwise."""


_SHAPE_SOURCE = re.compile(r"= (?P<name>.+?)(?:\[(?P<output>\d+)\])?\.shape\[-1\]")
"""What a trace says of a number that the code takes from the shape of a value."""


@frozen
class AxisUse:
    """What one node does with one axis of one tensor; the parts are the axis's factors."""

    node: str
    param: str
    tensor: str
    axis: int
    parts: tuple[tuple[Layout, Role], ...]


@frozen
class Effect:
    """An operation that sees all of a layout at once.

    axis: which axis of the node's input it lies on.
    """

    kind: str
    node: str
    layout: Layout
    axis: int


@frozen
class Site:
    """A number in a spec or in model code that follows a width.

    The number is the size of `span`, or where `ranged` the range that span takes behind `lead`.
    """

    node: str
    what: str
    span: Layout
    lead: tuple[Layout, ...]
    ranged: bool
    in_code: bool
    mark: Mark | None
    source: str | None


@frozen
class Tie:
    """Layouts whose sizes code computes from one number.

    strict: the operation itself needs it; otherwise a module keeps one number for them (`num_heads`), so that the
    result does not fit that module where they differ, though it is the same function.
    """

    pieces: tuple[Layout, ...]
    why: str
    strict: bool = True


@frozen
class WidthInfo:
    """A width and everyone who uses it, by layer name."""

    width: Width
    name: str
    frozen: str | None
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    per_unit: tuple[str, ...]
    effects: tuple[Effect, ...]

    @property
    def size(self) -> int:
        """Number of units."""
        return self.width.size


@frozen
class Topology:
    """A solved network.

    values: by node or input name, its outputs. tensors: by name, the layout of each axis (tied tensors under
    every name). widths: by id. unclaimed: tensors that no layer names.
    """

    graph: Graph
    values: Mapping[str, tuple[Value, ...]]
    tensors: Mapping[str, tuple[Layout, ...]]
    aliases: Mapping[str, str]
    uses: tuple[AxisUse, ...]
    effects: tuple[Effect, ...]
    sites: tuple[Site, ...]
    ties: tuple[Tie, ...]
    widths: Mapping[int, WidthInfo]
    unclaimed: tuple[str, ...]

    def value(self, ref: Ref) -> Value:
        """The solved value behind a reference."""
        return self.values[ref.node][ref.output]

    def name(self, width: Width) -> str:
        """A width's name."""
        return self.widths[width.id].name

    def text(self, layout: Layout) -> str:
        """A layout in the notation that people read."""
        return axis_text(layout, self.name)

    def tensor_text(self, tensor: str) -> str:
        """The layout of a tensor, all axes."""
        return layout_text(self.tensors[tensor], self.name)

    def reads_inside(self, use: AxisUse) -> bool:
        """Whether a parameter reads what its node makes itself, and not an operand."""
        param = OPS[self.graph.node(use.node).op].param(use.param)
        return param is not None and param.inside

    @functools.cached_property
    def holders(self) -> Mapping[int, frozenset[str]]:
        """By width id, the nodes and inputs whose values hold it."""
        found: dict[int, set[str]] = collections.defaultdict(set)
        for name, outputs in self.values.items():
            for leaf in itertools.chain(*(leaves(axis) for value in outputs for axis in value.axes)):
                found[leaf.id].add(name)
        return {width: frozenset(names) for width, names in found.items()}

    @functools.cached_property
    def makers(self) -> Mapping[int, frozenset[str]]:
        """By width id, the nodes that produce it."""
        found: dict[int, set[str]] = collections.defaultdict(set)
        for use in self.uses:
            for part, role in use.parts:
                if role is Role.PRODUCES:
                    for leaf in leaves(part):
                        found[leaf.id].add(use.node)
        return {width: frozenset(names) for width, names in found.items()}

    def by_name(self, name: str) -> WidthInfo | None:
        """The width of that name."""
        return next((info for info in self.widths.values() if info.name == name), None)


def solve(
    graph: Graph,
    tensors: Mapping[str, TensorInfo],
    *,
    sizes: Mapping[str, int] | None = None,
) -> Topology:
    """Infer all layouts. sizes: for named input axes (`batch`, `time`). Raises SpecError."""
    return _Solver(graph, tensors, sizes or {}).run()


class _Node:
    """A rule's view of its node (`rule.Context`)."""

    def __init__(self, solver: _Solver, node: Node, inputs: Sequence[Value]) -> None:
        self.node = node
        self.layouts = solver.layouts
        self.inputs = inputs
        self.params: Mapping[str, tuple[Layout, ...]] = {role: solver.axes(name) for role, name in node.params.items()}
        self.read = frozenset(solver.read[node.name])
        self._solver = solver

    def attr(self, name: str) -> Any:
        return OPS[self.node.op].attr(self.node, name)

    def size(self, name: str | int) -> int:
        if isinstance(name, int):
            return name
        found = self._solver.sizes.get(name)
        if found is None:
            self.fail(f"size {name!r} is neither a number nor in `dims`")
        return found

    def is_integer(self, param: str) -> bool:
        dtype = self._solver.infos[self.node.params[param]].dtype
        return dtype == "BOOL" or dtype.startswith(("I", "U"))

    def use(self, param: str, axis: int, parts: Sequence[tuple[Layout, Role]]) -> None:
        tensor = self._solver.aliases[self.node.params[param]]
        self._solver.uses.append(AxisUse(self.node.name, param, tensor, axis, tuple(parts)))

    def effect(self, kind: str, layout: Layout, axis: int) -> None:
        self._solver.effects.append(Effect(kind, self.node.name, layout, axis))

    def site(self, what: str, span: Layout, lead: Sequence[Layout] = (), *, in_code: bool = True) -> None:
        base = what.split("[")[0]
        mark = self.node.marks.get(what) or self.node.marks.get(f"attr:{what}") or self.node.marks.get(base)
        ranged = what.startswith("range")
        made = Site(self.node.name, what, span, tuple(lead), ranged, in_code, mark, self.node.source)
        self._solver.sites.append(made)

    def tie(self, pieces: Sequence[Layout], why: str) -> None:
        self._solver.ties.append(Tie(tuple(pieces), why))

    def fail(self, message: str, what: str = "layer") -> NoReturn:
        raise spec_error(self.node, message, what)


class _Solver:
    def __init__(self, graph: Graph, tensors: Mapping[str, TensorInfo], sizes: Mapping[str, int]) -> None:
        self.graph = graph
        self.infos = tensors
        self.sizes = {**default_sizes(graph), **sizes}
        self.layouts = Layouts()
        self.uses: list[AxisUse] = []
        self.effects: list[Effect] = []
        self.sites: list[Site] = []
        self.ties: list[Tie] = []
        self.aliases = {name: info.tied_to or name for name, info in tensors.items()}
        self._axes: dict[str, tuple[Layout, ...]] = {}
        self._values: dict[str, tuple[Value, ...]] = {}
        self.read: dict[str, set[int]] = collections.defaultdict(set)
        for ref in itertools.chain(graph.outputs, *(node.inputs for node in graph.nodes)):
            self.read[ref.node].add(ref.output)

    def axes(self, name: str) -> tuple[Layout, ...]:
        """The axes of a tensor; made when it is first asked for, one set for all names of a tied tensor."""
        canonical = self.aliases[name]
        if canonical not in self._axes:
            shape = self.infos[canonical].shape
            self._axes[canonical] = tuple(self.layouts.width(size) for size in shape)
        return self._axes[canonical]

    def run(self) -> Topology:
        for given in self.graph.inputs:
            self._values[given.name] = (self._input(given),)
        for node in self.graph.nodes:
            self._values[node.name] = self._apply(node)
        for ref in self.graph.outputs:
            self._read(ref, None)
            for axis in self._values[ref.node][ref.output].axes:
                self.layouts.freeze(axis, f"output of the model ({ref})")
        while any(self._settle(tie) for tie in self.ties):
            pass
        self._tie_by_attributes()
        return self._result()

    def _input(self, given: Input) -> Value:
        axes: list[Layout] = []
        unit_axis = _unit_axis_of(given)
        for position, item in enumerate(given.shape):
            why = f"input of the model ({given.name})"
            size = self.sizes[item] if isinstance(item, str) else item
            is_unit = position == unit_axis and isinstance(item, int)
            axes.append(self.layouts.width(size, frozen=why) if is_unit else Fixed(size, why))
        return Value(tuple(axes), unit_axis, "int" in given.dtype)

    def _apply(self, node: Node) -> tuple[Value, ...]:
        op = OPS[node.op]
        for param in op.params:
            if not param.optional and not any(param.is_called(name) for name in node.params):
                _missing_param(node, param.name)
        inputs = [self._read(ref, node) for ref in node.inputs]
        context = _Node(self, node, inputs)
        try:
            values = op.rule(context)
        except SizeMismatch as clash:
            context.fail(f"sizes that must agree do not: {clash}")
        return _resolved(values, self.layouts.resolve)

    def _read(self, ref: Ref, reader: Node | None) -> Value:
        outputs = self._values[ref.node]
        if ref.output >= len(outputs):
            message = f"reads '{ref}', but {ref.node!r} has {len(outputs)} outputs, counted from 0"
            if reader is None:
                raise SpecError(f"{self.graph.origin}: outputs: {message}")
            raise spec_error(reader, message, "from")
        return outputs[ref.output]

    def _settle(self, tie: Tie) -> bool:
        """Sizes tied by code, of which one may not change, freeze the others; whether something froze."""
        free = [self._free(piece) for piece in tie.pieces]
        if all(free) or not any(free):
            return False
        stuck = next(piece for piece, found in zip(tie.pieces, free, strict=True) if not found)
        why = next((why for leaf in leaves(self.layouts.resolve(stuck)) if (why := self.layouts.frozen(leaf))), "fixed")
        for piece in tie.pieces:
            self.layouts.freeze(piece, f"{tie.why}, of which one may not change: {why}")
        return True

    def _tie_by_attributes(self) -> None:
        """Numbers that one attribute of a module holds, of axes that some tensor has."""
        code = {node.name: node.code for node in self.graph.nodes if node.code}
        made = {leaf.id for axes in self._axes.values() for axis in axes for leaf in leaves(self.layouts.resolve(axis))}
        held: dict[str, list[Layout]] = collections.defaultdict(list)
        for site in self.sites:
            attribute = code.get(site.node, {}).get(site.what)
            span = self.layouts.resolve(site.span)
            if attribute is None or " * " in attribute or site.ranged or span in held[attribute]:
                continue
            if any(leaf.id in made for leaf in leaves(span)):
                held[attribute].append(span)
        for attribute, pieces in held.items():
            source = self._shape_source(attribute)
            pieces = list(dict.fromkeys(pieces if source is None else [source, *pieces]))
            if len(pieces) > 1:
                self.ties.append(Tie(tuple(pieces), f"{attribute.removeprefix('= ')} is one number", strict=False))

    def _shape_source(self, attribute: str) -> Layout | None:
        """The axis that code takes a number from, where it is given as `= norm.shape[-1]`."""
        match = _SHAPE_SOURCE.fullmatch(attribute)
        values = self._values.get(match["name"]) if match else None
        if match is None or values is None or int(match["output"] or 0) >= len(values):
            return None
        return self.layouts.resolve(values[int(match["output"] or 0)].axes[-1])

    def _free(self, layout: Layout) -> bool:
        """Whether some width of a layout may change."""
        return any(self.layouts.frozen(leaf) is None for leaf in leaves(self.layouts.resolve(layout)))

    def _result(self) -> Topology:
        resolve = self.layouts.settled()
        uses = tuple([_resolved_use(use, resolve) for use in self.uses])
        effects = tuple(Effect(item.kind, item.node, resolve(item.layout), item.axis) for item in self.effects)
        values = {name: _resolved(outputs, resolve) for name, outputs in self._values.items()}
        tensors = {
            name: tuple(resolve(axis) for axis in self._axes[self.aliases[name]])
            for name in self.infos
            if self.aliases[name] in self._axes
        }
        return Topology(
            graph=self.graph,
            values=values,
            tensors=tensors,
            aliases=self.aliases,
            uses=uses,
            effects=effects,
            sites=tuple(
                dataclasses.replace(site, span=resolve(site.span), lead=tuple(map(resolve, site.lead)))
                for site in self.sites
            ),
            ties=tuple(dataclasses.replace(tie, pieces=tuple(map(resolve, tie.pieces))) for tie in self.ties),
            widths=_describe(self.graph, self.layouts, values, tensors, uses, effects),
            unclaimed=tuple(name for name in self.infos if self._is_unclaimed(name)),
        )

    def _is_unclaimed(self, name: str) -> bool:
        if self.aliases[name] in self._axes or name.endswith("num_batches_tracked"):
            return False
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.graph.ignore)


Resolve = Callable[[Layout], Layout]


def _resolved(values: Iterable[Value], resolve: Resolve) -> tuple[Value, ...]:
    """The values with all that is known of their axes by now."""
    return tuple([Value(tuple(map(resolve, value.axes)), value.unit_axis, value.integer) for value in values])


def _resolved_use(use: AxisUse, resolve: Resolve) -> AxisUse:
    parts = tuple([(resolve(part), role) for part, role in use.parts])
    return AxisUse(use.node, use.param, use.tensor, use.axis, parts)


def default_sizes(graph: Graph) -> dict[str, int]:
    """Named sizes where no run says otherwise: the axes of inputs, and the spec's `dims`."""
    sizes: dict[str, int] = {}
    for given in graph.inputs:
        for position, item in enumerate(given.shape):
            if isinstance(item, str):
                sizes.setdefault(item, PROBE_BATCH if position == 0 else FREE_SIZE)
    return {**sizes, **graph.dims}


def _unit_axis_of(given: Input) -> int:
    """The first numbered axis behind the batch; the last where none is numbered."""
    for position, item in enumerate(given.shape[1:], 1):
        if isinstance(item, int):
            return position
    return len(given.shape) - 1


def axis_form(layout: Layout) -> str:
    """How an axis is built, whichever widths it holds: the same text where unit goes with unit."""
    return axis_text(layout, lambda width: f"w{width.size}")


def _missing_param(node: Node, param: str) -> NoReturn:
    raise spec_error(node, f"its {param} is not in the checkpoint (looked for '{node.name}.{param}')", "layer")


# -- who uses what, and what it is called ------------------------------------------------------------


def _describe(
    graph: Graph,
    layouts: Layouts,
    values: Mapping[str, tuple[Value, ...]],
    tensors: Mapping[str, tuple[Layout, ...]],
    uses: Iterable[AxisUse],
    effects: Iterable[Effect],
) -> dict[int, WidthInfo]:
    # (Dicts for their order and quick look-up: all of a deep network's layers use its stream.)
    users: dict[int, dict[Role, dict[str, None]]] = collections.defaultdict(lambda: collections.defaultdict(dict))
    widths: dict[int, Width] = {}
    for use in uses:
        for part, role in use.parts:
            for leaf in leaves(part):
                widths[leaf.id] = leaf
                users[leaf.id][role][use.node] = None
    held = [value.axes for outputs in values.values() for value in outputs]
    for axis in itertools.chain(*held, *tensors.values()):
        for leaf in leaves(axis):
            widths[leaf.id] = leaf
    seen: dict[int, list[Effect]] = collections.defaultdict(list)
    for effect in effects:
        for identity in dict.fromkeys(leaf.id for leaf in leaves(effect.layout)):
            seen[identity].append(effect)
    names = _Names(graph, layouts, values)
    described = {}
    for identity, width in widths.items():
        roles = users[identity]
        data = roles[Role.DATA] and not (roles[Role.PRODUCES] or roles[Role.CONSUMES] or roles[Role.PER_UNIT])
        described[identity] = WidthInfo(
            width=width,
            name=names.of(width, roles),
            frozen=layouts.frozen(width) or ("its indices are data" if data else None),
            producers=tuple(roles[Role.PRODUCES]),
            consumers=tuple(roles[Role.CONSUMES]),
            per_unit=tuple(roles[Role.PER_UNIT]),
            effects=tuple(seen[identity]),
        )
    return described


class _Names:
    """Names of widths: the first layer that produces it; with a range or factor where that holds several."""

    def __init__(self, graph: Graph, layouts: Layouts, values: Mapping[str, tuple[Value, ...]]) -> None:
        self._layouts = layouts
        self._taken: set[str] = set()
        self._graph = graph
        self._values = values
        self._known_places: dict[str, dict[int, str]] = {}

    def of(self, width: Width, roles: Mapping[Role, Collection[str]]) -> str:
        """A name for the width that no other has."""
        for maker in (*roles[Role.PRODUCES], *roles[Role.PER_UNIT]):
            where = self._places(maker).get(width.id)
            if where is not None:
                return self._unique(maker + where)
        hint = self._layouts.hint(width)
        if hint is not None and (roles[Role.PRODUCES] or roles[Role.PER_UNIT]):  # made and read inside one layer
            return self._unique(f"{(*roles[Role.PRODUCES], *roles[Role.PER_UNIT])[0]}.{hint}")
        if width.id in self._first:
            return self._unique(self._first[width.id])
        readers = [*roles[Role.CONSUMES], *roles[Role.DATA]]
        return self._unique(f"{readers[0]}.in" if readers else f"width{width.id}")

    @functools.cached_property
    def _first(self) -> dict[int, str]:
        """By width, the first layer or input that has it, whether or not it has parameters."""
        found: dict[int, str] = {}
        hidden = {node.name for node in self._graph.nodes if node.hidden}
        for name in (*(given.name for given in self._graph.inputs), *(node.name for node in self._graph.nodes)):
            if name not in hidden:
                for identity, where in self._places(name).items():
                    found.setdefault(identity, name + where)
        return found

    def _places(self, name: str) -> dict[int, str]:
        if name not in self._known_places:
            self._known_places[name] = self._in_outputs(self._values[name])
        return self._known_places[name]

    def _in_outputs(self, outputs: Sequence[Value]) -> dict[int, str]:
        """By width, where in a layer's outputs it first stands, as a suffix to the layer's name."""
        found: dict[int, str] = {}
        for value in outputs:
            for axis in (value.axes[value.unit_axis] if value.axes else Fixed(1), *value.axes):
                for identity, where in self._in_layout(axis):
                    found.setdefault(identity, where)
        return found

    def _in_layout(self, layout: Layout) -> Iterator[tuple[int, str]]:
        if isinstance(layout, Width):
            yield layout.id, ""
        elif isinstance(layout, Concat):
            start = 0
            for part in layout.parts:
                for identity, inner in self._in_layout(part):
                    yield identity, f"[{start}:{start + part.size}]{inner}"
                start += part.size
        elif isinstance(layout, Product):
            grid = sum(not isinstance(factor, Fixed) for factor in layout.factors) > 1
            for position, factor in enumerate(layout.factors):
                hint = self._layouts.hint(factor) if isinstance(factor, Width) else None
                for identity, inner in self._in_layout(factor):
                    yield identity, f".{hint or position}{inner}" if grid else inner

    def _unique(self, name: str) -> str:
        unique, count = name, 2
        while unique in self._taken:
            unique, count = f"{name}#{count}", count + 1
        self._taken.add(unique)
        return unique


def require_complete(topology: Topology) -> None:
    """Refuse a spec that leaves tensors out: a layer it forgot might read what is about to change."""
    if topology.unclaimed:
        names = ", ".join(topology.unclaimed[:5])
        more = f" and {len(topology.unclaimed) - 5} more" if len(topology.unclaimed) > 5 else ""
        raise SpecError(
            f"{topology.graph.origin}: no layer has these tensors of the checkpoint: {names}{more}. "
            "A forgotten layer may read what changes; add it under `layers:`, or list them under `ignore:`"
        )
