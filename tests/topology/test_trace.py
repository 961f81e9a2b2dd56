"""Specs traced from model code describe the model: they compute the same, and what changes by them goes back in."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import netgrow_cli
from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.job import Job, Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.topology.trace.inputs import Given, parse_input
from netgrow_cli.topology.trace.source import Traced, trace_model, trace_source

from .toys import MLP, TOYS, Toy, started

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

PROBES = 16


@dataclasses.dataclass(frozen=True)
class Saved:
    """A traced model, with its checkpoint and its spec on disk."""

    toy: Toy
    traced: Traced
    model: nn.Module
    checkpoint: Path
    spec: Path
    given: tuple[Given, ...]

    def options(self) -> Options:
        return Options(spec=self.spec)

    def outputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
        """What a model gives for inputs by their names in the spec."""
        given = list(zip(inputs.values(), self.given, strict=True))
        named = {item.name: value for value, item in given if item.name is not None}
        with torch.no_grad():
            result = model(*(value for value, item in given if item.name is None), **named)
        return list(result) if isinstance(result, tuple) else [result]


@pytest.fixture(scope="module", params=TOYS, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    toy: Toy = request.param
    folder = tmp_path_factory.mktemp("toy")
    model = started(toy.make)
    given = tuple(parse_input(text) for text in toy.inputs)
    traced = trace_model(model, given)
    (folder / "model.yaml").write_text(traced.text, encoding="utf-8")
    torch.save(model.double().state_dict(), folder / "model.pt")
    return Saved(toy, traced, model, folder / "model.pt", folder / "model.yaml", given)


def batch(job: Job) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes and inputs of one batch of probes."""
    sizes, inputs = next(iter(job.probes(PROBES, 1).batches(torch.float64)))
    return dict(sizes), dict(inputs)


def alike(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-12) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_the_graph_computes_what_the_model_computes(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options()) as job:
        sizes, inputs = batch(job)
        alike(job.network.outputs(sizes, inputs, torch.float64), saved.outputs(saved.model, inputs))


def test_units_may_be_permuted(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options()) as job:
        found = certify(job.network, job.probes(PROBES, 0), seed=0, dtype="float64", tolerance=1e-12)
    assert found.equivalence.equal and not found.equivalence.constant, found.culprits
    assert found.widths == len(saved.toy.free)


def test_what_may_change(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options()) as job:
        infos = job.topology.widths.values()
        assert sorted(info.size for info in infos if info.frozen is None) == saved.toy.free
        assert job.topology.unclaimed == ()
    assert tuple(saved.traced.unknown) == saved.toy.unknown


def test_every_width_changes_in_the_model_too(saved: Saved, tmp_path: Path) -> None:
    """By the proof, and in the model's own code where that can host the change."""
    with opened(saved.checkpoint, saved.options()) as job:
        free = [info for info in job.topology.widths.values() if info.frozen is None]
        _, inputs = batch(job)
    before = saved.outputs(saved.model, inputs)
    hosted = 0
    for number, (info, command) in enumerate(itertools.product(free, ("expand", "split"))):
        how: dict[str, Any] = {"times": 2} if command == "expand" else {"units": [0]}
        output = tmp_path / f"{number}.pt"
        try:
            report = getattr(netgrow_cli, command)(
                saved.checkpoint, width=info.name, spec=saved.spec, output=output, probes=PROBES, **how
            )
        except Refused:
            assert info.effects, f"{command} of {info.name}"
            continue
        assert report.equivalence is not None and report.equivalence.equal
        reachable = all(entry["attribute"] or entry["what"] == "eps" for entry in report.as_json()["model_code"])
        if report.plan.torn or (saved.toy.coded and not reachable):
            continue
        model = netgrow_cli.fit(started(saved.toy.make).double(), output)
        alike(saved.outputs(model, inputs), before, 1e-10)
        hosted += 1
    assert hosted or all(info.effects for info in free) or saved.toy.coded


def test_an_operation_without_a_rule_names_itself(tmp_path: Path) -> None:
    toy = next(item for item in TOYS if item.unknown)
    model = started(toy.make)
    (tmp_path / "s.yaml").write_text(trace_model(model, [parse_input(text) for text in toy.inputs]).text)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with opened(tmp_path / "m.pt", Options(spec=tmp_path / "s.yaml")) as job:
        why = {info.name: info.frozen for info in job.topology.widths.values()}
    assert why["a"] == "aten.cumsum.default has no rule (cumsum)"


def test_what_must_follow_in_the_code_has_a_place(tmp_path: Path) -> None:
    toy = next(item for item in TOYS if item.name == "actor and critic")
    model = started(toy.make)
    (tmp_path / "s.yaml").write_text(trace_model(model, [parse_input(text) for text in toy.inputs]).text)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    report = netgrow_cli.expand(tmp_path / "m.pt", width="trunk[0:4]", add=3, spec=tmp_path / "s.yaml")
    lines = Path(__file__).with_name("toys.py").read_text(encoding="utf-8").splitlines()
    entries = report.as_json()["model_code"]
    assert [(entry["what"], entry["before"], entry["after"]) for entry in entries] == [("stop", 4, 7), ("start", 4, 7)]
    for entry in entries:
        name, _, line = entry["source"].partition(":")
        assert name == "toys.py" and "trunk[:, " in lines[int(line) - 1]


def test_the_batch_is_free() -> None:
    """But where an operation without a rule is bound to the traced one."""
    for toy in TOYS:
        found = yaml.safe_load(trace_model(started(toy.make), [parse_input(text) for text in toy.inputs]).text)
        first = next(iter(found["inputs"].values()))
        shape = first["shape"] if isinstance(first, dict) else first
        assert (shape[0] == "batch") == (not toy.unknown), toy.name


class Cut(nn.Module):
    """Cut at an index, and into parts of which the first is longer."""

    def __init__(self, where: Any) -> None:
        super().__init__()
        self.a, self.where = nn.Linear(4, 7), where
        self.outs = nn.ModuleList(nn.Linear(size, 2) for size in ([2, 5] if isinstance(where, tuple) else [3, 2, 2]))

    def forward(self, x):
        parts = torch.tensor_split(self.a(x), self.where, dim=1)
        return sum(out(torch.relu(part)) for out, part in zip(self.outs, parts, strict=True))


@pytest.mark.parametrize("where", [(2,), 3])
def test_tensor_split(where: Any, tmp_path: Path) -> None:
    model = started(lambda: Cut(where)).double()
    text = trace_model(started(lambda: Cut(where)), [parse_input("float32[2,4]")]).text
    assert "op: split" in text
    (tmp_path / "s.yaml").write_text(text)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with opened(tmp_path / "m.pt", Options(spec=tmp_path / "s.yaml")) as job, torch.no_grad():
        inputs = {"x": torch.randn(2, 4, dtype=torch.float64)}
        alike(job.network.outputs({"batch": 2}, inputs, torch.float64), [model(inputs["x"])], 1e-12)
        assert sum(info.frozen is None for info in job.topology.widths.values()) == len(model.outs)


# -- operations in place ----------------------------------------------------------------------------------

SAME = {
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "contiguous": lambda x: x.contiguous(),
    "to": lambda x: x.to(torch.float32),
    "detach": lambda x: x.detach(),
    "flatten": lambda x: x.flatten(1),
    "narrow": lambda x: x.narrow(1, 0, 3),
    "tensor_split": lambda x: x.tensor_split(2, 1)[0],
    "unflatten": lambda x: x.unflatten(1, (2, 3)),
    "T": lambda x: x.T,
    "diagonal": lambda x: x.diagonal(),
    "all of it": lambda x: x[...],
    "as_strided": lambda x: x.as_strided((2, 3), (6, 1)),
}


class View(nn.Module):
    """A value and a view of it, of which one is changed in place before the other is read."""

    def __init__(self, view: Any, changes_view: bool) -> None:
        super().__init__()
        self.a, self.b, self.view, self.changes_view = nn.Linear(4, 6), nn.Linear(6, 2), view, changes_view

    def forward(self, x):
        x = self.a(x)
        y = self.view(x)
        (y if self.changes_view else x).mul_(3.0)
        return self.b(x) if self.changes_view else y


@pytest.mark.parametrize("changes_view", [True, False], ids=["view", "base"])
@pytest.mark.parametrize("name", SAME)
def test_what_changes_under_another_name(name: str, changes_view: bool, tmp_path: Path) -> None:
    model = started(lambda: View(SAME[name], changes_view))
    (tmp_path / "s.yaml").write_text(trace_model(model, [parse_input("float32[2,4]")]).text)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with opened(tmp_path / "m.pt", Options(spec=tmp_path / "s.yaml")) as job, torch.no_grad():
        inputs = {"x": torch.randn(2, 4)}
        alike(job.network.outputs({"batch": 2}, inputs, torch.float32), [model(inputs["x"])], 1e-5)


# -- what the command line takes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("float32[2,3,96,96]", Given(None, "float32", (2, 3, 96, 96))),
        ("int64[2, 9]:90", Given(None, "int64", (2, 9), 90)),
        ("mask=bool[2,9]", Given("mask", "bool", (2, 9))),
        ("x=bfloat16[1]", Given("x", "bfloat16", (1,))),
    ],
)
def test_inputs(text: str, wanted: Given) -> None:
    assert parse_input(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "float32", "float32[2,3", "2,3", "float8[2]", "float32[2,-3]", "float32[2,x]", "a b=float32[2]",
             "float32[2]:x", "int64[2,9]", "int64[2,9]:0", "float32[0,3]", "float32[2,,3]", "=float32[2]"]
)  # fmt: skip
def test_inputs_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert f"--input {text}" in str(caught.value) and "\n" not in str(caught.value)


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))[:, 1:4])

class Sums(Net):
    def forward(self, x):
        return self.b(torch.cumsum(self.a(x), 1)[:, 1:4])

def fails():
    raise RuntimeError("no weights\\nhere")

def number():
    return 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "traced_nets.py").write_text(textwrap.dedent(CODE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


X = ("--input", "float32[2,4]")


def call(*arguments: str) -> int:
    """`netgrow trace` in this process; its exit code."""
    from netgrow_cli.cli import main

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr("sys.argv", ["netgrow", "trace", *arguments])
        main()
    return int(done.value.code or 0)


def test_trace_writes_a_spec(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("traced_nets:Net", *X, "-o", "net.yaml") == 0
    assert capsys.readouterr().out == "net.yaml\n"
    text = (code / "net.yaml").read_text()
    assert call("traced_nets:Net", *X, "-o", "net.yaml") == 2
    assert "net.yaml" in capsys.readouterr().err
    assert call("traced_nets:Net", *X, "-o", "net.yaml", "--force") == 0
    capsys.readouterr()
    assert call("traced_nets:Net", *X, "-o", "-") == 0
    assert capsys.readouterr().out == text
    assert "traced_nets.py:11" in text


def test_trace_lists_what_has_no_rule(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("traced_nets:Sums", *X, "-o", "net.yaml") == 0
    assert "no rule for aten.cumsum.default (1 times): it freezes a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("traced_nets:fails", *X), "fails() failed: RuntimeError: no weights"),
        (("traced_nets:number", *X), "gives a int"),
        (("traced_nets:nothing", *X), "no 'nothing'"),
        (("traced_nets", *X), "package.module:factory"),
        (("no_such_module:make", *X), "no_such_module"),
        (("traced_nets:Net",), "--input"),
        (("traced_nets:Net", "--input", "float31[2]"), "float31"),
        (("traced_nets:Net", "--input", "float32[2,5]"), "cannot trace it (traced_nets.py:11)"),
        ((".", *X), "no config.json"),
    ],
)
def test_what_cannot_be_traced(
    code: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert call(*arguments, "-o", "net.yaml") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("netgrow: ") and message in error[0], error
    assert not (code / "net.yaml").exists()


def test_configurations_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="no valid JSON"):
        trace_source(str(tmp_path), [])


def test_a_model_is_left_as_it_was() -> None:
    model = MLP().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace_model(model, [parse_input("float32[2,4]")])
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
