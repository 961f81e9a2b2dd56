"""Networks in memory before and after a change, for the comparisons of `proof`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from netgrow_cli.checkpoint.source import Source, tensor_source
from netgrow_cli.jobs.proving import edited_by
from netgrow_cli.proof.equivalence import Equivalence, compare
from netgrow_cli.proof.pieces import Edited
from netgrow_cli.proof.probes import random_probes
from netgrow_cli.proof.run_pieces import compare_pieces
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.edit import apply_edit
from netgrow_cli.surgery.plan import Plan, make_plan
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.solve import Topology
from tests.topology import networks

Tensors = dict[str, torch.Tensor]


@dataclass
class Changed:
    """The old network, and the plan's tensors and graph."""

    old: Network
    new: Network
    plan: Plan
    tensors: Tensors

    @property
    def edited(self) -> Edited:
        """What the plan changes; nothing is confirmed by folding back."""
        return dataclasses.replace(self.confirmed, confirmed=frozenset())

    @property
    def confirmed(self) -> Edited:
        """The same, all tensors folded back."""
        return edited_by(self.old.solved(), self.plan, (), ())

    def corrupted(self, name: str, place: int, by: float = 0.5) -> Changed:
        """One number of the new network is another one."""
        tensor = self.tensors[name].clone()
        tensor.view(-1)[place] += by * (1.0 + abs(float(tensor.view(-1)[place])))
        tensors = {**self.tensors, name: tensor}
        return dataclasses.replace(self, new=of(self.new.graph, tensors, self.new.infos), tensors=tensors)

    def whole(self, rows: int = 16) -> Equivalence:
        probes = random_probes(self.old.graph, rows, 3)
        return compare(self.old, self.new, probes, dtype="float64", tolerance=1e-9)

    def pieces(self, rows: int = 16, edited: Edited | None = None) -> Equivalence:
        probes = random_probes(self.old.graph, rows, 3)
        return compare_pieces(self.old, self.new, probes, edited or self.edited, dtype="float64", tolerance=1e-9)


def of(graph: Any, tensors: Tensors, infos: Any) -> Network:
    def source(name: str) -> Source:
        return tensor_source(tensors[name])

    return Network(graph, infos, tensors.__getitem__, sources=source)


def change(toy: networks.Network, choose: Callable[[Topology], Sequence[WidthChange]]) -> Changed:
    """Change a toy network. Raises Refused."""
    topology = toy.topology
    plan = make_plan(topology, toy.infos, choose(topology))
    tensors = {
        name: apply_edit(tensor, plan.edits[topology.aliases[name]], 1)
        if topology.aliases[name] in plan.edits
        else tensor
        for name, tensor in toy.tensors.items()
    }
    infos = {name: dataclasses.replace(info, shape=plan.shape(topology, info)) for name, info in toy.infos.items()}
    graph = networks.with_sites(topology, plan.sizes)
    eps = {made.node: yaml.safe_load(made.value) for made in plan.spec if made.what == "eps"}
    nodes = tuple(
        dataclasses.replace(node, attrs={**node.attrs, "eps": eps[node.name]}) if node.name in eps else node
        for node in graph.nodes
    )
    new = of(dataclasses.replace(graph, nodes=nodes), tensors, infos)
    new.solved()
    return Changed(of(topology.graph, dict(toy.tensors), toy.infos), new, plan, tensors)


def blocks(count: int, units: int = 6) -> networks.Network:
    """Some gated blocks around a stream of 4, all alike."""
    layers: dict[str, Any] = {"start": networks.linear("x", 5, 4)}
    source = "start"
    for n in range(count):
        layers |= {
            f"norm{n}": networks.gain("rms_norm", source, 4, bias=False),
            f"gate{n}": networks.linear(f"norm{n}", 4, units, bias=False),
            f"act{n}": networks.layer("silu", f"gate{n}"),
            f"up{n}": networks.linear(f"norm{n}", 4, units, bias=False),
            f"product{n}": networks.layer("mul", [f"act{n}", f"up{n}"]),
            f"down{n}": networks.linear(f"product{n}", units, 4, bias=False),
            f"sum{n}": networks.layer("add", [source, f"down{n}"]),
        }
        source = f"sum{n}"
    layers["out"] = networks.linear(source, 4, 3)
    return networks.network(json.loads(json.dumps(layers)), {"x": ["batch", 5]}, ["out"])
