"""What every operation says of multiples of units is so: in each of its settings, on numbers."""

from __future__ import annotations

import itertools

import pytest
import torch

from netgrow_cli.surgery.multiples import multiples_of
from netgrow_cli.topology.ops import OPS, canonical
from netgrow_cli.topology.ops.base import Multiples
from netgrow_cli.topology.rule import Role

from .networks import layer, network, values_of
from .test_ops import CASES, Case, built

FACTORS: dict[Multiples, tuple[float, ...]] = {"any": (2.5, -1.5, -1.0), "positive": (2.5, 0.3), "odd": (-1.0,)}
# Each operand is a part of the result of its own, or is read as numbers of another kind.
ALONE = ("cat", "stack", "lookup", "pick", "put", "embedding", "experts")


def _grows(item: Case) -> tuple[set[str], bool]:
    """The parameters that units are made of, and whether the operation makes them (or passes them on)."""
    net = built(item)
    values_of(net)
    topology = net.topology
    made = {use.param for use in topology.uses if any(role is Role.PRODUCES for _, role in use.parts)}
    op = OPS[canonical(item.op)]
    return made | {p.name for p in op.params if p.grows}, bool(made)


SAYING = [item for item in CASES if OPS[canonical(item.op)].multiples != "none"]


def test_most_operations_say_something() -> None:
    assert len({canonical(item.op) for item in SAYING}) > 60
    assert OPS["gelu"].multiples == OPS["silu"].multiples == OPS["softmax"].multiples == OPS["lstm"].multiples == "none"


@pytest.mark.parametrize("item", SAYING, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_multiples_stay_multiples(item: Case) -> None:
    op, net = OPS[canonical(item.op)], built(item)
    if not net.tensors and not any(value.is_floating_point() for value in net.inputs.values()):
        pytest.skip("nothing but whole numbers")
    grows, makes = _grows(item)
    node = next(node for node in net.topology.graph.nodes if node.name == "out")
    plain = values_of(net)["="]
    operands = [name for name in net.inputs if net.inputs[name].is_floating_point()][: len(item.shapes)]
    sets = [operands] if item.op in ALONE else _subsets(operands)
    for held in [[]] if makes else sets:
        kind = op.multiples_of(node, [ref.node in held for ref in node.inputs])
        for factor in FACTORS.get(kind, ()):
            other = built(item)
            other.inputs = {n: value * factor if n in held else value for n, value in net.inputs.items()}
            for name in grows & {key.removeprefix("out.") for key in other.tensors}:
                other.tensors[f"out.{name}"] = other.tensors[f"out.{name}"] * factor
            for one, two in zip(plain, values_of(other)["="], strict=True):
                torch.testing.assert_close(two, one * factor, rtol=1e-10, atol=1e-10)


def _subsets(names: list[str]) -> list[list[str]]:
    return [list(some) for count in range(1, len(names) + 1) for some in itertools.combinations(names, count)]


@pytest.mark.parametrize(
    ("between", "wanted"),
    [
        (["relu"], "positive"),
        (["leaky_relu", "dropout"], "positive"),
        (["tanh"], "odd"),
        (["tanh", "relu"], "none"),
        (["identity"], "any"),
        (["neg", "tanh"], "odd"),
        (["gelu"], "none"),
        (["relu", "sigmoid"], "none"),
    ],
)
def test_along_a_path(between: list[str], wanted: str) -> None:
    layers = {"a": layer("linear", ["x"], {"weight": (6, 4), "bias": (6,)})}
    last = "a"
    for place, op in enumerate(between):
        layers[f"f{place}"] = layer(op, [last])
        last = f"f{place}"
    layers["b"] = layer("linear", [last], {"weight": (3, 6)})
    net = network(layers, {"x": [5, 4]}, ["b"])
    values_of(net)
    width = net.topology.by_name("a")
    assert width is not None and multiples_of(net.topology, width.width.id) == wanted
