"""Recurrent layers as torch.nn has them: any number of levels, in one or two directions, LSTMs with a projection.

One level in one direction (`l0`, `l1_reverse`), where g is 4 for an LSTM, 3 for a GRU and 1 for a plain RNN:

    weight_ih  (g h) i      weight_hh  (g h) s      bias_ih, bias_hh  (g h)      weight_hr  p h

i is what it reads, h its hidden units, s what it says: p where it projects, else h itself. The next level reads the
s of both directions, one behind the other; a level itself reads its own s of the step before. That is zero at first, or
what further operands give, as torch has them: (levels, batch, s), and for an LSTM (levels, batch, h).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.intervals import Interval, as_real, plus, real, summed, widened
from netgrow_cli.topology.layout import Fixed, Layout, SizeMismatch, concat, product
from netgrow_cli.topology.ops.base import BOOL, INT, TEXT, Attr, Bounding, Call, Op, Param, Start
from netgrow_cli.topology.rule import Context, Role, Value

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_NONLINEARITIES = ("tanh", "relu")


@frozen
class _Form:
    """What the parameters' names tell: how many levels, directions, and parameters of each."""

    layers: int
    directions: int
    bias: bool
    projected: bool

    @classmethod
    def of(cls, names: Mapping[str, Any]) -> _Form:
        numbers = [int(found[1]) for name in names if (found := re.search(r"_l(\d+)", name))]
        reverse = any(name.endswith("_reverse") for name in names)
        bias, projected = (any(name.startswith(kind) for name in names) for kind in ("bias_", "weight_hr_"))
        return cls(max(numbers, default=0) + 1, 2 if reverse else 1, bias, projected)

    def level(self, layer: int) -> list[str]:
        """The directions of a level, by the end of their parameters' names."""
        return [f"l{layer}", f"l{layer}_reverse"][: self.directions]

    def kinds(self) -> list[str]:
        """The parameters of one level in one direction, in torch's order."""
        bias = ["bias_ih", "bias_hh"] if self.bias else []
        return ["weight_ih", "weight_hh", *bias, *(["weight_hr"] if self.projected else [])]

    def names(self) -> Iterator[str]:
        """All parameters, in torch's order."""
        for layer in range(self.layers):
            for end in self.level(layer):
                yield from (f"{kind}_{end}" for kind in self.kinds())


# -- layouts -------------------------------------------------------------------------------------------


def _rule(context: Context) -> tuple[Value, ...]:
    form = _checked(context)
    source = context.inputs[0]
    if len(source.axes) != 3:
        context.fail(
            f"its input has {len(source.axes)} axes {list(source.shape)}; {context.node.op} expects 3: batch, "
            "positions (in the order that `batch_first:` says) and units"
        )
    time = 1 if context.attr("batch_first") else 0
    context.layouts.freeze(source.axes[time], f"positions, which {context.node.op} {context.node.name} mixes")
    reads = source.axes[2]
    hidden: list[Layout] = []
    said: list[Layout] = []
    for layer in range(form.layers):
        made = [_level(context, form, end, reads) for end in form.level(layer)]
        hidden.extend(units for units, _ in made)
        said.extend(says for _, says in made)
        reads = concat([says for _, says in made])
    _one_size(context, hidden, "hidden_size")
    if form.projected:
        _one_size(context, said, "proj_size")
    values = [Value((*source.axes[:2], reads), 2)]
    states = [said, hidden] if context.node.op == "lstm" else [said]
    _start(context, form, states, source.axes[1 - time])
    # The states hold all levels side by side on one axis of units, which couples them: only where something reads them.
    for state in states[: max(context.read, default=0)]:
        values.append(Value((Fixed(len(state), "levels"), source.axes[1 - time], _coupled(context, state)), 2))
    return tuple(values)


def _start(context: Context, form: _Form, states: Sequence[Sequence[Layout]], batch: Layout) -> None:
    """What the first step reads of the layer itself, where that is given."""
    given = context.inputs[1:]
    if given and len(given) != len(states):
        context.fail(f"{context.node.op} starts from {len(states)} states, or none; {len(given)} are given", "from")
    if given and form.projected:
        context.fail("an LSTM with proj_size starts from zeros; it takes no states here", "from")
    for value, levels in zip(given, states, strict=False):
        if len(value.axes) != 3 or value.axes[0].size != len(levels):
            shape = list(value.shape)
            context.fail(f"its state has the shape {shape}; {[len(levels), batch.size, levels[0].size]} is expected")
        context.layouts.freeze(value.axes[0], "levels")
        context.layouts.unify(value.axes[1], batch)
        context.layouts.unify(value.axes[2], _coupled(context, levels))


def _checked(context: Context) -> _Form:
    """The form, with everything that is stated checked against it."""
    form = _Form.of(context.params)
    for name in form.names():
        if name not in context.params:
            context.fail(f"it lacks {name}, which its other parameters ask for")
    rows, gates = _rank(context, "weight_hh_l0", 2)[0].size, _GATES[context.node.op]
    if rows % gates:
        context.fail(f"weight_hh_l0 has {rows} rows, which are no {gates} gates")
    tells: dict[str, Any] = {
        "num_layers": form.layers,
        "bidirectional": form.directions == 2,
        "bias": form.bias,
        "hidden_size": rows // gates,
    }
    if context.node.op == "lstm":
        tells["proj_size"] = _rank(context, "weight_hr_l0", 2)[0].size if form.projected else 0
        if form.projected and (projected := _rank(context, "weight_hr_l0", 2)[0].size) >= rows // gates:
            context.fail(f"proj_size {projected} must be below hidden_size {rows // gates}")
    else:
        tells["nonlinearity"] = _nonlinearity(context) if context.node.op == "rnn" else None
    for name, told in tells.items():
        stated = context.attr(name) if told is not None else None
        if stated is not None and stated != told:
            context.fail(f"{name}: {stated} is stated, its tensors say {told}", f"attr:{name}")
    return form


def _nonlinearity(context: Context) -> Any:
    stated = context.attr("nonlinearity")
    if stated not in _NONLINEARITIES:
        context.fail(f"nonlinearity: {stated!r} should be one of {', '.join(_NONLINEARITIES)}", "attr:nonlinearity")
    return stated


def _rank(context: Context, name: str, count: int) -> Sequence[Layout]:
    axes = context.params[name]
    if len(axes) != count:
        context.fail(f"{name} has {len(axes)} axes {[axis.size for axis in axes]}; {context.node.op} expects {count}")
    return axes


def _level(context: Context, form: _Form, end: str, reads: Layout) -> tuple[Layout, Layout]:
    """One level in one direction: its hidden units, and what it says."""
    gates = _GATES[context.node.op]
    size = _rank(context, "weight_hh_l0", 2)[0].size // gates
    hidden = said = context.layouts.width(size, hint=end)
    if form.projected:
        said = context.layouts.width(_rank(context, "weight_hr_l0", 2)[0].size, hint=f"{end}.proj")
        _axis(context, f"weight_hr_{end}", 0, said, Role.PRODUCES)
        _axis(context, f"weight_hr_{end}", 1, hidden, Role.CONSUMES)
    _axis(context, f"weight_ih_{end}", 1, reads, Role.CONSUMES)
    _axis(context, f"weight_hh_{end}", 1, said, Role.CONSUMES)
    for kind in form.kinds():
        if kind != "weight_hr":
            _axis(context, f"{kind}_{end}", 0, hidden, Role.PRODUCES, gates)
    return hidden, said


def _axis(context: Context, name: str, axis: int, units: Layout, role: Role, gates: int = 1) -> None:
    """An axis of a parameter is the units, for each gate once."""
    found = _rank(context, name, 1 if name.startswith("bias") else 2)[axis]
    each = Fixed(gates, "gates")
    try:
        context.layouts.unify(product([each, units]), found)
    except SizeMismatch:
        context.fail(f"{name} has {found.size} where {gates * units.size} are expected (axis {axis})")
    known = context.layouts.resolve(units)
    if isinstance(known, Fixed):
        context.layouts.fix(found, known.why)
    context.use(name, axis, [*([(each, Role.DATA)] if gates > 1 else []), (units, role)])


def _one_size(context: Context, widths: Sequence[Layout], what: str) -> None:
    """All levels have as many units: torch.nn has one number for them."""
    context.site(what, widths[0])
    if len(widths) > 1:
        context.tie(widths, f"{context.node.op} {context.node.name} has one {what}")


def _coupled(context: Context, levels: Sequence[Layout]) -> Layout:
    for level in levels[1:]:
        context.layouts.unify(levels[0], level)
    return context.layouts.resolve(levels[0])


# -- running -------------------------------------------------------------------------------------------


def _run(call: Call) -> Any:
    form = _Form.of(call.params)
    weights = [call.params[name] for name in form.names()]
    return _through(call, form, call.inputs[0], weights, call.inputs[1:])[: len(call.outputs)]


def _through(call: Call, form: _Form, x: Any, weights: Sequence[Any], given: Sequence[Any]) -> Any:
    """torch's own function, from given states or from zeros."""
    op, torch, batch_first = call.node.op, call.torch, call.attrs["batch_first"]
    function = getattr(torch, f"rnn_{call.attrs['nonlinearity']}" if op == "rnn" else op)
    said = weights[form.kinds().index("weight_hh")].shape[1]
    hidden = weights[0].shape[0] // _GATES[op]
    levels, batch = form.layers * form.directions, x.shape[0 if batch_first else 1]
    zeros = (weights[0].new_zeros(levels, batch, size) for size in (said, hidden))
    states = tuple(state.contiguous() for state in given) or tuple(zeros)
    start = states if op == "lstm" else states[0]
    return function(x, start, weights, form.bias, form.layers, 0.0, False, form.directions == 2, batch_first)


def _inside(call: Call) -> dict[str, Any]:
    """By parameter, what it reads that the layer itself has made or was given to start from, at all steps."""
    form, x = _Form.of(call.params), call.inputs[0]
    time = 1 if call.attrs["batch_first"] else 0
    found: dict[str, Any] = {}
    for layer in range(form.layers):
        says = []
        for direction, end in enumerate(form.level(layer)):
            if layer:
                found[f"weight_ih_{end}"] = x
            level = layer * form.directions + direction
            start = [state[level : level + 1] for state in call.inputs[1:]]
            hidden = _hidden(call, form, end, x, start)
            if form.projected:
                found[f"weight_hr_{end}"] = hidden
                hidden = call.functional.linear(hidden, call.params[f"weight_hr_{end}"])
            first = [start[0].transpose(0, time)] if start else []
            found[f"weight_hh_{end}"] = call.torch.cat([*first, hidden], time)
            says.append(hidden)
        x = call.torch.cat(says, -1)
    return found


def _hidden(call: Call, form: _Form, end: str, x: Any, start: Sequence[Any]) -> Any:
    """The hidden units of one level in one direction. A projection is put into what reads it."""
    weights = {kind: call.params[f"{kind}_{end}"] for kind in form.kinds()}
    if form.projected:
        weights["weight_hh"] = weights["weight_hh"] @ weights.pop("weight_hr")
    time = 1 if call.attrs["batch_first"] else 0
    backwards = end.endswith("_reverse")
    alone = _Form(1, 1, form.bias, projected=False)
    out = _through(call, alone, x.flip(time) if backwards else x, list(weights.values()), start)[0]
    return out.flip(time) if backwards else out


# -- bounds --------------------------------------------------------------------------------------------

_ROUNDS = 3
"""How often what a level makes is bounded by what it was bounded by before; each time holds for all steps."""


@frozen
class _Known:
    """Bounds of one level in one direction, for all steps: (1, units) each.

    hidden, says: what it makes and what it says. cell: an LSTM's.
    """

    hidden: Interval
    says: Interval
    cell: Interval


def _bounds(asked: Bounding) -> tuple[Interval, ...]:
    form = _Form.of(asked.call.params)
    if len(asked.operands) > 1:  # (nothing is known of what given states come to)
        return tuple(Interval.anything(asked.call.shape(n)) for n in range(len(asked.call.outputs)))
    levels = _known_levels(asked, form)
    last = _joined([one.says for one in levels[-form.directions :]])
    sequence = last.map(lambda end: end[0].expand(asked.call.shape()))
    states = [_stacked([one.says for one in levels]), _stacked([one.cell for one in levels])]
    shapes = [asked.call.shape(n) for n in range(len(asked.call.outputs))]
    return (sequence, *(_for_batch(state, shape) for state, shape in zip(states, shapes[1:], strict=False)))


def _for_batch(state: Interval, shape: Sequence[int]) -> Interval:
    """(levels, units) for all rows."""
    return state.map(lambda end: end[:, None].expand(shape))


def _bounds_inside(asked: Bounding) -> dict[str, Interval]:
    """As `_inside`; what it reads of itself at the first step is zero."""
    form = _Form.of(asked.call.params)
    found: dict[str, Interval] = {}
    if len(asked.operands) > 1:
        own = (name for name in form.names() if name.startswith(("weight_ih", "weight_hh")) and name != "weight_ih_l0")
        return {name: Interval.anything((1, asked.call.params[name].shape[1])) for name in own}
    levels = _known_levels(asked, form)
    for number, end in enumerate(end for layer in range(form.layers) for end in form.level(layer)):
        known, below = levels[number], number // form.directions - 1
        if below >= 0:
            under = levels[below * form.directions : (below + 1) * form.directions]
            found[f"weight_ih_{end}"] = _joined([one.says for one in under])
        if form.projected:
            found[f"weight_hr_{end}"] = known.hidden
        found[f"weight_hh_{end}"] = known.says.around_zero()
    return found


def _known_levels(asked: Bounding, form: _Form) -> list[_Known]:
    x = as_real(asked.operands[0])
    reads = Interval.between(x.low.amin((0, 1))[None], x.high.amax((0, 1))[None])
    found: list[_Known] = []
    for layer in range(form.layers):
        made = [_known(asked, form, end, reads) for end in form.level(layer)]
        reads = _joined([one.says for one in made])
        found.extend(made)
    return found


def _known(asked: Bounding, form: _Form, end: str, reads: Interval) -> _Known:
    weights = {kind: real(asked.call.params[f"{kind}_{end}"]) for kind in form.kinds()}
    size = weights["weight_ih"].shape[0] // _GATES[asked.call.node.op]
    most = asked.call.torch.ones(1, size, dtype=asked.call.torch.float64)
    relu = asked.call.attrs.get("nonlinearity") == "relu" and asked.call.node.op == "rnn"
    hidden = Interval.between(most * 0.0, most / 0.0) if relu else Interval.between(-most, most)
    cell = Interval.between(-most / 0.0, most / 0.0)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        says = Interval.anything((1, weights["weight_hr"].shape[0])) if form.projected else hidden
        return _Known(hidden, says, cell)
    ahead = _through_weights(asked, reads, weights, "ih")
    for _ in range(_ROUNDS):
        says = _through_weights(asked, hidden, weights, "hr") if form.projected else hidden
        own = _through_weights(asked, says.around_zero(), weights, "hh")
        hidden, cell = _step(asked, ahead, own, size, relu)
    says = _through_weights(asked, hidden, weights, "hr") if form.projected else hidden
    return _Known(hidden, says, cell)


def _step(asked: Bounding, ahead: Interval, own: Interval, size: int, relu: bool) -> tuple[Interval, Interval]:
    """What a level makes of what it reads and what it said before; the gates are between zero and one."""
    op = asked.call.node.op
    if op == "rnn":
        made = plus(ahead, own)
        return (made.within(least=0.0) if relu else _tanh(made)), made
    ahead, own = (part.map(lambda end: end[:, 2 * size : 3 * size]) for part in (ahead, own))
    made = _tanh(plus(ahead, own.around_zero() if op == "gru" else own)).around_zero()
    if op == "gru":  # a mean of this and of what it was before
        return Interval(made.low * (1 + 2.0**-20), made.high * (1 + 2.0**-20), made.still), made
    torch = asked.call.torch
    cell = Interval.between(
        torch.where(made.low < 0, -torch.inf, 0.0), torch.where(made.high > 0, torch.inf, 0.0)
    )  # (it adds up these, over any number of steps)
    return Interval.between(made.low.sign(), made.high.sign()), cell


def _tanh(x: Interval) -> Interval:
    return widened(x.low.tanh(), x.high.tanh(), x).within(-1.0, 1.0).sound()


def _through_weights(asked: Bounding, x: Interval, weights: Mapping[str, Any], kind: str) -> Interval:
    weight, bias = weights[f"weight_{kind}"], weights.get(f"bias_{kind}")
    linear = asked.call.functional.linear
    constants = [] if bias is None else [bias]
    return summed(x, lambda matrix, value: linear(value, matrix), weight, weight.shape[1], constants).sound()


def _joined(parts: Sequence[Interval]) -> Interval:
    """Units side by side."""
    import torch

    return Interval(*(torch.cat([getattr(part, end) for part in parts], -1) for end in ("low", "high", "still")))


def _stacked(parts: Sequence[Interval]) -> Interval:
    """Levels one after the other, (levels, units)."""
    import torch

    return Interval(*(torch.cat([getattr(part, end) for part in parts], 0) for end in ("low", "high", "still")))


# -- the operations --------------------------------------------------------------------------------------

_KINDS: tuple[tuple[str, Start, bool], ...] = (
    ("weight_ih", "random", True),  # (of the first level: what the layer reads, see below)
    ("weight_hh", "random", True),
    ("bias_ih", "zero", False),
    ("bias_hh", "zero", False),
)


def _params(projected: bool) -> tuple[Param, ...]:
    kinds = (*_KINDS, *([("weight_hr", _KINDS[0][1], True)] if projected else []))
    return (
        Param("weight_ih_l0"),
        Param("weight_ih_l0_reverse", optional=True),
        Param("weight_hh_l0", inside=True),
        *(
            Param(f"{kind}_l#{end}", start, optional=True, inside=inside)
            for end in ("", "_reverse")
            for kind, start, inside in kinds
        ),
    )


_ATTRS = {
    "batch_first": Attr(False, BOOL),
    "num_layers": Attr(None, INT),
    "hidden_size": Attr(None, INT),
    "bidirectional": Attr(None, BOOL),
    "bias": Attr(None, BOOL),
}


def _op(name: str, more: Mapping[str, Attr], doc: str) -> Op:
    return Op(
        name=name,
        rule=_rule,
        run=_run,
        params=_params(name == "lstm"),
        attrs={**_ATTRS, **more},
        inputs=(1, 3 if name == "lstm" else 2),
        consumes_axis=-1,
        multiple=True,
        main_output=True,
        inside=_inside,
        bounds=_bounds,
        bounds_inside=_bounds_inside,
        doc=doc,
    )


OPS = (
    _op(
        "lstm",
        {"proj_size": Attr(None, INT)},
        "LSTM, from zeros or from: [x, h, c]; `name` is the sequence, name[1] the last h, name[2] the last c.",
    ),
    _op("gru", {}, "GRU, from zeros or from: [x, h]; `name` is the sequence, name[1] the last h."),
    _op(
        "rnn",
        {"nonlinearity": Attr("tanh", TEXT)},
        "Elman's RNN, from zeros or from: [x, h]; `name` is the sequence, name[1] the last h.",
    ),
)
