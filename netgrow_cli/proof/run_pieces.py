"""Run the pieces of two networks on the same random values at their borders, and compare what leaves them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from netgrow_cli.checkpoint.transfer import in_parallel
from netgrow_cli.errors import CheckpointError
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import Difference, Equivalence, require_finite, torch_dtype
from netgrow_cli.proof.pieces import CannotTell, Cut, Edited, Piece, cut
from netgrow_cli.proof.probes import Probes, normal
from netgrow_cli.proof.units import Narrowed, narrowed
from netgrow_cli.topology.graph import Node, Ref
from netgrow_cli.topology.library import NeedsTorch, finite, given, one_thread, without_gradients
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.solve import Topology

Values = dict[Ref, Any]

_FAILURES = (RuntimeError, TypeError, IndexError, ValueError)
"""What torch and numpy raise for values that an operation cannot take."""

GROWTH = (1, 2, 4, 8)
"""By how many steps a piece grows whose outputs differ, one time after the other, before it is judged."""


@frozen
class _Pair:
    """The two networks, and how they are cut. real: what is computed in, torch's dtype or numpy's."""

    old: Network
    new: Network
    probes: Probes
    cut: Cut
    dtype: str
    real: Any

    def difference(self, piece: Piece) -> Difference:
        """What leaves a piece, in one and the other."""
        real, found = self.real, Difference()
        for number, (sizes, inputs) in enumerate(self.probes.batches(real, self.old.device)):
            seed = f"{self.probes.seed}:{number}:{piece.nodes[0].name}"
            border = _border(self.old, self.old.solved(sizes), piece, inputs, seed, real)
            try:
                one, other = self._both(piece, border, sizes, real)
            except _FAILURES as error:
                raise CannotTell(f"{named(piece)} does not run on random values ({error})") from error
            _require_finite(self.old, piece, one)
            found.add(one, other)
        return found

    def _both(self, piece: Piece, border: Values, sizes: Mapping[str, int], real: Any) -> tuple[list[Any], list[Any]]:
        names, graph = self.cut.names, self.new.graph
        before, after = self.old.solved(sizes), self.new.solved(sizes)
        mine = {names[node.name] for node in piece.nodes}
        nodes = [node for node in graph.nodes if node.name in mine]
        renamed = {_renamed(ref, names): value for ref, value in border.items()}
        wanted = [_renamed(ref, names) for ref in piece.outputs]
        sides = [
            functools.partial(_evaluate, self.old, before, piece.nodes, border, piece.outputs, real),
            functools.partial(_evaluate, self.new, after, nodes, renamed, wanted, real),
        ]
        one, other = in_parallel(_called, sides)
        return one, other


def compare_pieces(
    old: Network,
    new: Network,
    probes: Probes,
    edited: Edited,
    *,
    dtype: str,
    tolerance: float,
    accepted: float | None = None,
) -> Equivalence:
    """The largest difference over all pieces, each relative to the size of its own outputs.

    accepted: a difference that need not be followed further, where that is more than the tolerance.
    numpy computes where it knows all operations that are met, else torch.
    Raises CannotTell where pieces cannot be compared, CheckpointError where the old network's numbers are not finite.
    """
    found = _cut(old, new, probes, edited)
    pair = _Pair(old, new, probes, found, dtype, np.dtype(dtype))
    if knows_all(found) and old.device == new.device == "cpu":
        with contextlib.suppress(NeedsTorch, CannotTell):  # (torch has the last word on what cannot be told)
            return _compared(pair, edited, tolerance, accepted)
    return _compared(dataclasses.replace(pair, real=torch_dtype(dtype)), edited, tolerance, accepted)


def needs_torch(old: Network, new: Network, probes: Probes, edited: Edited) -> bool:
    """Whether pieces will have to be run in torch, as far as shapes tell; the new network need not be written yet."""
    try:
        return not knows_all(_cut(old, new, probes, edited))
    except CannotTell:
        return True


def _cut(old: Network, new: Network, probes: Probes, edited: Edited) -> Cut:
    sizes = next(iter(probes.batches(np.dtype(np.float64))))[0]
    return cut(old.solved(sizes), new.solved(sizes), edited)


def knows_all(found: Cut) -> bool:
    """Whether numpy knows all operations of all pieces, as far as these need not grow."""
    pieces = map(found.piece, found.parts)
    return all(OPS[node.op].numpy is not None for piece in pieces for node in (*piece.nodes, *piece.context))


def _compared(pair: _Pair, edited: Edited, tolerance: float, accepted: float | None) -> Equivalence:
    dtype, probes = pair.dtype, pair.probes
    done: dict[frozenset[str], Equivalence] = {}
    with one_thread(pair.real):  # (the two sides and the pieces are what runs in parallel)
        alone = _by_units(pair, edited, tolerance)
        for part in pair.cut.parts:
            if part in alone or any(part <= whole for whole in done):
                continue
            whole, found = _judge(pair, part, tolerance, max(tolerance, accepted or 0.0))
            if found is not None:
                done = {other: result for other, result in done.items() if not other <= whole}
                done[whole] = found
    alone = {part: result for part, result in alone.items() if not any(part <= whole for whole in done)}
    results = [*done.values(), *alone.values()]
    if not results:  # (nothing that the outputs are made of is computed otherwise)
        return Equivalence(0.0, 0.0, tolerance, 0, dtype, probes.origin, mode="pieces", pieces=0, by_units=0)
    worst = max(results, key=lambda result: result.max_rel)
    return dataclasses.replace(
        worst,
        max_abs=max(result.max_abs for result in results),
        constant=all(result.constant for result in results),
        pieces=len(results),
        by_units=len(alone),
        where="" if worst.equal else worst.where,
    )


def _by_units(pair: _Pair, edited: Edited, tolerance: float) -> dict[frozenset[str], Equivalence]:
    """The parts that are equal by their changed units alone; the first of each form is left to be run as a whole."""
    new = pair.new.solved(next(iter(pair.probes.batches(pair.real)))[0])
    forms: set[Hashable] = set()
    chosen: list[tuple[frozenset[str], Narrowed]] = []
    for part in pair.cut.parts:
        found = narrowed(pair.cut, new, pair.cut.piece(part), edited)
        if found is not None and found.piece.outputs and found.form in forms:
            chosen.append((part, found))
        elif found is not None:
            forms.add(found.form)

    def judged(item: tuple[frozenset[str], Narrowed]) -> Equivalence | None:
        networks = item[1].networks(pair.old, pair.new)
        if networks is None:
            return None
        alone = dataclasses.replace(pair, old=networks[0], new=networks[1])
        found = alone.difference(item[1].piece).result(tolerance, pair.dtype, pair.probes.origin)
        return dataclasses.replace(found, mode="pieces") if found.equal else None

    results = zip(chosen, in_parallel(judged, chosen), strict=True)
    return {part: found for (part, _), found in results if found is not None}


def _judge(
    pair: _Pair, part: frozenset[str], tolerance: float, enough: float
) -> tuple[frozenset[str], Equivalence | None]:
    """Compare one part, grown where need be; None where nothing reads what it makes."""
    piece = pair.cut.piece(part)
    first = named(piece)
    if not piece.outputs:
        return part, None
    for steps in (*GROWTH, 0):
        difference = pair.difference(piece)
        found = difference.result(tolerance, pair.dtype, pair.probes.origin)
        ratios = zip(piece.outputs, difference.ratios(), strict=True)
        differing = [ref for ref, ratio in ratios if not ratio <= enough]
        if not differing or not steps:
            break
        more = pair.cut.grown(part, differing, steps)
        if more == part or any(ref in pair.old.graph.outputs for ref in differing):
            break
        part, piece = more, pair.cut.piece(more)
    return part, dataclasses.replace(found, mode="pieces", where=first)


def _called(side: Callable[[], list[Any]]) -> list[Any]:
    return side()


def _renamed(ref: Ref, names: Mapping[str, str]) -> Ref:
    return Ref(names[ref.node], ref.output)


def _border(
    network: Network, topology: Topology, piece: Piece, inputs: Mapping[str, Any], seed: str, real: Any
) -> Values:
    """The values that enter a piece: the network's inputs, random ones, and what is computed of both."""
    values = {Ref(name): inputs[name] for name in piece.inputs}
    for ref in piece.drawn:
        shape = topology.value(ref).shape
        values[ref] = given(normal(shape, f"{seed}:{ref}"), real, network.device)
    inside = {node.name for node in piece.nodes}
    wanted = list(dict.fromkeys(ref for node in piece.nodes for ref in node.inputs if ref.node not in inside))
    try:
        made = _evaluate(network, topology, piece.context, values, wanted, real)
    except _FAILURES as error:
        raise CannotTell(f"what {named(piece)} reads cannot be made of random values ({error})") from error
    return dict(zip(wanted, made, strict=True))


def _evaluate(
    network: Network, topology: Topology, nodes: Sequence[Node], entering: Values, wanted: Sequence[Ref], real: Any
) -> list[Any]:
    """Run some nodes in order; values are dropped after their last reader, one layer's tensors are there at a time."""
    left = collections.Counter(ref for node in nodes for ref in node.inputs)
    left.update(wanted)
    inside = {node.name for node in nodes}
    values = {ref: value for ref, value in entering.items() if ref.node not in inside}
    with without_gradients(real):
        for node in nodes:
            results = network.operate(topology, node, [values[ref] for ref in node.inputs], real)
            values.update({ref: value for ref, value in _named_results(node, results).items() if left[ref]})
            _drop(values, left, node.inputs)
    return [values[ref] for ref in wanted]


def _named_results(node: Node, results: Sequence[Any]) -> Values:
    return {Ref(node.name, place): value for place, value in enumerate(results)}


def _drop(values: Values, left: collections.Counter[Ref], read: Collection[Ref]) -> None:
    for ref in read:
        left[ref] -= 1
        if left[ref] == 0:
            values.pop(ref, None)


def _require_finite(old: Network, piece: Piece, outputs: Sequence[Any]) -> None:
    """Raises CheckpointError where a tensor of the old network is at fault, CannotTell where the random values are."""
    if all(map(finite, outputs)):
        return
    for node in piece.nodes:
        for name in node.params.values():
            require_finite(old, name)
    if not piece.drawn:
        raise CheckpointError("the network's outputs on the probes are not finite; equivalence cannot be shown")
    raise CannotTell(f"{named(piece)} gives no finite numbers on random values")


def named(piece: Piece) -> str:
    """A piece by its layers."""
    names = piece.layers
    return f"the piece around {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
