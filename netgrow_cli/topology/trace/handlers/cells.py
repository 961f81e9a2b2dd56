"""Single steps of recurrent layers (`nn.GRUCell`, `nn.LSTMCell`, `nn.RNNCell`), as torch documents them: two linear
layers, of the input (which has the module's name) and of the state (`.hh`), and functions of each unit. The units of
the state, of what a step makes of it, and of all gates are one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.reading import argument


class _Step:
    """The layers of one step of a cell, made one after the other."""

    def __init__(self, made: Converter, node: Any) -> None:
        self._made = made
        self._node = node
        self.weights = [node.args[n] for n in (2, 3)]
        self._biases = [argument(node, n, name) for n, name in ((4, "b_ih"), (5, "b_hh"))]

    @property
    def known(self) -> bool:
        """Whether all of its parameters are tensors of the checkpoint."""
        biases = [bias for bias in self._biases if bias is not None]
        return all(self._made.tensor(one) is not None for one in (*self.weights, *biases))

    def sums(self, state: Any) -> tuple[str, str]:
        """What the gates get of the input and of the state."""
        made, node = self._made, self._node
        module = str(made.tensor(self.weights[0])).rpartition(".")[0]
        names = (module, f"{module}.hh") if module else (f"{node.name}.ih", f"{node.name}.hh")
        refs = []
        for source, name, weight, bias in zip((node.args[0], state), names, self.weights, self._biases, strict=True):
            params = {"weight": weight, **({"bias": bias} if bias is not None else {})}
            refs.append(made.extra(node, "", "linear", [made.ref(source)], {}, params, name=name))
        return refs[0], refs[1]

    def gates(self, ref: str, count: int) -> list[str]:
        """The gates, which lie side by side."""
        name = self.of("gates", "chunk", ref, chunks=count, axis=-1)
        return [f"{name}[{gate}]" for gate in range(count)]

    def of(self, suffix: str, op: str, *refs: str, **attrs: Any) -> str:
        """A layer of other layers."""
        return self._made.extra(self._node, suffix, op, refs, attrs)


def _gru(made: Converter, node: Any) -> bool:
    step = _Step(made, node)
    if not step.known:
        return False
    ahead, own = step.sums(node.args[1])
    reset, update, new = step.gates(ahead, 3)
    own_reset, own_update, own_new = step.gates(own, 3)
    reset = step.of("reset", "sigmoid", step.of("reset.sum", "add", reset, own_reset))
    update = step.of("update", "sigmoid", step.of("update.sum", "add", update, own_update))
    new = step.of("new", "tanh", step.of("new.sum", "add", new, step.of("kept", "mul", reset, own_new)))
    change = step.of("change", "sub", made.ref(node.args[1]), new)
    made.put_refs(node, "add", [new, step.of("held", "mul", update, change)], {})
    return True


def _lstm(made: Converter, node: Any) -> bool:
    step, states = _Step(made, node), node.args[1]
    if not step.known:
        return False
    into, forget, new, out = step.gates(step.of("sum", "add", *step.sums(states[0])), 4)
    held = step.of("held", "mul", step.of("forget", "sigmoid", forget), made.ref(states[1]))
    new = step.of("added", "mul", step.of("into", "sigmoid", into), step.of("new", "tanh", new))
    cell = step.of("cell", "add", held, new)
    said = step.of("said", "mul", step.of("out", "sigmoid", out), step.of("shown", "tanh", cell))
    made.give_all(node, [said, cell])
    return True


def _plain(nonlinearity: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        step = _Step(made, node)
        if not step.known:
            return False
        refs: Sequence[str] = [step.of("sum", "add", *step.sums(node.args[1]))]
        made.put_refs(node, nonlinearity, refs, {})
        return True

    return handler


HANDLERS: dict[str, Handler] = {
    "gru_cell": _gru,
    "lstm_cell": _lstm,
    "rnn_tanh_cell": _plain("tanh"),
    "rnn_relu_cell": _plain("relu"),
}
