"""Single steps of recurrent layers in models that loop over time: traced, changed, loaded into torch's own cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model
from tests.equivalence.edits import edit, inputs, randomise

EXACT = 1e-12
STEPS = 3


class Loop(nn.Module):
    """A cell that goes over time from a state of zeros, and a head on its last state."""

    def __init__(self, kind: str, bias: bool = True) -> None:
        super().__init__()
        more = {"nonlinearity": "relu"} if kind == "relu" else {}
        made = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "tanh": nn.RNNCell, "relu": nn.RNNCell}[kind]
        self.reads, self.cell, self.head = nn.Linear(4, 5), made(5, 6, bias, **more), nn.Linear(6, 3)
        self.pairs = kind == "lstm"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.shape[0], self.cell.hidden_size)
        said, held = state, state
        for step in range(STEPS):
            read = torch.tanh(self.reads(x[:, step]))
            if self.pairs:
                said, held = self.cell(read, (said, held))
            else:
                said = self.cell(read, said)
        return self.head(said)


def traced(module: nn.Module) -> str:
    return trace_model(module, [parse_input(f"float64[2,{STEPS},4]")], origin="cells").text


KINDS = ("gru", "lstm", "tanh", "relu")


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_changes_in_all_its_steps(tmp_path: Path, kind: str, bias: bool) -> None:
    module = randomise(Loop(kind, bias)).double()
    text = traced(module)
    assert "aten" not in text
    x = inputs(7, STEPS, 4)
    changes: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
        ("expand", {"layer": "cell", "add": 3}, (5, 9)),
        ("expand", {"layer": "reads", "add": 2}, (7, 6)),
        ("split", {"layer": "cell", "units": [0, 4]}, (5, 8)),
        ("split", {"layer": "reads", "units": [1], "ways": 3}, (7, 6)),
    ]
    for number, (command, settings, sizes) in enumerate(changes):
        done = edit(tmp_path / str(number), text, module, command, **settings)
        assert done.distance(x) < EXACT, (command, settings)
        assert (done.after.cell.input_size, done.after.cell.hidden_size) == sizes


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_unit_of_a_cell_goes(tmp_path: Path, kind: str) -> None:
    """With zeros in all that it reads, and a state of zeros, a unit stays at zero."""
    module = randomise(Loop(kind)).double()
    gates = {"gru": 3, "lstm": 4}.get(kind, 1)
    with torch.no_grad():
        for name, tensor in module.cell.named_parameters():
            tensor[[gate * 6 + 2 for gate in range(gates)]] = 0.0
            assert tensor.shape[0] == 6 * gates, name
    done = edit(tmp_path, traced(module), module, "prune", layer="cell", units=[2])
    assert done.after.cell.hidden_size == 5 and done.distance(inputs(7, STEPS, 4)) < EXACT


def test_a_state_that_is_given_keeps_its_width(tmp_path: Path) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.cell, self.head = nn.Linear(4, 5), nn.GRUCell(5, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            state = self.cell(torch.relu(self.reads(x)), state)
            return self.head(state), state

    module = randomise(Step()).double()
    text = trace_model(module, [parse_input("float64[2,4]"), parse_input("float64[2,6]")], origin="step").text
    path = tmp_path / "step.pt"
    torch.save(module.state_dict(), path)
    (tmp_path / "step.yaml").write_text(text, encoding="utf-8")
    report = netgrow_cli.expand(path, spec=tmp_path / "step.yaml", layer="reads", add=2)
    after = netgrow_cli.fit(module, report.output)
    assert after.cell.input_size == 7
    with pytest.raises(netgrow_cli.Refused, match="input of the model"):
        netgrow_cli.expand(path, spec=tmp_path / "step.yaml", layer="cell", add=2, output=tmp_path / "no.pt")


class Given(nn.Module):
    """A recurrent layer that starts from what another layer makes, as a decoder does, or from an input."""

    def __init__(self, kind: str, levels: int = 1, both: bool = False) -> None:
        super().__init__()
        made = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[kind]
        self.count = levels * (1 + both)
        self.reads, self.start = nn.Linear(4, 5), nn.Linear(3, 6)
        self.core = made(5, 6, levels, batch_first=True, bidirectional=both)
        self.head, self.pairs = nn.Linear(6 * (1 + both), 2), kind == "lstm"

    def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        state = torch.tanh(self.start(first)).unsqueeze(0).expand(self.count, -1, -1)
        out, _ = self.core(torch.tanh(self.reads(x)), (state, 0.5 * state) if self.pairs else state)
        return self.head(out[:, -1])


@pytest.mark.parametrize(("levels", "both"), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize("kind", ("gru", "lstm", "rnn"))
def test_a_state_that_another_layer_makes(tmp_path: Path, kind: str, levels: int, both: bool) -> None:
    module = randomise(Given(kind, levels, both)).double()
    text = trace_model(module, [parse_input("float64[2,3,4]"), parse_input("float64[2,3]")], origin="given").text
    assert "aten" not in text
    given = inputs(7, 3, 4), inputs(7, 3)
    changes = [
        ("expand", {"layer": "start", "add": 2}, 8),
        ("split", {"layer": "start", "units": [0, 3]}, 8),
        ("expand", {"layer": "reads", "add": 2}, 6),
    ]
    with torch.no_grad():
        wanted = module(*given)
    for number, (command, settings, hidden) in enumerate(changes):
        done = edit(tmp_path / str(number), text, module, command, **settings)
        with torch.no_grad():
            torch.testing.assert_close(done.after(*given), wanted, rtol=0, atol=EXACT)
        assert done.after.core.hidden_size == hidden


def test_a_unit_that_only_its_start_wakes_is_not_dead(tmp_path: Path) -> None:
    """All that it reads is zero, so that a plain layer's unit is zero from its first step on; but it was not before."""
    module = randomise(Given("rnn")).double()
    with torch.no_grad():
        for name, tensor in module.core.named_parameters():
            tensor[2] = 0.0
            assert len(tensor) == 6, name
    text = trace_model(module, [parse_input("float64[2,3,4]"), parse_input("float64[2,3]")], origin="given").text
    kept = edit(tmp_path, text, module, "prune", layer="start", dead=True)
    assert kept.after.core.hidden_size == 6
    with torch.no_grad():
        module.start.weight[2] = module.start.bias[2] = 0.0
    gone = edit(tmp_path / "dead", text, module, "prune", layer="start", dead=True)
    assert gone.after.core.hidden_size == 5


def test_states_as_inputs_of_the_model(tmp_path: Path) -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.core, self.head = nn.Linear(4, 5), nn.LSTM(5, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out, (h, c) = self.core(torch.relu(self.reads(x)), (h, c))
            return self.head(out), h, c

    module = randomise(Agent()).double()
    given = [parse_input(text) for text in ("float64[3,2,4]", "float64[1,2,6]", "float64[1,2,6]")]
    text = trace_model(module, given, origin="agent").text
    assert "aten" not in text
    torch.save(module.state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    report = netgrow_cli.expand(tmp_path / "a.pt", spec=tmp_path / "a.yaml", layer="reads", add=3)
    values = inputs(3, 2, 4), inputs(1, 2, 6), inputs(1, 2, 6, seed=3)
    with torch.no_grad():
        wanted = module(*values)
        found = netgrow_cli.fit(module, report.output)(*values)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=EXACT)
