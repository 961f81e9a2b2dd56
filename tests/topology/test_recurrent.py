"""Recurrent layers: equal to torch.nn's in every form, laid out as they are stored, stated in specs as they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

from netgrow_cli.errors import SpecError
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.ops.base import Param
from netgrow_cli.topology.schema import schema

from .networks import Network, check, layer, linear, network, values_of

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FORMS = [
    {"op": op, "num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": first, **more}
    for op, layers, both, bias, first in itertools.product(GATES, (1, 2), (False, True), (True, False), (True, False))
    for more in {
        "lstm": ({}, {"proj_size": 2}),
        "gru": ({},),
        "rnn": ({}, {"nonlinearity": "relu"}),
    }[op]
] + [{"op": "lstm", "num_layers": 3, "bidirectional": True, "proj_size": 3, "batch_first": True}]


def name_of(form: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" if key != "op" else value for key, value in form.items())


def module_of(form: Mapping[str, Any], reads: int = 3, hidden: int = 4) -> nn.Module:
    settings = {key: value for key, value in form.items() if key != "op"}
    return getattr(nn, {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[form["op"]])(reads, hidden, **settings).double()


def built(
    form: Mapping[str, Any], readers: Sequence[str] = ("rnn",), *, stated: bool = False, size: int = 5
) -> Network:
    """The layer alone, with one linear behind each of its outputs in `readers`."""
    module = module_of(form)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    keys = ("batch_first", "nonlinearity") if not stated else tuple(form)[1:]
    layers = {"rnn": layer(form["op"], "x", shapes, **{key: form[key] for key in keys if key in form})}
    said = module.proj_size or module.hidden_size
    for number, ref in enumerate(readers):
        reads = said * (1 + module.bidirectional) if ref in ("rnn", "rnn[0]") else said
        layers[f"fc{number}"] = linear(ref, module.hidden_size if ref == "rnn[2]" else reads, 2)
    return network(layers, {"x": ["batch", size, 3]}, [f"fc{n}" for n in range(len(readers))])


def loaded(net: Network, form: Mapping[str, Any]) -> nn.Module:
    module = module_of(form)
    state = {name.removeprefix("rnn."): net.tensors[name] for name in net.tensors if name.startswith("rnn.")}
    module.load_state_dict(state)
    return module


def states_of(form: Mapping[str, Any]) -> list[str]:
    return ["rnn[1]", "rnn[2]"] if form["op"] == "lstm" else ["rnn[1]"]


# -- what it computes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_equals_torch(form: Mapping[str, Any]) -> None:
    net = built(form, ["rnn", *states_of(form)], stated=True)
    out = values_of(net)["rnn"]  # compares solved and real shapes
    with torch.no_grad():
        sequence, states = loaded(net, form)(net.inputs["x"])
    wanted = [sequence, *(states if isinstance(states, tuple) else (states,))]
    assert len(out) == len(wanted)
    for one, other in zip(out, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_what_it_reads_of_itself_is_what_it_makes(form: Mapping[str, Any]) -> None:
    """Level by level, as the search for dead units sees it, the same numbers come out."""
    from netgrow_cli.topology.run import call_of

    net = built(form)
    inside = OPS[form["op"]].inside
    assert inside is not None
    node = net.topology.graph.node("rnn")
    made = inside(call_of(net.topology, node, [net.inputs["x"]], net.tensors.__getitem__, torch.float64))
    last = f"weight_hh_l{form['num_layers'] - 1}"
    ends = ["", "_reverse"] if form["bidirectional"] else [""]
    said = torch.cat([made[last + end] for end in ends], -1)
    torch.testing.assert_close(said, values_of(net)["rnn"][0], rtol=1e-12, atol=1e-12)
    first = [name for name in net.tensors if name.startswith("rnn.weight_ih_l0")]
    reads = {name for name in net.tensors if name.startswith("rnn.weight_")} - set(first)
    assert {f"rnn.{name}" for name in made} == reads
    for name, value in made.items():
        assert value.shape[-1] == net.infos[f"rnn.{name}"].shape[1]


# -- layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_units_are_where_the_layouts_say(form: Mapping[str, Any]) -> None:
    check(built(form))
    check(built(form, states_of(form)), seed=1)


@pytest.mark.parametrize("op", GATES)
def test_rows_of_a_unit(op: str) -> None:
    """Unit u of H owns rows k H + u: zero rows give a zero unit, and no other unit changes its rows' place."""
    form, gates = {"op": op, "num_layers": 1, "bidirectional": False, "batch_first": True}, GATES[op]
    net = built(form)
    text = net.topology.tensor_text
    grid = f"({gates} rnn)" if gates > 1 else "rnn"
    assert text("rnn.weight_ih_l0") == f"{grid}  3"
    assert text("rnn.weight_hh_l0") == f"{grid}  rnn"
    assert text("rnn.bias_hh_l0") == grid
    for unit in range(4):
        rows = torch.arange(gates) * 4 + unit
        tensors = {name: tensor.clone() for name, tensor in net.tensors.items()}
        for name in tensors:
            if name.startswith("rnn."):
                tensors[name][rows] = 0.0
        out = values_of(Network(net.topology, net.infos, tensors, net.inputs))["rnn"][0]
        assert [bool((out[..., n] == 0).all()) for n in range(4)] == [n == unit for n in range(4)]


def test_names_of_widths() -> None:
    stacked = {"op": "lstm", "num_layers": 2, "bidirectional": True, "batch_first": True}
    assert built(stacked).free() == {"rnn.l0": 4, "rnn.l0_reverse": 4, "rnn[0:4]": 4, "rnn[4:8]": 4}
    assert built({**stacked, "bidirectional": False}).free() == {"rnn.l0": 4, "rnn": 4}
    projected = built({**stacked, "bidirectional": False, "proj_size": 2})
    assert projected.free() == {"rnn.l0": 4, "rnn.l0.proj": 2, "rnn.l1": 4, "rnn": 2}
    text = projected.topology.tensor_text
    assert text("rnn.weight_hr_l0") == "rnn.l0.proj  rnn.l0"
    assert text("rnn.weight_ih_l1") == "(4 rnn.l1)  rnn.l0.proj"
    assert built(stacked).topology.tensor_text("rnn.weight_ih_l1") == "(4 rnn[0:4])  rnn.l0 + rnn.l0_reverse"


def test_all_levels_have_one_size() -> None:
    net = built({"op": "lstm", "num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 2})
    sizes = [{piece.size for piece in tie.pieces} for tie in net.topology.ties]
    assert [len(tie.pieces) for tie in net.topology.ties] == [4, 4]
    assert sizes == [{4}, {2}]
    assert {site.what for site in net.topology.sites} == {"hidden_size", "proj_size"}


def test_states_couple_levels_only_where_they_are_read() -> None:
    form = {"op": "lstm", "num_layers": 2, "bidirectional": False, "batch_first": True}
    assert set(built(form).free()) == {"rnn", "rnn.l0"}
    assert set(built(form, ["rnn", "rnn[1]"]).free()) == {"rnn"}
    projected = {**form, "proj_size": 2}
    assert set(built(projected, ["rnn[1]"]).free()) == {"rnn", "rnn.l0", "rnn.l1"}
    assert len(built(projected, ["rnn[2]"]).free()) == 2
    single = {**form, "num_layers": 1}
    assert set(built(single, ["rnn", "rnn[1]", "rnn[2]"]).free()) == {"rnn"}


def test_positions_of_units_freeze() -> None:
    """Where units are read as positions, their order matters."""
    shapes = {name: tuple(tensor.shape) for name, tensor in nn.GRU(3, 4).named_parameters()}
    net = network(
        {
            "fc": linear("x", 5, 12),
            "steps": layer("reshape", "fc", shape=[0, -1, 3]),
            "rnn": layer("gru", "steps", shapes, batch_first=True),
            "out": linear("rnn", 4, 2),
        },
        {"x": ["batch", 5]},
        ["out"],
    )
    check(net)
    assert net.free() == {"rnn": 4, "fc.1": 3}
    steps = net.topology.by_name("fc.0")
    assert steps is not None and steps.frozen == "positions, which gru rnn mixes"


def test_what_it_reads_follows() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in nn.LSTM(6, 4, 2, bidirectional=True).named_parameters()}
    net = network(
        {
            "fc": linear("x", 3, 6),
            "rnn": layer("lstm", "fc", shapes),
            "more": layer("gru", "rnn", {n: tuple(t.shape) for n, t in nn.GRU(8, 4).named_parameters()}),
            "sum": layer("add", ["more", "part"]),
            "part": layer("slice", "rnn", start=4, stop=8),
            "out": linear("sum", 4, 2),
        },
        {"x": [5, "batch", 3]},
        ["out"],
    )
    check(net)
    assert net.topology.tensor_text("rnn.weight_ih_l0_reverse").endswith("  fc")
    assert net.topology.tensor_text("more.weight_hh_l0") == "(3 rnn[4:8])  rnn[4:8]"


# -- the spec -----------------------------------------------------------------------------------------------


def spec_error(change: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], inputs: Any = None) -> str:
    body = {**layer("lstm", "x", shapes, batch_first=True), **change}
    with pytest.raises(SpecError) as caught:
        network({"rnn": body, "out": linear("rnn", 4, 2)}, {"x": inputs or ["batch", 5, 3]}, ["out"])
    assert "test.yaml:1" in str(caught.value) and "'rnn'" in str(caught.value)
    return str(caught.value)


LSTM = {name: tuple(tensor.shape) for name, tensor in nn.LSTM(3, 4, 2).named_parameters()}


@pytest.mark.parametrize(
    ("change", "shapes", "message"),
    [
        ({"num_layers": 3}, {}, "num_layers: 3 is stated, its tensors say 2"),
        ({"bidirectional": True}, {}, "bidirectional: True is stated, its tensors say False"),
        ({"hidden_size": 5}, {}, "hidden_size: 5 is stated, its tensors say 4"),
        ({"proj_size": 2}, {}, "proj_size: 2 is stated, its tensors say 0"),
        ({"bias": False}, {}, "bias: False is stated, its tensors say True"),
        ({}, {"weight_hh_l1": None}, "it lacks weight_hh_l1"),
        ({}, {"bias_ih_l0": None}, "it lacks bias_ih_l0"),
        ({}, {"weight_ih_l0": None}, "there is no tensor 'rnn.weight_ih_l0'"),
        ({}, dict.fromkeys(LSTM), "there is no tensor 'rnn.weight_ih_l0'"),
        ({}, {"weight_hh_l3": (16, 4)}, "it lacks weight_ih_l2"),
        ({}, {"weight_hh_l999999": (16, 4)}, "it lacks weight_ih_l2"),
        ({}, {"weight_hh_l1_reverse": (16, 4)}, "it lacks weight_ih_l0_reverse"),
        ({}, {"weight_hh_l0": (15, 4)}, "15 rows, which are no 4 gates"),
        ({}, {"weight_hh_l0": (16, 5)}, "weight_hh_l0 has 5 where 4 are expected"),
        ({}, {"weight_ih_l0": (16, 4)}, "weight_ih_l0 has 4 where 3 are expected"),
        ({}, {"weight_ih_l1": (16, 5)}, "weight_ih_l1 has 5 where 4 are expected"),
        ({}, {"weight_hh_l1": (12, 3)}, "weight_hh_l1 has 3 where 4 are expected"),
        ({}, {"bias_hh_l1": (12,)}, "bias_hh_l1 has 12 where 16 are expected"),
        ({}, {"bias_hh_l1": (16, 1)}, "bias_hh_l1 has 2 axes"),
        ({}, {"weight_hh_l0": (16,)}, "weight_hh_l0 has 1 axes"),
        ({"params": {"weight": "rnn.weight_ih_l0"}}, {}, "lstm has no parameter 'weight'"),
        ({"params": {"weight_ih_l0": None}}, {}, "its weight_ih_l0 is not in the checkpoint"),
        ({"params": {"weight_ih_l1": None}}, {}, "it lacks weight_ih_l1"),
        ({}, {"weight_hr_l0": (4, 4), "weight_hr_l1": (4, 4)}, "proj_size 4 must be below hidden_size 4"),
        ({"nonlinearity": "relu"}, {}, "lstm has no setting 'nonlinearity'"),
        ({"op": "rnn", "nonlinearity": "gelu"}, {}, "nonlinearity: 'gelu' should be one of tanh, relu"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_explained(change: Any, shapes: Any, message: str) -> None:
    given = {name: shape for name, shape in {**LSTM, **shapes}.items() if shape is not None}
    assert message in spec_error(change, given)


def test_its_input_has_three_axes() -> None:
    assert "expects 3" in spec_error({}, LSTM, ["batch", 3])


def test_a_state_that_it_does_not_have() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in nn.GRU(3, 4).named_parameters()}
    with pytest.raises(SpecError, match="has 2 outputs"):
        network({"rnn": layer("gru", "x", shapes), "out": linear("rnn[2]", 4, 2)}, {"x": [5, "batch", 3]}, ["out"])


def test_the_name_alone_and_a_range_mean_the_sequence() -> None:
    for ref in ("rnn", "rnn[0]", "rnn[0:4]"):
        shapes = {name: tuple(tensor.shape) for name, tensor in nn.GRU(3, 4).named_parameters()}
        net = network({"rnn": layer("gru", "x", shapes), "out": linear(ref, 4, 2)}, {"x": [5, "batch", 3]}, ["out"])
        values = values_of(net)
        weight, bias = net.tensors["out.weight"], net.tensors["out.bias"]
        torch.testing.assert_close(values["out"][0], values["rnn"][0] @ weight.T + bias)


def test_parameters_under_other_names() -> None:
    names = {"weight_ih_l0": "a", "weight_hh_l0": "b", "bias_ih_l0": "c", "bias_hh_l0": "d"}
    shapes = {"a": (12, 3), "b": (12, 4), "c": (12,), "d": (12,)}
    body = layer("gru", "x", params=names)
    net = network({"rnn": body, "out": linear("rnn", 4, 2)}, {"x": [5, "batch", 3]}, ["out"], more=shapes)
    assert net.topology.tensor_text("b") == "(3 rnn)  rnn"
    assert net.topology.unclaimed == ()
    check(net)
    twice = {
        "rnn": layer("gru", "x", {name: shapes[other] for name, other in names.items()}),
        "again": layer("gru", "x", prefix="rnn."),
        "sum": layer("add", ["rnn", "again"]),
        "out": linear("sum", 4, 2),
    }
    net = network(twice, {"x": [5, "batch", 3]}, ["out"])
    assert net.free() == {"rnn": 4}
    check(net)


def test_parameters_of_others_are_not_taken() -> None:
    """`rnn.weight_ih_l0x` and `rnn.cell.weight_ih_l0` belong to no level; they stay unclaimed."""
    more = {"rnn.weight_ih_l0x": (2, 2), "rnn.cell.weight_ih_l7": (2, 2), "xrnn.weight_ih_l7": (2, 2)}
    net = network(
        {"rnn": layer("lstm", "x", LSTM), "out": linear("rnn", 4, 2)}, {"x": [5, "batch", 3]}, ["out"], more=more
    )
    assert set(net.topology.unclaimed) == set(more)


def test_numbered_parameters() -> None:
    param = Param("weight_ih_l#_reverse")
    assert param.numbered and not Param("weight").numbered
    assert param.is_called("weight_ih_l0_reverse") and param.is_called("weight_ih_l12_reverse")
    for name in ("weight_ih_l#_reverse", "weight_ih_l_reverse", "weight_ih_l1_reverse_", "a.weight_ih_l1_reverse"):
        assert not param.is_called(name)
    found = OPS["lstm"].param("weight_hr_l3")
    assert found is not None and found.name == "weight_hr_l#" and found.optional
    assert OPS["gru"].param("weight_hr_l3") is None


def test_the_schema_knows_numbered_parameters() -> None:
    def valid(params: Mapping[str, str], **attrs: Any) -> bool:
        body = {"op": "lstm", "from": "x", "params": params, **attrs}
        document = {"netgrow": 1, "inputs": {"x": [1, 2, 3]}, "layers": {"rnn": body}, "outputs": ["rnn"]}
        return jsonschema.Draft202012Validator(json.loads(json.dumps(schema()))).is_valid(document)

    assert valid({"weight_ih_l10": "a", "weight_hr_l0_reverse": "b"}, num_layers=2, proj_size=0, batch_first=True)
    assert not valid({"weight_ih_lx": "a"})
    assert not valid({"weight": "a"})
    assert not valid({}, nonlinearity="relu")
