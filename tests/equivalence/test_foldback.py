"""Folding back sees every number: one that is changed is reported, or it changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli.checkpoint.source import Open, tensor_source
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.jobs.record import fold_back_record
from netgrow_cli.proof.foldback import FoldBack, fold_back
from netgrow_cli.surgery.change import WidthChange, expand, merge, prune, split
from netgrow_cli.surgery.edit import apply_edit
from netgrow_cli.surgery.plan import Plan, make_plan
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.run import run
from netgrow_cli.topology.solve import solve
from tests.equivalence.edits import randomise, save
from tests.equivalence.networks import build
from tests.equivalence.test_surgery_exact import MLP, Mlp, Normed, normed

Tensors = dict[str, torch.Tensor]


def sources(read: Callable[[str], torch.Tensor]) -> Open:
    return lambda name: tensor_source(read(name))


def folded(network: Network, plan: Plan, new: Tensors) -> FoldBack:
    return fold_back(network.solved(), plan, *map(sources, (network.read, new.__getitem__)))


def planned(path: Path, choose: Callable[[list[tuple[int, int]]], list[WidthChange]]) -> tuple[Network, Plan, Tensors]:
    """A network of tensors in memory, a plan for it, and what it makes."""
    with opened(path, Options()) as job:
        old = {name: job.checkpoint.read(name).clone() for name in job.checkpoint.tensors}
        network = Network(job.network.graph, dict(job.checkpoint.tensors), old.__getitem__)
    topology = network.solved()
    free = [(i.width.id, i.size) for i in topology.widths.values() if i.frozen is None]
    plan = make_plan(topology, network.infos, choose(free))
    new = {name: apply_edit(t, plan.edits[name], 1) if name in plan.edits else t.clone() for name, t in old.items()}
    return network, plan, new


def corrupt(new: Tensors, name: str, place: int, how: str) -> Tensors:
    tensor = new[name].clone()
    flat = tensor.view(-1)
    flat[place] = {"nan": float("nan"), "more": float(flat[place]) * 1.5 + 0.25, "less": float(flat[place]) - 3.0}[how]
    return {**new, name: tensor}


PLANS: dict[str, Callable[[list[tuple[int, int]]], list[WidthChange]]] = {
    "expand": lambda free: [expand(w, n, 2) for w, n in free],
    "antisymmetric": lambda free: [expand(w, n, 3, "antisymmetric") for w, n in free],
    "split": lambda free: [split(w, n, [0, n - 1], 0.2, 3) for w, n in free],
    "twins": lambda free: [split(w, n, list(range(n)), 0.0) for w, n in free],
}


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("kind", PLANS)
def test_every_single_number_of_an_mlp(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).to(dtype).state_dict())
    network, plan, new = planned(path, PLANS[kind])
    good = folded(network, plan, new)
    assert good.whole and not good.differing and good.exact == 4
    unseen = 0
    for name, tensor in new.items():
        for place in range(tensor.numel()):
            for how in ("more", "nan"):
                result = folded(network, plan, corrupt(new, name, place, how))
                if name not in result.differing:
                    assert how != "nan", f"{name} {place}"
                    unseen += 1
    # Only fresh rows, which nothing reads, may hold any number; pairs hold the same one.
    fresh = {"expand": 2, "antisymmetric": 1}.get(kind, 0)
    assert unseen == 4 * fresh


@pytest.mark.parametrize("kind", ("layer_norm", "rms_norm"))
def test_every_single_number_under_a_norm(tmp_path: Path, kind: str) -> None:
    """Here readers of new units start at random, and all rests on how the units were made."""
    made = nn.LayerNorm(6) if kind == "layer_norm" else nn.RMSNorm(6, 1e-5)
    path = save(tmp_path, normed(f"op: {kind}, eps: 0.00001"), randomise(Normed(made)).state_dict())
    network, plan, new = planned(path, PLANS["expand"])
    good = folded(network, plan, new)
    assert not good.differing and good.left == ("norm.weight",)
    for name, tensor in new.items():
        for place in range(tensor.numel()):
            result = folded(network, plan, corrupt(new, name, place, "more"))
            is_reader = name == "b.weight" and place % 8 >= 6
            assert (name in result.differing) is not is_reader, f"{name} {place}"


def test_random_networks(tmp_path: Path) -> None:
    """A number that folding back lets pass leaves the outputs as they are."""
    caught = passed = 0
    for seed in range(40):
        built, rng = build(seed), random.Random(seed)
        state = {name: t.double() if t.is_floating_point() else t for name, t in built.state.items()}
        path = save(tmp_path / str(seed), built.text, state)

        def choose(free: list[tuple[int, int]], rng: random.Random = rng) -> list[WidthChange]:
            width, size = rng.choice(free)
            units = rng.sample(range(size), rng.randint(1, size))
            kinds = expand(width, size, 2), expand(width, size, 2, "antisymmetric"), split(width, size, units, 0.2)
            return [rng.choice(kinds)]

        try:
            network, plan, new = planned(path, choose)
        except (netgrow_cli.Refused, IndexError):
            continue
        assert not folded(network, plan, new).differing
        with opened(path, Options()) as job:
            graph = job.network.graph
        if plan.spec:  # numbers in the spec would have to follow to run it
            continue
        infos = {
            name: type(info)(name, plan.shape(network.solved(), info), info.dtype, info.tied_to)
            for name, info in network.infos.items()
        }
        topology = solve(graph, infos, sizes={"batch": 7})
        given = dict(zip(built.inputs, built.data(5), strict=True))
        plain = run(topology, new.__getitem__, given, dtype=torch.float64)
        for _ in range(12):
            pool = list(plan.edits) if rng.random() < 0.7 else [n for n, t in new.items() if t.is_floating_point()]
            name = rng.choice(pool)
            bad = corrupt(new, name, rng.randrange(new[name].numel()), rng.choice(("more", "less")))
            if name.endswith("running_var"):
                bad[name].abs_()
            if folded(network, plan, bad).differing:
                caught += 1
                continue
            passed += 1
            after = run(topology, bad.__getitem__, given, dtype=torch.float64)
            for one, other in zip(plain, after, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
    assert caught > 120
    assert passed > 5


def test_dropped_and_merged_units_are_left_to_probes_but_not_unchecked(tmp_path: Path) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).state_dict())
    for choose in (lambda free: [prune(*free[0], [1])], lambda free: [merge(*free[0], [(4, 1, 1.0)])]):
        network, plan, new = planned(path, choose)
        good = folded(network, plan, new)
        assert not good.differing and not good.whole
        assert set(good.left) == {"a.weight", "a.bias", "b.weight"}
        for name, tensor in new.items():
            for place in range(tensor.numel()):
                assert folded(network, plan, corrupt(new, name, place, "more")).differing == (name,)


# -- by the record that goes with an output ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", (".pt", ".safetensors"))
def test_by_the_record(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).state_dict(), f"net{suffix}")
    out = netgrow_cli.split(path, layer="a", units=[1, 2], probes=16).output
    result, rounds = by_record(path, out)
    assert result is not None and result.whole and result.exact == 4 and not rounds


def by_record(old: Path, new: Path) -> tuple[FoldBack | None, bool]:
    with opened(old, Options()) as one, opened(new, Options()) as other:
        found = fold_back_record(one, other.checkpoint, new)
    return (found.folded, found.rounds) if found is not None else (None, False)


@pytest.mark.parametrize("name", ("a.weight", "a.bias", "b.weight", "b.bias"))
def test_a_change_behind_the_record_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).state_dict())
    out = netgrow_cli.split(path, layer="a", units=[1, 2], probes=16).output
    state = torch.load(out, weights_only=True)
    state[name].view(-1)[-1] += 1
    torch.save(state, out)
    result, _ = by_record(path, out)
    assert result is not None and result.differing == (name,)


def test_a_record_of_another_checkpoint_says_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).state_dict())
    out = netgrow_cli.split(path, layer="a", units=[1, 2], probes=16).output
    twice = netgrow_cli.expand(out, layer="a", add=1, probes=16).output
    assert by_record(path, twice)[0] is None


def test_a_lossy_prune_under_a_norm_is_read_as_it_was_made(tmp_path: Path) -> None:
    module = randomise(Normed(nn.RMSNorm(6, 1e-5)))
    path = save(tmp_path, normed("op: rms_norm, eps: 0.00001"), module.state_dict())
    out = netgrow_cli.prune(path, layer="a", units=[1], allow_drift=100.0, probes=16).output
    result, _ = by_record(path, out)
    assert result is not None and not result.differing
