"""Small networks from specs, and what must hold of every one of them.

`check` runs a network and tests its solved topology against the numbers:

- every value has the shape that was solved for it;
- *permutation*: units of all widths that may change are permuted at random in all tensors, and every value of
  the network comes out permuted as its layout says, the outputs not at all;
- *growth*: widths that no operation sees as a whole get copies and fresh units, readers share what copies pass
  on and read nothing of fresh units, numbers in the spec follow; every output stays as it was. This tests roles,
  effects, ties and sites.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.topology.graph import Graph, Node
from netgrow_cli.topology.layout import Layout, index_map, leaves, new_size, occurrences
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.run import run
from netgrow_cli.topology.solve import Site, Topology, solve
from netgrow_cli.topology.spec import parse_spec

torch.set_num_threads(1)

Layer = dict[str, Any]


# -- layers, with the shapes of their parameters under `tensors` --------------------------------------


def layer(op: str, source: Any, tensors: Mapping[str, Sequence[int]] | None = None, **attrs: Any) -> Layer:
    """source: None for an operation that reads nothing."""
    read = {} if source is None else {"from": source}
    return {"op": op, **read, "tensors": dict(tensors or {}), **attrs}


def linear(source: Any, reads: int, makes: int, bias: bool = True, **more: Any) -> Layer:
    tensors = {"weight": (makes, reads), **({"bias": (makes,)} if bias else {})}
    return layer("linear", source, tensors, **more)


def conv(
    source: Any, reads: int, makes: int, kernel: Sequence[int] = (3, 3), *, groups: int = 1, **attrs: Any
) -> Layer:
    tensors = {"weight": (makes, reads // groups, *kernel), "bias": (makes,)}
    return layer(f"conv{len(kernel)}d", source, tensors, **attrs)


def transposed(source: Any, reads: int, makes: int, kernel: Sequence[int] = (3, 3), **attrs: Any) -> Layer:
    tensors = {"weight": (reads, makes // attrs.get("groups", 1), *kernel), "bias": (makes,)}
    return layer(f"conv_transpose{len(kernel)}d", source, tensors, **attrs)


def batch_norm(source: Any, units: int) -> Layer:
    names = ("weight", "bias", "running_mean", "running_var")
    return layer("batch_norm", source, dict.fromkeys(names, (units,)))


def gain(op: str, source: Any, *shape: int, bias: bool = True, **attrs: Any) -> Layer:
    names = ("weight", "bias") if bias else ("weight",)
    return layer(op, source, dict.fromkeys(names, shape), **attrs)


# -- networks ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Network:
    """A solved network with random tensors and inputs."""

    topology: Topology
    infos: dict[str, TensorInfo]
    tensors: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]

    def free(self) -> dict[str, int]:
        """Names and sizes of the widths that may change."""
        return {info.name: info.size for info in self.topology.widths.values() if info.frozen is None}


def network(
    layers: Mapping[str, Layer],
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    *,
    dims: Mapping[str, int] | None = None,
    more: Mapping[str, Sequence[int]] | None = None,
    tied: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Network:
    """Write the spec, make random tensors, solve. more: tensors that no layer's defaults name."""
    shapes: dict[str, Sequence[int]] = {}
    written = {}
    for name, body in layers.items():
        shapes |= {f"{name}.{param}": shape for param, shape in body.get("tensors", {}).items()}
        written[name] = {key: value for key, value in body.items() if key != "tensors"}
    shapes |= more or {}
    document = {"netgrow": 1, "inputs": inputs, "layers": written, "outputs": list(outputs), "dims": dims or {}}
    infos = {n: TensorInfo(n, tuple(s), "F64", (tied or {}).get(n)) for n, s in shapes.items()}
    graph = parse_spec(json.dumps(document), "test.yaml").graph(infos)
    topology = solve(graph, infos)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, info in infos.items():
        made = torch.randn(info.shape, generator=random, dtype=torch.float64)
        tensors[name] = made.abs() + 0.5 if name.endswith("running_var") else made
    for name, first in (tied or {}).items():
        tensors[name] = tensors[first]
    values = {given.name: _input(topology, given.name, random) for given in graph.inputs}
    return Network(topology, infos, tensors, values)


def _input(topology: Topology, name: str, random: torch.Generator) -> torch.Tensor:
    given = next(i for i in topology.graph.inputs if i.name == name)
    shape = topology.values[name][0].shape
    if "int" in given.dtype:
        return torch.randint(int(given.high or 2), shape, generator=random)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def values_of(network: Network) -> dict[str, list[torch.Tensor]]:
    """Every value of the network, by node, `=` for the outputs; shapes are checked on the way."""
    seen: dict[str, list[torch.Tensor]] = {}

    def observe(node: Node, _: Sequence[Any], results: Sequence[Any]) -> None:
        solved = network.topology.values[node.name]
        assert len(solved) == len(results)
        for value, result in zip(solved, results, strict=True):
            assert value.shape == tuple(result.shape), f"{node.name}: solved {value.shape}, is {tuple(result.shape)}"
        seen[node.name] = list(results)

    read = network.tensors.__getitem__
    seen["="] = run(network.topology, read, network.inputs, dtype=torch.float64, observe=observe)
    return seen


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def gather(tensor: torch.Tensor, axes: Sequence[Layout], sources: Mapping[int, Sequence[int]]) -> torch.Tensor:
    for axis, layout in enumerate(axes):
        tensor = tensor.index_select(axis, torch.from_numpy(index_map(layout, sources)))
    return tensor


def check(network: Network, seed: int = 0) -> None:
    """All that must hold."""
    before = values_of(network)
    random = np.random.default_rng(seed)
    for _ in range(2):
        check_permutation(network, before, random)
        check_growth(network, before, random)


def check_permutation(network: Network, before: Mapping[str, list[torch.Tensor]], random: np.random.Generator) -> None:
    topology = network.topology
    sources = {
        identity: random.permutation(info.size).tolist()
        for identity, info in topology.widths.items()
        if info.frozen is None
    }
    tensors = {
        name: gather(tensor, topology.tensors[name], sources) if name in topology.tensors else tensor
        for name, tensor in network.tensors.items()
    }
    after = values_of(dataclasses.replace(network, tensors=tensors))
    for name, values in before.items():
        for position, value in enumerate(values):
            axes = () if name == "=" else topology.values[name][position].axes
            close(after[name][position], gather(value, axes, sources))


# -- growth --------------------------------------------------------------------------------------------


def check_growth(network: Network, before: Mapping[str, list[torch.Tensor]], random: np.random.Generator) -> None:
    topology = network.topology
    sources = _growing(topology, random)
    tensors = {
        name: _grown(topology, name, tensor, sources, random) if name in topology.tensors else tensor
        for name, tensor in network.tensors.items()
    }
    infos = {name: dataclasses.replace(info, shape=tuple(tensors[name].shape)) for name, info in network.infos.items()}
    sizes = {identity: len(units) for identity, units in sources.items()}
    graph = with_sites(topology, sizes)
    grown = Network(solve(graph, infos), infos, tensors, network.inputs)
    for name, values in topology.values.items():
        for old, new in zip(values, grown.topology.values[name], strict=True):
            assert new.shape == tuple(new_size(axis, sizes) for axis in old.axes), name
    after = values_of(grown)
    for old, new in zip(before["="], after["="], strict=True):
        close(new, old)


def _growing(topology: Topology, random: np.random.Generator) -> dict[int, list[int]]:
    """New sources for all widths that nothing sees as a whole: every unit stays, some are copied, some fresh."""
    more = int(random.integers(1, 3))
    sources = {}
    for identity, info in topology.widths.items():
        if info.frozen is None and not info.effects and not _tied_roles(topology, identity):
            units = [*range(info.size), *random.integers(-1, info.size, size=more).tolist()]
            sources[identity] = random.permutation(units).tolist()
    while True:
        sizes = {identity: len(units) for identity, units in sources.items()}
        uneven = [tie for tie in topology.ties if len({new_size(piece, sizes) for piece in tie.pieces}) > 1]
        stay = {leaf.id for tie in uneven for piece in tie.pieces for leaf in leaves(piece)} & set(sources)
        if not stay:
            assert not uneven
            return sources
        sources = {identity: units for identity, units in sources.items() if identity not in stay}


def _roles(topology: Topology, tensor: str, axis: int, width: int) -> set[Role]:
    return {
        role
        for use in topology.uses
        if use.tensor == topology.aliases[tensor] and use.axis == axis
        for part, role in use.parts
        if any(leaf.id == width for leaf in leaves(part))
    }


def _tied_roles(topology: Topology, width: int) -> bool:
    """A tensor that makes and reads the same units with the same numbers cannot share them."""
    for name, axes in topology.tensors.items():
        for axis, layout in enumerate(axes):
            if any(leaf.id == width for leaf in leaves(layout)):
                roles = _roles(topology, name, axis, width)
                if Role.CONSUMES in roles and len(roles) > 1:
                    return True
    return False


def _grown(
    topology: Topology,
    name: str,
    tensor: torch.Tensor,
    sources: Mapping[int, Sequence[int]],
    random: np.random.Generator,
) -> torch.Tensor:
    sizes = {identity: len(units) for identity, units in sources.items()}
    for axis, layout in enumerate(topology.tensors[name]):
        index = index_map(layout, sources)
        # What fresh units start as: any old entry will do, it only has to keep variances positive.
        filled = np.where(index < 0, random.integers(0, max(1, layout.size), size=len(index)), index)
        share = np.ones(len(index))
        for width in {leaf.id for leaf in leaves(layout)} & set(sources):
            if Role.CONSUMES not in _roles(topology, name, axis, width):
                continue
            units = np.asarray(sources[width])
            copies = np.asarray([0.0 if unit < 0 else 1 / np.count_nonzero(units == unit) for unit in units] + [1.0])
            for labels in occurrences(layout, width, sizes):
                share *= copies[labels]
        shape = [1] * tensor.dim()
        shape[axis] = -1
        tensor = tensor.index_select(axis, torch.from_numpy(filled)) * torch.from_numpy(share).reshape(shape)
    return tensor


def with_sites(topology: Topology, sizes: Mapping[int, int]) -> Graph:
    """The graph with every number that states a size brought up to date."""
    attrs = {node.name: dict(node.attrs) for node in topology.graph.nodes}
    for site in topology.sites:
        _follow(attrs[site.node], site, sizes)
    nodes = tuple(dataclasses.replace(node, attrs=attrs[node.name]) for node in topology.graph.nodes)
    return dataclasses.replace(topology.graph, nodes=nodes)


def _follow(attrs: dict[str, Any], site: Site, sizes: Mapping[int, int]) -> None:
    size = new_size(site.span, sizes)
    start = sum(new_size(layout, sizes) for layout in site.lead)
    name, _, place = site.what.partition("[")
    if site.what == "range":
        attrs["start"], attrs["stop"] = start, start + size
    elif site.ranged:
        position = int(site.what.partition(":")[2])
        ranges = list(attrs["ranges"])
        ranges[position] = (start, start + size)
        attrs["ranges"] = tuple(ranges)
    elif place:
        items = list(attrs[name])
        items[int(place.rstrip("]"))] = size
        attrs[name] = items
    elif attrs.get(name) is not None:
        attrs[name] = size
