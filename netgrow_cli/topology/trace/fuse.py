"""Groups of operations that are one, as models write them out.

rms_norm    x * rsqrt(mean(x^2) + eps) * w      w may be stored as 1 + w
attention   q k^T / sqrt(d)                     the number may stand at the queries or at both sides

A number that is 1 / sqrt(d) is taken for one that the code computes from d, so that it follows when d changes.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from netgrow_cli.topology.trace.layer import Layer

# Operations that only move what a number was multiplied with.
_MOVES = ("reshape", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "expand")


def fuse(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """The layers with every written-out rms_norm, and every scale of attention that follows its size, as one layer."""
    return _without_scales(_with_norms(layers, outputs), outputs)


def _with_norms(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
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


# -- numbers that follow a size -------------------------------------------------------------------------------------


def _without_scales(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """The layers without multiplications by 1 / sqrt(d) around products that sum over d; these say so instead."""
    by_name = {layer.name: layer for layer in layers}
    readers: dict[str, list[Layer]] = collections.defaultdict(list)
    for layer in layers:
        for ref in layer.inputs:
            readers[ref].append(layer)
    lone = {name for name in by_name if len(readers[name]) == 1 and name not in outputs}
    gone: dict[str, str] = {}
    made: dict[str, Layer] = {}
    for layer in layers:
        size = _summed_size(layer)
        if size is None:
            continue
        near = [found for found in _numbers(layer, by_name, readers, lone) if found.name not in gone]
        own = layer.attrs.get("scale", 1.0)
        subsets = (few for count in range(len(near) + 1) for few in itertools.combinations(near, count))
        for few in subsets:
            if math.isclose(own * math.prod(map(_factor, few)), size**-0.5, rel_tol=1e-7):
                attrs = {key: value for key, value in layer.attrs.items() if key != "scale"}
                scaled = {} if layer.op == "attention" else {"scaled": True}
                code = {**layer.code, **_powers(few, size)}
                made[layer.name] = dataclasses.replace(layer, attrs={**attrs, **scaled}, code=code)
                gone.update({number.name: number.inputs[0] for number in few})
                break
    kept = [made.get(layer.name, layer) for layer in layers if layer.name not in gone]
    return [dataclasses.replace(layer, inputs=tuple(_followed(ref, gone) for ref in layer.inputs)) for layer in kept]


def _powers(numbers: Sequence[Layer], size: int) -> dict[str, str]:
    """The attributes of modules that hold these numbers, by the power of the size that each is: `size^-0.5`."""
    held = [(layer.attrs["by"], layer.code["by"]) for layer in numbers if "by" in layer.code]
    return {f"size^{round(4 * math.log(by, size)) / 4:g}": attribute for by, attribute in held}


def _followed(ref: str, gone: Mapping[str, str]) -> str:
    while ref in gone:
        ref = gone[ref]
    return ref


def _summed_size(layer: Layer) -> int | None:
    """The size that a product of two activations sums over, where its scale is stated beside it."""
    if len(layer.shapes) < 2:
        return None
    size = 1
    if layer.op == "matmul" or (layer.op == "attention" and "scale" in layer.attrs):
        size = layer.shapes[0][-1]
    elif layer.op == "einsum" and len(layer.inputs) == 2:
        terms, _, result = layer.attrs["equation"].replace(" ", "").partition("->")
        first, second = terms.split(",")
        summed = [n for n, letter in enumerate(first) if letter not in result]
        if len(summed) == 1 and first[summed[0]] in second:
            size = layer.shapes[0][summed[0]]
    return size if size > 1 else None


def _numbers(
    layer: Layer, layers: Mapping[str, Layer], readers: Mapping[str, Sequence[Layer]], lone: set[str]
) -> Iterator[Layer]:
    """Multiplications by a number right behind a product, or on the way to its operands, with no other reader."""
    if layer.op != "attention" and layer.name in lone and _is_number(readers[layer.name][0]):
        yield readers[layer.name][0]
    for ref in layer.inputs[:2]:
        above = layers.get(ref)
        while above is not None and above.name in lone:
            if _is_number(above):
                yield above
                break
            above = layers.get(above.inputs[0]) if above.op in _MOVES else None


def _is_number(layer: Layer) -> bool:
    return layer.op in ("mul", "div") and len(layer.inputs) == 1 and bool(layer.attrs.get("by"))


def _factor(layer: Layer) -> float:
    by = float(layer.attrs["by"])
    return by if layer.op == "mul" else 1.0 / by
