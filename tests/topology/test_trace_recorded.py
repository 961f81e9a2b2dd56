"""Models that `torch.export` refuses are recorded from a real run; the record is as good as an export."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netgrow_cli
from netgrow_cli.checkpoint.dtypes import name_of
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import UsageError
from netgrow_cli.jobs.job import Job, Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.topology.layout import leaves, occurrences
from netgrow_cli.topology.solve import solve
from netgrow_cli.topology.spec import parse_spec
from netgrow_cli.topology.trace.inputs import Given, parse_input
from netgrow_cli.topology.trace.source import Traced, trace_model

from .test_trace import call
from .toys import TOYS, Toy, started

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

PROBES = 16


class EarlyExit(nn.Module):
    """Leaves by the first head where that is sure enough."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.b, self.last = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = torch.tanh(self.a(x))
        if x.abs().amax() > 1.5:
            return self.first(x)
        return self.last(torch.relu(self.b(x)))


class Loop(nn.Module):
    """As many steps as the values say."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.step, self.b = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        count = int(x.abs().sum().clamp(2, 3.5).item())
        x = self.a(x)
        for _ in range(3 if count in (2, 3) else 1):
            x = x + torch.tanh(self.step(x))
        return self.b(x)


class Masked(nn.Module):
    """The mean of what a mask chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        mask = x.sum(1) > -100.0
        kept = torch.tanh(self.a(x))[mask]
        return self.c(torch.relu(self.b(kept)))


class Nonzero(nn.Module):
    """Rows by their numbers, changed and written back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        rows = torch.nonzero(x.sum(1) > -100.0).squeeze(1)
        x = torch.tanh(self.a(x))
        out = torch.zeros_like(x)
        out.index_add_(0, rows, self.b(x[rows]))
        out[rows] = out[rows] + x[rows]
        return self.c(out)


class Routed(nn.Module):
    """A mixture of experts as people write it: a loop over the experts that were chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.router, self.out = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5 + n), nn.GELU(), nn.Linear(5 + n, 6)) for n in range(3)
        )

    def forward(self, x):
        x = self.into(x)
        weights, chosen = torch.topk(self.router(x).softmax(-1), 3, dim=-1)
        mask = F.one_hot(chosen, 3).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            place, row = torch.where(mask[number])
            if row.numel() == 0:
                continue
            out.index_add_(0, row, expert(x[row]) * weights[row, place, None])
        return self.out(x + out)


class InPlace(nn.Module):
    """What is changed through views, and read under other names before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 5), nn.Linear(5, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if x.isnan().any():
            raise ValueError("no numbers")
        self.calls += 1
        x = self.a(x)
        before, grid, last = x.clone(), x.view(-1, 3, 4), x[:, 8:]
        grid.transpose(1, 2).mul_(2.0)
        left, right = x.chunk(2, 1)
        left += 1.0
        last.tanh_()
        grid[:, 1].add_(before.view(-1, 3, 4)[:, 1])
        right.unsqueeze(1)[:, :, 2:].copy_(left[:, None, 2:])
        x[:, 3] = 0.5
        x.relu_()
        return self.c(torch.sin(self.b(x) + before.sum(1, keepdim=True))) + grid.mean()


class Held(nn.Module):
    """A constant of the code, a value behind `.data`, numbers by `tolist`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.scale = torch.tensor([2.0])

    def forward(self, x):
        x = self.a(x)
        if max(x.sum(1).tolist()) > 1e6:
            return x
        x.data.mul_(self.scale)
        return self.b(torch.tanh(x))


@dataclasses.dataclass(frozen=True)
class Case:
    """free: sizes of the widths that may change. looks: the code of the lines where the model looks at values.

    unused: tensors that another way through the model reads.
    """

    make: Callable[[], nn.Module]
    free: list[int]
    looks: list[str]
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.make.__name__


CASES = [
    Case(EarlyExit, [5, 6], ["if x.abs().amax() > 1.5:"], ("first.weight", "first.bias")),
    Case(Loop, [6], ["count = int("]),
    Case(Masked, [5, 6], ["kept = torch.tanh(self.a(x))[mask]"]),
    Case(Nonzero, [6], ["rows = torch.nonzero("]),
    Case(Routed, [5, 6, 6, 7], ["place, row = torch.where(mask[number])"]),
    Case(InPlace, [5], ["if x.isnan().any():"]),
    Case(Held, [6], ["if max(x.sum(1).tolist()) > 1e6:"]),
]


@dataclasses.dataclass(frozen=True)
class Saved:
    case: Case
    model: nn.Module
    text: str
    warnings: tuple[str, ...]
    checkpoint: Path
    spec: Path


@pytest.fixture(scope="module", params=CASES, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("case")
    model = started(case.make)
    traced = trace_model(model, [parse_input(f"float32[{PROBES},4]")])
    ignored = f"ignore: [{', '.join(case.unused)}]\n" if case.unused else ""
    (folder / "model.yaml").write_text(traced.text + ignored, encoding="utf-8")
    torch.save(model.double().state_dict(), folder / "model.pt")
    return Saved(case, model, traced.text, traced.warnings, folder / "model.pt", folder / "model.yaml")


def probes(job: Job) -> tuple[dict[str, int], dict[str, Any]]:
    sizes, inputs = next(iter(job.probes(PROBES, 1).batches(torch.float64)))
    return dict(sizes), dict(inputs)


def alike(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_the_record_computes_what_the_model_computes(saved: Saved) -> None:
    with opened(saved.checkpoint, Options(spec=saved.spec)) as job, torch.no_grad():
        assert job.topology.unclaimed == ()
        sizes, inputs = probes(job)
        alike(job.network.outputs(sizes, inputs, torch.float64)[0], saved.model(inputs["x"]))


def test_its_units_may_be_permuted(saved: Saved) -> None:
    with opened(saved.checkpoint, Options(spec=saved.spec)) as job:
        found = certify(job.network, job.probes(PROBES, 0), seed=0, dtype="float64", tolerance=1e-12)
        free = sorted(info.size for info in job.topology.widths.values() if info.frozen is None)
    assert found.equivalence.equal and not found.equivalence.constant, found.culprits
    assert free == saved.case.free


def test_its_widths_change_in_the_model_too(saved: Saved, tmp_path: Path) -> None:
    with opened(saved.checkpoint, Options(spec=saved.spec)) as job:
        names = [info.name for info in job.topology.widths.values() if info.frozen is None]
    x = torch.randn(PROBES, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        before = saved.model(x)
        for number, name in enumerate(names):
            report = netgrow_cli.expand(
                saved.checkpoint, width=name, add=2, spec=saved.spec, output=tmp_path / f"{number}.pt", probes=PROBES
            )
            assert report.equivalence is not None and report.equivalence.equal
            model = netgrow_cli.fit(started(saved.case.make).double(), tmp_path / f"{number}.pt")
            alike(model(x), before, 1e-10)


def test_it_says_where_the_model_looks_at_values(saved: Saved) -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert saved.warnings[0].startswith("torch.export cannot trace it")
    looks, unused = saved.warnings[1 : 1 + len(saved.case.looks)], saved.warnings[1 + len(saved.case.looks) :]
    assert len(unused) == bool(saved.case.unused) and all(name in str(unused) for name in saved.case.unused)
    for warning, code in zip(looks, saved.case.looks, strict=True):
        place, _, rest = warning.partition(": ")
        name, _, line = place.partition(":")
        assert name == "test_trace_recorded.py" and code in lines[int(line) - 1]
        assert "the spec holds for inputs that go the same way" in rest
    comments = [line.removeprefix("# ") for line in saved.text.splitlines() if line.startswith("#")]
    assert comments[1 : 1 + len(saved.warnings)] == list(saved.warnings)


# -- as good as an export ----------------------------------------------------------------------------------


def partition(text: str, model: nn.Module) -> set[frozenset[tuple[str, int, int]]]:
    """Which indices of which tensors' axes are one unit: what a spec says, whatever its names."""
    first: dict[int, str] = {}
    infos = {}
    for name, tensor in model.state_dict().items():
        tied = first.setdefault(tensor.data_ptr(), name)
        dtype = name_of(tensor.dtype) or "I64"
        infos[name] = TensorInfo(name, tuple(tensor.shape), dtype, tied_to=None if tied == name else tied)
    topology = solve(parse_spec(text, "the trace").graph(infos), infos)
    units: dict[tuple[int, int], set[tuple[str, int, int]]] = {}
    for name, axes in topology.tensors.items():
        for axis, layout in enumerate(axes):
            for leaf in {leaf.id: leaf for leaf in leaves(layout)}.values():
                if topology.widths[leaf.id].frozen is None:
                    for labels in occurrences(layout, leaf.id):
                        for place, unit in enumerate(labels):
                            if unit >= 0:
                                units.setdefault((leaf.id, int(unit)), set()).add((name, axis, place))
    return {frozenset(places) for places in units.values()}


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_a_record_says_what_an_export_says(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [parse_input(text) for text in toy.inputs]
    model = started(toy.make)
    exported = trace_model(model, given)
    recorded = refused_by_export(monkeypatch, model, given)
    assert partition(recorded.text, model) == partition(exported.text, model) and recorded.unknown == exported.unknown
    assert len(recorded.warnings) == 1 and "not today; one run is recorded instead" in recorded.warnings[0]


def refused_by_export(monkeypatch: pytest.MonkeyPatch, model: nn.Module, given: list[Given], **more: Any) -> Traced:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(torch.export, "export", refuse)
    return trace_model(model, given, **more)


LANGUAGE = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 32}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 3, "num_experts_per_tok": 3}),
}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize("kind", LANGUAGE)
def test_records_of_language_models(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    architecture, settings = LANGUAGE[kind]
    sizes = {} if kind == "gpt2" else SIZES
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes, **settings
    )
    model = getattr(transformers, architecture)._from_config(config, experts_implementation="eager").eval()
    given, options = [parse_input("input_ids=int64[2,9]:64")], {"use_cache": False}
    exported = trace_model(model, given, options=options)
    recorded = refused_by_export(monkeypatch, model, given, options=options)
    assert partition(recorded.text, model) == partition(exported.text, model)


def test_the_command_says_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "looking.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        y = super().forward(x)\n        return y if y.sum() > -1e9 else -y\n\n"
        "def make():\n    return Net(4, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert call("looking:make", "--input", "float32[2,4]", "-o", "net.yaml") == 0
    printed = capsys.readouterr()
    assert printed.out == "net.yaml\n"
    refusal, look = printed.err.splitlines()
    assert refusal.startswith("torch.export cannot trace it (looking.py:6): ") and refusal.endswith("recorded instead")
    assert look.startswith("looking.py:6: the model looks at values here")
    assert f"# {look}\n" in (tmp_path / "net.yaml").read_text(encoding="utf-8")


# -- what a run must leave alone, and what it cannot do ------------------------------------------------------


def test_a_model_is_left_as_it_was() -> None:
    model = started(InPlace).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffer, random = model.calls, torch.get_rng_state()
    trace_model(model, [parse_input("float32[4,4]")])
    assert model.training and model.calls is buffer and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks


def test_a_model_without_numbers_is_recorded() -> None:
    """On the meta device; its weights are small random ones for the run."""
    with torch.device("meta"):
        model = EarlyExit().eval()
    text = trace_model(model, [parse_input("float32[3,4]")]).text
    assert "last: {op: linear" in text and model.a.weight.device.type == "meta"


class Changes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        if x.sum() > 1e6:
            return x
        self.a.weight.mul_(0.5)
        return self.a(x)


class Raises(nn.Module):
    def forward(self, x):
        if x.sum() < 1e6:
            raise ValueError("these are too small\nfor me")
        return x


class Nothing(nn.Module):
    def forward(self, x):
        return "nothing" if x.sum() < 1e6 else x


@pytest.mark.parametrize(
    ("make", "message", "code"),
    [
        (Changes, "it changes its parameter 'a.weight' while it runs", "self.a.weight.mul_(0.5)"),
        (Raises, "these are too small", "raise ValueError"),
        (Nothing, "its result, a str, holds no tensors", None),
    ],
)
def test_what_cannot_be_recorded(make: Callable[[], nn.Module], message: str, code: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        trace_model(make(), [parse_input("float32[2,4]")], origin="net:make")
    said = str(caught.value)
    assert said.startswith("net:make: torch.export cannot trace it (test_trace_recorded.py:") and "\n" not in said
    assert message in said
    if code is not None:
        lines = Path(__file__).read_text(encoding="utf-8").splitlines()
        place = re.search(r"nor does it run \(test_trace_recorded.py:(\d+)\)", said)
        assert place is not None and code in lines[int(place[1]) - 1]
