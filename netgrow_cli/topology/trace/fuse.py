"""Groups of operations that are one: rms_norm as models write it out.

x * rsqrt(mean(x^2) + eps) * w          w may be stored as 1 + w
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from netgrow_cli.topology.trace.layer import Layer


def fuse(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """The layers with every written-out rms_norm as one layer."""
    by_name = {layer.name: layer for layer in layers}
    readers: dict[str, list[Layer]] = collections.defaultdict(list)
    for layer in layers:
        for ref in layer.inputs:
            readers[ref].append(layer)
    made: dict[str, Layer] = {}
    gone: set[str] = set()
    for layer in layers:
        if layer.op == "rsqrt":
            found = _rms_norm(layer, by_name, readers, outputs)
            if found is not None:
                made[found[0].name] = found[0]
                gone.update(found[1])
    kept = [made.get(layer.name, layer) for layer in layers if layer.name not in gone]
    used = {ref for layer in kept for ref in layer.inputs} | set(outputs)
    return [layer for layer in kept if layer.op != "parameter" or layer.name in used]


def _rms_norm(
    root: Layer, layers: Mapping[str, Layer], readers: Mapping[str, Sequence[Layer]], outputs: Sequence[str]
) -> tuple[Layer, set[str]] | None:
    """The norm around one rsqrt, under the name of its last operation, and the operations it takes the place of."""
    add = layers.get(root.inputs[0])
    mean = layers.get(add.inputs[0]) if add is not None and add.op == "add" and "by" in add.attrs else None
    power = layers.get(mean.inputs[0]) if mean is not None and mean.op == "mean" else None
    if add is None or mean is None or power is None or mean.attrs.get("axes") != [-1]:
        return None
    source = _squared(power)
    if source is None:
        return None
    scaled = [layer for layer in readers[root.name] if layer.op == "mul" and set(layer.inputs) == {source, root.name}]
    if len(scaled) != 1 or len(readers[root.name]) != 1:
        return None
    last, weight, offset, more = scaled[0], None, 0.0, set[str]()
    following = readers[last.name]
    if len(following) == 1 and following[0].op == "mul" and len(following[0].inputs) == 2 and last.name not in outputs:
        other = next(ref for ref in following[0].inputs if ref != last.name)
        weight, offset, extra = _gain(other, layers)
        if weight is not None:
            more = {last.name, *(extra if all(len(readers[name]) == 1 for name in extra) else ())}
            last = following[0]
    attrs = {"eps": add.attrs["by"], **({"offset": offset} if offset else {})}
    params = {"weight": weight} if weight is not None else {}
    code = {"eps": add.code["by"]} if "by" in add.code else {}
    norm = dataclasses.replace(last, op="rms_norm", inputs=(source,), params=params, attrs=attrs, code=code)
    return norm, {power.name, mean.name, add.name, root.name, *more}


def _squared(layer: Layer) -> str | None:
    """x of x^2, however it is written."""
    if layer.op == "pointwise" and layer.attrs["call"].startswith("aten.pow.") and layer.attrs["args"] == ["$0", 2]:
        return layer.inputs[0]
    if layer.op == "square" or (layer.op == "mul" and len(layer.inputs) == 2 and len(set(layer.inputs)) == 1):
        return layer.inputs[0]
    return None


def _gain(ref: str, layers: Mapping[str, Layer]) -> tuple[str | None, float, set[str]]:
    """The tensor that a norm multiplies by, what is added to it, and the layers that do that."""
    layer = layers.get(ref)
    if layer is None:
        return None, 0.0, set()
    if layer.op == "parameter":
        return layer.params["weight"], 0.0, set()
    if layer.op == "add" and layer.attrs.get("by") == 1.0:
        inner = layers.get(layer.inputs[0])
        if inner is not None and inner.op == "parameter":
            return inner.params["weight"], 1.0, {layer.name}
    return None, 0.0, set()
