"""The spec that goes with the output: the same text, with only the numbers changed that follow the widths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from netgrow_cli.errors import SpecError
from netgrow_cli.surgery.plan import Plan, SpecChange
from netgrow_cli.topology.graph import Graph, Input, Mark, Node
from netgrow_cli.topology.located import Located
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.spec import Spec


def rewrite_spec(spec: Spec, graph: Graph, plan: Plan) -> str:
    """The spec's text with new ranges and sizes; comments and order stay.

    Where a block that is written once would need different numbers, it is written out.
    """
    if _differ_where_written_once(graph, plan):
        return _written_out(spec, graph, plan)
    edits: dict[tuple[int, int], str] = {}
    for change in plan.spec:
        node = graph.node(change.node)
        for place, text in _places(spec, node, change):
            if edits.setdefault(place, text) != text:
                return _written_out(spec, graph, plan)
    text = spec.text
    for (start, end), new in sorted(edits.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _differ_where_written_once(graph: Graph, plan: Plan) -> bool:
    """Whether layers of a block, or all that name one of `dims`, change in some places only."""
    changes: dict[str, set[tuple[str, str]]] = {node.name: set() for node in graph.nodes}
    for change in plan.spec:
        changes[change.node].add((change.what, change.value))
    alike: dict[object, list[Node]] = {}
    for node in graph.nodes:
        if node.mark is not None:
            alike.setdefault((node.op, node.mark), []).append(node)
        for value in node.attrs.values():
            named = value if isinstance(value, (list, tuple)) else [value]
            for dim in {item for item in named if isinstance(item, str)} & set(graph.dims):
                alike.setdefault(dim, []).append(node)
    for key, nodes in alike.items():
        found = [changes[node.name] for node in nodes]
        same = all(map(bool, found)) if isinstance(key, str) else all(one == found[0] for one in found)
        if any(found) and not same:
            return True
    return False


def _places(spec: Spec, node: Node, change: SpecChange) -> list[tuple[tuple[int, int], str]]:
    """Where a change goes, and the text that goes there."""
    if change.what.startswith("range"):
        marks = [mark for key, mark in node.marks.items() if _same_range(key, change.what)]
        return [((mark.start, mark.end), _range_text(spec.text[mark.start : mark.end], change.value)) for mark in marks]
    base = change.what.split("[")[0]
    stated = node.attrs.get(base)
    named = _item(stated, change.what)
    if isinstance(named, str) and (mark := _dim_mark(spec, named)) is not None:
        return [((mark.start, mark.end), change.value)]
    mark = node.marks.get(change.what) or node.marks.get(f"attr:{base}")
    if mark is not None:
        return [((mark.start, mark.end), change.value)]
    return [_insertion(spec, node, base, change.value)]


def _same_range(key: str, what: str) -> bool:
    return key == what or (what == "range" and key.startswith("range+"))


def _range_text(old: str, new: str) -> str:
    return re.sub(r"\d*\s*:\s*\d*", new, old, count=1)


def _item(stated: object, what: str) -> object:
    match = re.search(r"\[(\d+)\]$", what)
    if match and isinstance(stated, (list, tuple)):
        return stated[int(match[1])]
    return stated


def _dim_mark(spec: Spec, name: str) -> Mark | None:
    dims: Located | None = spec.root.value.get("dims")
    found: Located | None = dims.value.get(name) if dims is not None else None
    return found.mark if found is not None else None


def _insertion(spec: Spec, node: Node, key: str, value: str) -> tuple[tuple[int, int], str]:
    """A setting that the spec left at its default, put behind `op:`."""
    mark = node.marks.get("op")
    if mark is None:
        raise SpecError(f"layer {node.name!r}: {key} must become {value}, and the spec has no place for it")
    line_start = spec.text.rfind("\n", 0, mark.start) + 1
    before = spec.text[line_start : mark.start]
    if "{" in before:
        return (mark.end, mark.end), f", {key}: {value}"
    indent = re.match(r"\s*", before)
    return (mark.end, mark.end), f"\n{indent[0] if indent else ''}{key}: {value}"


# -- written out ---------------------------------------------------------------------------------------


def _written_out(spec: Spec, graph: Graph, plan: Plan) -> str:
    changed: dict[str, dict[str, str]] = {}
    for change in plan.spec:
        changed.setdefault(change.node, {})[change.what] = change.value
    layers: dict[str, object] = {}
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        if not node.hidden:
            layers[node.name] = _layer(node, nodes, changed)
    document = {
        "netgrow": 1,
        "inputs": {given.name: _input(given) for given in graph.inputs},
        **({"dims": dict(graph.dims)} if graph.dims else {}),
        **({"ignore": list(graph.ignore)} if graph.ignore else {}),
        "layers": layers,
        "outputs": [_ref(ref.node, ref.output, nodes, changed) for ref in graph.outputs],
        **{key: spec.root.value[key].plain() for key in ("config",) if key in spec.root.value},
    }
    return yaml.safe_dump(document, sort_keys=False, width=120)


def _layer(node: Node, nodes: Mapping[str, Node], changed: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    first = nodes.get(node.inputs[0].node) if node.inputs else None
    source: object
    if first is not None and first.hidden and first.op == "cat":
        values = changed.get(first.name, {})
        ranges: Sequence[tuple[int, int]] = first.attrs["ranges"]
        source = {
            values.get(f"range:{n}", f"{start}:{stop}"): _ref(ref.node, ref.output, nodes, changed)
            for n, ((start, stop), ref) in enumerate(zip(ranges, first.inputs, strict=True))
        }
    else:
        listed = [_ref(ref.node, ref.output, nodes, changed) for ref in node.inputs]
        source = listed[0] if len(listed) == 1 else listed
    body: dict[str, object] = {"op": node.op, **({"from": source} if node.inputs else {})}
    if node.params:
        body["params"] = dict(node.params)
    attrs = {key: list(value) if isinstance(value, tuple) else value for key, value in node.attrs.items()}
    for what, value in changed.get(node.name, {}).items():
        _assign(attrs, what, yaml.safe_load(value))
    more = {"source": node.source, "code": dict(node.code)}
    return {**body, **attrs, **{key: value for key, value in more.items() if value}}


def _assign(attrs: dict[str, object], what: str, value: object) -> None:
    match = re.fullmatch(r"(\w+)\[(\d+)\]", what)
    if match is None:
        attrs[what] = value
        return
    items = attrs[match[1]]
    assert isinstance(items, list)
    items[int(match[2])] = value


def _ref(name: str, output: int, nodes: Mapping[str, Node], changed: Mapping[str, Mapping[str, str]]) -> str:
    node = nodes.get(name)
    if node is None or not node.hidden:
        return f"{name}[{output}]" if node is not None and OPS[node.op].multiple else name
    stop = node.attrs["stop"]
    stated = f"{node.attrs['start']}:{'' if stop is None else stop}"
    return f"{node.inputs[0].node}[{changed.get(name, {}).get('range', stated)}]"


def _input(given: Input) -> object:
    if given.dtype == "float32" and given.low is None and given.high is None:
        return list(given.shape)
    settings = {"dtype": given.dtype, "low": given.low, "high": given.high}
    return {"shape": list(given.shape), **{key: value for key, value in settings.items() if value is not None}}
