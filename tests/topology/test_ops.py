"""Every operation computes what torch computes, in the shape that was solved for it, in many settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from netgrow_cli.checkpoint.source import tensor_source
from netgrow_cli.errors import SpecError
from netgrow_cli.topology.graph import Ref
from netgrow_cli.topology.library import numbers
from netgrow_cli.topology.ops import ALIASES, ATTR_ALIASES, OPS, canonical
from netgrow_cli.topology.rows import Rows
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.run import operate

from .networks import Network, layer, network, values_of

Tensors = Mapping[str, torch.Tensor]
Reference = Callable[..., Any]


@dataclasses.dataclass
class Case:
    """One setting of an operation: shapes, and the torch call that it must equal, of its operands then params.

    integer: the bound of operands that are integers: all of them, or the one at `indices`.
    """

    op: str
    shapes: Sequence[Sequence[int]]
    reference: Reference
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict)
    positive: bool = False
    integer: int = 0
    indices: int | None = None

    def __str__(self) -> str:
        stated = " ".join(f"{key}={value}" for key, value in self.attrs.items())
        return f"{self.op} {' '.join(str(list(shape)) for shape in self.shapes)} {stated}"


def case(op: str, shapes: Any, reference: Reference, params: Any = None, /, **attrs: Any) -> Case:
    shapes = [shapes] if shapes and isinstance(shapes[0], int) else shapes
    return Case(op, shapes, reference, attrs, params or {})


# -- elementwise ---------------------------------------------------------------------------------------

FUNCTIONAL = (
    "relu relu6 selu silu mish tanh hardtanh hardswish softsign tanhshrink hardshrink softshrink "
    "sigmoid hardsigmoid logsigmoid gelu leaky_relu elu celu softplus"
).split()
UNARY = (
    "abs neg sign square sqrt sin tan asin atan sinh asinh erf expm1 log1p floor ceil round trunc "
    "exp exp2 log log2 log10 reciprocal rsqrt cos cosh erfc"
).split()
DOMAIN = ("sqrt", "asin", "log1p", "log", "log2", "log10", "reciprocal", "rsqrt")
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")

CASES = [
    *(case(name, (3, 4, 5), getattr(F, name)) for name in FUNCTIONAL),
    *(dataclasses.replace(case(n, (3, 4, 5), getattr(torch, n)), positive=n in DOMAIN) for n in UNARY),
    *(case(name, (3, 4), lambda x: x, p=0.7) for name in DROPOUTS),
    case("identity", (3, 4), lambda x: x),
    case("per_unit", (3, 4), lambda x: x * torch.sigmoid(1.7 * x) + 0.25 * torch.cos(x)),
    case("gelu", (3, 4), lambda x: F.gelu(x, approximate="tanh"), approximate="tanh"),
    case("leaky_relu", (3, 4), lambda x: F.leaky_relu(x, 0.2), negative_slope=0.2),
    case("leaky_relu", (3, 4), lambda x: F.leaky_relu(x, 0.3), slope=0.3),
    case("hardtanh", (3, 4), lambda x: F.hardtanh(x, -0.5, 0.25), min_val=-0.5, max_val=0.25),
    case("hardshrink", (3, 4), lambda x: F.hardshrink(x, 0.3), lambd=0.3),
    case("softshrink", (3, 4), lambda x: F.softshrink(x, 0.3), lambd=0.3),
    case("gumbel_softmax", (3, 4), lambda x: F.softmax(x / 2.0, dim=-1), tau=2.0),
    case("gumbel_softmax", (3, 4, 5), lambda x: F.softmax(x, dim=1), axis=1),
    case("elu", (3, 4), lambda x: F.elu(x, 0.5), alpha=0.5),
    case("celu", (3, 4), lambda x: F.celu(x, 0.5), alpha=0.5),
    case("softplus", (3, 4), lambda x: F.softplus(x, 2, 1.5), beta=2, threshold=1.5),
    case("threshold", (3, 4), lambda x: F.threshold(x, 0.1, -2.0), threshold=0.1, value=-2.0),
    case("rrelu", (3, 4), lambda x: F.rrelu(x, 0.1, 0.3), lower=0.1, upper=0.3),
    case("clamp", (3, 4), lambda x: x.clamp(-0.5, 0.5), min=-0.5, max=0.5),
    case("clamp", (3, 4), lambda x: x.clamp(min=0), min=0),
    case("pow", (3, 4), lambda x: x**3, by=3),
    case("add", [(3, 4), (3, 4)], lambda x, y: x + y),
    case("add", [(3, 4), (3, 4), (3, 4)], lambda x, y, z: x + y + z),
    case("add", (3, 4), lambda x: x + 2.5, by=2.5),
    case("sub", [(3, 4), (3, 4)], lambda x, y: x - y),
    case("mul", [(3, 4, 5, 5), (3, 4, 1, 1)], lambda x, y: x * y),
    case("mul", [(3, 1, 1), (3, 4, 5)], lambda x, y: x * y),
    case("mul", [(5, 3, 4), (3, 4)], lambda x, y: x * y),
    case("mul", (3, 4), lambda x: x * 1e-5, scalar=1e-5),
    case("div", [(3, 4), (3, 4)], lambda x, y: x / y),
    *(
        case(name, (3, 4), lambda x, f=name: getattr(torch, f)(x, torch.tensor(2.5, dtype=x.dtype)), by=2.5)
        for name in ("sub", "div", "maximum", "minimum")
    ),
    case("maximum", [(3, 4), (3, 4)], torch.maximum),
    case("minimum", [(3, 4), (3, 4)], torch.minimum),
    case("prelu", (3, 4, 5), F.prelu, {"weight": (4,)}),
    case("prelu", (3, 4, 5), F.prelu, {"weight": (1,)}),
    case("prelu", (3, 4), F.prelu, {"weight": (4,)}),
    case("scale", (3, 4, 5), lambda x, w: x * w[:, None], {"weight": (4,)}),
    # -- layers that mix units -------------------------------------------------------------------------
    case("linear", (3, 4), F.linear, {"weight": (5, 4), "bias": (5,)}),
    case("linear", (3, 7, 4), F.linear, {"weight": (5, 4)}),
    case("linear", (3, 2, 2, 4), F.linear, {"weight": (1, 4), "bias": (1,)}),
    Case("embedding", [(3, 7)], F.embedding, {}, {"weight": (9, 4)}, integer=9),
    Case("embedding", [(3,)], F.embedding, {}, {"weight": (9, 4)}, integer=9),
]


def _conv(dims: int, **attrs: Any) -> Reference:
    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out, reads = weight.shape[:2]
        groups = x.shape[1] // reads
        module = getattr(torch.nn, f"Conv{dims}d")
        made = module(x.shape[1], out, tuple(weight.shape[2:]), groups=groups, bias=bias is not None, **attrs).double()
        made.weight.data = weight
        if bias is not None:
            made.bias.data = bias
        return made(x).detach()

    return run


def conv_case(shape: Sequence[int], weight: Sequence[int], bias: bool = True, **attrs: Any) -> Case:
    dims = len(shape) - 2
    params = {"weight": weight, **({"bias": (weight[0],)} if bias else {})}
    return case(f"conv{dims}d", shape, _conv(dims, **attrs), params, **attrs)


def transposed_case(shape: Sequence[int], weight: Sequence[int], bias: bool = True, **attrs: Any) -> Case:
    dims = len(shape) - 2
    params = {"weight": weight, **({"bias": (weight[1] * attrs.get("groups", 1),)} if bias else {})}
    function = getattr(F, f"conv_transpose{dims}d")
    return case(f"conv_transpose{dims}d", shape, lambda x, w, b=None: function(x, w, b, **attrs), params, **attrs)


MODES = ("zeros", "reflect", "replicate", "circular")
CASES += [
    conv_case((3, 4, 9), (6, 4, 3)),
    conv_case((3, 4, 9), (6, 2, 3), False, stride=2, padding=1, dilation=2),
    conv_case((3, 4, 9), (8, 1, 4), padding="same"),
    conv_case((3, 4, 7, 8), (6, 4, 3, 2), stride=[2, 1], padding=[1, 0]),
    conv_case((3, 4, 7, 8), (6, 4, 3, 4), padding="same", dilation=[2, 1]),
    conv_case((3, 4, 7, 8), (6, 4, 3, 3), padding="valid", stride=3),
    conv_case((3, 4, 7, 8), (4, 1, 3, 3), padding=[1]),
    conv_case((3, 4, 7, 8), (12, 1, 1, 1), False),
    conv_case((3, 6, 7, 8), (4, 3, 3, 3), False, padding=1),
    *(conv_case((3, 4, 7, 8), (6, 4, 3, 5), padding=[1, 2], padding_mode=mode, stride=2) for mode in MODES),
    *(conv_case((3, 4, 7, 8), (6, 4, 4, 2), padding="same", padding_mode=mode) for mode in MODES),
    conv_case((3, 2, 5, 6, 7), (4, 2, 2, 3, 1), stride=[1, 2, 3], padding=[0, 1, 0]),
    conv_case((3, 2, 5, 6, 7), (4, 1, 3, 3, 3), padding=1, padding_mode="replicate"),
    case("conv1d", (3, 4, 9), lambda x, w: F.conv1d(x, w, groups=2), {"weight": (6, 2, 3)}, groups=2),
    transposed_case((3, 4, 9), (4, 5, 3), stride=2, padding=1, output_padding=1),
    transposed_case((3, 4, 9), (4, 2, 3), False, groups=2, dilation=2),
    transposed_case((3, 4, 5, 6), (4, 5, 2, 3), stride=[2, 3], padding=[0, 1], output_padding=[1, 2]),
    transposed_case((3, 4, 5, 6), (4, 3, 3, 3), groups=2, stride=2),
    transposed_case((3, 4, 5, 6), (4, 1, 4, 4), False, groups=4, stride=2, padding=1),
    transposed_case((3, 2, 3, 4, 5), (2, 3, 2, 2, 2), stride=2),
]

# -- weights that are computed -------------------------------------------------------------------------


def _weight_normed(plain: Reference, dim: int = 0) -> Reference:
    """torch's own weight_norm in front of a plain call."""

    def run(x: torch.Tensor, weight: torch.Tensor, magnitude: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        return plain(x, torch._weight_norm(weight, magnitude, dim), *bias)

    return run


def _standardized(plain: Reference, gained: bool, eps: float, gain_scale: float = 1.0) -> Reference:
    """As timm computes it."""

    def run(x: torch.Tensor, weight: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        gain, *bias = more if gained else (None, *more)
        scale = None if gain is None else (gain * gain_scale).view(-1)
        rows = F.batch_norm(weight.reshape(1, len(weight), -1), None, None, scale, None, True, 0.0, eps)
        return plain(x, rows.reshape_as(weight), *bias)

    return run


def normed_case(plain: Case, axis: int = 0) -> Case:
    """A layer with its weight computed by weight_norm."""
    magnitude = [size if n == axis else 1 for n, size in enumerate(plain.params["weight"])]
    params = {"weight": plain.params["weight"], "magnitude": magnitude, **plain.params}
    reference, attrs = _weight_normed(plain.reference, axis), {**plain.attrs, "dim": axis}
    return dataclasses.replace(plain, op=f"weight_norm_{plain.op}", reference=reference, params=params, attrs=attrs)


def standardized_case(plain: Case, gained: bool) -> Case:
    """A convolution with standardised weights."""
    weight = plain.params["weight"]
    gain = {"gain": (weight[0], *[1] * (len(weight) - 1))} if gained else {}
    stated = {"eps": 1e-3, **({"gain_scale": 0.3} if gained else {})}
    reference = _standardized(plain.reference, gained, **stated)
    params, attrs = {"weight": weight, **gain, **plain.params}, {**plain.attrs, **stated}
    return dataclasses.replace(plain, op=f"standardized_{plain.op}", reference=reference, params=params, attrs=attrs)


PLAIN = [item for item in CASES if re.fullmatch(r"linear|conv(_transpose)?[123]d", item.op)]
CONVS = [item for item in PLAIN if re.fullmatch(r"conv[123]d", item.op)]
CASES += [normed_case(item) for item in PLAIN]
CASES += [normed_case(item, axis) for item in CONVS for axis in range(2, len(item.shapes[0]))]
CASES += [  # (torch has no deviation of one number)
    standardized_case(item, gained)
    for item in CONVS
    for gained in (False, True)
    if np.prod(item.params["weight"][1:]) > 1
]

# -- norms ---------------------------------------------------------------------------------------------

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _batch(x, *p, eps=1e-5):
    given = {4: p, 2: (None, None, *p)}[len(p)]
    return F.batch_norm(x, given[2], given[3], given[0], given[1], False, 0.0, eps)


def _rms(count: int, offset: float = 0.0, eps: float = 1e-6) -> Reference:
    def run(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        given = None if weight is None else weight + offset
        return F.rms_norm(x, x.shape[-count:], given, eps)

    return run


CASES += [
    *(
        case("batch_norm", shape, _batch, dict.fromkeys(STATISTICS, (4,)))
        for shape in ((3, 4), (3, 4, 5), (3, 4, 5, 6))
    ),
    case("batch_norm", (3, 4, 2, 2, 2), _batch, dict.fromkeys(STATISTICS[2:], (4,))),
    case("batch_norm", (3, 4), lambda *x: _batch(*x, eps=0.1), dict.fromkeys(STATISTICS, (4,)), eps=0.1),
    case("instance_norm", (3, 4, 5), F.instance_norm),
    case(
        "instance_norm",
        (3, 4, 5, 6),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=1e-3),
        {"weight": (4,), "bias": (4,)},
        eps=1e-3,
    ),
    case(
        "instance_norm",
        (3, 4, 5),
        lambda x, w, b, m, v: F.instance_norm(x, m, v, w, b, False),
        dict.fromkeys(STATISTICS, (4,)),
    ),
    case("layer_norm", (3, 5, 4), lambda x: F.layer_norm(x, (4,))),
    case("layer_norm", (3, 4), lambda x, w: F.layer_norm(x, (4,), w), {"weight": (4,)}),
    case("layer_norm", (3, 4), lambda x, w, b: F.layer_norm(x, (4,), w, b), {"weight": (4,), "bias": (4,)}),
    case(
        "layer_norm",
        (3, 4, 5, 6),
        lambda x, w, b: F.layer_norm(x, (4, 5, 6), w, b, 1e-3),
        {"weight": (4, 5, 6), "bias": (4, 5, 6)},
        eps=1e-3,
    ),
    case("layer_norm", (3, 4, 5), lambda x: F.layer_norm(x, (4, 5)), dims=2),
    case("rms_norm", (3, 5, 4), _rms(1)),
    case("rms_norm", (3, 5, 4), _rms(1, 1.0), {"weight": (4,)}, offset=1.0),
    case("rms_norm", (3, 5, 4), _rms(2, 0.0, 0.1), {"weight": (5, 4)}, eps=0.1),
    case("rms_norm", (3, 5, 4), _rms(2), dims=2),
    *(
        case(
            "group_norm",
            shape,
            lambda x, w, b, groups=groups: F.group_norm(x, groups, w, b),
            {"weight": (6,), "bias": (6,)},
            groups=groups,
        )
        for groups in (1, 2, 3, 6)
        for shape in ((3, 6), (3, 6, 4), (3, 6, 2, 3))
        if not (groups == 6 and len(shape) == 2)
    ),
    case("group_norm", (3, 6, 4), lambda x: F.group_norm(x, 2, eps=0.1), num_groups=2, eps=0.1),
    *(
        case(kind, (3, 4, 5), lambda x, kind=kind, axis=axis: getattr(F, kind)(x, dim=axis), axis=axis)
        for kind in ("softmax", "log_softmax", "softmin")
        for axis in (-1, 1, 2)
    ),
    case("softmax", (3, 4), lambda x: x.softmax(-1)),
    case("normalize", (3, 4), F.normalize),
    case("normalize", (3, 4, 5), lambda x: F.normalize(x, p=1.0, dim=2, eps=0.1), dim=2, p=1.0, eps=0.1),
    case("local_response_norm", (3, 6, 4, 4), lambda x: F.local_response_norm(x, 3), size=3),
    case(
        "local_response_norm",
        (3, 6, 4, 4),
        lambda x: F.local_response_norm(x, 2, 0.1, 0.5, 2.0),
        size=2,
        alpha=0.1,
        beta=0.5,
        k=2.0,
    ),
]

# -- pooling and positions -------------------------------------------------------------------------------

SPACES = {1: (11,), 2: (7, 10), 3: (5, 6, 7)}
WINDOWS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True},
]
for _dims, _space in SPACES.items():
    for _settings in WINDOWS:
        for _name, _more in (("max", {"dilation": 1}), ("avg", {"count_include_pad": False})):
            _function = getattr(F, f"{_name}_pool{_dims}d")
            for _attrs in (_settings, {**_settings, **_more}):
                CASES.append(
                    case(f"{_name}_pool{_dims}d", (3, 4, *_space), lambda x, f=_function, a=_attrs: f(x, **a), **_attrs)
                )
    for _name in ("avg", "max"):
        _function = getattr(F, f"adaptive_{_name}_pool{_dims}d")
        for _size in (1, 3, list(range(2, 2 + _dims))):
            CASES.append(
                case(
                    f"adaptive_{_name}_pool{_dims}d",
                    (3, 4, *_space),
                    lambda x, f=_function, s=_size: f(x, tuple(s) if isinstance(s, list) else s),
                    output_size=_size,
                )
            )
    CASES.append(
        case(f"upsample", (3, 4, *_space), lambda x: F.interpolate(x, scale_factor=2.0))  # noqa: F541
    )

CASES += [
    case(
        "max_pool2d",
        (3, 4, 9, 9),
        lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)),
        kernel_size=[3, 2],
        stride=[1, 2],
        padding=[1, 0],
        dilation=[2, 1],
    ),
    case("max_pool1d", (3, 4, 9), lambda x: F.max_pool1d(x, 2), kernel=2),
    case("upsample", (3, 4, 5, 6), lambda x: F.interpolate(x, scale_factor=(2.0, 3.0)), scale_factor=[2, 3]),
    case(
        "upsample",
        (3, 4, 5, 6),
        lambda x: F.interpolate(x, scale_factor=3.0, mode="bilinear", align_corners=True),
        scale_factor=3,
        mode="bilinear",
        align_corners=True,
    ),
    case("upsample", (3, 4, 5, 6), lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"), mode="bicubic"),
    case("pad", (3, 4, 5, 6), lambda x: F.pad(x, (1, 2)), padding=[1, 2]),
    case("pad", (3, 4, 5, 6), lambda x: F.pad(x, (1, 2, 0, 3), value=1.5), padding=[1, 2, 0, 3], value=1.5),
    case("pad", (3, 4, 5, 6), lambda x: F.pad(x, (1, 2, 0, 3), "reflect"), padding=[1, 2, 0, 3], mode="reflect"),
    case("pad", (3, 4, 5, 6), lambda x: F.pad(x, (-1, 2, 0, -3)), padding=[-1, 2, 0, -3]),
    # -- axes ------------------------------------------------------------------------------------------
    case("flatten", (3, 4, 5, 6), lambda x: x.flatten(1)),
    case("flatten", (3, 4, 5, 6), lambda x: x.flatten(2), start=2),
    case("flatten", (3, 4, 5, 6), lambda x: x.flatten(0, 1), start_dim=0, end_dim=1),
    case("flatten", (3, 4, 5, 6), lambda x: x.flatten(1, -2), start=1, end=-2),
    case("flatten", (3, 4), lambda x: x.flatten(1)),
    case("reshape", (3, 12), lambda x: x.reshape(3, 3, 4), shape=[0, 3, 4]),
    case("reshape", (3, 12), lambda x: x.reshape(3, 6, 2), shape=[0, -1, 2]),
    case("reshape", (3, 4, 6), lambda x: x.reshape(3, 24), shape=[3, -1]),
    case("reshape", (3, 4, 6), lambda x: x.reshape(3, 8, 3), shape=[0, 8, 3]),
    case("reshape", (3, 4, 6), lambda x: x.reshape(3, 3, 8), shape=[0, 3, 8]),
    case("reshape", (3, 4, 6), lambda x: x.reshape(3, 4, 2, 1, 3), shape=[0, 0, 2, 1, -1]),
    case("reshape", (3, 4, 6), lambda x: x.reshape(12, 6), shape=[-1, 6]),
    case("reshape", (3, 4, 1), lambda x: x.reshape(3, 4), shape=[3, 4]),
    case("reshape", (3, 1, 4), lambda x: x.reshape(3, 4, 1, 1), shape=[3, 4, 1, 1]),
    case("reshape", (3, 1), lambda x: x.reshape(3), shape=[3]),
    Case("reshape", [(3, 12)], lambda x: x.reshape(3, 3, 4), {"shape": [0, "heads", -1]}, dims={"heads": 3}),
    case("permute", (3, 4, 5, 6), lambda x: x.permute(0, 2, 3, 1), axes=[0, 2, 3, 1]),
    case("permute", (3, 4, 5, 6), lambda x: x.permute(0, -1, 1, 2), dims=[0, -1, 1, 2]),
    case("transpose", (3, 4, 5), lambda x: x.transpose(1, 2)),
    case("transpose", (3, 4, 5), lambda x: x.transpose(0, -1), axes=[0, -1]),
    case("unsqueeze", (3, 4), lambda x: x.unsqueeze(-1)),
    case("unsqueeze", (3, 4), lambda x: x.unsqueeze(1), axis=1),
    case("unsqueeze", (3, 4), lambda x: x.unsqueeze(0), dim=0),
    case("squeeze", (3, 4, 1), lambda x: x.squeeze(-1), axis=-1),
    case("squeeze", (3, 1, 4), lambda x: x.squeeze(1)),
    case("cat", [(3, 4), (3, 5)], lambda x, y: torch.cat([x, y], 1)),
    case("cat", [(3, 4, 5), (3, 4, 2)], lambda x, y: torch.cat([x, y], 2), axis=2),
    case("cat", [(3, 4), (2, 4), (1, 4)], lambda *x: torch.cat(x, 0), dim=0),
    case("cat", (3, 4), lambda x: x),
    case("slice", (3, 9), lambda x: x[:, 2:5], start=2, stop=5),
    case("slice", (3, 9), lambda x: x[:, 2:], start=2),
    case("slice", (3, 9, 4), lambda x: x[:, :, :3], axis=-1, end=3),
    case("slice", (3, 9), lambda x: x),
    case("split", (3, 9), lambda x: x.split([2, 3, 4], 1), sizes=[2, 3, 4]),
    case("split", (3, 9), lambda x: x.split(4, 1), split_size=4),
    case("split", (3, 9, 4), lambda x: x.split(2, -1), sizes=2, dim=-1),
    Case("split", [(3, 9)], lambda x: x.split([3, 6], 1), {"sizes": ["part", 6]}, dims={"part": 3}),
    case("chunk", (3, 9), lambda x: x.chunk(3, 1), chunks=3),
    case("chunk", (3, 5, 4), lambda x: x.chunk(2, 2), chunks=2, axis=2),
    case("glu", (3, 8), lambda x: F.glu(x, 1)),
    case("glu", (3, 5, 8), lambda x: F.glu(x, -1), axis=-1),
    *(
        item
        for name in ("mean", "sum", "amax", "amin")
        for item in (
            case(name, (3, 4, 5, 6), lambda x, f=name: getattr(torch, f)(x, (2, 3))),
            case(name, (3, 4, 5), lambda x, f=name: getattr(torch, f)(x, (1,), True), axes=1, keepdim=True),
            case(name, (3, 4, 5), lambda x, f=name: getattr(torch, f)(x, (-1, 1)), dim=[-1, 1]),
            case(name, (3, 4, 5), lambda x, f=name: getattr(torch, f)(x, (0,)), axes=0),
            case(name, (3, 4), lambda x: x),
        )
    ),
]

# -- values that are no layers, torch's own operations, products of activations ----------------------------


def _sdpa(**settings: Any) -> Reference:
    return lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, mask, **settings)


QKV = [(3, 4, 5, 8), (3, 4, 7, 8), (3, 4, 7, 6)]
CASES += [
    case("parameter", (), lambda w: w, {"weight": (4, 5)}),
    case("parameter", (), lambda w: w, {"weight": ()}),
    case("constant", (), lambda: torch.tensor(2.5).double(), value=2.5),
    case("constant", (), lambda: torch.tensor([[1.5, 2.0], [0.5, 4.0]]).double(), value=[[1.5, 2], [0.5, 4]]),
    case("constant", (), lambda: torch.tensor([3, 1, 2]), value=[3, 1, 2], dtype="int64"),
    case("constant", (), lambda: torch.tensor([True, False]), value=[True, False], dtype="bool"),
    case("expand", (3, 1, 4), lambda x: x.expand(3, 5, 4), sizes=[-1, 5, -1]),
    case("expand", (4,), lambda x: x.expand(2, 3, 4), sizes=[2, 3, -1]),
    Case("expand", [(3, 4, 1)], lambda x: x.expand(3, 4, 2), {"sizes": [3, 4, "n"]}, dims={"n": 2}),
    case("select", (3, 4, 5), lambda x: x[:, 2], axis=1, index=2),
    case("select", (3, 4, 5), lambda x: x[..., -1], dim=-1, index=-1),
    case("unbind", (3, 2, 4), lambda x: x.unbind(1), axis=1),
    case("unbind", (3, 2, 4), lambda x: x.unbind(-1), dim=-1),
    case("unbind", (3, 4), lambda x: x.unbind()),
    case("stack", [(3, 4), (3, 4)], lambda x, y: torch.stack([x, y])),
    *(
        case("stack", [(3, 4), (3, 4)], lambda x, y, axis=axis: torch.stack([x, y], axis), axis=axis)
        for axis in (1, 2, -1, -2)
    ),
    case("roll", (3, 4, 5), lambda x: x.roll(2, 1), shifts=2, axes=1),
    case("roll", (3, 4, 5), lambda x: x.roll((1, -2), (1, -1)), shifts=[1, -2], axes=[1, -1]),
    case("strided", (3, 7, 4), lambda x: x[:, ::2], axis=1, step=2),
    case("strided", (3, 7, 4), lambda x: x[..., 1::3], axis=-1, start=1, step=3),
    Case("lookup", [(9, 4), (3, 5)], lambda t, i: t[i], integer=9, indices=1),
    Case("lookup", [(9,), (3, 5)], lambda t, i: t[i], integer=9, indices=1),
    case("unfold", (3, 4, 7, 6), lambda x: F.unfold(x, (3, 2), padding=1), kernel_size=[3, 2], padding=1),
    case("unfold", (3, 4, 7, 6), lambda x: F.unfold(x, 3, stride=2, dilation=2), kernel_size=3, stride=2, dilation=2),
    case("fold", (3, 8, 30), lambda x: F.fold(x, (6, 7), 2), kernel_size=2, output_size=[6, 7]),
    case(
        "fold",
        (3, 8, 9),
        lambda x: F.fold(x, (6, 6), 2, 3, 1, 2),
        kernel_size=2,
        output_size=6,
        dilation=3,
        padding=1,
        stride=2,
    ),
    Case("pick", [(3, 9, 4), (5,)], lambda t, i: t[:, i], {"axis": 1}, integer=9, indices=1),
    Case(
        "put",
        [(9, 4), (5, 4), (5,)],
        lambda t, v, i: t.index_put((i,), v, True),
        {"accumulate": True},
        integer=9,
        indices=2,
    ),
    Case("pick", [(3, 4), (3,)], lambda t, i: t[i.bool()], {"mask": True, "rows": 0}, integer=1, indices=1),
    Case("put", [(3, 4), (1, 4), (3,)], lambda t, v, i: t, {"mask": True, "rows": 1, "axis": 0}, integer=1, indices=2),
    # -- weights by an equation, and chosen ones -------------------------------------------------------
    case("einsum_dense", (3, 5, 4), lambda x, w: x @ w, {"weight": (4, 6)}, equation="bti,io->bto"),
    case("einsum_dense", (3, 4, 5), lambda x, w: w @ x, {"weight": (6, 4)}, equation="bit,oi->bot"),
    case(
        "einsum_dense",
        (3, 5, 4),
        lambda x, w: torch.einsum("bti,hio->bhto", x, w),
        {"weight": (2, 4, 6)},
        equation="bti,hio->bhto",
    ),
    Case(
        "experts",
        [(7, 4), (7,)],
        lambda x, i, w: (w[i] @ x[..., None])[..., 0],
        {"equation": "ti,t,eoi->to"},
        {"weight": (3, 6, 4)},
        integer=3,
        indices=1,
    ),
    Case(
        "experts",
        [(3, 7, 4), (3, 7)],
        lambda x, i, w: (x[..., None, :] @ w[i])[..., 0, :],
        {"equation": "bti,bt,eio->bto"},
        {"weight": (3, 4, 6)},
        integer=3,
        indices=1,
    ),
    case(
        "along",
        (3, 4),
        lambda x: tuple(x.sort(0, True)),
        call="aten.sort.default",
        args=["$0", 0, True],
        kwargs={},
        axis=0,
        sizes=[3, 3],
    ),
    case(
        "along", (3, 4), lambda x: (x[..., None],), call="aten.unsqueeze.default", args=["$0", -1], sizes=[1], adds=True
    ),
    # -- along an axis -----------------------------------------------------------------------------------
    case(
        "along",
        (3, 7, 4),
        lambda x: tuple(x.topk(2, 1)),
        call="aten.topk.default",
        args=["$0", 2, 1],
        axis=1,
        sizes=[2, 2],
    ),
    case("along", (3, 4), lambda x: (x.cumsum(0),), call="aten.cumsum.default", args=["$0", 0], axis=0, sizes=[3]),
    case("pointwise", (3, 4), torch.sinc, call="aten.sinc.default", args=["$0"]),
    case(
        "pointwise",
        (3, 4),
        lambda x: x.clamp(-0.5, 0.5),
        call="aten.clamp.default",
        args=["$0"],
        kwargs={"min": -0.5, "max": 0.5},
    ),
    case("pointwise", [(3, 4), (4,)], torch.atan2, call="aten.atan2.default", args=["$0", "$1"]),
    case(
        "pointwise",
        [(3, 4), (5, 3, 4)],
        lambda x, y: torch.sub(x, y, alpha=3),
        call="aten.sub.Tensor",
        args=["$0", "$1"],
        kwargs={"alpha": 3},
    ),
    case("pointwise", (3, 4), lambda x: x, call="aten._to_copy.default", args=["$0"], kwargs={"dtype": "torch.half"}),
    case(
        "resample",
        (3, 4, 5, 6),
        lambda x: F.interpolate(x, size=(8, 7), mode="bilinear"),
        call="aten.upsample_bilinear2d.default",
        args=["$0", [8, 7], False],
        positions=[8, 7],
    ),
    case(
        "resample",
        (3, 4, 5),
        lambda x: F.interpolate(x, size=9),
        call="aten.upsample_nearest1d.default",
        args=["$0"],
        kwargs={"output_size": [9]},
        positions=[9],
    ),
    case("aten", (3, 4), lambda x: (x.cumsum(1),), call="aten.cumsum.default", args=["$0", 1], shapes=[[3, 4]]),
    case(
        "aten",
        [(3, 4), (5, 4)],
        lambda x, y: (torch.cdist(x, y),),
        call="aten._cdist_forward.default",
        args=["$0", "$1", 2.0, None],
        shapes=[[3, 5]],
    ),
    case(
        "aten",
        (3, 4),
        lambda x: tuple(x.sort(dim=1, descending=True)),
        call="aten.sort.default",
        args=["$0"],
        kwargs={"dim": 1, "descending": True},
        shapes=[[3, 4], [3, 4]],
    ),
    case(
        "aten",
        (),
        lambda: (torch.arange(3, dtype=torch.float64),),
        call="aten.arange.default",
        args=[3],
        kwargs={"dtype": "torch.float32"},
        shapes=[[3]],
    ),
    *(
        case("matmul", shapes, torch.matmul)
        for shapes in (
            [(3, 4), (4, 5)],
            [(2, 3, 4), (2, 4, 5)],
            [(6, 2, 3, 4), (2, 4, 5)],
            [(2, 1, 3, 4), (6, 4, 5)],
            [(4,), (4, 5)],
            [(2, 3, 4), (4,)],
            [(4,), (2, 4, 5)],
            [(4,), (4,)],
        )
    ),
    case("matmul", [(3, 4), (4, 5)], lambda x, y: x @ y / 2, scaled=True),
    case("einsum", [(3, 4), (4, 5)], lambda x, y: x @ y, equation="ij,jk->ik"),
    case("einsum", [(9, 3), (9, 5)], lambda x, y: x.T @ y / 3, equation="ji,jk->ik", scaled=True),
    case(
        "einsum",
        [(2, 5, 3, 4), (2, 6, 3, 4)],
        lambda q, k: torch.einsum("bqhd,bkhd->bhqk", q, k),
        equation="bqhd, bkhd -> bhqk",
    ),
    case("einsum", (3, 4, 4), lambda x: torch.einsum("bii->b", x), equation="bii->b"),
    case("attention", QKV, _sdpa()),
    case("attention", QKV, _sdpa(scale=0.25), scale=0.25),
    case("attention", [(3, 4, 5, 8)] * 3, _sdpa(is_causal=True), is_causal=True),
    case("attention", [*QKV, (5, 7)], _sdpa()),
    case("attention", [*QKV, (3, 1, 5, 7)], _sdpa()),
    case("attention", [(3, 4, 5, 8), (3, 2, 7, 8), (3, 2, 7, 6)], _sdpa(enable_gqa=True)),
    case("attention", [(3, 4, 5, 8), (3, 1, 7, 8), (3, 1, 7, 6)], _sdpa(enable_gqa=True)),
    case("attention", [(4, 5, 8), (4, 7, 8), (4, 7, 6)], _sdpa()),
    case("attention", [(2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 6)], _sdpa()),
    case("linear_io", (3, 7, 4), lambda x, w, b: x @ w + b, {"weight": (4, 5), "bias": (5,)}),
    case("linear_io", (3, 4), lambda x, w: x @ w, {"weight": (4, 5)}),
    case("vector_norm", (3, 4, 5, 6), lambda x: torch.linalg.vector_norm(x, 2, (2, 3))),
    case("vector_norm", (3, 4, 5), lambda x: torch.linalg.vector_norm(x, 1.0, (1,), True), axes=1, ord=1, keepdim=True),
    case("vector_norm", (3, 4, 5), lambda x: torch.linalg.vector_norm(x, 3.0, (-1, 1)), dim=[-1, 1], ord=3.0),
    case("pad", (3, 4, 5, 6), lambda x: F.pad(x, (1, 2, 0, 0, 0, 0)), padding=[1, 2, 0, 0, 0, 0]),
    case("pad", (3, 5, 6, 4), lambda x: F.pad(x, (0, 0, 1, 2)), padding=[0, 0, 1, 2]),
    case("pad", (3, 4, 5), lambda x: F.pad(x, (1, 1, 2, 1)), padding=[1, 1, 2, 1]),
    case("pad", (3, 4, 5), lambda x: F.pad(x, (0, 0, -1, 2)), padding=[0, 0, -1, 2]),
    case("pad", (3, 4, 5), lambda x: F.pad(x, (0, 0, 1, 1), "reflect"), padding=[0, 0, 1, 1], mode="reflect"),
]


def _turned(x: torch.Tensor, frequencies: Sequence[float], interleaved: bool = False) -> torch.Tensor:
    """Each pair as a complex number, times exp(i position frequency)."""
    size = 2 * len(frequencies)
    part, rest = x[..., :size], x[..., size:]
    pairs = part.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    one, other = pairs.unbind(-1 if interleaved else -2)
    angles = torch.outer(torch.arange(x.shape[-2]).double(), torch.tensor(frequencies, dtype=torch.float64))
    turned = torch.complex(one, other) * torch.polar(torch.ones_like(angles), angles)
    both = torch.stack([turned.real, turned.imag], -1 if interleaved else -2).flatten(-2)
    return torch.cat([both, rest], -1)


def _windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, causal: bool) -> torch.Tensor:
    back = torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])
    seen = (back < window) & ((back >= 0) | torch.tensor(not causal))
    return F.scaled_dot_product_attention(q, k, v, seen)


def _capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, cap: float) -> torch.Tensor:
    scores = torch.tanh(torch.einsum("bhqd,bhkd->bhqk", q, k) / cap) * cap
    return torch.softmax(scores + mask, -1) @ v


def _counted(tokens: torch.Tensor, start: int, skip: int) -> torch.Tensor:
    rows = []
    for row in tokens.tolist():
        count = iter(range(start, start + len(row)))
        rows.append([skip if token == skip else next(count) for token in row])
    return torch.tensor(rows)


CASES += [
    case("rotary", (3, 4, 5, 4), lambda x: _turned(x, [1.0, 1e-2])),
    case("rotary", (5, 6), lambda x: _turned(x, [1.0, 8.0**-0.5]), theta=8, rotated=4),
    case("rotary", (3, 5, 4), lambda x: _turned(x, [1.0, 1e-2], True), interleaved=True),
    case("rotary", (3, 5, 4), lambda x: 1.5 * _turned(x, [0.5, 0.005]), stretch=2.0, amplitude=1.5),
    case("rotary", (3, 5, 6), lambda x: _turned(x, [0.3, 0.7]), frequencies=[0.3, 0.7], rotated=4),
    *(
        case(
            "rotary",
            (3, 5, 4),
            lambda x, longer=longer: _turned(x, [0.1, 0.2] if longer < 5 else [0.3, 0.7]),
            frequencies=[0.3, 0.7],
            long_frequencies=[0.1, 0.2],
            longer_than=longer,
        )
        for longer in (4, 5)
    ),
    Case("positions", [(3, 5)], lambda x: torch.arange(5), integer=9),
    Case("positions", [(3, 5, 2)], lambda x: torch.arange(5) + 2, {"start": 2}),
    Case("positions", [(3, 5)], lambda x: _counted(x, 2, 1), {"start": 2, "skip": 1}, integer=3),
    case("root_scale", (3, 4), lambda x: 2 * x),
    case("root_scale", (3, 4, 5), lambda x: 2 * x),
    case("attention", [(3, 4, 5, 8)] * 3, lambda q, k, v: _windowed(q, k, v, 2, True), is_causal=True, window=2),
    case("attention", QKV, lambda q, k, v: _windowed(q, k, v, 3, False), window=3),
    case("attention", [*QKV, (5, 7)], lambda *x: _capped(*x, 0.5), softcap=0.5, scale=1.0),
]


def built(item: Case) -> Network:
    names = [f"x{n}" for n in range(len(item.shapes))]
    inputs: dict[str, Any] = {name: list(shape) for name, shape in zip(names, item.shapes, strict=True)}
    if item.integer:
        whole = names if item.indices is None else [names[item.indices]]
        inputs |= {n: {"shape": inputs[n], "dtype": "int64", "high": item.integer} for n in whole}
    node = layer(item.op, names or None, item.params, **item.attrs)
    inputs = inputs or {"unread": [3]}
    op = OPS[canonical(item.op)]
    pieces = 1
    if op.multiple:
        made = item.reference(*(torch.zeros(shape) for shape in item.shapes))
        pieces = len(made)
    outputs = [f"out[{n}]" for n in range(pieces)] if op.multiple else ["out"]
    net = network({"out": node}, inputs, outputs, dims=item.dims)
    if item.positive:
        net.inputs = {name: torch.rand_like(tensor) * 0.9 + 0.05 for name, tensor in net.inputs.items()}
    return net


@pytest.mark.parametrize("item", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_operation_equals_torch(item: Case) -> None:
    net = built(item)
    out = values_of(net)["="]  # compares solved and real shapes
    params = [net.tensors[f"out.{p.name}"] for p in OPS[canonical(item.op)].params if f"out.{p.name}" in net.tensors]
    operands = list(net.inputs.values())[: len(item.shapes)]
    wanted = item.reference(*operands, *params)
    wanted = list(wanted) if isinstance(wanted, tuple) else [wanted]
    assert len(out) == len(wanted)
    for one, other in zip(out, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("item", [item for item in CASES if OPS[canonical(item.op)].numpy], ids=str)
def test_numpy_computes_what_torch_does(item: Case) -> None:
    """Each operation that is declared for both, on numbers of several sizes, with its weight as a whole and by rows."""
    net, real = built(item), np.dtype(np.float64)
    sources = {name: tensor_source(tensor) for name, tensor in net.tensors.items()}
    for size in (1.0,) if item.positive else (1.0, 0.01, 40.0):
        values = {Ref(name): x * size if x.is_floating_point() else x for name, x in net.inputs.items()}
        for node in net.topology.graph.nodes:
            operands = [values[ref] for ref in node.inputs]
            wanted = operate(net.topology, node, operands, net.tensors.__getitem__, torch.float64)
            values.update({Ref(node.name, place): made for place, made in enumerate(wanted)})
            given = [operand.numpy() for operand in operands]
            by_rows = [None] if OPS[node.op].numpy_by_rows is None else [None, lambda name: Rows(sources[name])]
            for rows in by_rows:
                with np.errstate(all="ignore"):
                    found = operate(net.topology, node, given, lambda name: numbers(sources[name], real), real, rows)
                assert len(found) == len(wanted)
                for one, other in zip(found, wanted, strict=True):
                    same(torch.from_numpy(np.array(one)), other)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.shape == other.shape and one.dtype == other.dtype
    if one.is_floating_point():  # (sums cancel: what counts is their size, as in a proof)
        scale = max(1.0, float(other.abs().nan_to_num(posinf=0.0).max())) if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13 * scale, equal_nan=True)
    else:
        assert torch.equal(one, other)


ELSEWHERE = {"lstm", "gru", "rnn"}  # test_recurrent.py


def test_every_operation_is_here() -> None:
    assert set(OPS) - {canonical(item.op) for item in CASES} == ELSEWHERE


def family(name: str) -> str:
    """An operation without its number of dimensions."""
    return re.sub(r"[123]d$", "", name)


def test_every_parameter_and_setting_is_here() -> None:
    """Settings under any name that is accepted; `ranges` belongs to the parser."""
    for name, op in OPS.items():
        if name in ELSEWHERE:
            continue
        cases = [item for item in CASES if family(canonical(item.op)) == family(name)]
        params = {param for item in cases for param in item.params}
        assert {param.name for param in op.params} <= params, name
        used = {attr for item in cases for attr in item.attrs}
        for stated in list(used):
            used |= {other for other in ATTR_ALIASES.get(stated, ()) if stated not in op.attrs}
        assert set(op.attrs) - {"ranges", "p"} <= used, name


def test_other_names_lead_to_operations() -> None:
    for other, name in ALIASES.items():
        assert name in OPS and other not in OPS
    for stated, name in [
        ("Conv2d", "conv2d"),
        ("ReLU", "relu"),
        ("LeakyReLU", "leaky_relu"),
        ("BatchNorm2d", "batch_norm"),
        ("MaxPool2d", "max_pool2d"),
        ("AdaptiveAvgPool2d", "adaptive_avg_pool2d"),
        ("ConvTranspose2d", "conv_transpose2d"),
        ("GELU", "gelu"),
        ("concat", "cat"),
        ("LayerNorm", "layer_norm"),
        ("RMSNorm", "rms_norm"),
    ]:
        assert canonical(stated) == name


def test_every_attribute_alias_is_of_use() -> None:
    for stated, others in ATTR_ALIASES.items():
        for other in others:
            assert any(other in op.attrs and stated not in op.attrs for op in OPS.values()), (stated, other)


# -- settings that make no sense end in an error that names the layer -----------------------------------

WRONG = [
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, stride=0), "stride: 0"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, stride=[1, 2, 3]), "stride: [1, 2, 3]"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, padding=["a", 1]), "padding: ['a', 1]"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, padding="some"), "neither a number"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, padding="same", stride=2), "stride 1 only"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, padding_mode="mirror"), "padding_mode: 'mirror'"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 7, 3)}), "nothing is left"),
    (case("conv2d", (3, 5, 5, 5), None, {"weight": (6, 4, 3, 3)}), "5 channels"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3)}, groups=2), "groups: 2 is stated"),
    (case("conv2d", (3, 4, 5), None, {"weight": (6, 4, 3, 3)}), "expects 4"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3)}), "no kernel of 2 dimensions"),
    (case("conv2d", (3, 4, 5, 5), None, {"weight": (6, 4, 3, 3), "bias": (5,)}), "bias has 5"),
    (case("conv_transpose2d", (3, 4, 5, 5), None, {"weight": (4, 6, 3)}), "no kernel of 2 dimensions"),
    (case("conv_transpose2d", (3, 4, 5, 5), None, {"weight": (4, 6, 3, 3)}, groups=3), "multiple of 3"),
    (case("conv_transpose2d", (3, 4, 5, 5), None, {"weight": (4, 6, 3, 3)}, groups=0), "groups: 0"),
    (case("conv_transpose2d", (3, 4, 5, 5), None, {"weight": (4, 6, 3, 3)}, output_padding=1), "output_padding"),
    (case("linear", (3, 4), None, {"weight": (5, 6)}), "weight has 6 where 4 are expected"),
    (case("linear", (3, 4), None, {"weight": (5, 4, 1)}), "expects 2"),
    (case("max_pool2d", (3, 4, 5, 5), None, kernel_size=3, padding=2), "more than half"),
    (case("max_pool2d", (3, 4, 5, 5), None, kernel_size=0), "kernel_size: 0"),
    (case("max_pool2d", (3, 4, 5, 5), None, kernel_size=[]), "kernel_size: []"),
    (case("max_pool2d", (3, 4), None, kernel_size=2), "2 axes of positions"),
    (case("max_pool1d", (3, 4, 5, 6), None, kernel_size=2), "1 axes of positions"),
    (case("adaptive_avg_pool1d", (3, 4, 5, 6), None), "1 axes of positions"),
    (case("max_pool2d", (3, 4, 5, 5), None, kernel_size=7), "nothing is left"),
    (case("adaptive_avg_pool2d", (3, 4, 5, 5), None, output_size=[1, 2, 3]), "output_size"),
    (case("upsample", (3, 4), None), "positions behind"),
    (case("upsample", (3, 4, 5), None, scale_factor=0), "scale_factor: 0"),
    (case("pad", (3, 4, 5), None, padding=[1]), "two numbers for each axis"),
    (case("softmax", (3, 4), None, axis=2), "axis: 2 is no axis"),
    (case("normalize", (3, 4), None, axis=-3), "axis: -3 is no axis"),
    (case("layer_norm", (3, 4), None, dims=3), "cannot normalise 3 axes"),
    (case("layer_norm", (3, 4), None, {"weight": (5,)}), "weight has 5"),
    (case("group_norm", (3, 6, 2), None, groups=4), "do not fall into 4 groups"),
    (case("group_norm", (3, 6, 2), None, groups="g"), "'g' is neither"),
    (case("group_norm", (3,), None, groups=1), "axis of channels"),
    (case("local_response_norm", (3,), None, size=1), "axis of channels"),
    (case("batch_norm", (3, 4), None, dict.fromkeys(STATISTICS, (5,))), "has 5 where 4"),
    (case("scale", (3, 4), None, {"weight": (4, 1)}), "one axis"),
    (case("scale", (3, 4), None, {"weight": (5,)}), "4 units"),
    (case("flatten", (3, 4, 5), None, start=2, end=1), "behind end"),
    (case("flatten", (3, 4, 5), None, start=3), "start: 3"),
    (case("reshape", (3, 4, 5), None, shape=[3, -1, -1]), "only one size"),
    (case("reshape", (3, 4, 5), None, shape=[3, 19]), "does not hold"),
    (case("reshape", (3, 4, 5), None, shape=[3, -2, -10]), "-2 is neither"),
    (case("reshape", (3, 4, 5), None, shape=[3, 2.5, 8]), "2.5 is neither"),
    (case("reshape", (3, 4, 5), None, shape=[3, [4], 5]), "[4] is neither"),
    (case("reshape", (3, 4), None, shape=[3, 4, 0]), "keeps axis 2"),
    (case("reshape", (3, 4), None, shape=[3, "heads", -1]), "'heads' is neither"),
    (case("permute", (3, 4, 5), None, axes=[0, 1]), "3 of them"),
    (case("permute", (3, 4, 5), None, axes=[0, 1, 1]), "each once"),
    (case("permute", (3, 4, 5), None, axes=[0, 1, 3]), "3 is no axis"),
    (case("permute", (3, 4, 5), None, axes=[0, 1, "c"]), "should be numbers"),
    (case("transpose", (3, 4, 5), None, axes=[0, 1, 2]), "2 of them"),
    (case("unsqueeze", (3, 4), None, axis=3), "3 is no axis"),
    (case("squeeze", (3, 4), None, axis=1), "not of size 1"),
    (case("cat", [(3, 4), (3, 4, 5)], None), "shapes [3, 4] and [3, 4, 5]"),
    (case("cat", [(3, 4), (2, 4)], None), "differ at axis 0"),
    (case("add", [(3, 4), (3, 5)], None), "do not fit"),
    (case("add", (3, 4), None), "two operands"),
    (case("add", [(3, 4), (3, 4)], None, by=1), "takes the place"),
    (case("slice", (3, 9), None, start=5, stop=5), "5:5 is not inside"),
    (case("slice", (3, 9), None, start=5, stop=10), "which has 9"),
    (case("split", (3, 9), None, sizes=[2, 3]), "add up to 5"),
    (case("split", (3, 9), None, sizes=0), "sizes: 0"),
    (case("split", (3, 9), None, sizes=[-1, 10]), "from 1 up"),
    (case("split", (3, 9), None, sizes=[2.5, 6.5]), "numbers or names"),
    (case("chunk", (3, 9), None, chunks=2), "equal chunks"),
    (case("chunk", (3, 9), None, chunks=0), "chunks: 0"),
    (case("glu", (3, 9), None), "two halves"),
    (case("mean", (3, 4, 5), None, axes=[1, 3]), "3 is no axis"),
    (case("mean", (3, 4, 5), None, axes=[1, -2]), "each once"),
    (case("mean", (3, 4, 5), None, axes=["c"]), "should be numbers"),
    (case("expand", (3, 4), None, sizes=[4]), "1 sizes for an input of 2"),
    (case("expand", (3, 4), None, sizes=[3, 8]), "4 cannot be repeated to 8"),
    (case("expand", (3, 1), None, sizes=[3, "n"]), "'n' is neither"),
    (case("expand", (3, 1), None, sizes=[-1, 3, 1]), "-1"),
    (case("expand", (3, 1), None, sizes=[3, 2.5]), "2.5 is neither"),
    (case("select", (3, 4), None, axis=2, index=0), "2 is no axis"),
    (case("select", (3, 4), None, axis=1, index=4), "index: 4 is not inside"),
    (case("unbind", (3, 4), None, axis=2), "2 is no axis"),
    (case("stack", [(3, 4), (3, 1)], None), "shapes [3, 4] and [3, 1]"),
    (case("stack", [(3, 4), (3, 4)], None, axis=3), "3 is no axis"),
    (case("roll", (3, 4), None, shifts=1, axes=2), "2 is no axis"),
    (case("roll", (3, 4), None, shifts=[1, 2], axes=1), "one for each"),
    (case("strided", (3, 4), None, axis=1, step=0), "at least 1"),
    (case("strided", (3, 4), None, axis=1, start=4, step=2), "start: 4 is not inside"),
    (case("strided", (3, 4), None, axis=5, step=2), "5 is no axis"),
    (case("pointwise", (3, 4), None, call="torch.sinc", args=["$0"]), "no operation of torch"),
    (case("pointwise", (3, 4), None, call="aten.from_file.default", args=["/"]), "no operation of torch"),
    (case("resample", (3, 4), None, call="os.system", args=[], positions=[1]), "no operation of torch"),
    (case("resample", (3, 4), None, call="aten.sinc.default", args=[], positions=[1, 2]), "positions"),
    (case("aten", (3, 4), None, call="eval", shapes=[[3]]), "no operation of torch"),
    (case("aten", (3, 4), None, call="aten.sinc.default", shapes=[3]), "shapes: [3]"),
    (case("matmul", [(3, 4), (5, 4)], None), "4 and 5"),
    (case("einsum_dense", (3, 4), None, {"weight": (4, 5)}, equation="bi->b"), "2 operands"),
    (case("einsum_dense", (3, 4), None, {"weight": (4, 5)}, equation="bi,io->bx"), "no operand has"),
    (case("einsum_dense", (3, 4), None, {"weight": (3, 5)}, equation="bi,io->bo"), "weight has 3 where 4"),
    (case("experts", [(7, 4), (7,)], None, {"weight": (3, 6, 4)}, equation="ti,t,oie->to"), "begins with the axis"),
    (case("experts", [(4, 7), (7,)], None, {"weight": (3, 6, 4)}, equation="it,t,eoi->ot"), "axes lead"),
    (case("pick", [(3, 4), (3,), (3,), (3,)], None), "3 indices, more than the axes"),
    (case("along", (3, 4), None, call="eval", sizes=[3]), "no operation of torch"),
    (case("along", [(3, 4), (3,)], None, call="aten.topk.default", sizes=[3]), "as many axes as the first"),
    (case("matmul", [(2, 3, 4), (3, 4, 5)], None), "do not fit"),
    (case("einsum", [(3, 4), (5, 4)], None, equation="ij,jk->ik"), "4 and 5"),
    (case("einsum", [(3, 4), (4, 5)], None, equation="ij->ij"), "2 operands"),
    (case("einsum", (3, 4), None, equation="ijk->i"), "does not fit an operand"),
    (case("einsum", [(3, 4), (3, 4)], None, equation="ij,ij->", scaled=True), "does not sum over one letter"),
    (case("einsum", (3, 4), None, equation="ij->ik"), "letters of its operands"),
    (case("einsum", (3, 4), None, equation="...j->..."), "does not fit"),
    (case("rotary", (4,), None), "(..., positions, size)"),
    (case("rotary", (3, 4, 5), None), "rotated: 5"),
    (case("rotary", (3, 4, 6), None, rotated=8), "rotated: 8"),
    (case("rotary", (3, 4, 6), None, frequencies=[1.0, 2.0]), "2 numbers for 3 pairs"),
    (case("rotary", (3, 4, 4), None, frequencies=["a", "b"]), "should be numbers"),
    (case("rotary", (3, 4, 4), None, longer_than=4), "go together"),
    (case("positions", (4,), None), "(batch, positions)"),
    (case("positions", (4, 3, 2), None, skip=1), "tokens (batch, positions)"),
    (case("attention", [(4, 5, 8)] * 3, None, window=0), "window: 0"),
    (case("attention", [(3, 4), (3, 4), (3, 4)], None), "(..., heads, positions, size)"),
    (case("attention", [(4, 5, 8), (4, 7, 6), (4, 7, 6)], None), "query and key have 8 and 6"),
    (case("attention", [(4, 5, 8), (4, 7, 8), (4, 6, 8)], None), "keys and values have 7 and 6"),
    (case("attention", [(4, 5, 8), (3, 7, 8), (3, 7, 8)], None), "4 heads of queries do not share 3"),
    (case("attention", [(4, 5, 8), (4, 7, 8), (4, 7, 8), (5, 6)], None), "do not fit"),
    (case("linear_io", (3, 4), None, {"weight": (5, 4)}), "weight has 5 where 4 are expected"),
]


@pytest.mark.parametrize(("item", "message"), WRONG, ids=lambda item: str(item))
def test_settings_that_make_no_sense_are_explained(item: Case, message: str) -> None:
    item.reference = lambda *x: [x]
    with pytest.raises(SpecError) as caught:
        built(item)
    assert message in str(caught.value)
    assert "test.yaml:1" in str(caught.value) and "'out'" in str(caught.value)


# -- roles -----------------------------------------------------------------------------------------------

NORMED = normed_case(conv_case((3, 4, 5, 5), (6, 4, 3, 3)))


def roles(net: Network, tensor: str) -> list[set[str]]:
    axes: list[set[str]] = [set() for _ in net.infos[tensor].shape]
    for use in net.topology.uses:
        if use.tensor == tensor:
            axes[use.axis] |= {role.value for part, role in use.parts if part.size > 1}
    return axes


@pytest.mark.parametrize(
    ("item", "tensor", "wanted"),
    [
        (case("linear", (3, 4), None, {"weight": (5, 4), "bias": (5,)}), "weight", ["produces", "consumes"]),
        (case("linear", (3, 4), None, {"weight": (5, 4), "bias": (5,)}), "bias", ["produces"]),
        (conv_case((3, 4, 5, 5), (6, 4, 3, 3)), "weight", ["produces", "consumes", "data", "data"]),
        (conv_case((3, 4, 5, 5), (4, 1, 3, 3)), "weight", ["per unit", "", "data", "data"]),
        (conv_case((3, 4, 5, 5), (6, 2, 3, 3)), "weight", ["per unit+produces", "consumes", "data", "data"]),
        (transposed_case((3, 4, 5, 5), (4, 6, 3, 3)), "weight", ["consumes", "produces", "data", "data"]),
        (NORMED, "weight", ["per unit", "consumes", "data", "data"]),
        (NORMED, "magnitude", ["produces", "", "", ""]),
        (normed_case(conv_case((3, 4, 9), (6, 4, 3)), 2), "weight", ["produces", "consumes", "data"]),
        (normed_case(transposed_case((3, 4, 9), (4, 5, 3))), "weight", ["per unit", "produces", "data"]),
        (normed_case(transposed_case((3, 4, 9), (4, 5, 3))), "magnitude", ["consumes", "", ""]),
        (case("batch_norm", (3, 4), None, dict.fromkeys(STATISTICS, (4,))), "running_var", ["per unit"]),
        (case("layer_norm", (3, 4), None, {"weight": (4,), "bias": (4,)}), "bias", ["per unit"]),
        (Case("embedding", [(3,)], F.embedding, {}, {"weight": (9, 4)}, integer=9), "weight", ["data", "produces"]),
        (case("prelu", (3, 4), None, {"weight": (4,)}), "weight", ["per unit"]),
        (case("scale", (3, 4), None, {"weight": (4,)}), "weight", ["per unit"]),
        (
            case("einsum_dense", (3, 5, 4), None, {"weight": (5, 4, 6)}, equation="eti,tio->eto"),
            "weight",
            ["per unit", "consumes", "produces"],
        ),
        (
            Case(
                "experts",
                [(7, 4), (7,)],
                F.linear,
                {"equation": "ti,t,eoi->to"},
                {"weight": (3, 6, 4)},
                integer=3,
                indices=1,
            ),
            "weight",
            ["data", "produces", "consumes"],
        ),
    ],
    ids=str,
)
def test_roles(item: Case, tensor: str, wanted: list[str]) -> None:
    found = ["+".join(sorted(axis)) for axis in roles(built(item), f"out.{tensor}")]
    assert found == wanted
    assert {role.value for role in Role} >= {name for axis in wanted for name in axis.split("+") if name}


ELEMENTWISE = [item for item in CASES if OPS[canonical(item.op)].rule is OPS["relu"].rule]


@pytest.mark.parametrize("item", ELEMENTWISE, ids=str)
def test_what_is_known_of_fresh_units_is_true(item: Case) -> None:
    """`zero`: f(0) = 0; `mean`: linear, and the same for every unit."""
    fresh = OPS[canonical(item.op)].fresh
    zeros = torch.zeros(item.shapes[0], dtype=torch.float64)
    if fresh in ("zero", "mean"):
        torch.testing.assert_close(item.reference(zeros), zeros)
    if fresh == "mean":
        x, y = torch.rand_like(zeros), torch.rand_like(zeros)
        torch.testing.assert_close(item.reference(x + 2 * y), item.reference(x) + 2 * item.reference(y))
