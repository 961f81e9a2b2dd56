"""Pieces accept what is equal, see every number that matters, and read one layer at a time."""

from __future__ import annotations

import collections
import dataclasses
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netgrow_cli.checkpoint.source import ArraySource
from netgrow_cli.errors import Refused, SpecError
from netgrow_cli.proof import run_pieces
from netgrow_cli.proof.drawable import Drawable
from netgrow_cli.proof.equivalence import Equivalence
from netgrow_cli.proof.pieces import CannotTell, Edited, cut
from netgrow_cli.surgery.change import WidthChange, expand, split
from netgrow_cli.surgery.select import keeping_ties
from netgrow_cli.topology import library, rows
from netgrow_cli.topology.graph import Ref
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.solve import Topology
from tests.equivalence.edits import edit, randomise
from tests.equivalence.test_attention_exact import Partial, traced, width
from tests.proof.changed import Changed, blocks, change
from tests.topology.networks import conv, layer, linear, network
from tests.topology.test_soundness import NETWORKS, made

ROWS = 16


def expanding(topology: Topology, name: str) -> list[WidthChange]:
    info = topology.by_name(name)
    assert info is not None
    more = keeping_ties(topology, {info.width.id: 2})
    return [expand(width, topology.widths[width].size, add) for width, add in more.items()]


def splitting(topology: Topology, name: str) -> list[WidthChange]:
    info = topology.by_name(name)
    assert info is not None
    more = keeping_ties(topology, {info.width.id: info.size})
    if any(topology.widths[width].size != add for width, add in more.items()):
        raise Refused("tied to another size")
    return [split(width, size, range(size), 0.2) for width, size in more.items()]


def changes_of(name: str) -> list[Changed]:
    """All single changes of a toy network that are not refused."""
    toy, found = made(name), []
    for free in toy.free():
        for how in (expanding, splitting):
            try:
                found.append(change(toy, lambda topology, how=how, free=free: how(topology, free)))  # type: ignore[misc]
            except (Refused, SpecError):  # (a toy's numbers in the code may not follow)
                continue
    return found


# -- accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_changes_are_accepted(name: str) -> None:
    for changed in changes_of(name):
        if changed.whole(3).equal:
            found = changed.pieces(3)
            # (In some of these networks what may change is read by no output.)
            assert found.equal and (found.pieces or name.endswith("but the batch")), found


def test_what_differs_between_layers_belongs_to_a_piece_that_grew(tmp_path: Path) -> None:
    """Rows that hold no changed width are rescaled, since attention divides by the root of the new size."""
    module = randomise(Partial()).double()
    text = traced(module)
    free = width(tmp_path, text, module, 3)
    report = edit(tmp_path, text, module, "expand", width=free, add=2, proof="pieces").report
    assert report.equivalence is not None and report.equivalence.mode == "pieces" and report.equivalence.equal


# -- in numpy -----------------------------------------------------------------------------------------------


def in_torch(changed: Changed, edited: Edited | None = None) -> Equivalence:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_pieces, "knows_all", lambda found: False)
        return changed.pieces(3, edited)


@pytest.mark.parametrize("how", ["expanded", "copied"])
@pytest.mark.parametrize("large", [1, 1 << 21])
def test_changed_units_alone_are_the_same_in_numpy_and_torch(
    how: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LARGE", large)
    one = expanding if how == "expanded" else splitting
    changed = change(blocks(3), lambda topology: [item for n in range(3) for item in one(topology, f"gate{n}")])
    for both in (changed, changed.corrupted("down2.weight", 7)):
        here, there = both.pieces(3, changed.confirmed), in_torch(both, changed.confirmed)
        assert here.by_units == there.by_units == (2 if both is changed else 1)
        assert here.equal == there.equal == (both is changed)
        assert here.max_rel == pytest.approx(there.max_rel, rel=1e-9, abs=1e-12)


def test_operations_take_one_thread_each() -> None:
    getting, setting = library.blas_threads()
    before = getting()
    try:
        setting(2)
        known = getting() == 2  # (whether numpy's library is one that can be told)
        with library.one_thread(np.dtype(np.float64)):
            assert getting() == 1
        assert getting() == (2 if known else 1)
    finally:
        setting(before)


@pytest.mark.parametrize("name", NETWORKS)
def test_numpy_and_torch_find_the_same_differences(name: str) -> None:
    rng, compared = random.Random(1), 0
    for changed in changes_of(name)[:3]:
        edits = [tensor for tensor in changed.plan.edits if changed.tensors[tensor].is_floating_point()]
        wrong = [changed.corrupted(tensor, rng.randrange(changed.tensors[tensor].numel())) for tensor in edits[:2]]
        for one in (changed, *wrong):
            here, there = one.pieces(3), in_torch(one)
            assert here.max_rel == pytest.approx(there.max_rel, rel=1e-9, abs=1e-12)
            assert (here.equal, here.pieces, here.where) == (there.equal, there.pieces, there.where)
            compared += 1
    assert compared or not changes_of(name)


@pytest.mark.parametrize("op", ["silu", "rms_norm"])
def test_what_numpy_does_not_know_is_run_in_torch(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is in the piece from the start, or met only when the piece grows."""
    used: list[str] = []
    monkeypatch.setattr(run_pieces, "torch_dtype", lambda name: used.append(name) or torch.float64)
    wrong = change(blocks(3), one_block).corrupted("down1.weight", 6)
    here = wrong.pieces()
    assert not here.equal and not used
    monkeypatch.setitem(OPS, op, dataclasses.replace(OPS[op], numpy=None))
    there = wrong.pieces()
    assert used == ["float64"] and there.where == here.where
    assert there.max_rel == pytest.approx(here.max_rel, rel=1e-9)


# -- refused ------------------------------------------------------------------------------------------------


CORRUPTED = [
    "add of two layers",
    "mul of two layers",
    "prelu of an image",
    "embedding",
    "conv2d",
    "grouped conv_transpose2d",
    "depthwise conv2d",
    *(
        name
        for name in NETWORKS
        if name.startswith(("lstm", "gru", "rms_norm", "layer_norm", "group_norm", "attention"))
    ),
]


@pytest.mark.parametrize("name", CORRUPTED)
def test_a_number_that_the_whole_network_sees_is_seen_in_pieces(name: str) -> None:
    rng, seen = random.Random(0), 0
    for changed in changes_of(name):
        if not changed.whole(ROWS).equal:
            continue
        for tensor in changed.plan.edits:
            for _ in range(2):
                wrong = changed.corrupted(tensor, rng.randrange(changed.tensors[tensor].numel()))
                if not wrong.whole(ROWS).equal:
                    assert not wrong.pieces(ROWS).equal, tensor
                    seen += 1
    assert seen or not changes_of(name)


def one_block(topology: Topology) -> list[WidthChange]:
    return expanding(topology, "gate1")


def all_blocks(topology: Topology) -> list[WidthChange]:
    return [item for n in range(3) for item in expanding(topology, f"gate{n}")]


def test_a_piece_is_the_layers_that_changed() -> None:
    changed = change(blocks(3), one_block)
    found = cut(changed.old.solved(), changed.new.solved(), changed.edited)
    (piece,) = (found.piece(part) for part in found.parts)
    assert piece.layers == ("gate1", "up1", "down1")
    assert piece.drawn == (Ref("norm1"),) and piece.outputs == (Ref("down1"),) and not piece.context
    wrong = changed.corrupted("down1.weight", 6).pieces()
    assert not wrong.equal and wrong.where == "the piece around gate1, up1, down1"


def test_pieces_alike_are_compared_by_the_units_that_changed() -> None:
    changed = change(blocks(3), all_blocks)
    found = changed.pieces(edited=changed.confirmed)
    assert found.equal and found.pieces == 3 and found.by_units == 2
    assert changed.pieces().by_units == 0
    fresh = [row * 8 + column for row in range(4) for column in (6, 7)]
    for tensor in ("down0.weight", "down1.weight", "down2.weight"):
        for place in fresh:
            wrong = changed.corrupted(tensor, place).pieces(edited=changed.confirmed)
            assert not wrong.equal and tensor[:5] in wrong.where


def test_pieces_alike_whose_units_were_copied() -> None:
    def copied(topology: Topology) -> list[WidthChange]:
        return [item for n in range(3) for item in splitting(topology, f"gate{n}")]

    changed = change(blocks(3), copied)
    assert changed.pieces(edited=changed.confirmed).by_units == 2
    for tensor in ("gate2.weight", "up2.weight", "down2.weight"):
        for place in range(0, changed.tensors[tensor].numel(), 5):
            assert not changed.corrupted(tensor, place).pieces(edited=changed.confirmed).equal


def test_units_that_have_a_part_in_each_other_are_not_taken_apart() -> None:
    """A softmax over other units, a norm, a reader that another layer of the piece reads: all is run."""
    layers = {}
    for n, source in enumerate(("x", "out0")):
        layers |= {
            f"a{n}": linear(source, 4, 6),
            f"norm{n}": layer("normalize", f"a{n}", axis=-1),
            f"out{n}": linear(f"norm{n}", 6, 4),
        }
    toy = network(layers, {"x": ["batch", 4]}, ["out1"])
    changed = change(toy, lambda topology: [*expanding(topology, "a0"), *expanding(topology, "a1")])
    found = changed.pieces(edited=changed.confirmed)
    assert found.equal and found.pieces == 2 and found.by_units == 0


def test_a_network_that_is_built_otherwise_cannot_be_told() -> None:
    changed = change(blocks(2), one_block)
    other = change(blocks(3), one_block)
    with pytest.raises(CannotTell, match="different numbers of layers"):
        dataclasses.replace(changed, new=other.new).pieces()


# -- what is drawn --------------------------------------------------------------------------------------------


def test_values_that_have_a_range_are_computed() -> None:
    """What reads a softmax gets one; the random numbers are those that go into it."""
    toy = network(
        {
            "a": linear("x", 4, 6),
            "soft": layer("softmax", "a"),
            "b": linear("soft", 6, 5),
            "act": layer("relu", "b"),
            "out": linear("act", 5, 2),
        },
        {"x": ["batch", 4]},
        ["out"],
    )
    changed = change(toy, lambda topology: expanding(topology, "b"))
    found = cut(changed.old.solved(), changed.new.solved(), changed.edited)
    (piece,) = (found.piece(part) for part in found.parts)
    assert [node.name for node in piece.context] == ["soft"] and piece.drawn == (Ref("a"),)


def test_integers_are_never_drawn() -> None:
    for name in NETWORKS:
        topology = made(name).topology
        drawable = Drawable(topology)
        for node in topology.graph.nodes:
            _, drawn, _ = drawable.border([Ref(node.name)], ())
            assert not any(topology.value(ref).integer for ref in drawn), name


# -- memory -----------------------------------------------------------------------------------------------------


class Recorder:
    """Reads copies of tensors, and notes which others of them still live."""

    def __init__(self, changed: Changed, side: str) -> None:
        network = getattr(changed, side)
        self.tensors = {name: network.read(name) for name in network.infos}
        self.nodes = {name: node.name for node in network.graph.nodes for name in node.params.values()}
        self.live: dict[int, tuple[str, Any]] = {}
        self.most = 0
        self.read: collections.Counter[str] = collections.Counter()

    def __call__(self, name: str) -> torch.Tensor:
        self.live = {key: item for key, item in self.live.items() if item[1]() is not None}
        assert {owner for owner, _ in self.live.values()} <= {self.nodes[name]}
        self.most = max(self.most, len(self.live) + 1)
        self.read[name] += 1
        tensor = self.tensors[name].clone()
        self.live[id(tensor)] = (self.nodes[name], weakref.ref(tensor))
        return tensor


def test_one_layer_is_in_memory_at_a_time() -> None:
    changed = change(blocks(3), all_blocks)
    both = [Recorder(changed, side) for side in ("old", "new")]
    old, new = (
        dataclasses.replace(network, read=recorder, sources=None, _solved={})
        for network, recorder in zip((changed.old, changed.new), both, strict=True)
    )
    assert dataclasses.replace(changed, old=old, new=new).pieces().equal
    for recorder in both:
        assert recorder.most == 1
        # What lies between the pieces is not read at all, and what changed is read once.
        assert recorder.read == collections.Counter(
            f"{kind}{n}.weight" for kind in ("gate", "up", "down") for n in range(3)
        )


def test_large_matrices_are_read_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """linear, linear_io and embedding give the same with blocks of a few rows as with all of the matrix."""
    monkeypatch.setattr(rows, "LARGE", 1)
    monkeypatch.setattr(rows, "BLOCK", 14)
    toy = network(
        {
            "table": layer("embedding", "tokens", {"weight": (9, 6)}),
            "a": linear("table", 6, 11),
            "b": layer("linear_io", "a", {"weight": (11, 7), "bias": (7,)}),
            "out": linear("b", 7, 3, bias=False),
        },
        {"tokens": {"shape": ["batch", "time"], "dtype": "int64", "high": 9}},
        ["out"],
    )
    changed = change(toy, lambda topology: expanding(topology, "a"))
    most: list[int] = []
    flat = ArraySource.flat

    def counted(self: ArraySource, start: int, count: int) -> Any:
        most.append(count)
        return flat(self, start, count)

    monkeypatch.setattr(ArraySource, "flat", counted)
    by_rows = outputs(changed, sources=True)
    assert most and max(most) <= 14
    torch.testing.assert_close(by_rows, outputs(changed, sources=False), rtol=1e-14, atol=1e-14)


def outputs(changed: Changed, sources: bool) -> Sequence[torch.Tensor]:
    tokens = torch.arange(15).reshape(3, 5) % 9
    old = changed.old if sources else dataclasses.replace(changed.old, sources=None)
    return old.outputs({}, {"tokens": tokens}, torch.float64)


def test_every_operation_that_reads_by_rows_is_tested() -> None:
    assert {name for name, op in OPS.items() if op.by_rows is not None} == {"linear", "linear_io", "embedding"}


def test_images_are_compared_with_the_networks_own_sizes() -> None:
    toy = network(
        {"a": conv("x", 2, 6, padding=1), "act": layer("relu", "a"), "out": conv("act", 6, 3)},
        {"x": ["batch", 2, 8, 8]},
        ["out"],
    )
    changed = change(toy, lambda topology: expanding(topology, "a"))
    assert changed.pieces().equal
    assert not changed.corrupted("out.weight", 6 * 9).pieces().equal
