"""Random networks, each twice: as the text of a spec, and as a torch module that computes it by itself.

The module is made of torch.nn's own layers and reads every size from them, so that `fit` can load changed widths.
It shares no code with netgrow: it is the witness that a spec's reading of a network is the network.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)

Env = dict[str, torch.Tensor]
Step = Callable[["Net", Env], None]
Body = dict[str, Any]

DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
}


class Net(nn.Module):
    """Steps on named values."""

    def __init__(self, steps: Sequence[Step], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = list(steps), list(inputs), list(outputs)

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        env = dict(zip(self.inputs, given, strict=True))
        for step in self.steps:
            step(self, env)
        return tuple(env[name] for name in self.outputs)


@dataclass(frozen=True)
class Val:
    """A value: units on axis 1, or on the last axis of a sequence `[batch, time, units]`."""

    name: str
    units: int
    space: tuple[int, ...] = ()
    seq: bool = False

    @property
    def kind(self) -> str:
        return "seq" if self.seq else "map" if self.space else "vec"


@dataclass
class Built:
    """The network of one seed."""

    text: str
    make: Callable[[], Net]
    state: dict[str, torch.Tensor]
    inputs: dict[str, Body]
    dtypes: set[torch.dtype] = field(default_factory=set)

    def data(self, seed: int, rows: int = 7) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for body in self.inputs.values():
            shape = (rows, *body["shape"][1:])
            if "high" in body:
                found.append(torch.randint(body["high"], shape, generator=generator))
            else:
                found.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        return found


class Builder:
    """Writes the spec and the module side by side."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.torch_seed = seed
        self.layers: dict[str, Body] = {}
        self.modules: dict[str, Callable[[], nn.Module]] = {}
        self.steps: list[Step] = []
        self.inputs: dict[str, Body] = {}
        self.outputs: list[str] = []
        self.values: list[Val] = []

    # -- the parts of a layer ------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        return f"{stem}{len(self.layers)}"

    def put(self, name: str, body: Body, run: Callable[[Net, Env], Any]) -> str:
        """A layer of the spec, and the step that computes it."""
        self.layers[name] = body

        def step(net: Net, env: Env) -> None:
            env[name] = run(net, env)

        self.steps.append(step)
        return name

    def layer(self, stem: str, op: str, source: str, make: Callable[[], nn.Module], **attrs: Any) -> str:
        name = self.name(stem)
        self.modules[name] = make
        return self.put(name, {"op": op, "from": source, **attrs}, lambda net, env: getattr(net, name)(env[source]))

    def input(self, shape: Sequence[int], **settings: Any) -> Val:
        name = f"in{len(self.inputs)}"
        self.inputs[name] = {"shape": ["batch", *shape], **settings}
        return Val(name, shape[-1], seq=True) if len(shape) == 2 else Val(name, shape[0], tuple(shape[1:]))

    # -- layers with weights ---------------------------------------------------------------------------

    def dense(self, x: Val, units: int, **more: Any) -> Val:
        """The layer that mixes all units: linear or a convolution that keeps the positions."""
        if x.kind == "map":
            return self.conv(x, units, **more)
        bias = self.random.random() < 0.8
        inner = x.units
        return Val(self.layer("fc", "linear", x.name, lambda: nn.Linear(inner, units, bias)), units, seq=x.seq)

    def conv(self, x: Val, units: int, same: bool = True, groups: int = 1) -> Val:
        dims = len(x.space)
        kernel = self.random.choice((1, 3) if same else (1, 2, 3))
        kernel = min(kernel, *x.space) if not same else kernel
        padding = kernel // 2 if same else self.random.choice((0, kernel // 2))
        stride = 1 if same else self.random.choice((1, 2))
        mode = self.random.choice(("zeros", "zeros", "circular", "replicate"))
        bias = self.random.random() < 0.7
        kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
        inner = x.units

        def make() -> nn.Module:
            return kind(inner, units, kernel, stride, padding, 1, groups, bias, mode)

        attrs: Body = {}
        if stride != 1:
            attrs["stride"] = stride
        if padding:
            attrs["padding"] = padding
        if mode != "zeros":
            attrs["padding_mode"] = mode
        if groups > 1 and self.random.random() < 0.5:
            attrs["groups"] = groups
        name = self.layer("conv", f"conv{dims}d", x.name, make, **attrs)
        return Val(name, units, tuple((s + 2 * padding - kernel) // stride + 1 for s in x.space))

    def transposed(self, x: Val, units: int, groups: int = 1) -> Val:
        dims = len(x.space)
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
        inner = x.units
        attrs = {"groups": groups} if groups > 1 else {}

        def make() -> nn.Module:
            return kind(inner, units, 2, 2, groups=groups)

        name = self.layer("up", f"conv_transpose{dims}d", x.name, make, stride=2, **attrs)
        return Val(name, units, tuple(2 * s for s in x.space))

    # -- norms and functions -----------------------------------------------------------------------------

    def batch_norm(self, x: Val) -> Val:
        kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(x.space)]
        return self.same(x, self.layer("bn", "batch_norm", x.name, lambda: kind(x.units)))

    def last_norm(self, x: Val) -> Val:
        eps = self.random.choice((1e-5, 1e-3))
        if self.random.random() < 0.5 and hasattr(nn, "RMSNorm"):
            return self.same(x, self.layer("rms", "rms_norm", x.name, lambda: nn.RMSNorm(x.units, eps), eps=eps))
        attrs = {} if eps == 1e-5 else {"eps": eps}
        return self.same(x, self.layer("ln", "layer_norm", x.name, lambda: nn.LayerNorm(x.units, eps), **attrs))

    def group_norm(self, x: Val) -> Val:
        groups = self.random.choice([g for g in (1, 2, 3, 4) if x.units % g == 0 and x.units > g])
        made = self.layer("gn", "group_norm", x.name, lambda: nn.GroupNorm(groups, x.units), groups=groups)
        return self.same(x, made)

    def prelu(self, x: Val) -> Val:
        count = self.random.choice((1, x.units))
        return self.same(x, self.layer("prelu", "prelu", x.name, lambda: nn.PReLU(count)))

    def act(self, x: Val, kind: str | None = None) -> Val:
        kind = kind or self.random.choice(list(ACTIVATIONS))
        function, source = ACTIVATIONS[kind], x.name
        name = self.put(self.name("act"), {"op": kind, "from": source}, lambda _, env: function(env[source]))
        return self.same(x, name)

    def same(self, x: Val, name: str) -> Val:
        return Val(name, x.units, x.space, x.seq)

    # -- what joins and cuts ---------------------------------------------------------------------------------

    def add(self, x: Val, *others: Val) -> Val:
        names = [x.name, *(other.name for other in others)]
        name = self.put(self.name("add"), {"op": "add", "from": names}, lambda _, env: sum(env[n] for n in names))
        return self.same(x, name)

    def mul(self, x: Val, y: Val) -> Val:
        names = [x.name, y.name]
        run = lambda _, env: env[names[0]] * env[names[1]]  # noqa: E731
        return self.same(x, self.put(self.name("mul"), {"op": "mul", "from": names}, run))

    def residual(self, x: Val) -> Val:
        y = self.dense(self.act(x) if self.random.random() < 0.5 else x, x.units)
        return self.add(x, self.act(y) if self.random.random() < 0.5 else y)

    def gate(self, x: Val) -> Val:
        units = self.size()
        return self.mul(self.dense(x, units), self.act(self.dense(x, units), self.random.choice(("sigmoid", "silu"))))

    def cat(self, x: Val) -> Val:
        """Two or three branches joined, by `cat` or by ranges of the reader."""
        parts = [self.act(self.dense(x, self.size())) for _ in range(self.random.choice((1, 2)))]
        parts.append(self.random.choice((x, parts[0], self.dense(x, self.size()))))
        total, names = sum(part.units for part in parts), [part.name for part in parts]
        axis = 2 if x.seq else 1
        if self.random.random() < 0.5:
            run = lambda _, env: torch.cat([env[n] for n in names], axis)  # noqa: E731
            name = self.put(self.name("cat"), {"op": "cat", "from": names}, run)
            return Val(name, total, x.space, x.seq)
        ranges, start = {}, 0
        for part in parts:
            ranges[f"{start}:{start + part.units}"] = part.name
            start += part.units
        units, name = self.size(), self.name("join")
        dims = len(x.space)
        kind = [nn.Linear, lambda i, o: nn.Conv1d(i, o, 1), lambda i, o: nn.Conv2d(i, o, 1)][dims]
        self.modules[name] = lambda: kind(total, units)
        body = {"op": ("linear", "conv1d", "conv2d")[dims], "from": ranges}
        self.put(name, body, lambda net, env: getattr(net, name)(torch.cat([env[n] for n in names], axis)))
        return Val(name, units, x.space, x.seq)

    def cut(self, x: Val) -> Val:
        """Pieces of one layer, each read by a layer of its own, which is what tells the module where to cut."""
        count = self.random.choice((2, 3))
        how = self.random.choice(("slice", "slice", "split", "chunk"))
        sizes = [self.size()] * count if how == "chunk" else [self.size() for _ in range(count)]
        whole = self.act(self.dense(x, sum(sizes))) if self.random.random() < 0.5 else self.dense(x, sum(sizes))
        anchors: list[str] = []
        axis = 2 if x.seq else 1
        cutter, pieces = self.name("cut"), []

        def pieces_of(net: Net, value: torch.Tensor) -> Sequence[torch.Tensor]:
            if how == "chunk":
                return value.chunk(count, axis)
            lengths = [getattr(net, a).weight.shape[1] for a in anchors]
            return value.split(lengths, axis)

        def step(net: Net, env: Env) -> None:
            for piece, value in zip(pieces, pieces_of(net, env[whole.name]), strict=True):
                env[piece] = value

        self.steps.append(step)
        start = 0
        for position, size in enumerate(sizes):
            stop = "" if position == count - 1 and self.random.random() < 0.3 else start + size
            first = "" if start == 0 and self.random.random() < 0.3 else start
            pieces.append(f"{whole.name}[{first}:{stop}]" if how == "slice" else f"{cutter}[{position}]")
            start += size
        if how == "split":
            self.layers[cutter] = {"op": "split", "from": whole.name, "sizes": sizes}
        elif how == "chunk":
            self.layers[cutter] = {"op": "chunk", "from": whole.name, "chunks": count}
        made = []
        for piece, size in zip(pieces, sizes, strict=True):
            value = Val(piece, size, x.space, x.seq)
            if self.random.random() < 0.4:
                value = self.act(value)
            reader = self.dense(value, self.size())
            anchors.append(reader.name)
            made.append(reader)
        self.values.extend(made[:-1])
        return made[-1]

    def glu(self, x: Val) -> Val:
        units = self.size()
        fused = self.dense(x, 2 * units)
        axis = 2 if x.seq else 1
        run = lambda _, env: functional.glu(env[fused.name], axis)  # noqa: E731
        return Val(self.put(self.name("glu"), {"op": "glu", "from": fused.name}, run), units, x.space, x.seq)

    def again(self, x: Val) -> Val:
        """One layer used twice."""
        first = self.dense(x, x.units)
        other = self.act(first)
        body = {key: value for key, value in self.layers[first.name].items() if key != "from"}
        params = {
            param: f"{first.name}.{param}"
            for param, tensor in self.modules[first.name]().named_parameters()
            if tensor is not None
        }
        name = self.name("again")
        body = {**body, "from": other.name, "params": params}
        self.put(name, body, lambda net, env: getattr(net, first.name)(env[other.name]))
        return self.same(x, name)

    # -- positions -----------------------------------------------------------------------------------------

    def pool(self, x: Val) -> Val:
        dims, source = len(x.space), x.name
        if min(x.space) < 2:
            return x
        kind = self.random.choice(("max", "avg", "adaptive"))
        if kind == "adaptive":
            function = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d)[dims - 1]
            body = {"op": f"adaptive_avg_pool{dims}d", "from": source, "output_size": 2}
            name = self.put(self.name("pool"), body, lambda _, env: function(env[source], 2))
            return Val(name, x.units, (2,) * dims)
        function = getattr(functional, f"{kind}_pool{dims}d")
        body = {"op": f"{kind}_pool{dims}d", "from": source, "kernel_size": 2}
        name = self.put(self.name("pool"), body, lambda _, env: function(env[source], 2))
        return Val(name, x.units, tuple(s // 2 for s in x.space))

    def grouped(self, x: Val) -> Val:
        """A grouped or depthwise convolution behind one that makes its channels, perhaps shuffled."""
        groups = self.random.choice((2, 3))
        x = self.act(self.conv(x, groups * self.random.choice((1, 2, 3))), "relu")
        kind = self.random.choice(("grouped", "depthwise", "multiplied", "shuffled", "transposed"))
        if kind == "depthwise":
            return self.conv(x, x.units, same=False, groups=x.units)
        if kind == "multiplied":
            return self.conv(x, 2 * x.units, groups=x.units)
        if kind == "transposed":
            return self.transposed(x, groups * 2, groups)
        y = self.conv(x, groups * self.random.choice((2, 3)), same=kind == "shuffled", groups=groups)
        return self.shuffle(y, groups) if kind == "shuffled" else y

    def shuffle(self, x: Val, groups: int) -> Val:
        source, space = x.name, list(x.space)
        name = self.name("shuffle")
        swapped = f"{name}_swap"
        self.layers[f"{name}_view"] = {"op": "reshape", "from": source, "shape": [0, groups, -1, *space]}
        self.layers[swapped] = {"op": "transpose", "from": f"{name}_view", "axes": [1, 2]}

        def run(net: Net, env: Env) -> torch.Tensor:
            value, count = env[source], getattr(net, source).groups
            grid = value.reshape(value.shape[0], count, -1, *value.shape[2:])
            return grid.transpose(1, 2).reshape(value.shape)

        self.put(name, {"op": "reshape", "from": swapped, "shape": [0, -1, *space]}, run)
        return self.same(x, name)

    def vector(self, x: Val) -> Val:
        """Without positions: flattened, either way round, or averaged."""
        if x.kind == "vec":
            return x
        source = x.name
        if x.kind == "seq":
            body = {"op": "mean", "from": source, "axes": 1}
            return Val(self.put(self.name("mean"), body, lambda _, env: env[source].mean(1)), x.units)
        kind = self.random.choice(("flatten", "last", "mean"))
        if kind == "mean":
            run = lambda _, env: env[source].flatten(2).mean(2)  # noqa: E731
            return Val(self.put(self.name("mean"), {"op": "mean", "from": source}, run), x.units)
        total = x.units * math.prod(x.space)
        if kind == "flatten":
            run = lambda _, env: env[source].flatten(1)  # noqa: E731
            return Val(self.put(self.name("flat"), {"op": "flatten", "from": source}, run), total)
        order = [0, *range(2, 2 + len(x.space)), 1]
        run = lambda _, env: env[source].permute(order)  # noqa: E731
        moved = self.put(self.name("nhwc"), {"op": "permute", "from": source, "axes": order}, run)
        run = lambda _, env: env[moved].flatten(1)  # noqa: E731
        return Val(self.put(self.name("flat"), {"op": "flatten", "from": moved}, run), total)

    def whole(self, x: Val) -> Val:
        """Something that sees all units at once."""
        axis, source = (2 if x.seq else 1), x.name
        body = {"op": "softmax", "from": source, "axis": axis}
        return self.same(x, self.put(self.name("soft"), body, lambda _, env: env[source].softmax(axis)))

    # -- all together ------------------------------------------------------------------------------------------

    def size(self) -> int:
        return self.random.randint(2, 6)

    def grow(self) -> None:
        x = self.random.choice(self.values[-3:])
        common = [self.dense_act, self.residual, self.gate, self.cat, self.cut, self.glu, self.again]
        if x.kind == "vec":
            more = [self.normed(self.batch_norm), self.normed(self.last_norm), self.activated(self.prelu), self.seldom]
        elif x.kind == "seq":
            more = [self.normed(self.last_norm), self.seldom]
        else:
            more = [self.grouped, self.grouped, self.normed(self.batch_norm), self.normed(self.group_norm)]
            more += [self.pool, self.strided, self.upsampled, self.activated(self.prelu), self.vector]
        self.values.append(self.random.choice([*common, *more])(x))

    def dense_act(self, x: Val) -> Val:
        return self.act(self.dense(x, self.size()))

    def strided(self, x: Val) -> Val:
        return self.act(self.conv(x, self.size(), same=False))

    def upsampled(self, x: Val) -> Val:
        return x if max(x.space) > 4 else self.transposed(x, self.size())

    def normed(self, norm: Callable[[Val], Val]) -> Callable[[Val], Val]:
        def build(x: Val) -> Val:
            y = norm(self.dense(x, 2 * self.random.choice((2, 3))))
            return self.act(y) if self.random.random() < 0.5 else y

        return build

    def activated(self, function: Callable[[Val], Val]) -> Callable[[Val], Val]:
        return lambda x: function(self.dense(x, self.size()))

    def seldom(self, x: Val) -> Val:
        return self.whole(self.dense(x, self.size())) if self.random.random() < 0.5 else self.residual(x)

    def build(self) -> Built:
        for _ in range(self.random.choice((1, 1, 2))):
            kind = self.random.choice(("vec", "map", "map", "line", "seq", "table"))
            if kind == "table":
                source = self.input([3], dtype="int64", high=7)
                units = self.size()
                made = self.layer("emb", "embedding", source.name, lambda units=units: nn.Embedding(7, units))
                self.values.append(Val(made, units, seq=True))
            else:
                shape = {"vec": [4], "map": [2, 4, 4], "line": [3, 6], "seq": [3, 4]}[kind]
                x = self.input(shape)
                if kind == "line":
                    x = Val(x.name, 3, (6,))
                self.values.append(self.dense_act(x))
        for _ in range(self.random.randint(2, 5)):
            self.grow()
        for x in self.unread()[-4:]:
            self.outputs.append(self.dense(self.vector(x), 2).name)
        return Built(self.text(), self.make, *self.weights())

    def unread(self) -> list[Val]:
        """Values that no layer reads yet."""
        read = json.dumps([body["from"] for body in self.layers.values()])
        return list(
            {v.name: v for v in self.values if f'"{v.name}"' not in read and f'"{v.name}[' not in read}.values()
        )

    def make(self) -> Net:
        net = Net(self.steps, list(self.inputs), self.outputs)
        for name, make in self.modules.items():
            net.add_module(name, make())
        return net.double().eval()

    def text(self) -> str:
        lines = ["# a network that nobody trained", "netgrow: 1", "inputs:"]
        lines += [f"  {name}: {json.dumps(body)}" for name, body in self.inputs.items()]
        lines.append("layers:")
        for name, body in self.layers.items():
            if self.random.random() < 0.5:
                lines.append(f"  {name}: {json.dumps(body)}  # in a line")
            else:
                lines.append(f"  {name}:")
                lines += [f"    {key}: {json.dumps(value)}" for key, value in body.items()]
        return "\n".join([*lines, f"outputs: {json.dumps(self.outputs)}", ""])

    def weights(self) -> tuple[dict[str, torch.Tensor], dict[str, Body], set[torch.dtype]]:
        """Random values in the dtypes of this network."""
        torch.manual_seed(self.torch_seed)
        state = self.make().state_dict()
        mode = self.random.choice(("f64", "f32", "f16", "bf16", "mixed"))
        used, kept = set(), {}
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                kept[name] = tensor
                continue
            value = torch.randn(tensor.shape, dtype=torch.float64)
            if name.endswith("running_var"):
                value = value.abs() + 0.5
            elif tensor.dim() > 1:
                value /= math.sqrt(max(1, tensor[0].numel()))
            elif name.endswith("weight"):
                value = 1 + 0.3 * value
            dtype = DTYPES[self.random.choice(list(DTYPES)) if mode == "mixed" else mode]
            kept[name] = value.to(dtype)
            used.add(dtype)
        return kept, self.inputs, used


def build(seed: int) -> Built:
    """The network of a seed."""
    return Builder(seed).build()
