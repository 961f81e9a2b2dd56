"""Parameters as operands of products, and mixtures of experts as people write them, traced into layers with roles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netgrow_cli
from netgrow_cli.errors import NotEquivalent, Refused
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model

from .toys import started

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

PROBES = 12
TOKENS = ("float32[2,5,4]",)


class Held(nn.Module):
    """`first` makes six units of four, `second` reads them; the weights are parameters of the module itself."""

    def __init__(self, how: Callable[[Held, torch.Tensor], torch.Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.how, self.a, self.out = how, nn.Linear(4, 6), nn.Linear(5, 2)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x):
        return self.out(torch.tanh(self.how(self, torch.tanh(self.a(x)))))


@dataclasses.dataclass(frozen=True)
class Product:
    """A way to apply parameters to (batch, 5, 6) that gives (batch, 5, 5).

    free: widths that may change. refused: not as the effects say. coded: numbers of the code follow some of them.
    """

    name: str
    how: Callable[[Any, torch.Tensor], torch.Tensor]
    shapes: dict[str, tuple[int, ...]]
    free: list[int] = dataclasses.field(default_factory=lambda: [5, 6])
    refused: bool = False
    coded: bool = False

    def __str__(self) -> str:
        return self.name

    def make(self) -> nn.Module:
        return Held(self.how, **self.shapes)


W, T = {"w": (6, 5)}, {"w": (5, 6)}
PRODUCTS = [
    Product("x @ w", lambda m, x: x @ m.w, W),
    Product("x @ w.T", lambda m, x: x @ m.w.T, T),
    Product("w @ x", lambda m, x: (m.w @ x.mT).mT, T),
    Product("torch.mm", lambda m, x: torch.mm(x.flatten(0, 1), m.w).unflatten(0, (-1, 5)), W),
    Product("einsum", lambda m, x: torch.einsum("bti,io->bto", x, m.w), W),
    Product("einsum, weight first", lambda m, x: torch.einsum("oi,bti->bto", m.w, x), T),
    Product("heads", lambda m, x: torch.einsum("bti,hio->bhto", x, m.w).sum(1), {"w": (3, 6, 5)}, [3, 5, 6]),
    Product("a vector", lambda m, x: (x * (x @ m.v)[..., None]) @ m.w, {**W, "v": (6,)}),
    Product("gain", lambda m, x: (x * m.gain) @ m.w, {**W, "gain": (6,)}),
    Product("addmm", lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w).unflatten(0, (-1, 5)), {**W, "b": (5,)}),
    Product(
        "addmm, turned", lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w.t()).unflatten(0, (-1, 5)), {**T, "b": (5,)}
    ),
    Product("baddbmm", lambda m, x: torch.baddbmm(m.b, x, m.w.expand(len(x), -1, -1)), {**W, "b": (5,)}),
    Product("bmm", lambda m, x: torch.bmm(x.transpose(0, 1), m.w).transpose(0, 1), {"w": (5, 6, 5)}),
    Product("sum of weights", lambda m, x: F.linear(x, m.w + 0.5 * m.v), {**T, "v": (5, 6)}),
    Product("low rank", lambda m, x: F.linear(x, m.w + (m.p @ m.q) * 2.0), {**T, "p": (5, 3), "q": (3, 6)}, [3, 5, 6]),
    Product("parts of a weight", lambda m, x: sum(F.linear(x, w) for w in m.w.chunk(2)), {"w": (10, 6)}),
    Product("range", lambda m, x: F.linear(x, m.w[2:7], m.b[2:7]), {"w": (9, 6), "b": (9,)}, [2, 2, 5, 6], coded=True),
    Product("one of several", lambda m, x: x @ m.w[1] + F.linear(x, m.w[0].T), {"w": (3, 6, 5)}),
    Product("weight and mask", lambda m, x: F.linear(x, m.w * m.mask), {**T, "mask": (5, 6)}, refused=True),
]  # fmt: skip


class Experts(nn.Module):
    """A mixture of experts: each token goes through the two experts that the router likes best."""

    def __init__(self, gated: bool = False, stream: int = 6, inner: int = 7) -> None:
        super().__init__()
        self.into, self.router, self.out = nn.Linear(4, stream), nn.Linear(stream, 3), nn.Linear(stream, 2)
        self.up = nn.Parameter(torch.zeros(3, 2 * inner if gated else inner, stream))
        self.up_bias = nn.Parameter(torch.zeros(3, 2 * inner if gated else inner))
        self.down = nn.Parameter(torch.zeros(3, stream, inner))
        self.gated = gated

    def chosen(self, x):
        weights, index = torch.topk(self.router(x), 2, dim=-1)
        return weights.softmax(-1), index

    def inner(self, y):
        if not self.gated:
            return F.gelu(y)
        return F.silu(y[..., ::2]) * y[..., 1::2]


class Gathered(Experts):
    """With the weights of the experts of each token."""

    def forward(self, x):
        x = self.into(x)
        weights, index = self.chosen(x)
        y = torch.einsum("btkoi,bti->btko", self.up[index], x) + self.up_bias[index]
        y = torch.einsum("btkio,btko->btki", self.down[index], self.inner(y))
        return self.out(x + (y * weights.unsqueeze(-1)).sum(2))


class Batched(Experts):
    """All experts for all tokens, those that were not chosen times zero."""

    def forward(self, x):
        x = self.into(x)
        weights, index = self.chosen(x)
        share = torch.zeros_like(self.router(x)).scatter(-1, index, weights)
        y = self.inner(torch.einsum("bti,eoi->bteo", x, self.up) + self.up_bias)
        y = torch.einsum("bteo,eio->btei", y, self.down)
        return self.out(x + (y * share[..., None]).sum(2))


class Sorted(Experts):
    """Tokens in the order of their experts, as grouped products take them."""

    def forward(self, x):
        shape = x.shape[:-1]
        x = self.into(x).flatten(0, 1)
        weights, index = self.chosen(x)
        flat = index.flatten()
        expert, order = torch.sort(flat)
        ends = torch.cumsum(F.one_hot(flat, 3).sum(0), 0, dtype=torch.int32)
        y = x.repeat_interleave(2, 0)[order]
        y = self.inner(torch._grouped_mm(y, self.up.transpose(1, 2), ends) + self.up_bias[expert])
        y = torch._grouped_mm(y, self.down.transpose(1, 2), ends) * weights.flatten()[order][:, None]
        x = x + torch.zeros_like(x).index_add(0, order // 2, y)
        return self.out(x.unflatten(0, shape))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", [Gathered, Batched])
def test_mixtures_of_experts(kind: type[Experts], gated: bool, tmp_path: Path) -> None:
    model = started(lambda: kind(gated))
    traced = trace_model(model, [parse_input(text) for text in TOKENS])
    assert traced.unknown == {} and traced.warnings == ()
    check(model, lambda: kind(gated), traced.text, tmp_path, [6, 7])
    with opened(tmp_path / "model.pt", Options(spec=tmp_path / "model.yaml")) as job:
        why = [str(info.frozen) for info in job.topology.widths.values() if info.size == 3]
    assert why and all("works along it" in reason for reason in why)


def test_a_constant_unit_of_experts_is_not_folded(tmp_path: Path) -> None:
    """What it gives depends on the expert, which no bias behind it can say; a unit that is zero may go."""
    model = started(Gathered)
    spec, checkpoint = tmp_path / "model.yaml", tmp_path / "model.pt"
    spec.write_text(trace_model(model, [parse_input(text) for text in TOKENS]).text, encoding="utf-8")
    with torch.no_grad():
        model.up[:, 2:4] = 0.0
        model.up_bias[:, 2], model.up_bias[:, 3] = 3.0, 0.0
    torch.save(model.double().state_dict(), checkpoint)
    with opened(checkpoint, Options(spec=spec)) as job:
        inner = next(info.name for info in job.topology.widths.values() if info.size == 7)
    with pytest.raises(NotEquivalent):
        netgrow_cli.prune(checkpoint, width=inner, units=[2], spec=spec, output=tmp_path / "o.pt", probes=PROBES)
    report = netgrow_cli.prune(checkpoint, width=inner, units=[3], spec=spec, output=tmp_path / "o.pt", probes=PROBES)
    assert report.equivalence is not None and report.equivalence.equal


def test_grouped_products_of_experts(tmp_path: Path) -> None:
    """In float32 and recorded: torch runs them in no more than that, and exports them in bfloat16 alone."""
    model = started(lambda: Sorted(True, 8, 12))
    traced = trace_model(model, [parse_input(f"float32[{PROBES},5,4]")])
    assert set(traced.unknown) <= {"aten.cumsum.default", "aten.sum.dim_IntList", "aten.floor_divide.default"}
    (tmp_path / "model.yaml").write_text(traced.text, encoding="utf-8")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with opened(tmp_path / "model.pt", Options(spec=tmp_path / "model.yaml")) as job, torch.no_grad():
        sizes, inputs = next(iter(job.probes(PROBES, 1).batches(torch.float32)))
        found = job.network.outputs(dict(sizes), inputs, torch.float32)[0]
        close(found, model(inputs["x"]), 1e-5)
        certified = certify(job.network, job.probes(PROBES, 0), seed=0, dtype="float64", tolerance=1e-12)
        free = sorted(info.size for info in job.topology.widths.values() if info.frozen is None)
    assert certified.equivalence.equal and not certified.equivalence.constant and free == [8, 12]


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_parameters_in_products(product: Product, tmp_path: Path) -> None:
    model = started(product.make)
    traced = trace_model(model, [parse_input(text) for text in TOKENS])
    assert traced.unknown == {} and traced.warnings == ()
    check(model, product.make, traced.text, tmp_path, product.free, product.refused, product.coded)


def check(
    model: nn.Module,
    make: Callable[[], nn.Module],
    text: str,
    folder: Path,
    free: list[int],
    refused: bool = False,
    coded: bool = False,
) -> None:
    """The spec is the model, its units may be permuted, and every width changes in the model's own code."""
    spec, checkpoint = folder / "model.yaml", folder / "model.pt"
    spec.write_text(text, encoding="utf-8")
    torch.save(model.double().state_dict(), checkpoint)
    with opened(checkpoint, Options(spec=spec)) as job, torch.no_grad():
        sizes, inputs = next(iter(job.probes(PROBES, 1).batches(torch.float64)))
        x = inputs["x"]
        before = model(x)
        close(job.network.outputs(dict(sizes), inputs, torch.float64)[0], before)
        found = certify(job.network, job.probes(PROBES, 0), seed=0, dtype="float64", tolerance=1e-12)
        assert found.equivalence.equal and not found.equivalence.constant, found.culprits
        widths = [info for info in job.topology.widths.values() if info.frozen is None]
        assert sorted(info.size for info in widths) == free
        assert job.topology.unclaimed == ()
    for info in widths:
        for command, how in (("expand", {"add": 2}), ("split", {"units": [0]})):
            output = folder / f"{command}.pt"
            try:
                report = getattr(netgrow_cli, command)(
                    checkpoint, width=info.name, spec=spec, output=output, probes=PROBES, force=True, **how
                )
            except Refused:
                assert info.effects or refused, f"{command} of {info.name}"
                continue
            assert report.equivalence is not None and report.equivalence.equal
            if coded and report.as_json()["model_code"]:
                continue
            changed = netgrow_cli.fit(started(make).double(), output)
            with torch.no_grad():
                close(changed(x), before, 1e-10)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
