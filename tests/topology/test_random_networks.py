"""Random networks: whatever operations meet, what the rules infer must be true (`networks.check`)."""

from __future__ import annotations

import math
import random

import pytest

from netgrow_cli.errors import SpecError

from .networks import Layer, batch_norm, check, conv, gain, layer, linear, network

INPUTS = {"x": [2, 4], "y": [2, 3, 4], "z": [2, 6, 5]}
SIZES = (1, 2, 3, 4, 6, 8)
MOST = 600


def divisor(draw: random.Random, size: int) -> int:
    return draw.choice([n for n in range(1, size + 1) if size % n == 0])


def some_layer(draw: random.Random, shapes: dict[str, tuple[int, ...]], made: dict[str, Layer]) -> Layer:
    """A layer that reads some of the values; it need not be a valid one."""
    source = draw.choice(list(shapes))
    shape = shapes[source]
    last, rank = shape[-1], len(shape)
    axis = draw.randrange(rank)
    alike = [name for name, other in shapes.items() if other == shape]
    fits = [name for name, other in shapes.items() if len(other) == rank]
    kind = draw.choice(
        "linear linear linear relu relu6 add add mul cat cat reshape reshape permute permute slice slice glu flatten "
        "layer_norm rms_norm softmax mean conv conv grouped batch_norm group_norm pool unsqueeze squeeze shared split "
        "broadcast".split()
    )
    if kind == "linear":
        return linear(source, last, draw.choice(SIZES))
    if kind in ("add", "mul"):
        return layer(kind, [source, draw.choice(alike)])
    if kind == "broadcast":
        return layer("add", [source, draw.choice(list(shapes))])
    if kind == "cat":
        return layer("cat", [draw.choice(fits) for _ in range(draw.randint(1, 2))] + [source], axis=axis)
    if kind == "reshape":
        size = shape[axis]
        inner = divisor(draw, size)
        grids = [
            [*shape[:axis], size // inner, inner, *shape[axis + 1 :]],
            [shape[0], -1, divisor(draw, math.prod(shape[1:]))],
            [shape[0], math.prod(shape[1:])],
        ]
        return layer("reshape", source, shape=draw.choice(grids))
    if kind == "permute":
        return layer("permute", source, axes=draw.sample(range(rank), rank))
    if kind == "slice":
        start = draw.randrange(shape[axis])
        return layer("slice", source, axis=axis, start=start, stop=draw.randint(start + 1, shape[axis]))
    if kind == "split":
        return layer("chunk", source, axis=axis, chunks=divisor(draw, shape[axis]))
    if kind in ("glu", "softmax", "squeeze"):
        return layer(kind, source, axis=axis)
    if kind == "mean":
        return layer("mean", source, axes=axis, keepdim=True)
    if kind == "flatten":
        return layer("flatten", source, start=draw.randint(0, rank - 1))
    if kind in ("layer_norm", "rms_norm"):
        return gain(kind, source, last, bias=kind == "layer_norm")
    if kind == "batch_norm":
        return batch_norm(source, shape[min(1, rank - 1)])
    if kind == "group_norm":
        return gain(kind, source, shape[min(1, rank - 1)], groups=divisor(draw, shape[min(1, rank - 1)]))
    if kind in ("conv", "grouped"):
        reads = shape[min(1, rank - 1)]
        groups = divisor(draw, reads) if kind == "grouped" else 1
        return conv(source, reads, groups * draw.choice((1, 2, 3)), (draw.choice((1, 2)),), groups=groups)
    if kind == "pool":
        return layer("max_pool1d", source, kernel_size=2)
    if kind == "unsqueeze":
        return layer("unsqueeze", source, axis=draw.randint(0, rank))
    if kind == "shared":
        names = [name for name, body in made.items() if body["op"] in ("linear", "conv1d")]
        if names:
            name = draw.choice(names)
            return {**layer(made[name]["op"], source), "prefix": f"{name}."}
    return layer("relu", source)


def some_network(seed: int):
    draw = random.Random(seed)
    layers: dict[str, Layer] = {}
    shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in INPUTS.items()}
    for _ in range(60):
        name = f"l{len(layers)}"
        body = some_layer(draw, shapes, layers)
        outputs = [f"{name}[0]"] if body["op"] == "chunk" else [name]
        try:
            net = network({**layers, name: body}, INPUTS, outputs)
        except SpecError:
            continue
        values = net.topology.values[name]
        if any(math.prod(value.shape) > MOST or len(value.shape) > 5 or not value.shape for value in values):
            continue
        layers[name] = body
        several = body["op"] == "chunk"
        shapes.update({f"{name}[{n}]" if several else name: value.shape for n, value in enumerate(values)})
        if len(layers) == 12:
            break
    # Outputs freeze what they hold, so everything is read by one more layer first.
    ends = [name for name in shapes if name not in INPUTS][-3:]
    for position, name in enumerate(ends):
        layers[f"end{position}"] = linear(name, shapes[name][-1], 2)
    return network(layers, INPUTS, [f"end{position}" for position in range(len(ends))], seed=seed)


@pytest.mark.parametrize("seed", range(60))
def test_random_network(seed: int) -> None:
    check(some_network(seed), seed)
