"""Operations of torch, as `torch.export` records them, to the layers of a spec.

An operation with a rule of its own has a handler in `_HANDLERS`. Any other function of each element alone, by
torch's own tag, is `pointwise`; everything else is `aten`, which freezes what it touches and is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from netgrow_cli.topology.trace.layer import Layer

_BIG = 2**62
"""Where a slice says "to the end"."""

_VIEWS = ("slice", "select", "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "t", "chunk")
_SKIPPED = ("_assert", "sym_", "_set_grad_enabled", "_enter_autocast", "_exit_autocast")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


class Converter:
    """Converts one exported program; `layers` and `outputs` are the result."""

    def __init__(self, program: Any, names: Sequence[str]) -> None:
        self.layers: list[Layer] = []
        self.unknown: dict[str, int] = {}
        self.fixed_batch = False
        self.empty: set[Any] = set()
        self._program = program
        self._values: dict[Any, Any] = {}
        self._tensors: dict[Any, str] = {}
        self._parameters: dict[str, str] = {}
        self._taken: set[str] = set(names)
        self._names = list(names)
        self._batch: int | None = None

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
        found = []
        for item, spec in zip(output.args[0], kinds, strict=True):
            if "USER_OUTPUT" in str(spec.kind) and hasattr(item, "meta") and _is_float(item):
                found.append(self.ref(item))
        return list(dict.fromkeys(found))

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
                self._constant(node, self._program.constants[name])
            elif _is_tensor(node):
                self._values[node] = next(user)
                shape = _shape(node)
                self._batch = shape[0] if shape and self._batch is None else self._batch

    def _constant(self, node: Any, tensor: Any) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_floating_point():
            tensor = tensor.double()
        self.put(node, "constant", (), attrs={"value": tensor.tolist(), "dtype": dtype})

    def tensor(self, node: Any) -> str | None:
        """The checkpoint's name of a node that is a parameter or buffer as it is; None for anything computed."""
        return self._tensors.get(node) if hasattr(node, "op") else None

    def ref(self, node: Any) -> str:
        """The reference of a value; a parameter becomes a layer of its own when it is used as a value."""
        if node in self._values:
            value = self._values[node]
            return str(value[0]) if isinstance(value, list) else str(value)
        name = self._tensors[node]
        if name not in self._parameters:
            made = self._free(f"{name}.value")
            self.layers.append(Layer(made, "parameter", (), {"weight": name}))
            self._parameters[name] = made
        return self._parameters[name]

    def alias(self, node: Any, source: Any) -> None:
        """A node that is the value of another: copies, casts between floating dtypes, detach."""
        if source in self._tensors:
            self._tensors[node] = self._tensors[source]
        else:
            self._values[node] = self._values[source]

    def put(
        self,
        node: Any,
        op: str,
        inputs: Sequence[Any],
        params: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
        outputs: int | None = None,
    ) -> None:
        """Add the layer that computes a node. params: by role, nodes that are tensors of the checkpoint.

        outputs: how many, for operations that have several (which are read as name[0] even where it is one).
        """
        named = {role: self._tensors[value] for role, value in (params or {}).items() if value is not None}
        name = self._layer_name(node, named)
        refs = tuple(self.ref(value) for value in inputs)
        self.layers.append(Layer(name, op, refs, named, dict(attrs or {}), source_line(node)))
        self._values[node] = name if outputs is None else [f"{name}[{n}]" for n in range(outputs)]

    def put_refs(self, node: Any, op: str, refs: Sequence[str], attrs: Mapping[str, Any]) -> None:
        """Add the layer that computes a node from references."""
        name = self._layer_name(node, {})
        self.layers.append(Layer(name, op, tuple(refs), {}, dict(attrs), source_line(node)))
        self._values[node] = name

    def extra(
        self,
        node: Any,
        suffix: str,
        op: str,
        refs: Sequence[str],
        attrs: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """A layer on the way to a node's own; its reference."""
        named = {role: self._tensors[value] for role, value in (params or {}).items()}
        name = self._layer_name(node, named) if named else self._free(f"{self._path(node)}.{suffix}")
        self.layers.append(Layer(name, op, tuple(refs), named, dict(attrs), source_line(node)))
        return name

    def item(self, node: Any, source: Any, index: int) -> None:
        """A node that is one of several outputs of another."""
        self._values[node] = (
            self._values[source][index] if isinstance(self._values[source], list) else self._values[source]
        )

    def _layer_name(self, node: Any, params: Mapping[str, str]) -> str:
        weight = params.get("weight") or params.get("running_mean")
        if weight is not None and "." in weight:
            return self._free(weight.rpartition(".")[0])
        return self._free(self._path(node))

    @staticmethod
    def _path(node: Any) -> str:
        stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
        path = re.sub(r"@\d+$", "", stack[-1]) if stack else ""
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
            self.item(node, node.args[0], node.args[1])
        elif name.startswith("wrap_with"):
            self._inline(node, graph)
        elif not any(word in name for word in _SKIPPED) and not (name in _HANDLERS and _HANDLERS[name](self, node)):
            self._generic(node)

    def _inline(self, node: Any, graph: Any) -> None:
        """The operations under `no_grad` or autocast are recorded in a graph of their own."""
        position = next(n for n, argument in enumerate(node.args) if getattr(argument, "op", None) == "get_attr")
        inner = getattr(graph.owning_module, node.args[position].target)
        arguments = iter(node.args[position + 1 :])
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                source = next(arguments)
                if source in self._values or source in self._tensors:
                    self.alias(part, source)
            elif part.op == "call_function":
                self._call(part, inner.graph)
            elif part.op == "output":
                results = part.args[0]
                many = isinstance(results, (list, tuple))
                self._values[node] = [self.ref(item) for item in results] if many else self.ref(results)

    def _generic(self, node: Any) -> None:
        import torch

        operands, arguments, keywords = self.recorded(node)
        call = str(node.target)
        overload = node.target
        if torch.Tag.pointwise in getattr(overload, "tags", ()) and operands and _is_tensor(node):
            attrs = {"call": _functional(call), "args": arguments, **({"kwargs": keywords} if keywords else {})}
            self.put(node, "pointwise", operands, attrs=attrs)
            return
        shapes = [_shape_of(value) for value in _as_list(node.meta.get("val")) if hasattr(value, "shape")]
        attrs = {"call": _functional(call), "args": arguments, "shapes": shapes}
        if keywords:
            attrs["kwargs"] = keywords
        if operands:
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


# -- reading nodes ---------------------------------------------------------------------------------------


def operation(target: Any) -> str:
    """The plain name of an operation: `relu` for `aten.relu_.default`."""
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(target, "__name__", str(target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def mutates(graph: Any) -> bool:
    """Whether an operation in place changes a value that is read under its old name, or a view of another.

    Elsewhere an operation in place is simply its value. A graph that needs it is made functional by torch, at the
    price of some of the places in the model's code.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable or not node.args:
            continue
        changed = node.args[0]
        if operation(changed.target) in _VIEWS or any(order[user] > order[node] for user in changed.users):
            return True
    return False


def source_line(node: Any) -> str | None:
    """File and line of the innermost frame outside torch."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else None


def _functional(call: str) -> str:
    """The form of an operation that leaves its operand alone."""
    name, _, overload = call.removeprefix("aten.").partition(".")
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return f"aten.{plain}.{overload}"


def _is_tensor(node: Any) -> bool:
    return hasattr(node.meta.get("val"), "shape")


def _is_float(node: Any) -> bool:
    return _is_tensor(node) and bool(node.meta["val"].dtype.is_floating_point)


def _shape(node: Any) -> list[int]:
    return _shape_of(node.meta["val"])


def _shape_of(value: Any) -> list[int]:
    return [int(size) for size in value.shape]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name; schemas' own defaults where the call leaves it out."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


# -- handlers ---------------------------------------------------------------------------------------------

Handler = Callable[[Converter, Any], bool]
"""Adds the layers of a node and returns True; False where this form of the operation has no rule."""


def _identity(made: Converter, node: Any) -> bool:
    source = node.args[0]
    if _is_tensor(node) and _is_tensor(source):
        before, after = source.meta["val"].dtype, node.meta["val"].dtype
        if before != after and not (before.is_floating_point and after.is_floating_point):
            return False
    made.alias(node, source)
    return True


def _simple(op: str, **names: tuple[int, Any]) -> Handler:
    """One operand, settings by (position, default)."""

    def handler(made: Converter, node: Any) -> bool:
        attrs = {}
        for name, (position, default) in names.items():
            value = argument(node, position, name, default)
            if value != default:
                attrs[name] = list(value) if isinstance(value, (list, tuple)) else value
        made.put(node, op, [node.args[0]], attrs=attrs)
        return True

    return handler


def _arithmetic(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        first, second = node.args[:2]
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            return False
        tensors = [value for value in (first, second) if hasattr(value, "op")]
        if len(tensors) == 2:
            made.put(node, op, tensors)
        elif hasattr(first, "op") and _is_float(first):
            made.put(node, op, [first], attrs={"by": second})
        else:
            return False
        return True

    return handler


def _linear(made: Converter, node: Any) -> bool:
    source, weight = node.args[:2]
    bias = argument(node, 2, "bias")
    if made.tensor(weight) is None or (bias is not None and made.tensor(bias) is None):
        return False
    made.put(node, "linear", [source], {"weight": weight, "bias": bias})
    return True


def _addmm(made: Converter, node: Any) -> bool:
    """bias + x W, with W as (in, out)."""
    bias, source, weight = node.args[:3]
    if made.tensor(weight) is None or made.tensor(bias) is None or len(node.args) > 3:
        return False
    made.put(node, "linear_io", [source], {"weight": weight, "bias": bias})
    return True


def _matmul(made: Converter, node: Any) -> bool:
    made.put(node, "matmul", list(node.args[:2]))
    return True


def _convolution(dims: int) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        source, weight = node.args[:2]
        bias = argument(node, 2, "bias")
        if made.tensor(weight) is None or (bias is not None and made.tensor(bias) is None):
            return False
        attrs = {}
        for position, (name, default) in enumerate((("stride", 1), ("padding", 0), ("dilation", 1)), 3):
            value = argument(node, position, name, default)
            value = _one(value)
            if value != default:
                attrs[name] = value
        if len(_shape(source)) != dims + 2:
            return False
        made.put(node, f"conv{dims}d", [source], {"weight": weight, "bias": bias}, attrs)
        return True

    return handler


def _transposed(dims: int) -> Handler:
    names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1))

    def handler(made: Converter, node: Any) -> bool:
        source, weight = node.args[:2]
        bias = argument(node, 2, "bias")
        if made.tensor(weight) is None:
            return False
        found = {
            name: _one(argument(node, position, name, default)) for position, (name, default) in enumerate(names, 3)
        }
        attrs = {name: found[name] for name, default in names if found[name] != default}
        made.put(node, f"conv_transpose{dims}d", [source], {"weight": weight, "bias": bias}, attrs)
        return True

    return handler


def _one(value: Any) -> Any:
    """A list of equal numbers as one."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(set(value)) == 1 else list(value)
    return value


def _batch_norm(made: Converter, node: Any) -> bool:
    source, weight, bias, mean, variance, training, _, eps = node.args[:8]
    if training or made.tensor(mean) is None:
        return False
    params = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    made.put(node, "batch_norm", [source], params, {} if eps == 1e-5 else {"eps": eps})
    return True


def _legit_batch_norm(made: Converter, node: Any) -> bool:
    source, weight, bias, mean, variance, _, eps = node.args[:7]
    params = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    made.put(node, "batch_norm", [source], params, {} if eps == 1e-5 else {"eps": eps})
    return True


def _layer_norm(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        source, shape = node.args[:2]
        weight = argument(node, 2, "weight")
        bias = argument(node, 3, "bias") if op == "layer_norm" else None
        eps = argument(node, 4 if op == "layer_norm" else 3, "eps", 1e-5)
        if weight is not None and made.tensor(weight) is None:
            return False
        if eps is None:
            import torch

            eps = torch.finfo(source.meta["val"].dtype).eps
        attrs = {"eps": eps, **({"dims": len(shape)} if weight is None and len(shape) > 1 else {})}
        made.put(node, op, [source], {"weight": weight, "bias": bias}, attrs)
        return True

    return handler


def _group_norm(made: Converter, node: Any) -> bool:
    source, groups = node.args[:2]
    weight, bias, eps = (argument(node, n, name) for n, name in ((2, "weight"), (3, "bias"), (4, "eps")))
    attrs = {"groups": groups, "eps": 1e-5 if eps is None else eps}
    made.put(node, "group_norm", [source], {"weight": weight, "bias": bias}, attrs)
    return True


def _embedding(made: Converter, node: Any) -> bool:
    weight, index = node.args[:2]
    if made.tensor(weight) is None:
        return False
    made.put(node, "embedding", [index], {"weight": weight})
    return True


def _prelu(made: Converter, node: Any) -> bool:
    made.put(node, "prelu", [node.args[0]], {"weight": node.args[1]})
    return True


def _cat(made: Converter, node: Any) -> bool:
    parts = [part for part in node.args[0] if part not in made.empty]
    if len(parts) == 1:
        made.alias(node, parts[0])
        return True
    made.put(node, "cat", parts, attrs={"axis": argument(node, 1, "dim", 0)})
    return True


def _stack(made: Converter, node: Any) -> bool:
    made.put(node, "stack", list(node.args[0]), attrs={"axis": argument(node, 1, "dim", 0)})
    return True


def _unbind(made: Converter, node: Any) -> bool:
    axis = argument(node, 1, "dim", 0)
    count = _shape(node.args[0])[axis]
    made.put(node, "unbind", [node.args[0]], attrs={"axis": axis}, outputs=count)
    return True


def _split(made: Converter, node: Any) -> bool:
    sizes = node.args[1]
    axis = argument(node, 2, "dim", 0)
    count = len(_as_list(node.meta["val"]))
    value = list(sizes) if isinstance(sizes, (list, tuple)) else sizes
    made.put(node, "split", [node.args[0]], attrs={"sizes": value, "axis": axis}, outputs=count)
    return True


def _chunk(made: Converter, node: Any) -> bool:
    axis = argument(node, 2, "dim", 0)
    if _shape(node.args[0])[axis] % node.args[1]:
        return False
    count = len(_as_list(node.meta["val"]))
    made.put(node, "chunk", [node.args[0]], attrs={"chunks": node.args[1], "axis": axis}, outputs=count)
    return True


def _slice(made: Converter, node: Any) -> bool:
    source = node.args[0]
    axis = argument(node, 1, "dim", 0)
    start, stop, step = (argument(node, n, name) for n, name in ((2, "start"), (3, "end"), (4, "step")))
    size = _shape(source)[axis]
    first = 0 if start is None else start + size if start < 0 else min(start, size)
    last = size if stop is None or stop >= _BIG else stop + size if stop < 0 else min(stop, size)
    if first >= last:
        made.empty.add(node)
        return True
    if step not in (None, 1):
        if last != size:
            return False
        made.put(node, "strided", [source], attrs={"axis": axis, "start": first, "step": step})
        return True
    if (first, last) == (0, size):
        made.alias(node, source)
        return True
    attrs = {"axis": axis, **({"start": first} if first else {}), **({"stop": last} if last != size else {})}
    made.put(node, "slice", [source], attrs=attrs)
    return True


def _slice_scatter(made: Converter, node: Any) -> bool:
    """A range of an axis replaced: what is before it, the new values, what is behind it."""
    source, values = node.args[:2]
    axis = argument(node, 2, "dim", 0)
    start, stop, step = (argument(node, n, name) for n, name in ((3, "start"), (4, "end"), (5, "step")))
    size = _shape(source)[axis]
    first, last = start or 0, size if stop is None or stop >= _BIG else stop
    if step not in (None, 1) or not 0 <= first < last <= size:
        return False
    if last - first == size:
        made.alias(node, values)
        return True
    parts = [made.ref(values)]
    if first > 0:
        parts.insert(0, made.extra(node, "before", "slice", [made.ref(source)], {"axis": axis, "stop": first}))
    if last < size:
        parts.append(made.extra(node, "behind", "slice", [made.ref(source)], {"axis": axis, "start": last}))
    made.put_refs(node, "cat", parts, {"axis": axis})
    return True


def _linear_with_sum(made: Converter, node: Any) -> bool:
    """A bias that is computed is a sum of its own."""
    source, weight = node.args[:2]
    bias = argument(node, 2, "bias")
    if made.tensor(weight) is None:
        return False
    if bias is None or made.tensor(bias) is not None:
        return _linear(made, node)
    product = made.extra(node, "product", "linear", [made.ref(source)], {}, {"weight": weight})
    made.put_refs(node, "add", [product, made.ref(bias)], {})
    return True


def _zero(made: Converter, node: Any) -> bool:
    if not _is_float(node):
        return False
    made.put(node, "mul", [node.args[0]], attrs={"by": 0.0})
    return True


def _select(made: Converter, node: Any) -> bool:
    made.put(node, "select", [node.args[0]], attrs={"axis": node.args[1], "index": node.args[2]})
    return True


def _reshape(made: Converter, node: Any) -> bool:
    """Axes that stay are 0, so that the batch is free; one of the others is what remains."""
    source = node.args[0]
    before, after = _shape(source), _shape(node)
    if before == after:
        made.alias(node, source)
        return True
    if math.prod(before) == 0:
        return False
    shape: list[int] = list(after)
    kept = 0
    while kept < min(len(before), len(after)) and before[kept] == after[kept]:
        shape[kept] = 0
        kept += 1
    if kept < len(shape):
        # What the code leaves open, else the largest, which is the likeliest to be a width.
        stated = list(argument(node, 1, "shape", [])) if operation(node.target) in ("view", "reshape") else []
        open_ = stated.index(-1) if -1 in stated and len(stated) == len(after) else None
        place = open_ if open_ is not None and open_ >= kept else max(range(kept, len(shape)), key=lambda n: after[n])
        shape[place] = -1
    if kept == 0 and before[0] == made._batch:
        made.fixed_batch = True
    made.put(node, "reshape", [source], attrs={"shape": shape})
    return True


def _permute(made: Converter, node: Any) -> bool:
    made.put(node, "permute", [node.args[0]], attrs={"axes": list(node.args[1])})
    return True


def _transpose(made: Converter, node: Any) -> bool:
    axes = list(node.args[1:3]) if len(node.args) > 2 else [0, 1]
    made.put(node, "transpose", [node.args[0]], attrs={"axes": axes})
    return True


def _unsqueeze(made: Converter, node: Any) -> bool:
    made.put(node, "unsqueeze", [node.args[0]], attrs={"axis": node.args[1]})
    return True


def _expand(made: Converter, node: Any) -> bool:
    before, after = _shape(node.args[0]), _shape(node)
    if before == after:
        made.alias(node, node.args[0])
        return True
    more = len(after) - len(before)
    sizes = [-1 if n >= more and before[n - more] == after[n] else after[n] for n in range(len(after))]
    if sizes[0] == made._batch:
        sizes[0] = "batch"  # type: ignore[call-overload]
    made.put(node, "expand", [node.args[0]], attrs={"sizes": sizes})
    return True


def _reduce(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        axes = argument(node, 1, "dim")
        if axes is None or not _is_float(node):
            return False
        axes = list(axes) if isinstance(axes, (list, tuple)) else [axes]
        keep = argument(node, 2, "keepdim", False)
        made.put(node, op, [node.args[0]], attrs={"axes": axes, **({"keepdim": True} if keep else {})})
        return True

    return handler


def _vector_norm(made: Converter, node: Any) -> bool:
    order, axes = argument(node, 1, "ord", 2), argument(node, 2, "dim")
    if axes is None:
        return False
    keep = argument(node, 3, "keepdim", False)
    attrs = {"axes": list(axes), **({"keepdim": True} if keep else {}), **({} if order == 2 else {"ord": float(order)})}
    made.put(node, "vector_norm", [node.args[0]], attrs=attrs)
    return True


def _softmax(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        made.put(node, op, [node.args[0]], attrs={"axis": node.args[1]})
        return True

    return handler


def _attention(made: Converter, node: Any) -> bool:
    query, key, value = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    attrs = {}
    if argument(node, 5, "is_causal", False):
        attrs["is_causal"] = True
    if node.kwargs.get("scale") is not None:
        attrs["scale"] = node.kwargs["scale"]
    if len(_shape(query)) < 3:
        return False
    made.put(node, "attention", [query, key, value, *([] if mask is None else [mask])], attrs=attrs)
    return True


def _einsum(made: Converter, node: Any) -> bool:
    equation, operands = node.args[:2]
    if "." in equation or "->" not in equation:
        return False
    made.put(node, "einsum", list(operands), attrs={"equation": equation})
    return True


def _window(op: str, names: Sequence[tuple[str, Any]]) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        attrs = {}
        for position, (name, default) in enumerate(names, 1):
            value = argument(node, position, name, default)
            value = _one(value)
            if value in (None, []) or value == default:
                continue
            attrs[name] = value
        made.put(node, op, [node.args[0]], attrs=attrs)
        return True

    return handler


_MAX = (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False))
_AVERAGE = (
    ("kernel_size", None),
    ("stride", None),
    ("padding", 0),
    ("ceil_mode", False),
    ("count_include_pad", True),
)


def _adaptive(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        made.put(node, op, [node.args[0]], attrs={"output_size": _one(list(node.args[1]))})
        return True

    return handler


def _resample(made: Converter, node: Any) -> bool:
    source = node.args[0]
    before, after = _shape(source), _shape(node)
    operands, arguments, keywords = made.recorded(node)
    if len(operands) != 1 or before[:2] != after[:2]:
        return False
    attrs = {"call": str(node.target), "args": arguments, "positions": after[2:]}
    made.put(node, "resample", [source], attrs={**attrs, **({"kwargs": keywords} if keywords else {})})
    return True


def _roll(made: Converter, node: Any) -> bool:
    axes = argument(node, 2, "dims", [])
    if not axes:
        return False
    made.put(node, "roll", [node.args[0]], attrs={"shifts": list(node.args[1]), "axes": list(axes)})
    return True


def _pad(made: Converter, node: Any) -> bool:
    amounts = list(node.args[1])
    mode = argument(node, 2, "mode", "constant") if operation(node.target) == "pad" else "constant"
    value = argument(node, 3 if operation(node.target) == "pad" else 2, "value", 0.0)
    if not any(amounts):
        made.alias(node, node.args[0])
        return True
    made.put(node, "pad", [node.args[0]], attrs={"padding": amounts, "mode": mode, "value": float(value or 0.0)})
    return True


def _lookup(made: Converter, node: Any) -> bool:
    table, indices = node.args[:2]
    if len(indices) != 1 or indices[0] is None or "bool" in str(indices[0].meta["val"].dtype):
        return False
    made.put(node, "lookup", [table, indices[0]])
    return True


_ACTIVATIONS = (
    "relu relu6 selu silu mish tanh hardswish sigmoid hardsigmoid softsign tanhshrink abs neg square sqrt exp log "
    "rsqrt sin cos erf"
).split()

_HANDLERS: dict[str, Handler] = {
    **{name: _simple(name) for name in _ACTIVATIONS},
    **dict.fromkeys(
        (
            "alias",
            "clone",
            "contiguous",
            "detach",
            "to",
            "_to_copy",
            "lift_fresh_copy",
            "type_as",
            "dropout",
            "feature_dropout",
            "alpha_dropout",
            "positive",
            "native_dropout",
        ),
        _identity,
    ),
    "gelu": _simple("gelu", approximate=(1, "none")),
    "leaky_relu": _simple("leaky_relu", negative_slope=(1, 0.01)),
    "elu": _simple("elu", alpha=(1, 1.0)),
    "celu": _simple("celu", alpha=(1, 1.0)),
    "softplus": _simple("softplus", beta=(1, 1.0), threshold=(2, 20.0)),
    "hardtanh": _simple("hardtanh", min_val=(1, -1.0), max_val=(2, 1.0)),
    "glu": _simple("glu", axis=(1, None)),
    "flatten": _reshape,
    "unflatten": _reshape,
    "squeeze": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": _arithmetic("mul"),
    "div": _arithmetic("div"),
    "maximum": _arithmetic("maximum"),
    "minimum": _arithmetic("minimum"),
    "linear": _linear_with_sum,
    "zero": _zero,
    "zeros_like": _zero,
    "slice_scatter": _slice_scatter,
    "addmm": _addmm,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "einsum": _einsum,
    **{f"conv{dims}d": _convolution(dims) for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": _transposed(dims) for dims in (1, 2, 3)},
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _legit_batch_norm,
    "layer_norm": _layer_norm("layer_norm"),
    "rms_norm": _layer_norm("rms_norm"),
    "group_norm": _group_norm,
    "embedding": _embedding,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "unbind": _unbind,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "slice": _slice,
    "select": _select,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "swapaxes": _transpose,
    "expand_as": _expand,
    "linalg_vector_norm": _vector_norm,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "mean": _reduce("mean"),
    "sum": _reduce("sum"),
    "amax": _reduce("amax"),
    "amin": _reduce("amin"),
    "softmax": _softmax("softmax"),
    "_softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "scaled_dot_product_attention": _attention,
    **{f"max_pool{dims}d": _window(f"max_pool{dims}d", _MAX) for dims in (1, 2, 3)},
    **{f"avg_pool{dims}d": _window(f"avg_pool{dims}d", _AVERAGE) for dims in (1, 2, 3)},
    **{f"adaptive_avg_pool{dims}d": _adaptive(f"adaptive_avg_pool{dims}d") for dims in (1, 2, 3)},
    **{f"adaptive_max_pool{dims}d": _adaptive(f"adaptive_max_pool{dims}d") for dims in (1, 2, 3)},
    **dict.fromkeys(
        (
            "upsample_bilinear2d",
            "upsample_nearest2d",
            "upsample_bicubic2d",
            "upsample_linear1d",
            "upsample_nearest1d",
            "upsample_trilinear3d",
            "upsample_nearest3d",
            "upsample_nearest_exact2d",
        ),
        _resample,
    ),
    "roll": _roll,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "index": _lookup,
}
