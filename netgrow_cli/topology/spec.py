"""The spec: layer-level dataflow in YAML, parsed into the graph. See `spec.schema.json` for its form."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.blocks import Block, expand_blocks
from netgrow_cli.topology.config import ConfigKey, parse_config
from netgrow_cli.topology.graph import Graph, Input, Mark, Node, Ref
from netgrow_cli.topology.located import Located, load
from netgrow_cli.topology.ops import ATTR_ALIASES, OPS, Op, Param, canonical, close_names
from netgrow_cli.topology.ops.base import REQUIRED

VERSION = 1
MOST_BYTES = 16 * 2**20
_TOP = ("netgrow", "inputs", "layers", "outputs", "dims", "prefix", "key", "ignore", "config")
_LAYER = ("op", "from", "params", "prefix", "source", "code")
_SLICE = re.compile(r"^(?P<name>.+?)\[(?:(?P<start>\d{0,12}):(?P<stop>\d{0,12})|(?P<index>\d{1,12}))\]$")
_RANGE = re.compile(r"^\s*(\d{1,12})\s*:\s*(\d{1,12})\s*$")
_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


@frozen
class Spec:
    """A parsed spec file, not yet bound to a checkpoint.

    text: the file's text, which rewriting keeps but for the numbers that change.
    """

    file: str
    text: str
    root: Located

    @property
    def prefix(self) -> str | None:
        """What stands before every tensor's name in the checkpoint; None to find it."""
        found = self.root.value.get("prefix")
        return None if found is None else str(found.value)

    @property
    def key(self) -> str | None:
        """Where the state dict lies in the checkpoint; None to find it."""
        found = self.root.value.get("key")
        return None if found is None else str(found.value)

    @property
    def config(self) -> tuple[ConfigKey, ...]:
        """Which keys of a `config.json` follow the network's sizes, and where their values are found."""
        return parse_config(self.root.value.get("config"))

    def graph(self, tensors: Mapping[str, TensorInfo]) -> Graph:
        """The graph, parameters found among the tensors. Raises SpecError."""
        return _Builder(self, tensors).graph()


def read_spec(path: Path) -> Spec:
    """Read and parse a spec file. Raises SpecError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"{path}: larger than {MOST_BYTES >> 20} MiB, which no spec is")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such spec") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as text ({error})") from None
    return parse_spec(text, str(path))


def parse_spec(text: str, file: str) -> Spec:
    """Parse a spec's text. Raises SpecError."""
    root = load(text, file)
    if not isinstance(root.value, dict):
        raise SpecError(f"{root.mark}: a spec is a mapping that starts with `netgrow: 1`")
    for key, mark in root.keys.items():
        if key not in _TOP:
            raise SpecError(f"{mark}: unknown key {key!r}{_close(key, _TOP)}; a spec has {', '.join(_TOP)}")
    version = root.value.get("netgrow")
    if version is None:
        raise SpecError(f"{file}:1: not a netgrow spec: it lacks `netgrow: {VERSION}`")
    if version.value != VERSION or not isinstance(version.value, int) or isinstance(version.value, bool):
        raise SpecError(f"{version.mark}: spec version {version.value!r}; this netgrow reads version {VERSION}")
    for key, kind in (("inputs", dict), ("layers", dict), ("outputs", (list, str))):
        found = root.value.get(key)
        if found is None or not found.value:
            raise SpecError(f"{file}: it lacks `{key}:`")
        if not isinstance(found.value, kind):
            raise SpecError(f"{found.mark}: `{key}:` must be a {'mapping' if kind is dict else 'list'}")
    root = dataclasses.replace(root, value={key: item for key, item in root.value.items() if item.value is not None})
    for key in ("prefix", "key"):
        found = root.value.get(key)
        if found is not None and not isinstance(found.value, str):
            raise SpecError(f"{found.mark}: `{key}:` must be text, found {found.plain()!r}")
    parse_config(root.value.get("config"))
    return Spec(file, text, root)


def _close(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


class _Builder:
    """Builds the graph of one spec for one checkpoint."""

    def __init__(self, spec: Spec, tensors: Mapping[str, TensorInfo]) -> None:
        self._spec = spec
        self._tensors = tensors
        self._nodes: dict[str, Node] = {}
        self._inputs: dict[str, Input] = {}
        self._layers: dict[str, Block] = {}
        # What a body says whichever block it stands in, by its identity: blocks share their bodies.
        self._ops: dict[int, Op | None] = {}
        self._settings: dict[int, tuple[dict[str, Any], dict[str, Mark]]] = {}

    def graph(self) -> Graph:
        root = self._spec.root.value
        for name, given in root["inputs"].value.items():
            self._inputs[name] = _input(name, given)
        layers, ends = expand_blocks(root["layers"], tuple(self._tensors))
        for layer in layers:
            if _SLICE.match(layer.name) or not layer.name.strip():
                raise SpecError(f"{layer.mark}: {layer.name!r} is no name for a layer: it reads like a range of one")
            if layer.name in ends:
                raise SpecError(f"{layer.mark}: {layer.name!r} is a layer and stands for a block's end")
            if layer.name in self._inputs:
                raise SpecError(f"{layer.mark}: {layer.name!r} is an input and a layer")
            if layer.name in self._layers:
                raise SpecError(f"{layer.mark}: layer {layer.name!r} is given twice")
            self._layers[layer.name] = layer
        self._ends = ends
        for layer in layers:
            self._layer(layer)
        outputs = root["outputs"]
        listed = outputs.value if isinstance(outputs.value, list) else [outputs]
        refs = tuple(self._ref(item, "outputs", ()) for item in listed)
        return Graph(
            inputs=tuple(self._inputs.values()),
            nodes=_ordered(self._nodes, self._inputs, self._spec.file),
            outputs=refs,
            dims=_dims(root.get("dims")),
            ignore=_ignore(root.get("ignore")),
            origin=self._spec.file,
        )

    # -- one layer ------------------------------------------------------------------------------

    def _layer(self, layer: Block) -> None:
        body = layer.body.value
        if not isinstance(body, dict):
            raise SpecError(f"{layer.mark}: layer {layer.name!r} must be a mapping: {{op: ..., from: ...}}")
        op = self._op(layer)
        least, most = op.inputs
        if "from" not in body and least > 0:
            self._fail(layer, "it lacks `from:`, which says what it reads")
        inputs: tuple[Ref, ...] = ()
        if "from" in body:
            inputs = self._operands(layer, op, body["from"])
        if len(inputs) < least or (most is not None and len(inputs) > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            hint = "; for a concatenation give ranges: {'0:64': a, '64:96': b}" if op.consumes_axis else ""
            place = body["from"].mark if "from" in body else None
            self._fail(layer, f"it takes {wanted} operand, `from` gives {len(inputs)}{hint}", place)
        attrs, marks = self._attrs(layer, op)
        self._nodes[layer.name] = Node(
            name=layer.name,
            op=op.name,
            inputs=inputs,
            params=self._params(layer, op),
            attrs=attrs,
            marks=marks,
            source=self._source(layer),
            code=self._code(layer),
        )

    def _source(self, layer: Block) -> str | None:
        """File and line of the model's code, which a trace writes down."""
        stated = layer.body.value.get("source")
        if stated is None or stated.value is None:
            return None
        if not isinstance(stated.value, str):
            self._fail(layer, f"`source:` must be text, found {stated.plain()!r}", stated.mark)
        return str(stated.value)

    def _code(self, layer: Block) -> dict[str, str]:
        """Which attributes of modules hold the layer's numbers, which a trace writes down."""
        stated = layer.body.value.get("code")
        if stated is None or stated.value is None:
            return {}
        plain = stated.plain()
        if not isinstance(plain, dict) or not all(isinstance(item, str) for item in plain.values()):
            self._fail(layer, f"`code:` maps settings to attributes of modules, found {plain!r}", stated.mark)
        return {str(key): str(item) for key, item in plain.items()}

    def _op(self, layer: Block) -> Op:
        stated = layer.body.value.get("op")
        if stated is None:
            self._fail(layer, "it lacks `op:`")
        if not isinstance(stated.value, str):
            self._fail(layer, f"`op:` must be the name of an operation, found {stated.plain()!r}", stated.mark)
        op = self._op_of(layer.name)
        if op is None:
            close = close_names(stated.value)
            hint = f" (did you mean {' or '.join(close)}?)" if close else ""
            self._fail(layer, f"unknown op {stated.value!r}{hint}", stated.mark)
        return op

    def _attrs(self, layer: Block, op: Op) -> tuple[dict[str, Any], dict[str, Mark]]:
        """The settings that a layer states, and where all that it states stands."""
        if id(layer.body) in self._settings:
            return self._settings[id(layer.body)]
        body = layer.body.value
        marks = {"layer": layer.mark, "op": body["op"].mark, **({"from": body["from"].mark} if "from" in body else {})}
        attrs: dict[str, Any] = {}
        for key, item in layer.body.value.items():
            if key in _LAYER:
                continue
            name = key
            if name not in op.attrs:
                name = next((alias for alias in ATTR_ALIASES.get(key, ()) if alias in op.attrs), key)
            if name not in op.attrs or name == "ranges":
                known = sorted({*_LAYER, *op.attrs} - {"ranges"})
                hint = f"{_close(key, known)}; it takes {', '.join(known)}"
                self._fail(layer, f"{op.name} has no setting {key!r}{hint}", layer.body.keys[key])
            kinds = op.attrs[name].types
            value = item.plain()
            if value is None:  # as if it were not there
                continue
            if float in kinds:
                value = _number(value)
            if name in attrs:
                self._fail(layer, f"{key}: {name!r} is stated already under another name", layer.body.keys[key])
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                kind = " or ".join(sorted({k.__name__ for k in kinds} - {"tuple"}))
                self._fail(layer, f"{key}: {value!r} should be {kind}", item.mark)
            attrs[name] = value
            marks[f"attr:{name}"] = item.mark
            self._mark_items(name, item, marks)
        for name, attr in op.attrs.items():
            if attr.default is REQUIRED and attrs.get(name) is None:
                self._fail(layer, f"{op.name} needs `{name}:`")
        self._settings[id(layer.body)] = attrs, marks
        return attrs, marks

    @staticmethod
    def _mark_items(name: str, item: Located, marks: dict[str, Mark]) -> None:
        if isinstance(item.value, list):
            for position, part in enumerate(item.value):
                marks[f"{name}[{position}]"] = part.mark
        else:
            marks[name] = item.mark

    def _params(self, layer: Block, op: Op) -> dict[str, str]:
        stated = layer.body.value.get("params")
        prefix = layer.body.value.get("prefix")
        prefix = None if prefix is None or prefix.value is None else prefix
        if prefix is not None and not isinstance(prefix.value, str):
            self._fail(layer, f"`prefix:` must be text, found {prefix.plain()!r}", prefix.mark)
        base = f"{layer.name}." if prefix is None else str(prefix.value)
        params = {name: param for param in op.params for name in self._called(param, base)}
        names = {name: base + name for name in params}
        given: set[str] = set()
        if stated is not None and stated.value is not None:
            if not isinstance(stated.value, dict):
                self._fail(layer, "`params:` must map a parameter to a tensor's name", stated.mark)
            for key, item in stated.value.items():
                if op.param(key) is None:
                    known = ", ".join(param.name for param in op.params) or "none"
                    self._fail(layer, f"{op.name} has no parameter {key!r}; it has {known}", stated.keys[key])
                if item.value is None:
                    names.pop(key, None)
                    continue
                if not isinstance(item.value, str):
                    self._fail(layer, f"params: {key} must name a tensor, found {item.plain()!r}", item.mark)
                given.add(key)
                names[key] = item.value
        found = {}
        for name, tensor in names.items():
            if tensor in self._tensors:
                found[name] = tensor
            elif name in given or not params[name].optional:
                close = _close(tensor, tuple(self._tensors))
                self._fail(layer, f"there is no tensor {tensor!r} in the checkpoint{close}")
        return found

    def _called(self, param: Param, base: str) -> list[str]:
        """The names of a parameter; of a numbered one, those that the checkpoint has."""
        if not param.numbered:
            return [param.name]
        pattern = re.compile(re.escape(base) + f"({param.pattern})")
        return [match[1] for name in self._tensors if (match := pattern.fullmatch(name))]

    # -- what a layer reads -----------------------------------------------------------------------

    def _operands(self, layer: Block, op: Op, given: Located) -> tuple[Ref, ...]:
        if isinstance(given.value, dict):
            return (self._ranges(layer, op, given),)
        items = given.value if isinstance(given.value, list) else [given]
        if not items:
            self._fail(layer, "`from:` is an empty list", given.mark)
        return tuple(self._ref(item, layer.name, layer.scope) for item in items)

    def _ranges(self, layer: Block, op: Op, given: Located) -> Ref:
        """`{"0:64": a, "64:96": b}`: a concatenation, whose ranges are checked."""
        if not given.value:
            self._fail(layer, "`from:` is an empty mapping", given.mark)
        ranges = []
        for key, item in given.value.items():
            match = _RANGE.match(key)
            if match is None:
                self._fail(layer, f"{key!r} is no range; write '0:64'", given.keys[key])
            start, stop = int(match[1]), int(match[2])
            if stop <= start:
                self._fail(layer, f"the range {key!r} is empty", given.keys[key])
            ranges.append((start, stop, self._ref(item, layer.name, layer.scope), given.keys[key]))
        ranges.sort(key=lambda entry: entry[:2])
        end = 0
        for start, stop, _, mark in ranges:
            if start > end:
                self._fail(layer, f"nothing feeds the range {end}:{start}", mark)
            if start < end:
                self._fail(layer, f"the ranges overlap between {start} and {min(end, stop)}", mark)
            end = stop
        marks = {f"range:{n}": mark for n, (_, _, _, mark) in enumerate(ranges)}
        attrs: dict[str, Any] = {"ranges": tuple((start, stop) for start, stop, _, _ in ranges)}
        if op.consumes_axis is not None:
            attrs["axis"] = op.consumes_axis
        name = f"{layer.name}.from"
        if name in self._layers or name in self._inputs:
            self._fail(layer, f"the name {name!r} stands for what its ranges join; call that layer otherwise")
        self._nodes[name] = Node(
            name=name,
            op="cat",
            inputs=tuple(ref for _, _, ref, _ in ranges),
            attrs=attrs,
            marks={"layer": layer.mark, "from": given.mark, **marks},
            hidden=True,
        )
        return Ref(name)

    def _ref(self, item: Located, reader: str, scope: Sequence[str]) -> Ref:
        if not isinstance(item.value, (str, int)):  # (an int is a layer called 1; a bool one called on)
            raise SpecError(f"{item.mark}: {reader!r} should name a layer here, as in 'fc1' or 'fc1[0:32]'")
        text = (item.value if isinstance(item.value, str) else self._spec.text[item.mark.start : item.mark.end]).strip()
        name = self._resolve(text, scope)
        if name is not None:
            self._one_output(item, text, name)
            return Ref(name)
        match = _SLICE.match(text)
        base = self._resolve(match["name"], scope) if match else None
        if match is None or base is None:
            known = (*self._inputs, *self._layers)
            wanted = match["name"] if match else text
            for prefix in scope:
                wanted = self._ends.get(f"{prefix}.{wanted}", wanted)
            raise SpecError(f"{item.mark}: {reader!r} reads {wanted!r}, which is no layer{_close(wanted, known)}")
        if match["index"] is not None:
            op = self._op_of(base)
            if op is None or not op.multiple:
                raise SpecError(
                    f"{item.mark}: {text!r}: {base!r} has one output; a range of units is written "
                    f"'{base}[{match['index']}:{int(match['index']) + 1}]'"
                )
            return Ref(base, int(match["index"]))
        self._one_output(item, text, base)
        return self._slice(item, base, match)

    def _one_output(self, item: Located, text: str, name: str) -> None:
        op = self._op_of(name)
        if op is not None and op.multiple and not op.main_output:
            raise SpecError(f"{item.mark}: {text!r}: {name!r} has several outputs; choose one: '{name}[0]'")

    def _op_of(self, name: str) -> Op | None:
        layer = self._layers.get(name)
        if layer is None:
            return None
        key = id(layer.body)
        if key not in self._ops:
            stated = layer.body.value.get("op") if isinstance(layer.body.value, dict) else None
            op = stated.value if stated is not None else None
            self._ops[key] = OPS.get(canonical(op)) if isinstance(op, str) else None
        return self._ops[key]

    def _slice(self, item: Located, base: str, match: re.Match[str]) -> Ref:
        start = int(match["start"] or 0)
        stop = int(match["stop"]) if match["stop"] else None
        name = f"{base}[{match['start'] or 0}:{match['stop'] or ''}]"
        if name not in self._nodes:
            offset = _inside(self._spec.text, item.mark, f"[{match['start']}:{match['stop']}]")
            marks = {"layer": item.mark}
            if offset is not None:
                text = f"{match['start']}:{match['stop']}"
                marks["range"] = Mark(item.mark.file, item.mark.line, offset + 1, offset + 1 + len(text))
            attrs = {"start": start, "stop": stop}
            self._nodes[name] = Node(name, "slice", (Ref(base),), attrs=attrs, marks=marks, hidden=True)
        else:
            self._same_range_again(name, item, match)
        return Ref(name)

    def _same_range_again(self, name: str, item: Located, match: re.Match[str]) -> None:
        """A range that several layers read is one node; every place that states it is to be rewritten."""
        node = self._nodes[name]
        offset = _inside(self._spec.text, item.mark, f"[{match['start']}:{match['stop']}]")
        if offset is None:
            return
        length = len(f"{match['start']}:{match['stop']}")
        again = sum(key.startswith("range") for key in node.marks)
        place = Mark(item.mark.file, item.mark.line, offset + 1, offset + 1 + length)
        marks = {**node.marks, f"range+{again}": place}
        self._nodes[name] = dataclasses.replace(node, marks=marks)

    def _resolve(self, name: str, scope: Sequence[str]) -> str | None:
        """The full name of a value: in the reader's own block first, then outwards."""
        for prefix in (*reversed(scope), ""):
            full = f"{prefix}.{name}" if prefix else name
            if full in self._ends:  # what a block reads or gives, and nothing further out
                full = self._ends[full]
                return full if full in self._layers or full in self._inputs else None
            if full in self._layers or full in self._inputs:
                return full
        return None

    @staticmethod
    def _fail(layer: Block, message: str, mark: Mark | None = None) -> NoReturn:
        raise SpecError(f"{mark or layer.mark}: layer {layer.name!r}: {message}")


def _inside(text: str, mark: Mark, part: str) -> int | None:
    """The offset of a part of a scalar's text; None where escapes hide it."""
    found = text.find(part, mark.start, mark.end)
    return None if found < 0 else found


def _input(name: str, given: Located) -> Input:
    body = given.value
    shape, settings = (body.get("shape"), body) if isinstance(body, dict) else (given, {})
    if shape is None or not isinstance(shape.value, list) or not shape.value:
        raise SpecError(f"{given.mark}: input {name!r} needs a shape, as in [batch, 17]")
    for item in shape.value:
        ok = isinstance(item.value, str) or (isinstance(item.value, int) and item.value > 0)
        if not ok or isinstance(item.value, bool):
            raise SpecError(f"{item.mark}: input {name!r}: {item.plain()!r} is neither a size nor a name")
    for key in settings:
        if key not in ("shape", "dtype", "low", "high"):
            raise SpecError(f"{given.keys[key]}: input {name!r} has shape, dtype, low and high, not {key!r}")
    plain = {key: _number(item.plain()) for key, item in settings.items() if key != "shape"}
    for key in ("low", "high"):
        if isinstance(plain.get(key), bool) or not isinstance(plain.get(key) or 0, (int, float)):
            raise SpecError(f"{settings[key].mark}: input {name!r}: {key} must be a number")
    dtype = str(plain.get("dtype", "float32"))
    if dtype not in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool"):
        raise SpecError(f"{settings['dtype'].mark}: input {name!r}: unknown dtype {dtype!r}")
    low, high = plain.get("low"), plain.get("high")
    if low is not None and high is not None and not low < high:
        raise SpecError(f"{given.mark}: input {name!r}: low {low} is not below high {high}")
    if "int" in dtype and high is None:
        raise SpecError(f"{given.mark}: input {name!r} holds integers; say below which: `high: 1000`")
    items = tuple(item.value for item in shape.value)
    return Input(name, items, dtype, low, high, given.mark)


def _number(value: Any) -> Any:
    """A number such as 1e-5, which YAML 1.1 reads as text for want of a point."""
    return float(value) if isinstance(value, str) and _FLOAT.match(value) else value


def _dims(given: Located | None) -> dict[str, int]:
    if given is None:
        return {}
    if not isinstance(given.value, dict):
        raise SpecError(f"{given.mark}: `dims:` must map names to sizes")
    for key, item in given.value.items():
        if not isinstance(item.value, int) or isinstance(item.value, bool) or item.value < 1:
            raise SpecError(f"{item.mark}: dims: {key} must be a positive number, found {item.plain()!r}")
    return {key: item.value for key, item in given.value.items()}


def _ignore(given: Located | None) -> tuple[str, ...]:
    if given is None:
        return ()
    items = given.value if isinstance(given.value, list) else [given]
    for item in items:
        if not isinstance(item.value, str):
            raise SpecError(f"{item.mark}: `ignore:` lists patterns of tensors' names, found {item.plain()!r}")
    return tuple(item.value for item in items)


def _ordered(nodes: Mapping[str, Node], inputs: Mapping[str, Input], file: str) -> tuple[Node, ...]:
    """The nodes so that each comes behind what it reads; the spec's own order where that allows it."""
    done: set[str] = set(inputs)
    order: list[Node] = []
    for root in nodes:
        path = [root]
        while path:
            node = nodes.get(path[-1])
            waits = next((ref.node for ref in node.inputs if ref.node not in done), None) if node else None
            if waits is None:
                if node is not None and node.name not in done:
                    done.add(node.name)
                    order.append(node)
                path.pop()
            elif waits in path:
                cycle = " -> ".join([*path[path.index(waits) :], waits])
                raise SpecError(f"{nodes[path[-1]].mark or file}: the layers form a cycle: {cycle}")
            else:
                path.append(waits)
    return tuple(order)
