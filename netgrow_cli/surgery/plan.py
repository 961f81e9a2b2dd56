"""The plan, from shapes alone: whether changes may be made, what makes up for them, and what follows.

What becomes of each tensor is decided in `tensor_edits`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.carriers import NONE, Carriers, find_carriers
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.effects import Verdict, judge
from netgrow_cli.surgery.feeds import sums
from netgrow_cli.surgery.fresh import Fill, states_at_inputs
from netgrow_cli.surgery.tensor_edits import Decisions, TensorEdit, tensor_edits
from netgrow_cli.topology.layout import new_size
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.solve import Effect, Site, Topology


@frozen
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


@frozen
class SpecChange:
    """A number in the spec that follows: a site's new text, or a setting's new value."""

    node: str
    what: str
    value: str


@frozen
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

    def infos(self, topology: Topology, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """All tensors afterwards."""
        return {name: dataclasses.replace(info, shape=self.shape(topology, info)) for name, info in tensors.items()}


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
    carriers, uncarried = _find_carriers(topology, changes, verdicts, sizes)
    edits = tensor_edits(topology, tensors, Decisions(by_width, sizes, fills, gains, carriers))
    code, spec = _following_numbers(topology, sizes, eps)
    lossy = tuple(verdict.why for pairs in verdicts.values() for _, verdict in pairs if verdict.answer == "lossy")
    factors = [factor for values in carriers.factors.values() for factor in set(values.tolist())]
    rounds = bool(gains) or any(fill == "mean" for fill in fills.values()) or any(c.absorbed for c in changes)
    rounds = rounds or any(math.frexp(factor)[0] != 0.5 for factor in factors)  # powers of two do not
    return Plan(
        tuple(changes), edits, sizes, code, spec, rounds, (*lossy, *uncarried), zero_units, _torn(topology, sizes)
    )


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
    together = {change.width: change for change in changes}
    for change in changes:
        effects = topology.widths[change.width].effects
        pairs = [(effect, judge(topology, effect, change, zero_units, together)) for effect in effects]
        for _, verdict in pairs:
            if verdict.answer == "refused":
                name = topology.widths[change.width].name
                raise Refused(f"{change.kind} of {name}: {verdict.why}; what works: {verdict.instead}")
        verdicts[change.width] = pairs
    return verdicts


def _choose_fill(topology: Topology, change: WidthChange, verdicts: Iterable[tuple[Effect, Verdict]]) -> Fill:
    """How producers make fresh units, checked against what every norm over the width needs."""
    wanted: dict[Fill, str] = {v.fill: e.node for e, v in verdicts if v.fill is not None}
    name = topology.widths[change.width].name
    readers = [effect.node for effect, verdict in verdicts if verdict.zero_columns]
    if change.mirrors and readers:
        raise Refused(
            f"expand of {name}: {readers[0]!r} divides its weights by their norm, so that it must read new units with "
            "zeros, and antisymmetric pairs with others; what works: the default --init"
        )
    if not change.fresh or not wanted:
        return "random"
    norm, product = next(iter(wanted.values())), next((e.node for e, v in verdicts if v.carried), None)
    if product is not None:
        raise Refused(
            f"expand of {name}: {norm!r} needs new units to add nothing to it, and {product!r} multiplies them with "
            "others that would be zero too: such units never learn; what works: `split` with all units"
        )
    if len(wanted) > 1:
        raise Refused(
            f"expand of {name}: {wanted['zero']!r} needs fresh units to be zero, {wanted['mean']!r} needs them "
            "to be the mean of the others; what works: `split` with all units"
        )
    if change.mirrors:
        raise Refused(
            f"expand of {name}: antisymmetric pairs are not zero where {norm!r} reads "
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
    zeros = [reader for reader in readers if states.get((reader, False)) == "zero"]
    if zeros:
        raise Refused(
            f"expand of {name}: {next(iter(wanted.values()))!r} needs new units to be made so that they are zero where "
            f"{zeros[0]!r} reads them, with zeros (it divides its weights by their norm): such units never learn"
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
            if verdict.answer != "compensate" or sums(effect):
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


def _find_carriers(
    topology: Topology,
    changes: Sequence[WidthChange],
    verdicts: Mapping[int, Sequence[tuple[Effect, Verdict]]],
    sizes: Mapping[int, int],
) -> tuple[Carriers, tuple[str, ...]]:
    """Who carries the widths that products of activations sum over; and why a prune is lossy where nothing can."""
    needed = [change for change in changes if any(verdict.carried for _, verdict in verdicts[change.width])]
    if not needed:
        return NONE, ()
    try:
        return find_carriers(topology, needed, sizes), ()
    except Refused as refusal:
        if any(change.kind != "prune" for change in needed):
            raise
        return NONE, (str(refusal),)


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
        held = topology.graph.node(site.node).code.get(site.what)
        if site.in_code and not (held or "").startswith("= "):  # (which follows by itself)
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
