"""Bounds: what a network computes never leaves them, and what they prove dead is dead for every input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from netgrow_cli.proof.activity import observe
from netgrow_cli.proof.bounds import bounds_of, prove
from netgrow_cli.proof.probes import random_probes
from netgrow_cli.topology.graph import Graph, Node, Ref
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS, canonical
from netgrow_cli.topology.run import run
from tests.topology import networks
from tests.topology.test_ops import CASES, ELSEWHERE, Case, built
from tests.topology.test_random_networks import some_network
from tests.topology.test_recurrent import FORMS, name_of, states_of
from tests.topology.test_recurrent import built as recurrent

RANGES: tuple[tuple[float | None, float | None], ...] = ((-1.5, 2.0), (0.0, 1.0), (-3.0, -1.0), (0.1, 3.0), (2.0, None))
ROWS = 6


# Operations of which nothing is known, and recurrent layers, which have tests of their own below.
SILENT = {"tan", "per_unit"}


def ranged(graph: Graph, low: float | None, high: float | None) -> Graph:
    """The graph with its floating inputs between these."""
    inputs = tuple(
        given if "int" in given.dtype else dataclasses.replace(given, low=low, high=high) for given in graph.inputs
    )
    return dataclasses.replace(graph, inputs=inputs)


def network_of(made: networks.Network, low: float | None = None, high: float | None = None) -> Network:
    return Network(ranged(made.topology.graph, low, high), made.infos, made.tensors.__getitem__)


def drawn(network: Network, made: networks.Network, seed: int) -> dict[str, torch.Tensor]:
    """Inputs within their ranges, the ends of these among them."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for given in network.graph.inputs:
        shape = made.topology.values[given.name][0].shape
        if "int" in given.dtype:
            found[given.name] = torch.randint(int(given.high or 1), shape, generator=random)
            continue
        low, high = (-1e3 if given.low is None else given.low), (1e3 if given.high is None else given.high)
        at = torch.rand(shape, generator=random, dtype=torch.float64)
        at = torch.where(torch.rand(shape, generator=random) < 0.3, at.round(), at)
        found[given.name] = low + (high - low) * at
    return found


def values_of(network: Network, made: networks.Network, seed: int) -> dict[Ref, torch.Tensor]:
    """All values of the network for some inputs, these too."""
    inputs = drawn(network, made, seed)
    values = {Ref(name): tensor for name, tensor in inputs.items()}

    def observe(node: Node, _: Any, results: Any) -> None:
        values.update({Ref(node.name, n): result for n, result in enumerate(results)})

    run(made.topology, made.tensors.__getitem__, inputs, dtype=torch.float64, observe=observe)
    return values


def check_inside(network: Network, made: networks.Network, seeds: int = ROWS) -> int:
    """Every value is within its bounds, and the same for all inputs where it is said to be still."""
    known = bounds_of(network)
    first: dict[Ref, torch.Tensor] = {}
    counted = 0
    for seed in range(seeds):
        for ref, value in values_of(network, made, seed).items():
            if ref not in known:
                continue  # an input that nothing reads
            found, value = known[ref], value.double()
            assert not bool(found.low.isnan().any() | found.high.isnan().any())
            assert all(one in (1, size) for one, size in zip(found.shape, value.shape, strict=True)), ref
            inside = (found.low <= value) & (value <= found.high)
            assert bool((inside | value.isnan()).all()), f"{ref}, seed {seed}"
            start = first.setdefault(ref, value)
            moved = (value - start).abs() > 1e-9 * (1.0 + start.abs())
            assert not bool((moved & found.still).any()), f"{ref} moved, seed {seed}"
            counted += int(found.low.isfinite().sum()) + int(found.high.isfinite().sum())
    return counted


# -- each operation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_values_of_an_operation_are_within_bounds(item: Case) -> None:
    made = built(item)
    for low, high in ((0.1, 0.9), (0.2, None)) if item.positive else (*RANGES, (None, None)):
        check_inside(network_of(made, low, high), made)


def test_operations_with_bounds_say_something() -> None:
    """Of each operation with a rule some bound is finite in some case; else the rule may as well not be there."""
    told = set()
    for item in CASES:
        op = canonical(item.op)
        if OPS[op].bounds is not None and op not in told:
            made = built(item)
            network = network_of(made, 0.1, 0.9)
            name = next(node.name for node in network.graph.nodes if node.op == op)
            found = bounds_of(network)[Ref(name)]
            if bool(found.low.isfinite().any() | found.high.isfinite().any()):
                told.add(op)
    assert told == {name for name, op in OPS.items() if op.bounds is not None} - SILENT - ELSEWHERE


@pytest.mark.parametrize("seed", range(40))
def test_values_of_random_networks_are_within_bounds(seed: int) -> None:
    made = some_network(seed)
    for name in made.tensors:  # some numbers of each sign and none, as trained networks have them
        if seed % 2 and not name.endswith("running_var"):
            made.tensors[name] = made.tensors[name].clamp(max=0.2) if seed % 4 == 1 else made.tensors[name].relu()
    for low, high in ((None, None), (-1.0, 1.0), (0.0, None)):
        check_inside(network_of(made, low, high), made, 3)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_values_of_recurrent_layers_are_within_bounds(form: dict[str, Any]) -> None:
    made = recurrent(form, ["rnn", *states_of(form)])
    for weights in (lambda x: x, torch.relu, lambda x: -torch.relu(x), lambda x: x * (x > 0.7)):
        made.tensors.update({name: weights(tensor) for name, tensor in made.tensors.items()})
        for low, high in ((-1.0, 1.0), (0.0, None), (None, None)):
            check_inside(network_of(made, low, high), made, 3)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_silent_units_inside_recurrent_layers_are_proven(form: dict[str, Any]) -> None:
    """A unit whose candidates read nothing is zero at all steps, at all levels; no other one is."""
    made = recurrent(form, ["rnn"])
    for name, tensor in made.tensors.items():
        if name.startswith("rnn.") and "hr" not in name:
            rows = tensor.reshape(-1, 4, *tensor.shape[1:])
            rows[2 if len(rows) > 1 else 0, 1] = 0.0
    network = network_of(made)
    topology = network.solved()
    hidden = [info for info in topology.widths.values() if info.size == 4 and info.frozen is None]
    assert hidden
    seen = observe(network, [info.width.id for info in hidden], random_probes(network.graph, 64, 0), dtype="float64")
    known = prove(network, [info.width.id for info in hidden]).alone(seen)
    for info in hidden:
        assert known.dead(info.width.id) == known.silent(info.width.id) == [1], info.name
