"""A spec drafted from names and shapes, for plain chains: one layer after another, nothing between but functions
of each unit alone.

It is drafted only where names and shapes leave one reading. Two readings are an error that shows both.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen

_CONV = {3: "conv1d", 4: "conv2d", 5: "conv3d"}
_POSITIONS = {3: "length", 4: "height, width", 5: "depth, height, width"}
_FIRST = {"in", "input", "inp", "first", "stem", "fc_in", "embed_in", "in_proj", "input_layer"}
_LAST = set(
    "out output head last final logits classifier readout fc_out out_proj predict prediction output_layer".split()
)
# Parts of names that speak of something other than a plain chain.
_BRANCHES = set("skip shortcut residual res downsample attn attention lstm gru rnn gate expert experts".split())


@frozen
class _Layer:
    name: str
    op: str
    reads: int
    makes: int
    rank: int


@frozen
class Draft:
    """A drafted spec's text, and what was assumed, for people."""

    text: str
    assumed: tuple[str, ...]


def draft_spec(tensors: Mapping[str, TensorInfo], source: str, activation: str = "per_unit") -> Draft:
    """Draft a spec. activation: what to put between layers; `per_unit` where it is not known.

    Raises SpecError with the readings where there is more than one.
    """
    layers, norms = _layers(tensors, source)
    chain = _chain(layers, source)
    after = _place_norms(chain, norms, source)
    text = _write(chain, after, activation)
    order = " -> ".join(layer.name for layer in chain)
    assumed = [f"a plain chain without skip connections: {order}"]
    if activation == "per_unit" and len(chain) > 1:
        assumed.append("some function of each unit alone between the layers (which one does not matter here)")
    if any(layer.op != "linear" for layer in chain):
        assumed.append("convolutions padded to keep the size, stride 1")
    return Draft(text, tuple(assumed))


# -- which layers there are --------------------------------------------------------------------------


def _layers(tensors: Mapping[str, TensorInfo], source: str) -> tuple[list[_Layer], dict[str, int]]:
    groups: dict[str, dict[str, TensorInfo]] = collections.defaultdict(dict)
    for name, info in tensors.items():
        module, _, parameter = name.rpartition(".")
        groups[module][parameter] = info
    layers: list[_Layer] = []
    norms: dict[str, int] = {}
    for module, found in groups.items():
        odd = set(re.split(r"[._\d]+", module.lower())) & _BRANCHES
        if odd:
            _cannot(source, f"{module!r} speaks of {sorted(odd)[0]!r}, which no plain chain has")
        shapes = {parameter: info.shape for parameter, info in found.items() if parameter != "num_batches_tracked"}
        if _is_batch_norm(shapes):
            norms[module] = shapes["running_mean"][0]
        else:
            layers.append(_layer(module, shapes, source))
    if not layers:
        _cannot(source, "it has no layer with a weight")
    return layers, norms


def _layer(module: str, shapes: Mapping[str, tuple[int, ...]], source: str) -> _Layer:
    weight, bias = shapes.get("weight"), shapes.get("bias")
    extra = sorted(set(shapes) - {"weight", "bias"})
    name = module or "weight"
    if weight is None or extra:
        what = f"{module}.{extra[0]}" if extra and module else (extra or sorted(shapes))[0]
        _cannot(source, f"{what!r} belongs to no layer that can be told from its name")
    if len(weight) < 2:
        _cannot(source, f"{name}.weight {list(weight)} could be a layer_norm, rms_norm, group_norm or prelu")
    if re.search(r"emb|wte|wpe", module.lower()):
        _cannot(source, f"{name!r} looks like an embedding; what reads it cannot be told")
    if bias is not None and bias != weight[:1]:
        _cannot(source, f"{name}.bias {list(bias)} does not fit {name}.weight {list(weight)}")
    if len(weight) == 2:
        return _Layer(name, "linear", weight[1], weight[0], 2)
    if len(weight) not in _CONV:
        _cannot(source, f"{name}.weight has {len(weight)} axes")
    return _Layer(name, _CONV[len(weight)], weight[1], weight[0], len(weight))


def _is_batch_norm(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return {"running_mean", "running_var"} <= set(shapes) and len(set(shapes.values())) == 1


# -- in which order -----------------------------------------------------------------------------------


def _chain(layers: Sequence[_Layer], source: str) -> list[_Layer]:
    named = _order_by_names(layers)
    if named is not None and _fits(named):
        return named
    sized = _order_by_sizes(layers)
    if sized is None:
        _no_chain(layers, named, source)
    return sized


def _fits(chain: Sequence[_Layer]) -> bool:
    return all(one.makes == other.reads and one.rank >= other.rank for one, other in itertools.pairwise(chain))


def _order_by_names(layers: Sequence[_Layer]) -> list[_Layer] | None:
    """By the numbers in the names, `in` first and `out` last; None where names do not tell."""
    first = [layer for layer in layers if layer.name.split(".")[-1].lower() in _FIRST]
    last = [layer for layer in layers if layer.name.split(".")[-1].lower() in _LAST]
    middle = [layer for layer in layers if layer not in first and layer not in last]
    if len(first) > 1 or len(last) > 1:
        return None
    if len(middle) > 1:
        stems = {re.sub(r"\d+", "#", layer.name) for layer in middle}
        numbers = {tuple(int(number) for number in re.findall(r"\d+", layer.name)) for layer in middle}
        if len(stems) > 1 or len(numbers) < len(middle):
            return None
        middle.sort(key=lambda layer: [int(number) for number in re.findall(r"\d+", layer.name)])
    return [*first, *middle, *last]


def _order_by_sizes(layers: Sequence[_Layer]) -> list[_Layer] | None:
    """By sizes alone, where every layer but the first can read one other only."""
    feeds: dict[str, list[_Layer]] = {
        layer.name: [other for other in layers if other is not layer and other.makes == layer.reads] for layer in layers
    }
    roots = [layer for layer in layers if not feeds[layer.name]]
    if len(roots) != 1 or any(len(found) > 1 for found in feeds.values()):
        return None
    chain = roots
    while len(chain) < len(layers):
        following = [layer for layer in layers if feeds[layer.name] == [chain[-1]]]
        if len(following) != 1:
            return None
        chain = [*chain, following[0]]
    return chain if _fits(chain) else None


def _no_chain(layers: Sequence[_Layer], named: Sequence[_Layer] | None, source: str) -> NoReturn:
    """Say why there is not one reading, showing the readings where there are several."""
    for layer in layers:
        sources = [other.name for other in layers if other is not layer and other.makes == layer.reads]
        if len(sources) > 1:
            readings = " or ".join(f"{name} -> {layer.name}" for name in sources[:3])
            _cannot(source, f"two readings: {layer.name!r} reads {layer.reads} units, so it may be {readings}")
    for layer in layers:
        readers = [other.name for other in layers if other is not layer and other.reads == layer.makes]
        if len(readers) > 1:
            _cannot(source, f"{layer.name!r} makes {layer.makes} units, which {' and '.join(readers)} both may read")
    order = named or layers
    for one, other in itertools.pairwise(order):
        if one.makes != other.reads:
            _cannot(source, f"{one.name!r} makes {one.makes} units, and {other.name!r} reads {other.reads}")
    _cannot(source, "the layers form no chain")


def _place_norms(chain: Sequence[_Layer], norms: Mapping[str, int], source: str) -> dict[str, str]:
    """By layer, the batch_norm behind it: by its number, else by its size where that is unique."""
    after: dict[str, str] = {}
    for norm, size in norms.items():
        fitting = [layer.name for layer in chain if layer.makes == size and layer.name not in after]
        if len(fitting) > 1:
            fitting = _same_number(norm, fitting)
        if len(fitting) != 1:
            _cannot(source, f"batch_norm {norm!r} of {size} units may follow {' or '.join(fitting) or 'no layer'}")
        after[fitting[0]] = norm
    return after


def _same_number(norm: str, names: Sequence[str]) -> list[str]:
    numbers = [int(number) for number in re.findall(r"\d+", norm)]
    same = [name for name in names if [int(number) for number in re.findall(r"\d+", name)] == numbers]
    stem = re.sub(r"\d+", "#", norm)
    before = [
        name
        for name in names
        if re.sub(r"\d+", "#", name) == stem
        and [int(number) for number in re.findall(r"\d+", name)] == [*numbers[:-1], numbers[-1] - 1]
    ]
    return same or before or list(names)


# -- writing it ---------------------------------------------------------------------------------------


def _write(chain: Sequence[_Layer], norms: Mapping[str, str], activation: str) -> str:
    taken = {layer.name for layer in chain} | set(norms.values())
    positions = f", {_POSITIONS[chain[0].rank]}" if chain[0].rank > 2 else ""
    source, rank = _free("input", taken), chain[0].rank
    lines = ["netgrow: 1", "inputs:", f"  {source}: [batch, {chain[0].reads}{positions}]", "layers:"]
    for number, layer in enumerate(chain):
        if layer.rank < rank:
            pool = _free("pool", taken)
            lines.append(f"  {pool}: {{op: mean, from: {_key(source)}}}")
            source, rank = pool, layer.rank
        padding = ", padding: same" if layer.op != "linear" else ""
        settings = f"{padding}{_params(layer)}"
        lines.append(f"  {_key(layer.name)}: {{op: {layer.op}, from: {_key(source)}{settings}}}")
        source = layer.name
        if layer.name in norms:
            lines.append(f"  {_key(norms[layer.name])}: {{op: batch_norm, from: {_key(source)}}}")
            source = norms[layer.name]
        if number < len(chain) - 1:
            between = _free(f"act{number + 1}", taken)
            lines.append(f"  {between}: {{op: {activation}, from: {_key(source)}}}")
            source = between
    lines.append(f"outputs: [{_key(source)}]")
    return "\n".join(lines) + "\n"


def _free(name: str, taken: Collection[str]) -> str:
    """A name that no layer has."""
    while name in taken:
        name += "_"
    return name


def _params(layer: _Layer) -> str:
    return ", prefix: ''" if layer.name == "weight" else ""


def _key(name: str) -> str:
    return f"'{name}'" if not re.fullmatch(r"[A-Za-z_][\w.]*", name) else name


def _cannot(source: str, why: str) -> NoReturn:
    raise SpecError(
        f"{source}: no spec was given, and none can be drafted from names and shapes: {why}. "
        "Write a spec (docs/spec.md) or trace the model's code (netgrow trace), and pass it with --spec"
    )
