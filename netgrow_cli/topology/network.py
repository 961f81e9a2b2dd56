"""A network that can be run: a graph, and where its tensors are read from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgrow_cli.checkpoint.dtypes import is_float, total_bytes
from netgrow_cli.checkpoint.source import Of, Open, source_of
from netgrow_cli.checkpoint.types import Checkpoint, TensorInfo
from netgrow_cli.errors import CheckpointError, Refused
from netgrow_cli.progress import SILENT, Progress
from netgrow_cli.topology.graph import Graph, Node
from netgrow_cli.topology.library import NeedsTorch, in_numpy, numbers
from netgrow_cli.topology.rows import Rows, is_large
from netgrow_cli.topology.run import Observe, operate, run
from netgrow_cli.topology.solve import Topology, default_sizes, solve


@dataclasses.dataclass
class Network:
    """A graph with tensors.

    infos: shapes of its tensors. read: a tensor by name; sources: the same, to be read in parts. progress: hears of the
    bytes of the tensors that were computed with, once for each node and batch, where all of it is run.
    """

    graph: Graph
    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Any]
    device: str = "cpu"
    sources: Open | None = None
    progress: Progress = SILENT
    _solved: dict[tuple[tuple[str, int], ...], Topology] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, checkpoint: Checkpoint, device: str = "cpu", progress: Progress = SILENT) -> Network:
        """The network in a checkpoint."""
        return cls.shaped(graph, checkpoint.tensors, device, progress).within(checkpoint)

    @classmethod
    def shaped(
        cls, graph: Graph, infos: Mapping[str, TensorInfo], device: str = "cpu", progress: Progress = SILENT
    ) -> Network:
        """A network without numbers: it can be solved, not run."""

        def read(name: str) -> Any:
            raise CheckpointError(f"tensor {name!r}: nothing has been written yet")

        return cls(graph, infos, read, device, progress=progress)

    def within(self, checkpoint: Checkpoint, of: Of = source_of) -> Network:
        """The same network with the numbers of a checkpoint, which has tensors of these very shapes."""
        return dataclasses.replace(self, read=checkpoint.read, sources=functools.partial(of, checkpoint))

    def reading(self, read: Callable[[str], Any], infos: Mapping[str, TensorInfo] | None = None) -> Network:
        """The same network with tensors from elsewhere, which are read as a whole."""
        return dataclasses.replace(self, read=read, sources=None, infos=self.infos if infos is None else infos)

    def solved(self, sizes: Mapping[str, int] | None = None) -> Topology:
        """Its topology, with the given sizes of named input axes."""
        usual = default_sizes(self.graph)
        other = {name: size for name, size in (sizes or {}).items() if usual.get(name) != size}
        key = tuple(sorted(other.items()))
        if key not in self._solved:
            self._solved[key] = solve(self.graph, self.infos, sizes=other)
        return self._solved[key]

    def outputs(
        self,
        sizes: Mapping[str, int],
        inputs: Mapping[str, Any],
        dtype: Any,
        observe: Observe | None = None,
    ) -> list[Any]:
        """Its outputs on a batch, without gradients."""
        import torch

        with torch.no_grad():
            topology = self.solved(sizes)
            watch = self.watching(observe)
            return run(topology, self._on_device, inputs, dtype=dtype, observe=watch, by_rows=self._rows)

    def bytes_of(self, node: Node) -> int:
        """What the tensors take that a node is computed with."""
        return total_bytes(self.infos[name] for name in node.params.values())

    def watching(self, observe: Observe | None) -> Observe:
        """For a run of all of it: progress hears of each node, after whoever else observes."""

        def watch(node: Node, operands: Sequence[Any], results: Sequence[Any]) -> None:
            if observe is not None:
                observe(node, operands, results)
            self.progress.advance(self.bytes_of(node))

        return watch

    def operate(self, topology: Topology, node: Node, operands: Sequence[Any], dtype: Any) -> tuple[Any, ...]:
        """The results of one of its operations. Where the dtype is numpy's, numpy computes, or raises NeedsTorch."""
        read = functools.partial(self._numbers, dtype) if in_numpy(dtype) else self._on_device
        return operate(topology, node, operands, read, dtype, self._rows)

    def read_real(self, name: str) -> Any:
        """A tensor to compute with. Raises Refused where it holds integers, quantised or not, or complex numbers."""
        tensor = self.read(name)
        if not tensor.is_floating_point() and name not in self._tables:
            raise Refused(
                f"{name} holds {self.infos[name].dtype} values, which netgrow cannot compute with; convert the "
                "checkpoint to a floating dtype first (dequantise it)"
            )
        return tensor

    @functools.cached_property
    def _tables(self) -> frozenset[str]:
        """Tensors that are used as they are (index tables), and so may hold integers."""
        return frozenset(node.params["weight"] for node in self.graph.nodes if node.op == "parameter")

    def _rows(self, name: str) -> Rows | None:
        if self.sources is None or not is_large(self.infos[name]):
            return None
        return Rows(self.sources(name), self.device)

    def _numbers(self, dtype: Any, name: str) -> Any:
        if self.sources is None or (not is_float(self.infos[name].dtype) and name not in self._tables):
            raise NeedsTorch(name)  # (which knows what is wrong with it, if anything is)
        return numbers(self.sources(name), dtype)

    def _on_device(self, name: str) -> Any:
        tensor = self.read_real(name)
        return tensor if self.device == "cpu" else tensor.to(self.device)
