"""Small models as people write them, for the tests of tracing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x):
        return self.body(x)


class ActorCritic(nn.Module):
    """Two encoders, a concatenation, a residual sum, heads that read halves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 5)
        self.trunk, self.back = nn.Linear(11, 8), nn.Linear(8, 6)
        self.mean, self.std, self.value = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(6, 1)

    def forward(self, obs, goal):
        a, b = F.relu(self.a(obs)), F.relu(self.b(goal))
        trunk = torch.tanh(self.trunk(torch.cat([a, b], dim=1)))
        mean, std = self.mean(trunk[:, :4]), self.std(trunk[:, 4:]).exp()
        return mean, std, self.value(a + self.back(trunk))


class Block(nn.Module):
    """A block of a ResNet as torchvision writes it, in place."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(units, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, units, 3, padding=1, bias=False), nn.BatchNorm2d(units)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Woven(nn.Module):
    """Channels that become pixels and the other way, and torch's own channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 8, 1, groups=2)
        self.down, self.mix, self.up, self.out = (
            nn.PixelUnshuffle(2),
            nn.ChannelShuffle(3),
            nn.PixelShuffle(2),
            nn.Conv2d(2, 3, 1),
        )

    def forward(self, x):
        x = self.down(F.relu(self.a(x)))
        return self.out(self.up(torch.tanh(self.c(self.mix(F.relu(self.b(x))))))).mean((2, 3))


class InstanceNorms(nn.Module):
    """Norms of each channel over all positions, and a slope that the code states."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 3, 1)
        self.norm, self.kept = nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(5, track_running_stats=True)

    def forward(self, x):
        x = F.prelu(self.norm(self.a(x)), torch.tensor([0.25], dtype=x.dtype))
        return self.c(F.relu(self.kept(self.b(x)))).mean((2, 3))


class ComputedGain(nn.Module):
    """A norm's gain that is computed of another parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gain, self.b, self.c = (
            nn.Conv2d(2, 6, 3),
            nn.Parameter(torch.rand(6, 3)),
            nn.Linear(6, 5),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        x = F.group_norm(self.a(x), 3, weight=self.gain.mean(1))
        return self.c(F.relu(self.b(x.mean((2, 3)))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = nn.Conv2d(2, 4, 3), Block(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.out(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Aliased(nn.Module):
    """What is kept under another name is changed too: the sum is of the rectified values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x)
        identity = x
        x = x.relu_()
        return self.b(torch.sin(x) + identity)


class Overwritten(nn.Module):
    """Some units are changed in place through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x)
        x[:, :2].mul_(3.0)
        return self.b(x)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.Hardswish(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 8, 1),
            nn.Conv2d(8, 4, 3, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        return self.net(x)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.a(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2).contiguous()
        return self.c(F.relu(self.b(x.view(batch, -1, height, width))))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3), nn.Linear(5 * 36, 3)

    def forward(self, x):
        return self.b(F.relu(self.a(x)).permute(0, 2, 3, 1).flatten(1))


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.inner(x))


class MultiHead(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.into(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.out(self.norm(x + y))


def rotated(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Rotary(nn.Module):
    """Attention as Llama writes it: rotary positions, one head of keys for two of queries, SwiGLU, RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.q, self.k, self.v = (nn.Linear(16, n, bias=False) for n in (16, 8, 8))
        self.o = nn.Linear(16, 16, bias=False)
        self.gate, self.up, self.down = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 16)
        self.norm = nn.Parameter(torch.ones(16))
        self.register_buffer("frequency", 1 / 100 ** (torch.arange(2) / 2), persistent=False)

    def normed(self, x):
        return self.norm * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(self, tokens):
        x = self.embed(tokens)
        batch, time, _ = x.shape
        angle = torch.arange(time)[:, None] * self.frequency
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos(), angle.sin()
        y = self.normed(x)
        q, k, v = (m(y).view(batch, time, -1, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
        k, v = (t[:, :, None].expand(batch, 2, 2, time, 4).reshape(batch, 4, time, 4) for t in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(4)
        scores = scores + torch.full((time, time), -1e9).triu(1)
        mixed = torch.matmul(F.softmax(scores, dim=-1), v).transpose(1, 2).reshape(batch, time, -1)
        x = x + self.o(mixed)
        y = self.normed(x)
        return F.linear(x + self.down(F.silu(self.gate(y)) * self.up(y)), self.embed.weight)


class Fused(nn.Module):
    """q, k and v in one matrix, a class token, positions, as a ViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
        batch, time, units = x.shape
        q, k, v = self.qkv(x).reshape(batch, time, 3, 2, units // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, time, units)
        return self.head(self.norm(x + self.proj(y))[:, 0])


class Twice(nn.Module):
    """The same values side by side, and the same layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.same, self.b = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(10, 2)

    def forward(self, x):
        x = self.same(torch.tanh(self.same(torch.tanh(self.a(x)))))
        return self.b(torch.cat([x, x], dim=1))


class NoRule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.cumsum(self.a(x), dim=1))))


class Keywords(nn.Module):
    """Integers and numbers, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.b, self.out = nn.Embedding(7, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, tokens, *, extra, scale=2.0):
        return self.out((self.embed(tokens) * scale).mean(1) + self.b(extra))


class Normed(nn.Module):
    """A residual stream under a norm that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x):
        x = self.into(x)
        return self.out(self.norm(x + self.down(F.gelu(self.up(x)))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], levels: int = 1, **settings: Any) -> None:
        super().__init__()
        self.into = nn.Linear(4, 5)
        self.cells = kind(5, 6, levels, batch_first=True, **settings)
        self.out = nn.Linear(6 * (2 if self.cells.bidirectional else 1), 3)

    def forward(self, x):
        return self.out(self.cells(torch.relu(self.into(x)))[0])


class WeightNormed(nn.Module):
    """Weights of a direction and a length, by either of torch's ways."""

    def __init__(self, normed: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.a, self.b = normed(nn.Conv1d(2, 6, 3, padding=1)), normed(nn.Conv1d(6, 5, 3, padding="same"))
        self.c, self.d = nn.Conv1d(5, 4, 1), normed(nn.Conv1d(4, 8, 3, groups=2))
        self.taps, self.up = normed(nn.Conv1d(8, 6, 3, groups=2), dim=2), normed(nn.ConvTranspose1d(6, 4, 2, stride=2))
        self.e, self.f, self.out = nn.Conv1d(4, 7, 1), normed(nn.Linear(7, 5)), nn.Linear(5, 2)

    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d, self.taps, self.up, self.e):
            x = torch.tanh(layer(x))
        return self.out(torch.tanh(self.f(x.mean(-1))))


class StandardConv(nn.Conv2d):
    """A convolution with standardised weights, as timm has it."""

    def __init__(self, *sizes: int, gained: bool = False) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)) if gained else None
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x):
        gain = None if self.gain is None else (self.gain * self.scale).view(-1)
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardized(nn.Module):
    """inside: what changes in place under another name, which takes a functional graph."""

    def __init__(self, inside: bool = False) -> None:
        super().__init__()
        self.inside = inside
        self.a, self.b = StandardConv(2, 6, 3), StandardConv(6, 5, 3, gained=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.a(x)
        if self.inside:
            x[:, :1].mul_(3.0)
        return self.out(F.relu(self.b(F.relu(x))).mean((2, 3)))


@dataclasses.dataclass(frozen=True)
class Toy:
    """A model, how to trace it, and what must come of it.

    free: sizes of the widths that may change. coded: whether sizes stand in the model's own code, so that `fit` can
    host only those changes for which `model_code` is empty. unknown: operations that have no rule.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    free: list[int]
    coded: bool = False
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


VECTOR, IMAGE = ("float32[2,4]",), ("float32[2,2,8,8]",)

TOYS = [
    Toy("MLP", MLP, VECTOR, [5, 6]),
    Toy("actor and critic", ActorCritic, ("float32[2,4]", "float32[2,3]"), [4, 4, 5, 6], coded=True),
    Toy("ResNet", ResNet, IMAGE, [4, 5]),
    Toy("another name", Aliased, VECTOR, [6]),
    Toy("overwritten range", Overwritten, VECTOR, [2, 4], coded=True),
    Toy("depthwise and grouped", Depthwise, IMAGE, [2, 2, 4, 6]),
    Toy("channel shuffle", Shuffle, IMAGE, [2, 3, 4], coded=True),
    Toy("channels last", ChannelsLast, IMAGE, [5]),
    Toy("woven channels", Woven, IMAGE, [2, 2, 3, 4], coded=True),
    Toy("instance norms", InstanceNorms, IMAGE, [5, 6]),
    Toy("stream under a norm", Normed, VECTOR, [6, 7]),
    Toy("encoder", Encoder, ("float32[2,5,8]",), [2, 4, 12], coded=True),
    Toy("encoder, norm first", lambda: Encoder(True), ("float32[2,5,8]",), [2, 4, 12], coded=True),
    Toy("multihead, batch first", lambda: MultiHead(True), ("float32[2,5,4]",), [2, 4, 8], coded=True),
    Toy("multihead", lambda: MultiHead(False), ("float32[5,2,4]",), [2, 4, 8], coded=True),
    Toy("rotary", Rotary, ("int64[2,5]:11",), [2, 2, 4, 12, 16], coded=True),
    Toy("fused qkv and class token", Fused, IMAGE, [2, 4, 8], coded=True),
    Toy("twice", Twice, VECTOR, [5]),
    Toy("no rule", NoRule, VECTOR, [5], unknown=("aten.cumsum.default",)),
    Toy("LSTM, two levels", lambda: Recurrent(nn.LSTM, 2), ("float32[2,3,4]",), [5, 6, 6], coded=True),
    Toy("LSTM, both ways", lambda: Recurrent(nn.LSTM, bidirectional=True), ("float32[2,3,4]",), [5, 6, 6], coded=True),
    Toy("GRU", lambda: Recurrent(nn.GRU), ("float32[2,3,4]",), [5, 6], coded=True),
    Toy("RNN", lambda: Recurrent(nn.RNN, nonlinearity="relu"), ("float32[2,3,4]",), [5, 6], coded=True),
    Toy("computed gain", ComputedGain, IMAGE, [3, 5], unknown=("aten.group_norm.default",)),
    *(
        Toy(f"weight_norm, {way}", lambda f=f: WeightNormed(f), ("float32[2,2,9]",), [2, 2, 3, 4, 4, 5, 5, 6, 7])
        for way, f in (("parametrized", parametrizations.weight_norm), ("old", nn.utils.weight_norm))
    ),
    Toy("standardised weights", Standardized, IMAGE, [5, 6]),
    Toy("standardised weights, functional", lambda: Standardized(True), IMAGE, [1, 5, 5], coded=True),
    Toy("keywords", Keywords, ("int64[2,4]:7", "extra=float32[2,3]"), [6]),
]


def started(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with all numbers at random."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and name in model.state_dict():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else torch.randn_like(tensor) * 0.7
                )
    return model
