"""The graph: a network as named operations on named values. Written by a person as a spec, or by a trace."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netgrow_cli.frozen import frozen


@frozen
class Mark:
    """Where something stands in a spec: line (from 1) and text offsets, to be shown and rewritten."""

    file: str
    line: int
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@frozen
class Ref:
    """A value: the output of a node (operations such as split have several) or an input of the network."""

    node: str
    output: int = 0

    def __str__(self) -> str:
        return f"{self.node}[{self.output}]" if self.output else self.node


@frozen
class Input:
    """An input of the network.

    shape: sizes, or names for sizes that may be anything (`batch`, `time`); the first is the batch.
    dtype: "float32", "int64", ...; low, high: the range of random probes (normal where both are None).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    mark: Mark | None = None


@frozen
class Node:
    """One operation.

    params: the operation's name for a parameter (`weight`) to the tensor's name in the checkpoint.
    attrs: settings of the operation, as the spec states them.
    marks: where `op`, `from`, attributes and ranges stand in the spec.
    source: file and line of the model's code, where a trace knows it.
    code: by setting (`shape[2]`), the attribute of a module that holds its number in the model: `attn.num_heads`.
    hidden: made by netgrow itself (the concatenation behind index ranges); shown under its reader's name.
    """

    name: str
    op: str
    inputs: tuple[Ref, ...]
    params: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, Mark] = dataclasses.field(default_factory=dict)
    source: str | None = None
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hidden: bool = False

    @property
    def mark(self) -> Mark | None:
        """Where the layer itself stands."""
        return self.marks.get("layer")


@frozen
class Graph:
    """A network: its inputs, its operations in an order in which they can run, its outputs.

    dims: named sizes that no tensor's shape determines.
    ignore: patterns of tensors that belong to no layer on purpose.
    origin: where the graph came from, for messages.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    origin: str = ""

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        return self._by_name[name]

    def around(self, names: Iterable[str]) -> list[Node]:
        """The nodes of these names (or inputs) and those that read them, in order."""
        found = {place for name in names for place in self._places.get(name, ())}
        return [self.nodes[place] for place in sorted(found)]

    @functools.cached_property
    def _places(self) -> Mapping[str, Sequence[int]]:
        """By name of a node or an input, where it and its readers stand among the nodes."""
        found: dict[str, list[int]] = collections.defaultdict(list)
        for place, node in enumerate(self.nodes):
            for name in {node.name, *(ref.node for ref in node.inputs)}:
                found[name].append(place)
        return found

    @functools.cached_property
    def _by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}
