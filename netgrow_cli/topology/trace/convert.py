"""Operations of torch, as `torch.export` records them, to the layers of a spec.

An operation with a rule of its own has a handler (`handlers/`). Any other function of each element alone, by
torch's own tag, is `pointwise`; everything else is `aten`, which freezes what it touches and is reported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgrow_cli.topology.ops.derived_weights import module_of
from netgrow_cli.topology.trace.attributes import Attributes, words
from netgrow_cli.topology.trace.folding import Folded
from netgrow_cli.topology.trace.layer import Layer
from netgrow_cli.topology.trace.reading import (
    as_list,
    functional_form,
    is_float,
    is_tensor,
    module_paths,
    operation,
    shape,
    shape_of,
    source_line,
)

# Settings that hold numbers of the model's code, by operation.
_COUNTED = {
    "reshape": ("shape",),
    "slice": ("start", "stop"),
    "split": ("sizes",),
    "expand": ("sizes",),
    "group_norm": ("groups",),
    "attention": ("scale",),
    "layer_norm": ("eps",),
    "rms_norm": ("eps",),
    "add": ("by",),
    "mul": ("by",),
    "div": ("by",),
}
_SKIPPED = ("_assert", "sym_", "_set_grad_enabled", "_enter_autocast", "_exit_autocast")


class Computed(Exception):
    """What a layer would have as a parameter is no tensor of the checkpoint as it is."""


class Converter:
    """Converts one exported program; `layers` and `outputs` are the result."""

    def __init__(
        self,
        program: Any,
        names: Sequence[str],
        handlers: Mapping[str, Handler],
        attributes: Attributes | None = None,
        batch: int | None = None,
    ) -> None:
        self.layers: list[Layer] = []
        self.unknown: dict[str, int] = {}
        self.fixed_batch = False
        self.empty: set[Any] = set()
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self.pieces: dict[Any, tuple[int, list[tuple[str, int]]]] = {}  # axis, references and sizes of what was joined
        self._handlers = handlers
        self._attributes = attributes if attributes is not None else Attributes({})
        self._said: dict[Any, dict[str, str]] = {}
        self._given: dict[str, dict[str, int]] = {}
        self._program = program
        self._values: dict[Any, Any] = {}
        self._tensors: dict[Any, str] = {}
        self._parameters: dict[str, str] = {}
        self._taken: set[str] = set(names)
        self._folded = Folded()
        self._tables: dict[Any, str] = {}
        self._stated: dict[Any, str] = {}
        self._held: dict[Any, str] = {}  # buffers that are in no checkpoint, by their names in the model
        self._put_off: dict[Any, Handler] = {}  # nodes that are converted where something reads them as values
        self._in_numbers = False
        self._names = list(names)
        self.batch = batch

    def convert(self) -> list[str]:
        """Convert all operations; the references of the model's outputs."""
        signature = self._program.graph_signature
        graph = self._program.graph
        self._placeholders(graph, signature)
        for node in graph.nodes:
            if node.op == "call_function":
                self._call(node, graph)
        output = next(node for node in graph.nodes if node.op == "output")
        kinds = signature.output_specs
        for item, spec in zip(output.args[0], kinds, strict=True):
            if "USER_OUTPUT" in str(spec.kind) and hasattr(item, "meta") and is_float(item):
                self.output_shapes[self.ref(item)] = tuple(shape(item))
        return list(self.output_shapes)

    # -- values ------------------------------------------------------------------------------------

    def _placeholders(self, graph: Any, signature: Any) -> None:
        tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        lifted = dict(signature.inputs_to_lifted_tensor_constants)
        state = set(self._program.state_dict)
        user = iter(self._names)
        for node in graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in tensors and tensors[node.name] in state:
                self._tensors[node] = tensors[node.name]
            elif node.name in tensors or node.name in lifted:
                name = tensors.get(node.name) or lifted[node.name]
                self._folded.give(node, self._program.constants[name])
                self._held[node] = name
            elif is_tensor(node):
                self._values[node] = next(user)

    def tensor(self, node: Any) -> str | None:
        """The checkpoint's name of a node that is a parameter or buffer as it is; None for anything computed."""
        return self._tensors.get(node) if hasattr(node, "op") else None

    def ref(self, node: Any) -> str:
        """The reference of a value; a parameter becomes a layer of its own when it is used as a value."""
        if not self._in_numbers or node not in self._values:
            table = self._table(node)
            if table is not None:
                return table
        if node in self._values:
            value = self._values[node]
            return str(value[0]) if isinstance(value, list) else str(value)
        if node in self._put_off:
            self._convert(node, self._put_off.pop(node))
            return self.ref(node)
        name = self._tensors[node]
        if name not in self._parameters:
            made = self._free(f"{name}.value")
            self.layers.append(Layer(made, "parameter", (), {"weight": name}))
            self._parameters[name] = made
        return self._parameters[name]

    def put_off(self, node: Any, handler: Handler) -> None:
        """Convert a node only where something reads it as a value, with that handler."""
        self._put_off[node] = handler

    def number(self, node: Any) -> Any:
        """The numbers of a node that depends on no input and no tensor of the checkpoint; None for others."""
        return self._folded.value(node) if hasattr(node, "op") else None

    def know(self, node: Any, number: float) -> None:
        """A node whose numbers are all the same one."""
        import torch

        value = node.meta["val"]
        self._folded.give(node, torch.full((), number, dtype=value.dtype).expand(tuple(value.shape)))

    def _table(self, node: Any) -> str | None:
        """The reference of a layer that states the numbers of a node; None where it is no such node."""
        if node in self._stated:
            return self._stated[node]
        table = self._folded.table(node, self.batch)
        if table is None:
            return None
        values = table.values
        key = (str(values.dtype), tuple(values.shape), tuple(values.flatten().tolist()))
        if key not in self._tables:
            self._tables[key] = self._constant(self._free(self._path(node)), values)
        name = self._tables[key]
        if table.repeated:
            sizes = [self._repeat(one, every) for one, every in zip(values.shape, table.sizes, strict=True)]
            repeated = self._free(f"{self._path(node)}.repeated")
            code = {"sizes[0]": self._held[node]} if node in self._held and len(sizes) == 1 else {}
            self.layers.append(Layer(repeated, "expand", (name,), {}, {"sizes": sizes}, source_line(node), code))
            name = repeated
        self._stated[node] = name
        return name

    def _constant(self, name: str, values: Any) -> str:
        """A layer that states numbers, complex ones as pairs."""
        import torch

        plain = torch.view_as_real(values) if values.is_complex() else values
        dtype = "float32" if plain.is_floating_point() else str(plain.dtype).removeprefix("torch.")
        self.layers.append(Layer(name, "constant", (), {}, {"value": plain.tolist(), "dtype": dtype}))
        if plain is values:
            return name
        attrs = {"call": "aten.view_as_complex.default", "args": ["$0"], "axis": -1, "sizes": [0]}
        self.layers.append(Layer(self._free(f"{name}.complex"), "along", (name,), {}, attrs))
        return f"{name}.complex[0]"

    def _repeat(self, one: int, every: int) -> int | str:
        if one == every:
            return -1
        return self.size(every)

    def size(self, number: int) -> int | str:
        """A size that the code states or computes: `batch` where it is that."""
        if self.batch is None or number % self.batch:
            return number
        if number != self.batch:
            self.fixed_batch = True
            return number
        return "batch"

    def alias(self, node: Any, source: Any) -> None:
        """A node that is the value of another: copies, casts between floating dtypes, detach."""
        if source in self._tensors:
            self._tensors[node] = self._tensors[source]
        else:
            self._values[node] = self._values[source] if source in self._values else self.ref(source)

    def put(
        self,
        node: Any,
        op: str,
        inputs: Sequence[Any],
        params: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
        outputs: int | None = None,
        name: str | None = None,
    ) -> None:
        """Add the layer that computes a node. params: by role, nodes that are tensors of the checkpoint.

        outputs: how many, for operations that have several (which are read as name[0] even where it is one).
        name: where it is not that of the module of `weight`.
        """
        named = self._named(params)
        name = self._layer_name(node, named) if name is None else self._free(name)
        self._add(node, name, op, [self.ref(value) for value in inputs], named, attrs or {})
        shapes = tuple(tuple(shape(value)) for value in inputs if is_tensor(value))
        self.layers[-1] = dataclasses.replace(self.layers[-1], shapes=shapes)
        self._values[node] = name if outputs is None else [f"{name}[{n}]" for n in range(outputs)]

    def _named(self, params: Mapping[str, Any] | None) -> dict[str, str]:
        """By role, the checkpoint's names of parameters. Raises Computed."""
        given = {role: value for role, value in (params or {}).items() if value is not None}
        if any(self.tensor(value) is None for value in given.values()):
            raise Computed
        return {role: self._tensors[value] for role, value in given.items()}

    def put_refs(self, node: Any, op: str, refs: Sequence[str], attrs: Mapping[str, Any]) -> None:
        """Add the layer that computes a node from references."""
        name = self._layer_name(node, {})
        self._add(node, name, op, refs, {}, attrs)
        self._values[node] = name

    def give(self, node: Any, ref: str) -> None:
        """A node that is the value of a layer made on the way."""
        self._values[node] = ref

    def give_all(self, node: Any, refs: Sequence[str]) -> None:
        """A node of several outputs, which are the values of layers made on the way."""
        self._values[node] = list(refs)

    def extra(
        self,
        node: Any,
        suffix: str,
        op: str,
        refs: Sequence[str],
        attrs: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> str:
        """A layer on the way to a node's own; its reference. name: where it is not that of the module of `weight`."""
        named = self._named(params)
        if name:
            name = self._free(name)
        else:
            name = self._layer_name(node, named) if named else self._free(f"{self._path(node)}.{suffix}")
        self._add(node, name, op, refs, named, attrs)
        return name

    def _add(
        self, node: Any, name: str, op: str, refs: Sequence[str], params: Mapping[str, str], attrs: Mapping[str, Any]
    ) -> None:
        code = {**self._code(node, op, attrs), **self._said.pop(node, {})}
        self.layers.append(Layer(name, op, tuple(refs), dict(params), dict(attrs), source_line(node), code))

    def _code(self, node: Any, op: str, attrs: Mapping[str, Any]) -> dict[str, str]:
        """By setting, the attribute of a module that holds the number."""
        found: dict[str, str] = {}
        for setting in _COUNTED.get(op, ()):
            value = attrs.get(setting)
            many = isinstance(value, (list, tuple))
            numbers = value if isinstance(value, (list, tuple)) else [value]
            for place, number in enumerate(numbers):
                what = f"{setting}[{place}]" if many else setting
                attribute = self._attributes.of(node, what, number, len(numbers))
                if attribute is None and op == "reshape":
                    attribute = self._computed(node, what, number, len(numbers))
                if attribute is not None:
                    found[what] = attribute
        return found

    def _computed(self, node: Any, what: str, number: Any, count: int) -> str | None:
        """`= norm.shape[-1]` for a number that a module takes from the shape of what it is given."""
        path = module_paths(node)[-1:]
        if not path or number in (-1, 0, 1) or not self._attributes.may_be_computed(node, what, count):
            return None
        given = [ref for ref, size in self._given.get(path[0], {}).items() if size == number]
        return f"= {given[0]}.shape[-1]" if given else None

    def _note_inputs(self, node: Any) -> None:
        """What the modules around a node are given from outside: references, and sizes of the last axis."""
        inside = set(module_paths(node))
        for part in node.all_input_nodes:
            if part in self._values and not isinstance(self._values[part], list) and is_float(part) and shape(part):
                for path in inside.difference(module_paths(part)):
                    self._given.setdefault(path, {}).setdefault(self._values[part], shape(part)[-1])

    def holds(self, node: Any, what: str, size: int, count: int = 1) -> bool:
        """Whether a module holds a size that a reshape or a range leaves as it is, so that the code states it, or
        takes it from the shape of something else."""
        if size == self.batch:
            return False
        held = self._attributes.of(node, what, size, count) or self._computed(node, what, size, count)
        return held is not None

    def names(self, node: Any, size: int) -> bool:
        """Whether the line of a node names an attribute that holds a size."""
        attribute = None if size == self.batch else self._attributes.of(node, "stop", size)
        return attribute is not None and attribute.rpartition(".")[2] in words(node)

    def normalizes(self, node: Any, shape: Sequence[int]) -> None:
        """Say which attribute holds the shape that a norm without a gain is taken over."""
        attribute = self._attributes.of(node, "normalized_shape", tuple(shape))
        if attribute is not None:
            self._said[node] = {"normalized_shape": attribute}

    def follows_size(self, node: Any, number: float, power: float) -> None:
        """Say that a number of the code of a node is that power of the size that it sums over."""
        attribute = self._attributes.of(node, "scale", number)
        if attribute is not None:
            self._said[node] = {f"size^{power:g}": attribute}

    def item(self, node: Any, source: Any, index: int) -> None:
        """A node that is one of several outputs of another."""
        if source in self._put_off:
            self.put_off(node, _item)
            return
        self._values[node] = (
            self._values[source][index] if isinstance(self._values[source], list) else self._values[source]
        )

    def _layer_name(self, node: Any, params: Mapping[str, str]) -> str:
        weight = params.get("weight") or params.get("running_mean")
        if weight is not None and module_of(weight):
            return self._free(module_of(weight))
        return self._free(self._path(node))

    @staticmethod
    def _path(node: Any) -> str:
        path = next(reversed(module_paths(node)), "")
        return f"{path}.{node.name}" if path else str(node.name)

    def _free(self, name: str) -> str:
        name = re.sub(r"[\[\]{}:#,&*!|>'\"%@` ]", "_", name)
        unique, count = name, 2
        while unique in self._taken:
            unique, count = f"{name}~{count}", count + 1
        self._taken.add(unique)
        return unique

    # -- operations ----------------------------------------------------------------------------------

    def _call(self, node: Any, graph: Any) -> None:
        target = node.target
        name = operation(target)
        if name == "getitem":
            if not self._folded.compute(node):
                self.item(node, node.args[0], node.args[1])
        elif name.startswith("wrap_with"):
            self._inline(node, graph)
        elif not any(word in name for word in _SKIPPED):
            self._note_inputs(node)
            self._in_numbers = self._folded.compute(node)
            if self._in_numbers and self._folded.is_empty(node):
                self.empty.add(node)
            elif not (self._in_numbers and self._folded.table(node, self.batch)):
                self._convert(node, self._handlers.get(name))
            self._in_numbers = False

    def _convert(self, node: Any, handler: Handler | None) -> None:
        """Convert an operation by its handler, or as one without a rule where it has none, or not for this form."""
        try:
            done = handler is not None and handler(self, node)
        except Computed:
            done = False
        if not done:
            self._generic(node)

    def _inline(self, node: Any, graph: Any) -> None:
        """The operations under `no_grad` or autocast are recorded in a graph of their own."""
        position = next(n for n, argument in enumerate(node.args) if getattr(argument, "op", None) == "get_attr")
        inner = getattr(graph.owning_module, node.args[position].target)
        arguments = iter(node.args[position + 1 :])
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                source = next(arguments)
                if self.number(source) is not None:
                    self._folded.give(part, self.number(source))
                elif source in self._values or source in self._tensors or source in self._put_off:
                    self.alias(part, source)
            elif part.op == "call_function":
                self._call(part, inner.graph)
            elif part.op == "output":
                results = as_list(part.args[0])
                if all(self.number(item) is not None for item in results):
                    self._folded.give(node, [self.number(item) for item in results])
                self._values[node] = [self.ref(item) for item in results]

    def _generic(self, node: Any) -> None:
        import torch

        operands, arguments, keywords = self.recorded(node)
        call = str(node.target)
        overload = node.target
        if torch.Tag.pointwise in getattr(overload, "tags", ()) and operands and is_tensor(node):
            attrs = {"call": functional_form(call), "args": arguments, **({"kwargs": keywords} if keywords else {})}
            self.put(node, "pointwise", operands, attrs=attrs)
            return
        shapes = [shape_of(value) for value in as_list(node.meta.get("val")) if hasattr(value, "shape")]
        attrs = {"call": functional_form(call), "args": arguments, "shapes": shapes}
        if keywords:
            attrs["kwargs"] = keywords
        if not self._in_numbers:
            self.unknown[call] = self.unknown.get(call, 0) + 1
            self.fixed_batch = True
        self.put(node, "aten", operands, attrs=attrs, outputs=max(1, len(shapes)))

    def recorded(self, node: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
        """The operands of a call, and its arguments with "$k" in their places."""
        operands: list[Any] = []

        def one(value: Any) -> Any:
            if hasattr(value, "op") and hasattr(value, "meta"):
                if value not in operands:
                    operands.append(value)
                return f"${operands.index(value)}"
            if isinstance(value, (list, tuple)):
                return [one(part) for part in value]
            if value is None or isinstance(value, (bool, int, float, str)):
                return value
            return str(value)

        arguments = [one(value) for value in node.args]
        dropped = ("device", "layout", "pin_memory", "memory_format")
        keywords = {key: one(value) for key, value in node.kwargs.items() if key not in dropped and value is not None}
        return operands, arguments, keywords


def _item(made: Converter, node: Any) -> bool:
    """One output of a node that was put off."""
    made.ref(node.args[0])
    made.item(node, node.args[0], node.args[1])
    return True


Handler = Callable[[Converter, Any], bool]
"""Adds the layers of a node and returns True; False where this form of the operation has no rule."""
